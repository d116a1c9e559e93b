"""What comparisons hold before anything is trained on them: who met whom, who won, how often nobody did, and what length did.

    found = load_comparisons("pairs_with_ties.jsonl.gz")
    tables(found.rows)["models"][0]            # {'model': 'gpt-4', 'battles': 312, 'wins': 201, ...}
    write("exploration/arena", found.rows)     # overview.csv, models.csv and .png, pairs.csv and .png, length.csv and .png

    overview   one line per data set and head: comparisons, prompts, how they end, how often the longer answer wins
    models     one line per model: battles, wins, losses, ties, and the share it wins
    pairs      one line per pair of models, the most frequent first
    length     how often the longer answer wins, by how many times as long it is

Ties count as half a win for each side. Intervals are Wilson's, 95%, with every comparison taken as independent of the others:
where a prompt has many, they are somewhat too narrow. Length is in characters, which every language and model agrees on.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from rhumbline.cards.figures import BASE, FAINT, MODEL, STYLE, Drawn, csv_of, png
from rhumbline.data.comparisons import Comparison
from rhumbline.durable import replace
from rhumbline.errors import StoreError

Table = list[dict[str, Any]]
RATIOS = (1.0, 1.1, 1.25, 1.5, 2.0, 4.0, math.inf)  # edges: how many times as long the longer answer is
_Z = 1.959963984540054  # of a 95% interval
_SHOWN = 25  # models and pairs in a figure; the CSV has all


def tables(rows: Sequence[Comparison]) -> dict[str, Table]:
    """Every table of the module's docstring. `models` and `pairs` are empty where no row names both models."""
    named = [one for one in rows if None not in one.models]
    return {"overview": overview(rows), "models": models(named), "pairs": pairs(named), "length": length(rows)}


def overview(rows: Sequence[Comparison]) -> Table:
    """Per data set and head. `position_a` is the share of decided comparisons that the first answer won: 1 of chosen ones."""
    out: Table = []
    for source, head in dict.fromkeys((one.source, one.head) for one in rows):
        own = [one for one in rows if (one.source, one.head) == (source, head)]
        ends = Counter(one.winner for one in own)
        out.append(
            {
                "source": source,
                "head": head,
                "comparisons": len(own),
                "prompts": len({one.prompt.messages for one in own}),
                "users": len({one.user for one in own} - {None}),
                "a": ends["a"],
                "b": ends["b"],
                "tie": ends["tie"],
                **_share("position_a", ends["a"], ends["a"] + ends["b"]),
                "median_characters": float(np.median([len(text) for one in own for text in (one.a, one.b)])),
                **length_effect(own),
            }
        )
    return out


def models(rows: Sequence[Comparison]) -> Table:
    """Per model, the most battles first. A battle of a model against itself says nothing about it and is only counted."""
    battles: Counter[str] = Counter()
    itself: Counter[str] = Counter()
    ends: dict[str, Counter[str]] = {}
    for model_a, model_b, winner in _battles(rows):
        battles.update({model_a, model_b})
        if model_a == model_b:
            itself[model_a] += 1
            continue
        for model, side in ((model_a, "a"), (model_b, "b")):
            end = "ties" if winner == "tie" else "wins" if winner == side else "losses"
            ends.setdefault(model, Counter())[end] += 1
    out: Table = []
    for model, count in sorted(battles.items(), key=lambda item: (-item[1], item[0])):
        own = ends.get(model, Counter())
        wins, losses, ties = own["wins"], own["losses"], own["ties"]
        rate = _share("win_rate", wins + ties / 2, wins + losses + ties)
        line = {"model": model, "battles": count, "wins": wins, "losses": losses, "ties": ties}
        out.append({**line, "against_itself": itself[model], **rate})
    return out


def pairs(rows: Sequence[Comparison]) -> Table:
    """Per pair of models, the most frequent first; `first` and `second` in the order of the alphabet."""
    ends: dict[tuple[str, str], Counter[str]] = {}
    for model_a, model_b, winner in _battles(rows):
        first, second = sorted((model_a, model_b))
        won = winner if model_a == first else {"a": "b", "b": "a", "tie": "tie"}[winner]
        ends.setdefault((first, second), Counter())[won] += 1
    out: Table = []
    for (first, second), own in sorted(ends.items(), key=lambda item: (-item[1].total(), item[0])):
        wins, losses, ties = own["a"], own["b"], own["tie"]
        line = {"first": first, "second": second, "battles": own.total()}
        if first == second:  # which of the two won depends on nothing but the place
            out.append({**line, "ties": ties})
            continue
        rate = _share("first_win_rate", wins + ties / 2, own.total())
        out.append({**line, "first_wins": wins, "second_wins": losses, "ties": ties, **rate})
    return out


