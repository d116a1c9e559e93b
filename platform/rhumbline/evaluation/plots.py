"""The figures of a report as matplotlib figures, each with the rows that it shows. PNG for files, SVG for the page.

    for plot in draw([t0, t1, t2], initial):
        png(plot.figure), svg(plot.figure, plot.alt), plot.rows      # bytes, a string for the page, rows of its CSV

Input is JSON of `PolicyEvaluation`, in the order of iterations. Axes are turned so that up and right are better;
values stay in the objectives' own units. No global state: figures are built with `Figure`, never with pyplot.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import combinations
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cbook import boxplot_stats
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from scipy.stats import chi2

from rhumbline.cards import figures
from rhumbline.evaluation.gains import directional_gain
from rhumbline.evaluation.headline import say_unit

JSON = Mapping[str, Any]

# Readable on white and on black, told apart by colour-blind readers (Okabe and Ito), and doubled by markers.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#3B82C4", "#D55E00")
MARKERS = ("o", "s", "D", "^", "v", "P")
NEUTRAL = figures.BASE  # the initial policy
INK, FAINT = figures.INK, figures.FAINT  # replaced by the page's own colours in SVG
STYLE: Any = {**figures.STYLE, "svg.fonttype": "none", "svg.hashsalt": "rhumbline"}
png = figures.png
ELLIPSE = float(np.sqrt(chi2.ppf(0.95, 2)))  # radius of the 95% ellipse in standard deviations


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """One figure: what to call the file, what to say about it, and the numbers behind it."""

    name: str  # file name without ending
    title: str
    caption: str
    figure: Figure
    rows: list[dict[str, Any]]

    @property
    def alt(self) -> str:
        return f"{self.title}. {self.caption}"


def draw(evaluations: Sequence[JSON], initial: JSON | None = None) -> list[Plot]:
    """All figures of a report. `initial` is the initial policy, asked without a direction."""
    with matplotlib.rc_context(STYLE):
        plots = [front(evaluations, initial), requested_achieved(evaluations, initial), lengths(evaluations, initial)]
        plots += [distributions(evaluations, initial), hypervolumes(evaluations, initial)]
        if any(entry["kl"] is not None for evaluation in evaluations for entry in evaluation["directions"]):
            plots.append(reward_kl(evaluations, initial))
        return plots


def front(evaluations: Sequence[JSON], initial: JSON | None) -> Plot:
    """Mean rewards of every direction, one line per iteration, with 95% ellipses. K > 2: all pairs of objectives."""
    names = _everyone(evaluations, initial)[0]["objectives"]
    pairs = [(names[1], names[0])] if len(names) == 2 else list(combinations(names, 2))
    columns = 1 if len(pairs) == 1 else min(3, len(pairs))
    lines = -(-len(pairs) // columns)
    figure = Figure(figsize=(5.6, 4.0) if len(pairs) == 1 else (3.4 * columns, 3.0 * lines), layout="constrained")
    rows: list[dict[str, Any]] = []
    for place, (x, y) in enumerate(pairs):
        axes = figure.add_subplot(lines, columns, place + 1)
        for evaluation, colour, marker in _styled(evaluations, initial):
            entries = evaluation["directions"]
            points = [(entry["rewards"][x]["value"], entry["rewards"][y]["value"]) for entry in entries]
            if len(names) == 2:  # along the arc; with more objectives the order of directions means nothing
                axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.2, alpha=0.8)
            for entry, point in zip(entries, points, strict=True):
                axes.plot(*point, marker, color=colour, markersize=5, fillstyle="full" if entry["pareto"] else "none")
                _ellipse(axes, point, entry["covariance"], names.index(x), names.index(y), colour)
            axes.plot([], [], marker, color=colour, label=evaluation["label"])
        _orient(axes, x, y, _signs(evaluations, initial))
        if place == 0:
            axes.legend(fontsize=9)
    for evaluation in _everyone(evaluations, initial):
        for entry in evaluation["directions"]:
            rows.append(_row(evaluation, entry) | _columns(entry["rewards"]) | {"pareto": entry["pareto"]})
    return Plot(
        name="front",
        title="Front per iteration",
        caption="Each point is the mean reward vector of one direction over the held-out prompts, with its 95% ellipse "
        "from resampling prompts. Up and right is better. Hollow points are dominated within their iteration.",
        figure=figure,
        rows=rows,
    )


def requested_achieved(evaluations: Sequence[JSON], initial: JSON | None) -> Plot:
    """Requested angle (K = 2) or weight against the achieved mean of every objective."""
    names = _everyone(evaluations, initial)[0]["objectives"]
    by_angle = len(names) == 2
    figure = Figure(figsize=(5.6, 2.1 * len(names) + 0.4), layout="constrained")
    rows: list[dict[str, Any]] = []
    for k, name in enumerate(names):
        axes = figure.add_subplot(len(names), 1, k + 1)
        for evaluation, colour, marker in _styled(evaluations, None):
            entries = [entry for entry in evaluation["directions"] if entry["vector"] is not None]
            entries = entries if by_angle else sorted(entries, key=lambda entry: entry["vector"][k])
            xs = [entry["angle_deg"] if by_angle else entry["vector"][k] for entry in entries]
            _line(axes, xs, [entry["rewards"][name] for entry in entries], colour, marker, evaluation["label"])
            for x, entry in zip(xs, entries, strict=True):
                rows.append(_row(evaluation, entry) | {"objective": name, "requested": x} | entry["rewards"][name])
        if initial is not None:
            _level(axes, initial["directions"][-1]["rewards"][name], initial["label"])
        axes.set_ylabel(name)
        axes.set_xlabel("requested angle, degrees" if by_angle else f"requested weight of {name}")
        if k == 0:
            axes.legend(fontsize=9, ncols=2)
    return Plot(
        name="requested_achieved",
        title="Requested against achieved",
        caption="What was asked for, and the mean of each objective that came back, with 95% intervals. A model that "
        "is steered moves along the requested axis.",
        figure=figure,
        rows=rows,
    )


def lengths(evaluations: Sequence[JSON], initial: JSON | None) -> Plot:
    """Response tokens per direction."""
    names = _everyone(evaluations, initial)[0]["objectives"]
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    rows: list[dict[str, Any]] = []
    for evaluation, colour, marker in _styled(evaluations, None):
        entries = [entry for entry in evaluation["directions"] if entry["vector"] is not None]
        xs = [entry["angle_deg"] if len(names) == 2 else place + 1 for place, entry in enumerate(entries)]
        joined = len(names) == 2
        _line(axes, xs, [entry["length"] for entry in entries], colour, marker, evaluation["label"], joined=joined)
    for evaluation in _everyone(evaluations, initial):
        for entry in evaluation["directions"]:
            rest = {key: entry[key] for key in ("finished_share", "n")}
            rows.append(_row(evaluation, entry) | entry["length"] | rest)
    if initial is not None:
        _level(axes, initial["directions"][-1]["length"], initial["label"])
    axes.set_ylim(bottom=0)
    axes.set_ylabel("response tokens")
    axes.set_xlabel("requested angle, degrees" if len(names) == 2 else "direction, in the order of the table")
    axes.legend(fontsize=9)
    return Plot(
        name="lengths",
        title="Response length per direction",
        caption="Mean response tokens, the end token included, with 95% intervals.",
        figure=figure,
        rows=rows,
    )


def distributions(evaluations: Sequence[JSON], initial: JSON | None) -> Plot:
    """Box plots of every objective over the prompts, per policy, where it was asked for most and where least.

    As Khan 2024, figure 24, has them for its two rewards.
    """
    everyone = ([] if initial is None else [initial]) + list(evaluations)
    names = everyone[0]["objectives"]
    styles = {id(evaluation): colour for evaluation, colour, _ in _styled(evaluations, initial)}
    figure = Figure(figsize=(5.6, 2.4 * len(names) + 0.4), layout="constrained")
    rows: list[dict[str, Any]] = []
    for k, name in enumerate(names):
        axes = figure.add_subplot(len(names), 1, k + 1)
        for place, evaluation in enumerate(everyone):
            ends = _ends(evaluation, k)
            for d, asked, shift in zip(ends, ("most", "least"), (-0.17, 0.17), strict=False):
                answers_P = np.array([cell[k] for cell in evaluation["per_prompt"]["rewards"][d]], dtype=np.float64)
                (box,) = boxplot_stats(answers_P[np.isfinite(answers_P)])
                _box(axes, box, place + (shift if len(ends) > 1 else 0.0), styles[id(evaluation)], asked == "most")
                asked_for = {"objective": name, "asked": asked if len(ends) > 1 else ""}
                rows.append(_row(evaluation, evaluation["directions"][d]) | asked_for | _quartiles(box, answers_P))
        axes.set_xticks(range(len(everyone)), [evaluation["label"] for evaluation in everyone])
        axes.set_xlim(-0.6, len(everyone) - 0.4)
        axes.set_ylabel(name)
        axes.grid(axis="x", visible=False)
    return Plot(
        name="distributions",
        title="Spread of rewards over prompts",
        caption="A box holds the middle half of the held-out prompts, its line is the median and the diamond the mean; whiskers "
        "reach the farthest prompt within one and a half boxes, dots lie beyond. A prompt counts by the mean of its answers. "
        "Filled: the direction that asks for most of the objective; hollow: for least.",
        figure=figure,
        rows=rows,
    )


def hypervolumes(evaluations: Sequence[JSON], initial: JSON | None) -> Plot:
    """Hypervolume over iterations, the initial policy first."""
    everyone = ([] if initial is None else [initial]) + list(evaluations)
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    styles = {id(evaluation): (colour, marker) for evaluation, colour, marker in _styled(evaluations, initial)}
    for place, evaluation in enumerate(everyone):
        colour, marker = styles[id(evaluation)]
        _line(axes, [place], [evaluation["hypervolume"]], colour, marker, None)
    values = [evaluation["hypervolume"]["value"] for evaluation in everyone]
    axes.plot(range(len(everyone)), values, color=NEUTRAL, linewidth=1, zorder=1)
    axes.set_xticks(range(len(everyone)), [evaluation["label"] for evaluation in everyone])
    axes.set_xlim(-0.5, len(everyone) - 0.5)
    axes.set_ylabel("hypervolume")
    axes.grid(axis="x", visible=False)
    point = ", ".join(f"{name} {value:.4g}" for name, value in everyone[0]["reference_point"].items())
    return Plot(
        name="hypervolume",
        title="Hypervolume per iteration",
        caption="Volume of reward space that the front dominates, with 95% intervals. "
        f"Reference point, the same for every policy: {point}.",
        figure=figure,
        rows=[{"t": e["t"], "label": e["label"]} | e["hypervolume"] for e in everyone],
    )


def reward_kl(evaluations: Sequence[JSON], initial: JSON | None) -> Plot:
    """Gain along the requested direction against the distance from the initial policy (Gao et al. 2022)."""
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    rows: list[dict[str, Any]] = []
    for evaluation, colour, marker in _styled(evaluations, None):
        for entry, gain in zip(evaluation["directions"], directional_gain(evaluation, initial), strict=True):
            if gain is None or entry["kl"] is None:
                continue
            _line(axes, [entry["kl"]["value"]], [gain.to_json()], colour, marker, None, across=entry["kl"])
            rows.append(_row(evaluation, entry) | _columns({"gain": gain.to_json(), "kl": entry["kl"]}))
        axes.plot([], [], marker, color=colour, label=evaluation["label"])
    if initial is not None:
        axes.plot(0, 0, "X", color=NEUTRAL, markersize=7, label=initial["label"])
    axes.set_xlabel("KL to the initial policy, nats per response")
    what, unit = "reward" if initial is None else "gain", say_unit(evaluations[0])
    axes.set_ylabel(f"{what} along the direction, {unit}")
    axes.legend(fontsize=9)
    return Plot(
        name="reward_kl",
        title="Reward against KL",
        caption="One point per direction: what the policy gained along the direction that was asked for, against how "
        "far it moved from the initial policy. Reward that only rises with ever more KL is a warning.",
        figure=figure,
        rows=rows,
    )


def svg(figure: Figure, alt: str) -> str:
    """The figure as inline SVG for the page: transparent, its ink the page's own colour, its text real text."""
    out = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    source = out.getvalue()
    source = source[source.index("<svg") :]
    source = re.sub(r"<metadata>.*?</metadata>", "", source, flags=re.DOTALL)
    source = re.sub(r'<svg\b([^>]*?) width="[^"]*"', r"<svg\1", source, count=1)
    source = re.sub(r'<svg\b([^>]*?) height="[^"]*"', r"<svg\1", source, count=1)
    source = source.replace("<svg", f'<svg class="drawn" role="img" aria-label="{escape(alt)}"', 1)
    return source.replace(INK, "currentColor").replace(FAINT, "var(--rule)")


