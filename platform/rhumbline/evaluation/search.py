"""What a search over recipes found: a table, the Pareto front with its configurations, parallel coordinates, the best recipe.

    trials = [{"number": 0, "state": "done", "point": {"ppo.kl.coefficient": 0.02}, "figures": {"reward": 1.2, "kl": 3.0}, ...}]
    metrics = {"reward": "max", "kl": "min"}
    front(trials, metrics)                       # [0]: numbers of the trials that no other dominates
    write_report(Path("runs/sweep/report"), ...)  # trials.csv, front.csv and .png, parallel.png, best.yaml, index.md and so on

A trial is plain data: number, point (dotted key -> value), overrides, figures, state (done, failed, stopped, running), reason and
folder. It counts where it is done and has every metric as a finite number; what does not count is shown with its reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rhumbline import durable
from rhumbline.cards.figures import BASE, FAINT, INK, MODEL, STYLE, csv_of, png
from rhumbline.errors import did_you_mean
from rhumbline.evaluation.frontier import FloatArray, maximised, pareto_set

JSON = Mapping[str, Any]
Metrics = Mapping[str, str]  # figure -> max | min
BEST = "#D55E00"
ORDERS = 100.0  # values that span more are shown on a logarithmic axis


# --- which trials count, and which are best ---------------------------------------------------------------------------


def fault(trial: JSON, metrics: Metrics) -> str:
    """Why a trial does not count; empty where it does."""
    if trial["state"] != "done":
        reason = str(trial.get("reason") or "")
        return f"{trial['state']}: {reason}" if reason else str(trial["state"])
    figures = trial["figures"]
    for name in metrics:
        if name not in figures:
            near = did_you_mean(name, figures)
            return f"reports no figure {name!r} (metrics).{near} It reports {', '.join(figures) or 'nothing'}"
        if figures[name] is None or not math.isfinite(figures[name]):
            return f"{name} is {figures[name]}, expected a finite number"
    return ""


def counted(trials: Sequence[JSON], metrics: Metrics) -> list[JSON]:
    return [trial for trial in trials if not fault(trial, metrics)]


def front(trials: Sequence[JSON], metrics: Metrics) -> list[int]:
    """Numbers of the trials that no other dominates over all metrics: strict, without tolerance."""
    good = counted(trials, metrics)
    if not good:
        return []
    return [trial["number"] for trial, on in zip(good, pareto_set(_points(good, metrics)), strict=True) if on]


def best(trials: Sequence[JSON], metrics: Metrics) -> tuple[JSON | None, str]:
    """The trial to go on with, and the rule that chose it. None where no trial counts.

    One metric: the best by it. Several: of the front, the trial nearest to the best value of every metric, each scaled to
    0..1 over the front; the first metric decides between equals. (1, 0), (0.8, 0.8), (0, 1) give the middle one.
    """
    good = counted(trials, metrics)
    if not good:
        return None, "no trial counts"
    names = list(metrics)
    if len(names) == 1:
        way = "highest" if metrics[names[0]] == "max" else "lowest"
        rule = f"the {way} {names[0]}"
        chosen = max(good, key=lambda trial: float(_points([trial], metrics)[0, 0]))
        return chosen, rule
    rule = (
        f"of the front, the one nearest to the best {' and '.join(names)} at once, each scaled to 0..1 over the front; "
        f"{names[0]} decides between equals"
    )
    on = [trial for trial in good if trial["number"] in set(front(trials, metrics))]
    points_NM = _points(on, metrics)
    span_M = np.ptp(points_NM, axis=0)
    scaled_NM = (points_NM - points_NM.min(axis=0)) / np.where(span_M > 0, span_M, 1.0)
    distance_N = np.linalg.norm(np.where(span_M > 0, 1.0, 0.0) - scaled_NM, axis=1)
    order = sorted(range(len(on)), key=lambda i: (round(float(distance_N[i]), 9), -points_NM[i, 0], on[i]["number"]))
    return on[order[0]], rule


def _points(trials: Sequence[JSON], metrics: Metrics) -> FloatArray:
    """(N, M) with every metric better when larger."""
    values = [[float(trial["figures"][name]) for name in metrics] for trial in trials]
    return maximised(values, [1 if way == "max" else -1 for way in metrics.values()])


# --- tables -----------------------------------------------------------------------------------------------------------


def table(trials: Sequence[JSON], metrics: Metrics) -> list[dict[str, Any]]:
    """One row per trial in the order of their numbers: what was set, what came out, and why it does not count."""
    on, figures = set(front(trials, metrics)), reported(trials, metrics)
    return [
        {"number": trial["number"], "state": trial["state"], "front": trial["number"] in on}
        | {key: _said(value) for key, value in trial["point"].items()}
        | {name: trial["figures"].get(name) for name in figures}
        | {"not counted": fault(trial, metrics), "overrides": " ".join(trial["overrides"]), "folder": trial["folder"]}
        for trial in sorted(trials, key=lambda trial: int(trial["number"]))
    ]


def reported(trials: Sequence[JSON], metrics: Metrics) -> list[str]:
    """Every figure that some trial has: the metrics first, then those that it came to besides."""
    return list(dict.fromkeys([*metrics, *(name for trial in trials for name in trial["figures"])]))


def configuration(trial: JSON, headings: Mapping[str, str]) -> str:
    """`preference 0.25, ppo.kl.coefficient 0.02`: what to write beside a point. Headings are short names of keys."""
    return ", ".join(f"{headings.get(key, key)} {_said(value)}" for key, value in trial["point"].items())


def _said(value: Any) -> str | int | float | bool | None:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    return value if value is None or isinstance(value, str | int | bool) else durable.to_json({"": value})[5:-1]


# --- figures ----------------------------------------------------------------------------------------------------------


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


def _scale(values: Sequence[Any]) -> tuple[list[float], dict[float, str]]:
    """Heights in 0..1 and what to write beside them. Numbers by size, over orders of magnitude by logarithm; the rest by rank."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        low, high = float(min(values)), float(max(values))
        if low == high:
            return [0.5] * len(values), {0.5: f"{low:.4g}"}
        if low > 0 and high / low >= ORDERS:
            at = [math.log(value / low) / math.log(high / low) for value in values]
        else:
            at = [(value - low) / (high - low) for value in values]
        distinct = {height: f"{value:.4g}" for height, value in zip(at, values, strict=True)}
        return at, distinct if len(distinct) <= 8 else {0.0: f"{low:.4g}", 1.0: f"{high:.4g}"}
    texts = [str(_said(value)) for value in values]
    order = list(dict.fromkeys(texts))
    heights = {text: 0.5 if len(order) == 1 else rank / (len(order) - 1) for rank, text in enumerate(order)}
    return [heights[text] for text in texts], {height: text for text, height in heights.items()}