def length(rows: Sequence[Comparison]) -> Table:
    """How comparisons end, by how many times as long the longer answer is; answers of one length are left out."""
    ratios_N, longer_N = _longer(rows)
    out: Table = []
    for low, high in pairwise(RATIOS):
        inside = (ratios_N >= low) & (ratios_N < high)
        wins, losses = int((longer_N[inside] == 1).sum()), int((longer_N[inside] == 0).sum())
        ties = int((longer_N[inside] == 0.5).sum())
        line = {
            "ratio_from": low,
            "ratio_to": high if math.isfinite(high) else None,
            "comparisons": wins + losses + ties,
        }
        rate = _share("longer", wins + ties / 2, wins + losses + ties)
        out.append({**line, "longer_wins": wins, "shorter_wins": losses, "ties": ties, **rate})
    return out


def length_effect(rows: Sequence[Comparison]) -> dict[str, float | None]:
    """The share of decided comparisons that the longer answer won, and the logistic slope of winning on length.

    P(a wins) = sigmoid(slope log2(n_a / n_b)), without an intercept, so that the order of the answers does not matter: a
    slope of 0.5 means odds of exp(0.5) for an answer twice as long. Ties are left out. Null where the slope has no
    estimate: no lengths that differ, or the longer (or the shorter) answer always won.
    """
    ratios_N, longer_N = _longer(rows)
    decided = longer_N != 0.5
    x_N, won_N = np.log2(ratios_N[decided]), longer_N[decided] == 1
    share = _share("longer", int(won_N.sum()), len(won_N))
    slope, error = _slope(x_N, won_N)
    bounds = (None, None) if slope is None or error is None else (slope - _Z * error, slope + _Z * error)
    name = "slope_per_doubling"
    return {**share, name: slope, f"{name}_low": bounds[0], f"{name}_high": bounds[1]}


def wilson(successes: float, n: int) -> tuple[float, float] | None:
    """Wilson's 95% interval of a share; None of nothing. Unlike the usual one it stays within 0..1 and works at 0 of n."""
    if n == 0:
        return None
    share, z2 = successes / n, _Z * _Z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


# --- files ------------------------------------------------------------------------------------------------------------