def _ends(evaluation: JSON, k: int) -> list[int]:
    """Indices of the directions with the largest and the smallest weight of objective k; without directions, of the only one."""
    weights = {d: e["vector"][k] for d, e in enumerate(evaluation["directions"]) if e["vector"] is not None}
    if not weights:
        return [len(evaluation["directions"]) - 1]
    return list(dict.fromkeys((max(weights, key=weights.__getitem__), min(weights, key=weights.__getitem__))))


def _box(axes: Axes, box: dict[str, Any], place: float, colour: str, filled: bool) -> None:
    line = {"color": colour, "linewidth": 1.2}
    axes.bxp(
        [box],
        positions=[place],
        widths=0.28,
        manage_ticks=False,
        patch_artist=True,
        showmeans=True,
        boxprops={"facecolor": to_rgba(colour, 0.35) if filled else "none", "edgecolor": colour, "linewidth": 1.2},
        medianprops=line,
        whiskerprops=line,
        capprops=line,
        meanprops={"marker": "D", "markerfacecolor": colour, "markeredgecolor": colour, "markersize": 4},
        flierprops={"marker": ".", "markerfacecolor": colour, "markeredgecolor": colour, "markersize": 3},
    )


def _quartiles(box: Mapping[str, Any], answers_P: Any) -> dict[str, Any]:
    keys = {
        "whislo": "whisker_low",
        "q1": "q25",
        "med": "median",
        "q3": "q75",
        "whishi": "whisker_high",
        "mean": "mean",
    }
    return {ours: float(box[theirs]) for theirs, ours in keys.items()} | {"prompts": int(np.isfinite(answers_P).sum())}


