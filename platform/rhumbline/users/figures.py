"""The figures of a report on users, each with the numbers that it shows. Over `similarity`, `disagreement`, `prediction`.

    for drawn in draw(people, found, edges_UU, labels_U):
        drawn.name, drawn.figure, drawn.rows

U users, Q questions, A options.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rhumbline.cards.figures import BASE, FAINT, INK, MODEL, STYLE, Drawn
from rhumbline.users.disagreement import disagreements, division
from rhumbline.users.population import Bools, Floats, Ints, Population
from rhumbline.users.similarity import Similarity, order_by_nearness, positions

NAMED = 40  # of more people than this, names would overlap
SECOND = "#C4623B"  # beside MODEL, told apart by colour-blind readers
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")  # of clusters, so that colour is not all


def draw(people: Population, found: Similarity, edges_UU: Bools, labels_U: Ints) -> list[Drawn]:
    """Who chose what, who resembles whom, and over what people differ."""
    with matplotlib.rc_context(STYLE):
        order_U = order_by_nearness(found.cosine_UU)
        return [
            _counts(people),
            _similarity(people, found, order_U),
            _graph(people, found, edges_UU, labels_U),
            _disagreement(people, order_U),
        ]


def accuracy(lines: Sequence[Mapping[str, Any]], name: str = "accuracy") -> Drawn:
    """Predictors side by side, with intervals over people and questions; what needs no model is grey and square."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 1.0 + 0.36 * len(lines)), layout="constrained")
        axes = figure.add_subplot()
        for place, line in enumerate(lines):
            model = bool(line.get("asks_a_model"))
            colour, marker = (MODEL, "o") if model else (BASE, "s")
            if line["accuracy"] is None:
                continue
            if line["accuracy_low"] is not None:
                axes.plot([line["accuracy_low"], line["accuracy_high"]], [place, place], color=colour, linewidth=1.2)
            axes.plot(line["accuracy"], place, marker, color=colour, markersize=5)
        axes.set_yticks(range(len(lines)), [str(line["predictor"]) for line in lines])
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.set_xlabel("share of choices predicted right")
        axes.grid(axis="y", visible=False)
    caption = "Choices predicted right, with 95% intervals over people and questions. Squares need no model."
    return Drawn(name=name, caption=caption, figure=figure, rows=[dict(line) for line in lines])


def _counts(people: Population) -> Drawn:
    lines = division(people)
    most = int(people.num_options.max())
    counts_QA = np.array([[line.get(f"answer_{a}", 0) for a in range(most)] for line in lines])
    counts_QA = counts_QA[counts_QA.sum(axis=1) > 0]
    figure = Figure(figsize=(7.0, 3.4), layout="constrained")
    axes = figure.add_subplot()
    if most == 2:
        order = np.argsort(-counts_QA[:, 0] / counts_QA.sum(axis=1), kind="stable")
        axes.bar(range(len(order)), counts_QA[order, 0], width=1.0, color=MODEL, label="first answer")
        axes.bar(range(len(order)), -counts_QA[order, 1], width=1.0, color=SECOND, label="second answer", hatch="///")
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
        axes.set_xlabel("questions, by the share of the first answer")
        caption = "Users per answer at each question: the first answer upwards, the second downwards."
    else:
        ranked_QA = -np.sort(-counts_QA, axis=1)
        ranked_QA = ranked_QA[np.argsort(-ranked_QA[:, 0] / ranked_QA.sum(axis=1), kind="stable")]
        base_Q = np.zeros(len(ranked_QA))
        for a in range(most):
            shade = matplotlib.colormaps["viridis"](a / max(most - 1, 1))
            axes.bar(range(len(ranked_QA)), ranked_QA[:, a], bottom=base_Q, width=1.0, color=shade, label=f"{a + 1}.")
            base_Q += ranked_QA[:, a]
        axes.set_xlabel("questions, by the share of the most frequent answer")
        caption = "Users per answer at each question, the most frequent answer at the bottom."
    axes.set_ylabel("users")
    axes.grid(axis="x", visible=False)
    axes.margins(x=0)
    figure.legend(fontsize=9, ncols=min(most, 6), loc="outside upper center")
    return Drawn(name="counts", caption=caption, figure=figure, rows=lines)


