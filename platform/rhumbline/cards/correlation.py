"""How well scores follow ratings: correlations, errors by range of the label, and what goes with length.

    figures = measure(scores_N, labels_N, lengths_N, prompts_N, length_only_N, num_resamples=1000, seed=0)
    figures["spearman"]                        # {'value': 0.41, 'low': 0.33, 'high': 0.48}
    error_by_range(scores_N, labels_N, prompts_N, length_only_N, num_resamples=1000, seed=0)

People rate longer answers higher, so a head that only counts tokens already correlates with their ratings. What a head knows
beyond that is `spearman_given_length`, the partial rank correlation at equal length. Intervals are 95%, by resampling prompts,
because answers to one prompt resemble each other. Scores and labels are on 0-100; N answers, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rhumbline.cards.resampling import Resamples
from rhumbline.rewards.objectives import spearman

Array = NDArray[np.float64]
RANGES = (0.4, 0.9)  # of labels on 0-1: a good model errs alike at the ends, which are rare, and in the middle


def measure(
    scores_N: ArrayLike,
    labels_N: ArrayLike,
    lengths_N: ArrayLike,
    prompts_N: ArrayLike,
    length_only_N: ArrayLike,
    *,
    num_resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Figures of one head on one split, in points of 0-100: `n`, `prompts`, and {value, low, high} each.

    `length_only_N` is what length alone predicts (`length_only.LengthOnly`); `gain` is the scores' rank correlation less that of
    length alone, on the same answers. NaN labels are left out. A figure that is not defined (constant scores, constant labels)
    is null.
    """
    y_all = np.asarray(labels_N, dtype=np.float64)
    has_N = ~np.isnan(y_all)
    s, y = np.asarray(scores_N, dtype=np.float64)[has_N], y_all[has_N]
    n, base = np.asarray(lengths_N, dtype=np.float64)[has_N], np.asarray(length_only_N, dtype=np.float64)[has_N]
    draws = Resamples(np.asarray(prompts_N)[has_N], num_resamples, seed)
    if not len(y):
        return {"n": 0, "prompts": 0}
    known = not np.isnan(base).any()  # of a single prompt nothing can be held out
    figures: dict[str, Callable[[Any], float | None]] = {
        "spearman": lambda i: spearman(s[i], y[i]),
        "pearson": lambda i: pearson(s[i], y[i]),
        "spearman_given_length": lambda i: partial_spearman(s[i], y[i], n[i]),
        "length_only_spearman": lambda i: spearman(base[i], y[i]) if known else None,
        "gain": lambda i: _difference(spearman(s[i], y[i]), spearman(base[i], y[i])) if known else None,
        "length_only_pearson": lambda i: pearson(base[i], y[i]),
        "score_with_length": lambda i: spearman(s[i], n[i]),
        "label_with_length": lambda i: spearman(y[i], n[i]),
    }
    return {
        "n": len(y),
        "prompts": draws.num_prompts,
        "mae": draws.mean(np.abs(s - y)),
        "length_only_mae": draws.mean(np.abs(base - y)),
        **{name: draws.interval(figure) for name, figure in figures.items()},
    }


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def partial_spearman(a: ArrayLike, b: ArrayLike, given: ArrayLike) -> float | None:
    """Rank correlation of a and b with the ranks of `given` held fixed; None where one of the three is constant.

    (r_ab - r_ac r_bc) / sqrt((1 - r_ac^2) (1 - r_bc^2)).
    """
    ab, ac, bc = spearman(a, b), spearman(a, given), spearman(b, given)
    if ab is None or ac is None or bc is None or max(abs(ac), abs(bc)) >= 1:
        return None
    return float((ab - ac * bc) / np.sqrt((1 - ac**2) * (1 - bc**2)))