def write(folder: str | Path, rows: Sequence[Comparison]) -> list[Path]:
    """A CSV per table and a PNG per figure, each replaced atomically; empty tables have no files. Raises StoreError."""
    folder, found = Path(folder), tables(rows)
    files = {f"{name}.csv": csv_of(table) for name, table in found.items() if table}
    files |= {f"{drawn.name}.png": png(drawn.figure) for drawn in draw(found)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            replace(folder / name, content)
    except OSError as e:
        raise StoreError(f"{folder} cannot be written: {e.strerror or e}") from e
    return [folder / name for name in files]


def draw(found: Mapping[str, Table]) -> list[Drawn]:
    """The figures of `tables`, where there is something to draw."""
    builders: tuple[Callable[[Mapping[str, Table]], Iterator[Drawn]], ...] = (_win_rates, _most_frequent, _by_length)
    with matplotlib.rc_context(STYLE):
        return [drawn for build in builders for drawn in build(found)]


def _win_rates(found: Mapping[str, Table]) -> Iterator[Drawn]:
    rated = [row for row in found["models"] if row["win_rate"] is not None]
    rows = sorted(rated[:_SHOWN], key=lambda row: -row["win_rate"])
    if not rows:
        return
    figure = Figure(figsize=(6.4, 1.0 + 0.26 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for y, row in enumerate(rows):
        axes.plot([row["win_rate_low"], row["win_rate_high"]], [y, y], color=MODEL, linewidth=1.2)
        axes.plot(row["win_rate"], y, "o", color=MODEL, markersize=5)
    axes.axvline(0.5, color=BASE, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(rows)), [f"{_shown(row['model'])} ({row['battles']})" for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("win rate, ties half")
    axes.grid(axis="y", visible=False)
    caption = "Share of its battles that each model won, with 95% intervals; battles in brackets. Opponents differ."
    yield Drawn(name="models", caption=caption, figure=figure, rows=rows)


def _most_frequent(found: Mapping[str, Table]) -> Iterator[Drawn]:
    rows = [row for row in found["pairs"] if row["first"] != row["second"]][:_SHOWN]
    if not rows:
        return
    figure = Figure(figsize=(7.2, 1.2 + 0.26 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    left = np.zeros(len(rows))
    for key, colour, label in (
        ("first_wins", MODEL, "first wins"),
        ("ties", FAINT, "tie"),
        ("second_wins", BASE, "second wins"),
    ):
        counts = np.array([row[key] for row in rows], dtype=np.float64)
        axes.barh(range(len(rows)), counts, left=left, color=colour, label=label)
        left += counts
    axes.set_yticks(range(len(rows)), [f"{_shown(row['first'])} \N{EN DASH} {_shown(row['second'])}" for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("battles")
    axes.grid(axis="y", visible=False)
    figure.legend(fontsize=9, ncols=3, loc="outside upper center")
    yield Drawn(name="pairs", caption="The most frequent pairs of models and how they ended.", figure=figure, rows=rows)


def _by_length(found: Mapping[str, Table]) -> Iterator[Drawn]:
    rows = [row for row in found["length"] if row["comparisons"]]
    if not rows:
        return
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for x, row in enumerate(rows):
        axes.plot([x, x], [row["longer_low"], row["longer_high"]], color=MODEL, linewidth=1.2)
        axes.plot(x, row["longer"], "o", color=MODEL, markersize=5)
    axes.axhline(0.5, color=BASE, linewidth=1, linestyle="--")
    said = [
        f"{r['ratio_from']:g}\N{EN DASH}{r['ratio_to']:g}" if r["ratio_to"] else f"{r['ratio_from']:g}+" for r in rows
    ]
    labels = [f"{text}\n({row['comparisons']})" for text, row in zip(said, rows, strict=True)]
    axes.set_xticks(range(len(rows)), labels)
    axes.set_ylim(0, 1)
    axes.set_xlabel("times as long")
    axes.set_ylabel("longer answer wins, ties half")
    axes.grid(axis="x", visible=False)
    caption = "How often the longer answer wins, by how many times as long it is, with 95% intervals; comparisons in brackets."
    yield Drawn(name="length", caption=caption, figure=figure, rows=rows)


def _shown(name: str) -> str:
    """A model's name as matplotlib draws it letter by letter: dollars would begin a formula."""
    return name.replace("$", r"\$")


# --- numbers ----------------------------------------------------------------------------------------------------------


def _battles(rows: Sequence[Comparison]) -> Iterator[tuple[str, str, str]]:
    """(model a, model b, winner) of the rows that name both."""
    for one in rows:
        model_a, model_b = one.models
        if model_a is not None and model_b is not None:
            yield model_a, model_b, one.winner


def _longer(rows: Sequence[Comparison]) -> tuple[Any, Any]:
    """(N,) how many times as long the longer answer is, and whether it won: 1, 0, or 0.5 for a tie."""
    ratios, won = [], []
    for one in rows:
        n_a, n_b = len(one.a), len(one.b)
        if n_a == n_b or min(n_a, n_b) == 0:
            continue
        ratios.append(max(n_a, n_b) / min(n_a, n_b))
        won.append(0.5 if one.winner == "tie" else float((one.winner == "a") == (n_a > n_b)))
    return np.array(ratios, dtype=np.float64), np.array(won, dtype=np.float64)


def _share(name: str, successes: float, n: int) -> dict[str, float | None]:
    interval = wilson(successes, n)
    low, high = (None, None) if interval is None else interval
    return {name: successes / n if n else None, f"{name}_low": low, f"{name}_high": high}


def _slope(x_N: ArrayLike, won_N: ArrayLike) -> tuple[float | None, float | None]:
    """The logistic slope through the origin and its standard error, by Newton's method. x > 0."""
    x, y = np.asarray(x_N, dtype=np.float64), np.asarray(won_N, dtype=np.float64)
    if not len(x) or y.all() or not y.any():
        return None, None  # likelihood grows for ever
    slope = 0.0
    for _ in range(100):
        p = 1 / (1 + np.exp(-slope * x))
        step = float((x * (y - p)).sum() / (x * x * p * (1 - p)).sum())
        slope += max(-1.0, min(1.0, step))  # far from the optimum Newton's step may overshoot
        if abs(step) < 1e-10:
            break
    p = 1 / (1 + np.exp(-slope * x))
    return slope, float(1 / np.sqrt((x * x * p * (1 - p)).sum()))