def _rule(axes: Axes, place: int, ticks: Mapping[float, str]) -> None:
    axes.axvline(place, color=FAINT, linewidth=1, zorder=0)
    for height, text in ticks.items():
        axes.text(place + 0.03, height, text, fontsize=7, va="center", color=INK, zorder=4)


def _heading(name: str, metrics: Metrics) -> str:
    return f"{name} (less is better)" if metrics[name] == "min" else name


# --- the report -------------------------------------------------------------------------------------------------------


def write_report(
    folder: Path,
    *,
    name: str,
    trials: Sequence[JSON],
    metrics: Metrics,
    headings: Mapping[str, str],
    recipe_of: Callable[[JSON], str],
    command: str,
) -> Path:
    """Write everything into `folder` and return its index.md. `recipe_of` gives the YAML of a trial's recipe, ready to run."""
    folder.mkdir(parents=True, exist_ok=True)
    on, (chosen, rule) = front(trials, metrics), best(trials, metrics)
    rows = table(trials, metrics)
    files = {"trials.csv": csv_of(rows)}
    if chosen is not None:
        files["front.csv"] = csv_of([row for row in rows if row["front"]])
        files["front.png"] = png(draw_front(trials, metrics, headings))
        files["parallel.png"] = png(draw_parallel(trials, metrics, headings))
        figures = ", ".join(f"{figure} {chosen['figures'][figure]:.4g}" for figure in metrics)
        said = f"# Trial {chosen['number']} of the search {name}: {rule}.\n# {figures}\n"
        files["best.yaml"] = (said + recipe_of(chosen)).encode()
    summary = {
        "name": name,
        "metrics": dict(metrics),
        "front": on,
        "best": None if chosen is None else chosen["number"],
        "rule": rule,
        "counted": len(counted(trials, metrics)),
        "trials": [dict(trial) | {"not counted": fault(trial, metrics)} for trial in trials],
        "command": command,
    }
    files["summary.json"] = durable.to_json(summary, indent=1).encode()
    files["index.md"] = page(name, trials, metrics, headings, command).encode()
    for stale in {"front.csv", "front.png", "parallel.png", "best.yaml"} - files.keys():
        (folder / stale).unlink(missing_ok=True)  # of an earlier report, by other metrics
    for file, data in files.items():
        durable.replace(folder / file, data)
    return folder / "index.md"


def page(name: str, trials: Sequence[JSON], metrics: Metrics, headings: Mapping[str, str], command: str) -> str:
    """index.md: what was searched, the table, the front, the best, and what failed."""
    on, (chosen, rule) = set(front(trials, metrics)), best(trials, metrics)
    good, lost = counted(trials, metrics), [trial for trial in trials if fault(trial, metrics)]
    ways = ", ".join(f"{figure} ({'more' if way == 'max' else 'less'} is better)" for figure, way in metrics.items())
    lines = [f"# Search {name}", "", f"{len(trials)} trials, {len(good)} count. Figures: {ways}.", "", f"    {command}"]
    if chosen is not None:
        lines += ["", "## Best", "", f"Trial {chosen['number']} ({configuration(chosen, headings)}): {rule}."]
        lines += ["Its recipe, ready to run: `best.yaml`.", "", "![front](front.png)", "", "![parallel](parallel.png)"]
        keys, figures = list(good[0]["point"]), reported(good, metrics)
        lines += ["", "## Trials that count", "", "Those marked * are not dominated by any other.", ""]
        lines += _row(["trial", *(headings.get(key, key) for key in keys), *figures, "folder"])
        lines += _row(["---"] * (len(keys) + len(figures) + 2))
        for trial in sorted(good, key=lambda trial: int(trial["number"])):
            mark = "*" if trial["number"] in on else ""
            values = [_said(trial["point"][key]) for key in keys]
            came = [_figure(trial["figures"].get(name)) for name in figures]
            lines += _row([f"{trial['number']}{mark}", *values, *came, trial["folder"]])
    if lost:
        lines += ["", "## Trials that do not count", ""]
        lines += [
            f"- {t['number']} ({configuration(t, headings)}): {' '.join(fault(t, metrics).split())}" for t in lost
        ]
    return "\n".join(lines) + "\n"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _row(cells: Sequence[Any]) -> list[str]:
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"]