def pearson(a: ArrayLike, b: ArrayLike) -> float | None:
    """Linear correlation, or None where one of the two is constant or not known."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return float(np.corrcoef(x, y)[0, 1]) if len(x) > 1 and np.ptp(x) > 0 and np.ptp(y) > 0 else None


def error_by_range(
    scores_N: ArrayLike,
    labels_N: ArrayLike,
    prompts_N: ArrayLike,
    length_only_N: ArrayLike,
    *,
    ranges: tuple[float, float] = RANGES,
    ends: tuple[float, float] = (0.0, 100.0),
    num_resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Squared and absolute error for labels below, between and above `ranges`, each over the answers of its range.

    `ends` are the lowest and the highest label that there can be, in points; `ranges` and errors are shares of what lies
    between them. Both ends of the middle belong to it. NaN labels are left out.
    """
    bottom, width = ends[0], ends[1] - ends[0]
    # Rounded: a weighted sum of labels that is 0.9 may come as 0.9000000000000001.
    y_all = np.round((np.asarray(labels_N, dtype=np.float64) - bottom) / width, 9)
    low, high = ranges
    out: list[dict[str, Any]] = []
    for name, own_N in (
        (f"below {low:g}", y_all < low),
        (f"{low:g} to {high:g}", (y_all >= low) & (y_all <= high)),
        (f"above {high:g}", y_all > high),
    ):
        error = (np.asarray(scores_N, dtype=np.float64)[own_N] - bottom) / width - y_all[own_N]
        by_length = (np.asarray(length_only_N, dtype=np.float64)[own_N] - bottom) / width - y_all[own_N]
        draws = Resamples(np.asarray(prompts_N)[own_N], num_resamples, seed)
        out.append(
            {
                "range": name,
                "n": len(error),
                "mse": draws.mean(error**2),
                "mae": draws.mean(np.abs(error)),
                "length_only_mse": draws.mean(by_length**2),
                "length_only_mae": draws.mean(np.abs(by_length)),
            }
        )
    return out


def scores_by_label(scores_N: ArrayLike, labels_N: ArrayLike, bins: int = 10) -> list[dict[str, float]]:
    """Quantiles of the scores of answers with about the same label: what a model says to what people said.

    Bins of equal width over 0-100; empty ones are left out.
    """
    scores, labels = np.asarray(scores_N, dtype=np.float64), np.asarray(labels_N, dtype=np.float64)
    scores, labels = scores[~np.isnan(labels)], labels[~np.isnan(labels)]
    place_N = np.clip((labels / 100 * bins).astype(np.int64), 0, bins - 1)
    out = []
    for b in np.unique(place_N):
        p10, p50, p90 = np.quantile(scores[place_N == b], [0.1, 0.5, 0.9])
        label = float(labels[place_N == b].mean())
        out.append({"label": label, "n": int((place_N == b).sum()), "p10": p10, "p50": p50, "p90": p90})
    return out


def correlations(names: Sequence[str], scores_NH: ArrayLike, lengths_N: ArrayLike) -> dict[str, Any]:
    """Rank correlations of the heads with each other and, as the last row and column, with length; null: one is constant."""
    columns = [*np.asarray(scores_NH, dtype=np.float64).T, np.asarray(lengths_N, dtype=np.float64)]
    told = [[spearman(a, b) for b in columns] for a in columns]
    return {"of": "answers", "names": [*names, "length"], "spearman": told}


def pair_correlations(names: Sequence[str], margins_PH: ArrayLike, longer_P: ArrayLike) -> dict[str, Any]:
    """The same of the differences within pairs: score of a less that of b, and length of a less that of b."""
    margins, longer = both_orders(margins_PH), both_orders(longer_P)
    return {**correlations(names, margins, longer), "of": "pairs"}


def pair_spearman(margins_P: ArrayLike, longer_P: ArrayLike) -> float | None:
    """Rank correlation of two differences within pairs."""
    return spearman(both_orders(margins_P), both_orders(longer_P))


def both_orders(differences_P: ArrayLike) -> Array:
    """(2P, ...) each pair with its sides exchanged too, so that which answer stands first changes nothing."""
    differences = np.asarray(differences_P, dtype=np.float64)
    return np.concatenate([differences, -differences])
