"""The report of a search: a page with the front and the best, tables, figures, and the best recipe, ready to run.

write_report(Path("runs/sweep/report"), ...)  # index.md, trials.csv, front.csv, best.yaml, summary.json, figures with their CSVs
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from rhumbline import durable
from rhumbline.cards.figures import csv_of, png
from rhumbline.evaluation.curves import LINES, Rows, compared
from rhumbline.evaluation.plots import COLOURS, STYLE, distributions
from rhumbline.evaluation.search import (
    JSON,
    Metrics,
    best,
    configuration,
    counted,
    fault,
    front,
    reported,
    shown,
    table,
)
from rhumbline.evaluation.search_plots import draw_front, draw_grid, draw_parallel

FIGURES = ("front.png", "parallel.png", "grid.png", "curves.png", "spread.png")
TABLES = ("front.csv", "curves.csv", "spread.csv")
MOST_CURVES = 12  # lines and boxes that an eye still tells apart; the CSV has every trial


@dataclass(frozen=True, slots=True)
class Steps:
    """Metrics of every step of a trial that learns online, and the target of its KL."""

    rows: Rows
    target: float | None


@dataclass(frozen=True, slots=True)
class Held:
    """What held-out prompts said of a trial: JSON of `PolicyEvaluation`, of its last policy and of the initial one."""

    last: JSON
    initial: JSON | None


def draw(trials: Sequence[JSON], metrics: Metrics, headings: Mapping[str, str]) -> dict[str, Figure]:
    """The figures by the names of their files, those that show something."""
    grid = draw_grid(trials, metrics, headings)
    drawn = {
        "front.png": draw_front(trials, metrics, headings),
        "parallel.png": draw_parallel(trials, metrics, headings),
    }
    return drawn if grid is None else drawn | {"grid.png": grid}


def write_report(
    folder: Path,
    *,
    name: str,
    trials: Sequence[JSON],
    metrics: Metrics,
    headings: Mapping[str, str],
    recipe_of: Callable[[JSON], str],
    steps_of: Callable[[JSON], Steps | None] = lambda _: None,
    held_of: Callable[[JSON], Held | None] = lambda _: None,
    command: str,
) -> Path:
    """Write everything into `folder` and return its index.md.

    `recipe_of` gives the YAML of a trial's recipe, ready to run; `steps_of` its curve and `held_of` its evaluation, None where it
    has none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    on, (chosen, rule) = front(trials, metrics), best(trials, metrics)
    rows = table(trials, metrics)
    files = {"trials.csv": csv_of(rows)}
    if chosen is not None:
        files["front.csv"] = csv_of([row for row in rows if row["front"]])
        files |= {file: png(figure) for file, figure in draw(trials, metrics, headings).items()}
        ranked = sorted(counted(trials, metrics), key=lambda one: (one["number"] not in on, int(one["number"])))
        files |= _curves(ranked, headings, steps_of) | _spread(ranked, held_of)
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
    drawn = [file for file in FIGURES if file in files]
    files["index.md"] = page(name, trials, metrics, headings, command, drawn).encode()
    for stale in {*TABLES, "best.yaml", *FIGURES} - files.keys():
        (folder / stale).unlink(missing_ok=True)  # of an earlier report, by other metrics
    for file, data in files.items():
        durable.replace(folder / file, data)
    return folder / "index.md"


