"""The figures of a card, out of its sections: PNG for people, CSV of the numbers that they show.

    for drawn in draw(card):
        png(drawn.figure), csv_of(drawn.rows)          # bytes of figures/<name>.png and of data/<name>.csv

A figure is drawn where the card has its section. No global state: figures are built with `Figure`, never with pyplot.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

JSON = Mapping[str, Any]
MODEL, BASE, INK, FAINT = "#3B82C4", "#8A8F98", "#101113", "#d0d1d3"  # colour-blind readers tell the first two apart
STYLE: Any = {  # matplotlib types every key of its own
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "axes.linewidth": 0.8,
    "legend.frameon": False,
}
COLUMNS = 3  # of panels


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One figure: its file's name without ending, what to say about it, and the numbers behind it."""

    name: str
    caption: str
    figure: Figure
    rows: list[dict[str, Any]]


def draw(card: JSON) -> list[Drawn]:
    """Every figure that the card's sections allow."""
    with matplotlib.rc_context(STYLE):
        return [drawn for build in _BUILDERS for drawn in build(card)]


def accuracy(card: JSON) -> Iterator[Drawn]:
    """The main figure of every head and data set, beside what length alone gives."""
    rows = []
    for section, figure, base, what in (
        ("ratings", "spearman", "length_only_spearman", "Spearman"),
        ("pairs", "accuracy", "length_accuracy", "pair accuracy"),
        ("classes", "decided_accuracy", "length_accuracy", "accuracy on decided pairs"),
    ):
        told = card.get(section) or {}
        for label, one in labelled({"comparer": told} if section == "classes" and told else told):
            if one["n"] and one.get(figure):
                rows.append(
                    {"what": label, "figure": what, **_flat("model", one[figure]), **_flat("length", one[base])}
                )
    if not rows:
        return
    figure_ = Figure(figsize=(6.4, 1.0 + 0.42 * len(rows)), layout="constrained")
    axes = figure_.add_subplot()
    for at, (key, label, colour, marker) in enumerate(
        (("model", "model", MODEL, "o"), ("length", "length only", BASE, "s"))
    ):
        axes.plot([], [], marker, color=colour, markersize=5, label=label)
        for place, row in enumerate(rows):
            _point(axes, row, key, place + (at - 0.5) * 0.25, colour, marker)
    axes.set_yticks(range(len(rows)), [f"{row['what']}, {row['figure']}" for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("chance is 0 for a rank correlation and 0.5 for an accuracy")
    axes.grid(axis="y", visible=False)
    figure_.legend(fontsize=9, ncols=2, loc="outside upper center")  # within, it may lie on a point
    caption = "Agreement with people, with 95% intervals over prompts, beside what the length of an answer alone gives."
    yield Drawn(name="accuracy", caption=caption, figure=figure_, rows=rows)


def reliability(card: JSON) -> Iterator[Drawn]:
    """What was predicted against what was seen, one panel per head; the line is perfect calibration."""
    told = {name: one for name, one in (card.get("reliability") or {}).items() if one["bins"]}
    if not told:
        return
    figure, panels = _panels(len(told))
    rows = []
    for axes, (name, one) in zip(panels, told.items(), strict=True):
        bins = one["bins"]
        most = max(b["n"] for b in bins)
        axes.plot([0, 1], [0, 1], color=BASE, linewidth=1, linestyle="--")
        axes.plot([b["predicted"] for b in bins], [b["observed"] for b in bins], color=MODEL, linewidth=1)
        sizes = [12 + 60 * b["n"] / most for b in bins]
        axes.scatter([b["predicted"] for b in bins], [b["observed"] for b in bins], s=sizes, color=MODEL)
        axes.set_title(f"{name}, ECE {one['ece']['value']:.3f}", fontsize=10)
        axes.set_xlabel("predicted")
        axes.set_ylabel("observed")
        rows += [{"head": name, **b} for b in bins]
    caption = "What was predicted against what people said; larger points hold more rows. Below the line it promised too much."
    yield Drawn(name="reliability", caption=caption, figure=figure, rows=rows)


def by_label(card: JSON) -> Iterator[Drawn]:
    """Scores of answers by their label: median, and the middle 80% as a band."""
    told = {name: one for name, one in (card.get("by_label") or {}).items() if one}
    if not told:
        return
    figure, panels = _panels(len(told))
    for axes, (name, bins) in zip(panels, told.items(), strict=True):
        xs = [b["label"] for b in bins]
        axes.fill_between(xs, [b["p10"] for b in bins], [b["p90"] for b in bins], color=MODEL, alpha=0.18, linewidth=0)
        axes.plot(xs, [b["p50"] for b in bins], "o-", color=MODEL, markersize=4, linewidth=1.2)
        axes.plot([0, 100], [0, 100], color=BASE, linewidth=1, linestyle="--")
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("label, 0-100")
        axes.set_ylabel("score")
    caption = (
        "Scores of answers by what people gave them: median and middle 80%. A model that regresses to the mean is flat."
    )
    yield Drawn(
        name="by_label",
        caption=caption,
        figure=figure,
        rows=[{"head": name, **b} for name, bins in told.items() for b in bins],
    )


def heat_map(card: JSON) -> Iterator[Drawn]:
    """Rank correlations between heads, and with length."""
    told = card.get("correlations")
    if not told or len(told["names"]) < 2:
        return
    names, values = told["names"], np.array(told["spearman"], dtype=np.float64)
    size = 2.2 + 0.55 * len(names)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(values, vmin=-1, vmax=1, cmap="RdBu_r")
    for (row, column), value in np.ndenumerate(values):
        shown = "-" if np.isnan(value) else f"{value:.2f}"
        ink = "white" if abs(value) > 0.6 else INK
        axes.text(column, row, shown, ha="center", va="center", fontsize=8, color=ink)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.grid(visible=False)
    figure.colorbar(image, ax=axes, label="Spearman")
    rows = [
        {"head": name, **dict(zip(names, line, strict=True))}
        for name, line in zip(names, told["spearman"], strict=True)
    ]
    caption = "Rank correlations of the heads with each other and with the length of the answer."
    yield Drawn(name="correlations", caption=caption, figure=figure, rows=rows)


_BUILDERS: tuple[Callable[[JSON], Iterator[Drawn]], ...] = (accuracy, reliability, by_label, heat_map)


def labelled(section: JSON) -> Iterator[tuple[str, JSON]]:
    """('quality', figures of all), ('quality, oasst1', figures of a source), ... of a section of heads."""
    for name, told in section.items():
        yield name, told["all"]
        for source, one in told["sources"].items():
            yield f"{name}, {source}", one


def png(figure: Figure, dpi: int = 160) -> bytes:
    """The figure on white, as a PNG file's bytes."""
    out = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(out, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return out.getvalue()


def csv_of(rows: Sequence[JSON]) -> bytes:
    """A table with a line of names; what a row lacks stays empty."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    columns = min(COLUMNS, count)
    lines = -(-count // columns)
    figure = Figure(figsize=(3.2 * columns, 3.0 * lines), layout="constrained")
    return figure, [figure.add_subplot(lines, columns, i + 1) for i in range(count)]


def _flat(name: str, interval: JSON) -> dict[str, Any]:
    return {f"{name}_{key}": interval[key] for key in ("value", "low", "high")}


def _point(axes: Axes, row: JSON, key: str, y: float, colour: str, marker: str) -> None:
    """A figure with its interval, lying; nothing where it is not defined."""
    value, low, high = row[f"{key}_value"], row[f"{key}_low"], row[f"{key}_high"]
    if value is None:
        return
    if low is not None and high is not None:
        axes.plot([low, high], [y, y], color=colour, linewidth=1.2)
    axes.plot(value, y, marker, color=colour, markersize=5)
