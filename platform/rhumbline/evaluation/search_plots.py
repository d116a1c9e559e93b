"""Figures of a search: the front, parallel coordinates, and how every figure follows what was set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rhumbline.cards.figures import BASE, FAINT, INK, MODEL, STYLE
from rhumbline.evaluation.plots import COLOURS
from rhumbline.evaluation.search import JSON, Metrics, best, configuration, counted, front, reported, shown

BEST = "#D55E00"
ORDERS = 100.0  # values that span more are shown on a logarithmic axis
POINTS, LINES = 3, len(COLOURS)  # fewest values that make a line, most lines that can be told apart


def draw_front(trials: Sequence[JSON], metrics: Metrics, headings: Mapping[str, str]) -> Figure:
    """The first metric against the second (of a single one: against the trial's number), the front joined and named."""
    good, on = counted(trials, metrics), set(front(trials, metrics))
    names = list(metrics)
    y, x = names[0], names[1] if len(names) > 1 else None
    chosen, _ = best(trials, metrics)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 4.4), layout="constrained")
        axes = figure.add_subplot()
        places = [
            (float(trial["number"] if x is None else trial["figures"][x]), float(trial["figures"][y])) for trial in good
        ]
        front_line = sorted(place for trial, place in zip(good, places, strict=True) if trial["number"] in on)
        if x is not None and len(names) == 2:
            axes.plot(*zip(*front_line, strict=True), color=MODEL, linewidth=1.2, zorder=1)
        for trial, place in zip(good, places, strict=True):
            member = trial["number"] in on
            colour = BEST if trial is chosen else MODEL if member else BASE
            axes.plot(
                *place,
                "o",
                color=colour,
                markersize=6,
                fillstyle="full" if member else "none",
                zorder=2,
                label=f"{trial['number']}: {configuration(trial, headings)}" if member else None,
            )
            axes.annotate(
                str(trial["number"]), place, xytext=(5, 4), textcoords="offset points", fontsize=8, color=colour
            )
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7, title="the front", title_fontsize=8)
        axes.set_xlabel("trial" if x is None else _heading(x, metrics))
        axes.set_ylabel(_heading(y, metrics))
        axes.margins(x=0.08, y=0.08)
    return figure


def draw_parallel(trials: Sequence[JSON], metrics: Metrics, headings: Mapping[str, str]) -> Figure:
    """One vertical axis per searched key and per metric, one line per counted trial. Metrics are turned so that up is better."""
    good, on = counted(trials, metrics), set(front(trials, metrics))
    chosen, _ = best(trials, metrics)
    keys = list(good[0]["point"])
    columns = [[trial["point"][key] for trial in good] for key in keys]
    columns += [[trial["figures"][name] for trial in good] for name in metrics]
    titles = [headings.get(key, key) for key in keys] + [_heading(name, metrics) for name in metrics]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(4.0, 1.9 * len(columns)), 4.2), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(visible=False)
        heights = []
        for place, values in enumerate(columns):
            name = None if place < len(keys) else list(metrics)[place - len(keys)]
            scaled, ticks = _scale(values)
            turned = name is not None and metrics[name] == "min"
            heights.append([1 - at if turned else at for at in scaled])
            _rule(axes, place, {1 - at if turned else at: text for at, text in ticks.items()})
        for trial, line in zip(good, zip(*heights, strict=True), strict=True):
            colour = BEST if trial is chosen else MODEL if trial["number"] in on else BASE
            width, order = (2.4, 3) if trial is chosen else (1.5, 2) if trial["number"] in on else (0.8, 1)
            axes.plot(range(len(columns)), line, color=colour, linewidth=width, zorder=order)
        axes.set_xticks(range(len(columns)), titles, fontsize=8)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlim(-0.3, len(columns) - 0.4)
    return figure


def draw_grid(trials: Sequence[JSON], metrics: Metrics, headings: Mapping[str, str]) -> Figure | None:
    """Every figure of the trials that count against the number that was varied most, a line for each setting of the rest.

    None where that shows nothing: no line has three points, or there are too many of them to tell apart.
    """
    good = counted(trials, metrics)
    points = [trial["point"] for trial in good]
    tried = {key: [point[key] for point in points] for key in (points[0] if points else ())}
    numeric = {key: set(values) for key, values in tried.items() if _are_numbers(values)}
    x = max(numeric, key=lambda key: len(numeric[key]), default=None)
    if x is None or len(numeric[x]) < POINTS:
        return None
    lines: dict[str, list[JSON]] = {}
    for trial in sorted(good, key=lambda trial: float(trial["point"][x])):
        rest = {key: value for key, value in trial["point"].items() if key != x}
        lines.setdefault(configuration({"point": rest}, headings), []).append(trial)
    if len(lines) > LINES or max(map(len, lines.values())) < POINTS:
        return None
    names, values = reported(good, metrics), numeric[x]
    across = min(4, len(names))
    down = math.ceil(len(names) / across)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.9 * across, 2.6 * down + 0.4), layout="constrained")
        panels = figure.subplots(down, across, squeeze=False).flat
        for panel, name in zip(panels, names, strict=False):
            for mark, colour, (label, group) in zip("osD^vP", COLOURS, lines.items(), strict=False):
                found = [(t["point"][x], t["figures"][name]) for t in group if t["figures"].get(name) is not None]
                panel.plot(*zip(*found, strict=True), color=colour, marker=mark, markersize=4, label=label or None)
            panel.set_title(name)
            panel.set_xlabel(headings.get(x, x))
            if min(values) > 0 and max(values) / min(values) >= ORDERS:
                panel.set_xscale("log")
        for panel in list(figure.axes)[len(names) :]:
            panel.set_visible(False)
        if len(lines) > 1:
            figure.legend(
                *figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(lines), fontsize=8
            )
    return figure


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _scale(values: Sequence[Any]) -> tuple[list[float], dict[float, str]]:
    """Heights in 0..1 and what to write beside them. Numbers by size, over orders of magnitude by logarithm; the rest by rank."""
    if _are_numbers(values):
        low, high = float(min(values)), float(max(values))
        if low == high:
            return [0.5] * len(values), {0.5: f"{low:.4g}"}
        if low > 0 and high / low >= ORDERS:
            at = [math.log(value / low) / math.log(high / low) for value in values]
        else:
            at = [(value - low) / (high - low) for value in values]
        distinct = {height: f"{value:.4g}" for height, value in zip(at, values, strict=True)}
        return at, distinct if len(distinct) <= 8 else {0.0: f"{low:.4g}", 1.0: f"{high:.4g}"}
    texts = [str(shown(value)) for value in values]
    order = list(dict.fromkeys(texts))
    heights = {text: 0.5 if len(order) == 1 else rank / (len(order) - 1) for rank, text in enumerate(order)}
    return [heights[text] for text in texts], {height: text for text, height in heights.items()}


def _rule(axes: Axes, place: int, ticks: Mapping[float, str]) -> None:
    axes.axvline(place, color=FAINT, linewidth=1, zorder=0)
    for height, text in ticks.items():
        axes.text(place + 0.03, height, text, fontsize=7, va="center", color=INK, zorder=4)


def _heading(name: str, metrics: Metrics) -> str:
    return f"{name} (less is better)" if metrics[name] == "min" else name