def _everyone(evaluations: Sequence[JSON], initial: JSON | None) -> list[JSON]:
    return [*evaluations, *([] if initial is None else [initial])]


def _styled(evaluations: Sequence[JSON], initial: JSON | None) -> list[tuple[JSON, str, str]]:
    styled = [(e, COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, e in enumerate(evaluations)]
    return styled + ([] if initial is None else [(initial, NEUTRAL, "X")])


def _signs(evaluations: Sequence[JSON], initial: JSON | None) -> dict[str, int]:
    return dict(_everyone(evaluations, initial)[0]["signs"])


def _orient(axes: Axes, x: str, y: str, signs: Mapping[str, int]) -> None:
    """Label the axes, and turn those on which less is better."""
    axes.set_xlabel(f"{x} (less is better) \N{RIGHTWARDS ARROW}" if signs[x] < 0 else f"{x} \N{RIGHTWARDS ARROW}")
    axes.set_ylabel(f"{y} (less is better) \N{RIGHTWARDS ARROW}" if signs[y] < 0 else f"{y} \N{RIGHTWARDS ARROW}")
    if signs[x] < 0:
        axes.invert_xaxis()
    if signs[y] < 0:
        axes.invert_yaxis()


def _ellipse(axes: Axes, point: tuple[float, float], covariance: Any, i: int, j: int, colour: str) -> None:
    block = np.array([[covariance[i][i], covariance[i][j]], [covariance[j][i], covariance[j][j]]], dtype=np.float64)
    if not np.all(np.isfinite(block)):
        return
    variances, axes_of = np.linalg.eigh(block)
    width, height = 2 * ELLIPSE * np.sqrt(np.maximum(variances, 0))
    angle = float(np.degrees(np.arctan2(axes_of[1, 0], axes_of[0, 0])))
    axes.add_patch(Ellipse(point, width, height, angle=angle, facecolor=colour, alpha=0.15, edgecolor="none"))


def _line(
    axes: Axes,
    xs: Sequence[float],
    intervals: Sequence[JSON],
    colour: str,
    marker: str,
    label: str | None,
    across: JSON | None = None,
    joined: bool = True,
) -> None:
    """Points with vertical (and, by `across`, horizontal) interval bars."""
    ys = np.array([interval["value"] for interval in intervals], dtype=np.float64)
    axes.errorbar(
        xs,
        ys,
        yerr=_bars(intervals),
        xerr=None if across is None else _bars([across]),
        fmt=f"{marker}-" if joined else marker,
        color=colour,
        markersize=5,
        linewidth=1.2,
        elinewidth=1,
        capsize=2,
        label=label,
    )


def _bars(intervals: Sequence[JSON]) -> Any:
    low, value, high = (np.array([i[key] for i in intervals], dtype=np.float64) for key in ("low", "value", "high"))
    return np.nan_to_num(np.stack([value - low, high - value]))


def _level(axes: Axes, interval: JSON, label: str) -> None:
    if interval["value"] is None:
        return
    axes.axhline(interval["value"], color=NEUTRAL, linewidth=1, linestyle="--", label=label)
    if interval["low"] is not None:
        axes.axhspan(interval["low"], interval["high"], color=NEUTRAL, alpha=0.12, linewidth=0)


def _row(evaluation: JSON, entry: JSON) -> dict[str, Any]:
    vector, names = entry["vector"], evaluation["objectives"]
    weights = {f"weight_{name}": None if vector is None else vector[k] for k, name in enumerate(names)}
    return {"t": evaluation["t"], "label": evaluation["label"], "angle_deg": entry["angle_deg"]} | weights


def _columns(intervals: Mapping[str, JSON]) -> dict[str, Any]:
    """{'kl': {'value': 1, ...}} as {'kl_value': 1, 'kl_low': ...}: columns of a CSV."""
    return {f"{name}_{key}": i[key] for name, i in intervals.items() for key in ("value", "low", "high")}
