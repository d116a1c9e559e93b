"""How online training went: one figure of its steps, with the rows that it shows.

    rows = [{"step": 1.0, "learn/score_mean": 0.1, "learn/score_std": 1.0, "learn/kl": 0.0, ...}, ...]
    plot = learning(rows, target=6.0)
    plot = compared({"ppo": rows, "free": others}, {"ppo": 6.0})     # several runs in the same panels
    rise(rows, answers=32)                                           # Rise(first=0.02, last=0.9, error=0.1, kl=5.8)

Rows are the metrics of `learning.online.OnlineLearner.update`. A panel whose metric no row has is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from rhumbline.evaluation.plots import COLOURS, STYLE, Plot

LINES = ("-", "--", ":", "-.")  # when colours are used up

PANELS = {
    "learn/score_mean": "reward, v · r",
    "learn/kl": "KL, nats per answer",
    "learn/kl_coefficient": "KL coefficient",
    "learn/length_mean": "tokens per answer",
    "learn/entropy": "entropy, nats per token",
    "learn/clip_fraction": "clipped share of tokens",
}


Rows = Sequence[Mapping[str, float]]


def learning(rows: Rows, target: float | None = None) -> Plot:
    """Reward, KL and its coefficient, length, entropy and clipping over the steps; the KL's target as a line."""
    ended = rows[-1].get("learn/kl", math.nan) if rows else math.nan
    said = "" if target is None else f", the target is {target:g}"
    return Plot(
        name="learning",
        title="Training",
        caption="Metrics of the samples that were trained on, step by step. The KL divergence to the reference ended at "
        f"{ended:.3g} nats per answer{said}.",
        figure=_panels({"": rows}, {} if target is None else {"": target}),
        rows=_table(rows),
    )


def compared(
    runs: Mapping[str, Rows],
    targets: Mapping[str, float],
    *,
    heading: str = "",
    looks: Mapping[str, tuple[int, int]] | None = None,
) -> Plot:
    """The same panels with a line for every run; dashed in its colour the target of its KL, where it has one.

    heading: what the runs' names say, above them; looks: number of colour and of line style for each run, one after the other
    where there are none.
    """
    said = [f"{name} {rows[-1].get('learn/kl', math.nan):.3g}" for name, rows in runs.items() if rows]
    return Plot(
        name="runs",
        title="Runs of online training",
        caption=f"Metrics of the samples that were trained on. KL at the last step, nats per answer: {', '.join(said)}.",
        figure=_panels(runs, targets, heading, looks),
        rows=[{"run": name, **row} for name, rows in runs.items() for row in _table(rows)],
    )


@dataclass(frozen=True, slots=True)
class Rise:
    """What the reward did between a run's first steps and its last ones."""

    first: float  # mean reward of the answers of the first steps
    last: float  # of the last ones
    error: float  # standard error of their difference, over answers
    kl: float  # mean over the last steps, nats per answer

    @property
    def errors(self) -> float:
        """The rise in standard errors."""
        return (self.last - self.first) / self.error if self.error > 0 else math.nan


def rise(rows: Rows, answers: int, steps: int = 5) -> Rise:
    """Of the first `steps` steps against as many last ones, each of `answers` answers with the mean and deviation in its row.

    Two steps of 50 answers with means 0 and 1 and deviation 1: a rise of 1 with an error of sqrt(1 / 50 + 1 / 50) = 0.2.
    """
    told = [row for row in rows if {"learn/score_mean", "learn/score_std"} <= row.keys()]
    steps = min(steps, len(told) // 2)
    if steps == 0:
        return Rise(math.nan, math.nan, math.nan, math.nan)
    ends = told[:steps], told[-steps:]
    first, last = (float(np.mean([row["learn/score_mean"] for row in end])) for end in ends)
    # Answers vary about the mean of their own step, whose drift is no error.
    spread = [float(np.mean([row["learn/score_std"] ** 2 for row in end])) / (steps * answers) for end in ends]
    kl = float(np.mean([row.get("learn/kl", math.nan) for row in ends[1]]))
    return Rise(first, last, math.sqrt(sum(spread)), kl)


def _panels(
    runs: Mapping[str, Rows],
    targets: Mapping[str, float],
    heading: str = "",
    looks: Mapping[str, tuple[int, int]] | None = None,
) -> Figure:
    shown = [key for key in PANELS if any(key in row for rows in runs.values() for row in rows)]
    with matplotlib.rc_context(STYLE):
        columns = min(3, max(1, len(shown)))
        lines = max(1, -(-len(shown) // columns))
        alone = len(runs) == 1
        room = max(1, 110 // (6 + max(map(len, runs), default=0)))  # labels beside one another, by their characters
        above = 0.0 if alone else 0.22 * (-(-len(runs) // room) + bool(heading))
        figure = Figure(figsize=(3.2 * columns, 2.3 * lines + above), layout="constrained")
        for place, key in enumerate(shown, start=1):
            axes = figure.add_subplot(lines, columns, place)
            for number, (name, rows) in enumerate(runs.items()):
                hue, dash = (number, number // len(COLOURS)) if looks is None else looks[name]
                colour = COLOURS[4] if alone else COLOURS[hue % len(COLOURS)]
                drawn = [(row["step"], row[key]) for row in rows if key in row and math.isfinite(row[key])]
                style: dict[str, Any] = {"color": colour, "linewidth": 1.4, "label": name or None}
                style["linestyle"] = LINES[dash % len(LINES)]
                axes.plot([x for x, _ in drawn], [y for _, y in drawn], **style)
                if key == "learn/kl" and name in targets:
                    axes.axhline(targets[name], color=COLOURS[0] if alone else colour, linestyle="--", linewidth=1.0)
            axes.set_title(PANELS[key])
            axes.set_xlabel("step")
        if figure.axes and not alone:
            figure.legend(
                *figure.axes[0].get_legend_handles_labels(),
                loc="outside upper center",
                ncols=min(len(runs), room),
                title=heading or None,
                frameon=False,
            )
    return figure


def _table(rows: Rows) -> list[dict[str, float | None]]:
    shown = [key for key in PANELS if any(key in row for row in rows)]
    return [{"step": row["step"], **{key: row.get(key) for key in shown}} for row in rows]