def _similarity(people: Population, found: Similarity, order_U: Ints) -> Drawn:
    shown_UU = found.cosine_UU[np.ix_(order_U, order_U)]
    names = [people.users[u].id for u in order_U]
    figure, axes = _square(len(names))
    image = axes.imshow(shown_UU, vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
    axes.set_facecolor(FAINT)
    figure.colorbar(image, ax=axes, label="cosine", shrink=0.8)
    _named(axes, names)
    caption = (
        "Cosine of every two users' choices at the questions that both answered, similar users side by side. Grey: too few "
        "questions in common."
    )
    return Drawn(name="similarity", caption=caption, figure=figure, rows=_matrix(names, shown_UU))


def _graph(people: Population, found: Similarity, edges_UU: Bools, labels_U: Ints) -> Drawn:
    points_U2 = positions(found.cosine_UU, 2)
    if points_U2.shape[1] < 2:
        points_U2 = np.column_stack([points_U2, np.zeros(len(points_U2))])
    figure, axes = _square(len(people.users) if len(people.users) <= NAMED else NAMED)
    rows: list[dict[str, Any]] = []
    for u, v in zip(*np.nonzero(np.triu(edges_UU, 1)), strict=True):
        axes.plot(*points_U2[[u, v]].T, color=BASE, linewidth=0.7, alpha=0.7, zorder=1)
        rows.append({"user": people.users[u].id, "other": people.users[v].id, "cosine": float(found.cosine_UU[u, v])})
    for label in np.unique(labels_U):
        mine = labels_U == label
        shade = matplotlib.colormaps["tab10"](int(label) % 10)
        axes.scatter(
            points_U2[mine, 0],
            points_U2[mine, 1],
            s=22,
            color=shade,
            marker=MARKERS[int(label) % len(MARKERS)],
            label=f"cluster {label} ({int(mine.sum())})",
            zorder=2,
        )
    if len(people.users) <= NAMED:
        for user, point_2 in zip(people.users, points_U2, strict=True):
            axes.annotate(user.id, point_2, fontsize=7, xytext=(3, 3), textcoords="offset points")
    axes.set_xlabel("first coordinate of the similarity")
    axes.set_ylabel("second coordinate")
    figure.legend(fontsize=8, ncols=4, loc="outside upper center")
    caption = "Users by the leading coordinates of their similarity; a line joins two that are each among the other's nearest."
    return Drawn(name="graph", caption=caption, figure=figure, rows=rows)


def _disagreement(people: Population, order_U: Ints) -> Drawn:
    differed_UU, compared_UU = disagreements(people)
    share_UU = np.divide(
        differed_UU, compared_UU, out=np.full(differed_UU.shape, np.nan, dtype=np.float64), where=compared_UU > 0
    )[np.ix_(order_U, order_U)]
    names = [people.users[u].id for u in order_U]
    figure, axes = _square(len(names))
    image = axes.imshow(share_UU, vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
    axes.set_facecolor(FAINT)
    figure.colorbar(image, ax=axes, label="share of common questions chosen differently", shrink=0.8)
    _named(axes, names)
    caption = (
        "How often every two users chose differently where both chose, users in the order of the similarity matrix."
    )
    rows = [
        {
            "user": names[i],
            "other": names[j],
            "differed": int(differed_UU[order_U[i], order_U[j]]),
            "compared": int(compared_UU[order_U[i], order_U[j]]),
            "share": _plain(float(share_UU[i, j])),
        }
        for i in range(len(names))
        for j in range(i)
    ]
    return Drawn(name="disagreement", caption=caption, figure=figure, rows=rows)


def _square(count: int) -> tuple[Figure, Axes]:
    size = 5.0 if count > NAMED else 3.2 + 0.11 * count
    figure = Figure(figsize=(size + 1.2, size), layout="constrained")
    return figure, figure.add_subplot()


def _named(axes: Axes, names: Sequence[str]) -> None:
    axes.grid(visible=False)
    if len(names) > NAMED:
        axes.set_xlabel(f"{len(names)} users")
        axes.set_ylabel(f"{len(names)} users")
        return
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)


def _matrix(names: Sequence[str], values_UU: Floats | Ints) -> list[dict[str, Any]]:
    """A line per user; what is not known stays empty."""
    return [
        {"user": name, **{other: _plain(value) for other, value in zip(names, line, strict=True)}}
        for name, line in zip(names, values_UU.tolist(), strict=True)
    ]


def _plain(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None
