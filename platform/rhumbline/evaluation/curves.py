"""How online training went: one figure of its steps, with the rows that it shows.

    plot = learning([{"step": 1.0, "learn/score_mean": 0.1, "learn/kl": 0.0, ...}, ...], target=6.0)

Rows are the metrics of `learning.online.OnlineLearner.update`. A panel whose metric no row has is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure

from rhumbline.evaluation.plots import COLOURS, STYLE, Plot

PANELS = {
    "learn/score_mean": "reward, v · r",
    "learn/kl": "KL, nats per answer",
    "learn/kl_coefficient": "KL coefficient",
    "learn/length_mean": "tokens per answer",
    "learn/entropy": "entropy, nats per token",
    "learn/clip_fraction": "clipped share of tokens",
}


def learning(rows: Sequence[Mapping[str, float]], target: float | None = None) -> Plot:
    """Reward, KL and its coefficient, length, entropy and clipping over the steps; the KL's target as a line."""
    shown = {key: title for key, title in PANELS.items() if any(key in row for row in rows)}
    with matplotlib.rc_context(STYLE):
        columns = min(3, max(1, len(shown)))
        lines = max(1, -(-len(shown) // columns))
        figure = Figure(figsize=(3.2 * columns, 2.3 * lines), layout="constrained")
        for place, (key, title) in enumerate(shown.items(), start=1):
            axes = figure.add_subplot(lines, columns, place)
            drawn = [(row["step"], row[key]) for row in rows if key in row and math.isfinite(row[key])]
            axes.plot([x for x, _ in drawn], [y for _, y in drawn], color=COLOURS[4], linewidth=1.4)
            if key == "learn/kl" and target is not None:
                axes.axhline(target, color=COLOURS[0], linestyle="--", linewidth=1.0)
            axes.set_title(title)
            axes.set_xlabel("step")
    ended = rows[-1].get("learn/kl", math.nan) if rows else math.nan
    said = "" if target is None else f", the target is {target:g}"
    return Plot(
        name="learning",
        title="Training",
        caption="Metrics of the samples that were trained on, step by step. The KL divergence to the reference ended at "
        f"{ended:.3g} nats per answer{said}.",
        figure=figure,
        rows=[{"step": row["step"], **{key: row.get(key) for key in shown}} for row in rows],
    )