def page(
    name: str,
    trials: Sequence[JSON],
    metrics: Metrics,
    headings: Mapping[str, str],
    command: str,
    drawn: Sequence[str],
) -> str:
    """index.md: what was searched, the table, the front, the best, and what failed."""
    on, (chosen, rule) = set(front(trials, metrics)), best(trials, metrics)
    good, lost = counted(trials, metrics), [trial for trial in trials if fault(trial, metrics)]
    ways = ", ".join(f"{figure} ({'more' if way == 'max' else 'less'} is better)" for figure, way in metrics.items())
    lines = [f"# Search {name}", "", f"{len(trials)} trials, {len(good)} count. Figures: {ways}.", "", f"    {command}"]
    moved = [key for key in headings if key.startswith(("directions.", "rewards.")) or key.endswith(".weights")]
    if moved and "reward" in metrics:
        lines += [
            "",
            f"The reward is another scalar wherever {', '.join(moved)} differs: such trials do not compare by it.",
        ]
    lines += [
        "",
        "Figures are means over held-out prompts, without intervals, and the best is chosen by them: expect a little less.",
    ]
    if chosen is not None:
        lines += ["", "## Best", "", f"Trial {chosen['number']} ({configuration(chosen, headings)}): {rule}."]
        lines += ["Its recipe, ready to run: `best.yaml`."]
        lines += [line for file in drawn for line in ("", f"![{file.removesuffix('.png')}]({file})")]
        if "curves.png" in drawn and len(good) > MOST_CURVES:
            lines += ["", f"Curves of {MOST_CURVES} trials, those of the front first; `curves.csv` has every trial's."]
        if "spread.png" in drawn:
            lines += [
                "",
                "Boxes, one per trial: the middle half of the held-out prompts. `spread.csv` has their figures.",
            ]
        keys, figures = list(good[0]["point"]), reported(good, metrics)
        lines += ["", "## Trials that count", "", "Those marked * are not dominated by any other.", ""]
        lines += _row(["trial", *(headings.get(key, key) for key in keys), *figures, "folder"])
        lines += _row(["---"] * (len(keys) + len(figures) + 2))
        for trial in sorted(good, key=lambda trial: int(trial["number"])):
            mark = "*" if trial["number"] in on else ""
            values = [shown(trial["point"][key]) for key in keys]
            came = [_figure(trial["figures"].get(name)) for name in figures]
            lines += _row([f"{trial['number']}{mark}", *values, *came, trial["folder"]])
    if lost:
        lines += ["", "## Trials that do not count", ""]
        lines += [
            f"- {t['number']} ({configuration(t, headings)}): {' '.join(fault(t, metrics).split())}" for t in lost
        ]
    return "\n".join(lines) + "\n"


def _curves(
    ranked: Sequence[JSON], headings: Mapping[str, str], steps_of: Callable[[JSON], Steps | None]
) -> dict[str, bytes]:
    """curves.png and curves.csv of the trials that learn online; of too many for an eye the first ones are drawn."""
    told = [(trial, steps) for trial in ranked if (steps := steps_of(trial)) is not None]
    if not told:
        return {}
    first = sorted(told[:MOST_CURVES], key=lambda pair: int(pair[0]["number"]))
    names: dict[str, JSON] = {}
    for trial, _ in first:
        name = ", ".join(str(shown(value)) for value in trial["point"].values())
        names[f"{name} ({trial['number']})" if name in names else name] = trial  # rounded, two points may look the same
    drawn = compared(
        {name: steps.rows for name, (_, steps) in zip(names, first, strict=True)},
        {name: steps.target for name, (_, steps) in zip(names, first, strict=True) if steps.target is not None},
        heading=", ".join(headings.get(key, key) for key in first[0][0]["point"]),
        looks=_looks(names),
    )
    rows = compared({configuration(trial, headings): steps.rows for trial, steps in told}, {}).rows
    return {"curves.png": png(drawn.figure), "curves.csv": csv_of(rows)}


def _looks(names: Mapping[str, JSON]) -> dict[str, tuple[int, int]] | None:
    """A colour for each value of the first key and a line style for each setting of the rest; None where there are too many."""
    told = {name: [str(shown(value)) for value in trial["point"].values()] for name, trial in names.items()}
    colours = list(dict.fromkeys(values[0] for values in told.values()))
    lines = list(dict.fromkeys(tuple(values[1:]) for values in told.values()))
    if len(colours) > len(COLOURS) or len(lines) > len(LINES):
        return None
    return {name: (colours.index(values[0]), lines.index(tuple(values[1:]))) for name, values in told.items()}


def _spread(ranked: Sequence[JSON], held_of: Callable[[JSON], Held | None]) -> dict[str, bytes]:
    """spread.png and spread.csv: every objective over the held-out prompts, a box per trial, where all have the same objectives.

    The initial policy stands beside them where it was the same answers in every trial.
    """
    found = {int(trial["number"]): held for trial in ranked if (held := held_of(trial)) is not None}
    if not found or len({tuple(held.last["objectives"]) for held in found.values()}) > 1:
        return {}
    starts = [held.initial for held in found.values() if held.initial is not None]
    same = len(starts) == len(found) and all(start["per_prompt"] == starts[0]["per_prompt"] for start in starts)
    initial = starts[0] if same else None
    named = {number: {**held.last, "label": str(number)} for number, held in found.items()}
    shown_first = sorted(list(named)[:MOST_CURVES])
    with matplotlib.rc_context(STYLE):
        drawn = distributions([named[number] for number in shown_first], initial)
        drawn.figure.axes[-1].set_xlabel("trial")
        rows = distributions([named[number] for number in sorted(named)], initial).rows
    return {"spread.png": png(drawn.figure), "spread.csv": csv_of(rows)}


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _row(cells: Sequence[Any]) -> list[str]:
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"]
