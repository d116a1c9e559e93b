"""Scores against ratings, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from rhumbline.cards.correlation import (
    correlations,
    error_by_range,
    measure,
    pair_correlations,
    partial_spearman,
    scores_by_label,
)

LEVEL = [50.0, 50.0, 50.0]


def test_figures_by_hand() -> None:
    # |30 - 10| + |50 - 60| + |70 - 90| = 50 over 3; the row without a label counts nowhere.
    figures = measure(
        [30, 50, 70, 0],
        [10, 60, 90, np.nan],
        [5, 9, 7, 1],
        ["p", "q", "r", "s"],
        [*LEVEL, 50],
        num_resamples=200,
        seed=0,
    )
    assert (figures["n"], figures["prompts"]) == (3, 3)
    assert figures["mae"]["value"] == pytest.approx(50 / 3)
    assert figures["length_only_mae"]["value"] == pytest.approx((40 + 10 + 40) / 3)
    assert figures["spearman"]["value"] == pytest.approx(1)
    assert figures["label_with_length"]["value"] == pytest.approx(0.5)  # ranks 1 2 3 and 1 3 2
    assert figures["length_only_spearman"] == {"value": None, "low": None, "high": None}  # a level line ranks nothing
    assert figures["gain"] == {"value": None, "low": None, "high": None}
    low, high = figures["mae"]["low"], figures["mae"]["high"]
    assert 10 <= low <= 50 / 3 <= high <= 20


def test_the_gain_is_over_what_length_ranks() -> None:
    figures = measure([1, 2, 3], [1, 2, 3], [9, 9, 9], ["p", "q", "r"], [1, 3, 2], num_resamples=200, seed=0)
    assert figures["gain"]["value"] == pytest.approx(1 - 0.5)  # ranks 1 2 3 against 1 3 2
    assert figures["gain"]["low"] == pytest.approx(0)  # the two that length ranks rightly


def test_a_baseline_that_is_not_known_is_null() -> None:
    figures = measure([1, 2, 3], [1, 2, 3], [1, 2, 3], ["p"] * 3, [np.nan] * 3, num_resamples=5, seed=0)
    names = ("length_only_spearman", "length_only_pearson", "length_only_mae", "gain")
    assert [figures[name]["value"] for name in names] == [None] * 4
    assert figures["spearman"]["value"] == pytest.approx(1)


def test_the_same_seed_gives_the_same_intervals() -> None:
    rng = np.random.default_rng(0)
    data = (rng.normal(size=30), rng.normal(size=30), rng.integers(1, 50, 30), np.arange(30) // 3, np.full(30, 50.0))
    first, again, other = (measure(*data, num_resamples=50, seed=s) for s in (1, 1, 2))
    assert first == again
    assert first["spearman"]["low"] != other["spearman"]["low"]


def test_partial_correlation_equals_that_of_the_residuals() -> None:
    rng = np.random.default_rng(4)
    length = rng.normal(size=200)
    a, b = length + rng.normal(size=200), length + rng.normal(size=200)
    ranks = [stats.rankdata(x) for x in (a, b, length)]

    def residual(y: np.ndarray) -> np.ndarray:
        line = stats.linregress(ranks[2], y)
        return y - line.slope * ranks[2]

    wanted = stats.pearsonr(residual(ranks[0]), residual(ranks[1])).statistic
    assert partial_spearman(a, b, length) == pytest.approx(wanted)
    assert abs(wanted) < 0.2 < stats.spearmanr(a, b).statistic  # they have nothing but length in common
    assert partial_spearman(a, length, length) is None


def test_errors_by_range_by_hand() -> None:
    # Below 0.4: errors 0.2 and 0.1; both ends belong to the middle, whose errors are 0 and 0.4; nothing is above.
    low, middle, high = error_by_range(
        [30, 40, 40, 50, 77],
        [10, 30, 40, 90, np.nan],
        list("pqrst"),
        [50] * 5,
        num_resamples=20,
        seed=0,
    )
    assert [one["range"] for one in (low, middle, high)] == ["below 0.4", "0.4 to 0.9", "above 0.9"]
    assert [one["n"] for one in (low, middle, high)] == [2, 2, 0]
    assert low["mae"]["value"] == pytest.approx(0.15)
    assert low["mse"]["value"] == pytest.approx((0.04 + 0.01) / 2)
    assert low["length_only_mae"]["value"] == pytest.approx((0.4 + 0.2) / 2)
    assert middle["mae"]["value"] == pytest.approx(0.2)
    assert high["mae"]["value"] is None


def test_scores_by_label_and_correlations() -> None:
    bins = scores_by_label([10, 20, 30, 99], [5, 5, 100, np.nan])
    assert [(b["label"], b["n"], b["p50"]) for b in bins] == [(5, 2, 15), (100, 1, 30)]
    told = correlations(["x", "still"], [[1, 5], [2, 5], [3, 5]], [9, 8, 7])
    assert told["names"] == ["x", "still", "length"]
    assert told["spearman"][0] == pytest.approx([1, None, -1])
    assert told["spearman"][1] == [None, None, None]


def test_ranges_are_shares_of_the_labels_own_scale() -> None:
    """HelpSteer's 0 to 4 become 10 to 90: its best rating is above 0.9 of its scale, though not above 90 points."""
    draws = {"num_resamples": 5, "seed": 0}
    low, middle, high = error_by_range(
        [10, 30, 50, 70, 74], [10, 30, 50, 70, 90], list("pqrst"), [50] * 5, ends=(10, 90), **draws
    )
    assert [one["n"] for one in (low, middle, high)] == [2, 2, 1]
    assert high["mae"]["value"] == pytest.approx(0.2)  # 16 of 80 points
    assert high["mse"]["value"] == pytest.approx(0.04)
    assert high["length_only_mae"]["value"] == pytest.approx(0.5)
    # 0.3 + 0.6 is a little below 0.9, 3 * 0.3 at it, and both are the end of the middle.
    _, middle, _ = error_by_range([0, 0], [100 * (0.3 + 0.6), 100 * 0.9000000000000001], ["p", "q"], [0, 0], **draws)
    assert middle["n"] == 2


def test_correlations_within_pairs_do_not_depend_on_the_side() -> None:
    margins, longer = np.array([[3.0, 1], [-1, 2], [2, -4]]), np.array([5.0, -2, 1])
    told = pair_correlations(["x", "y"], margins, longer)
    assert told["of"] == "pairs"
    assert told["names"] == ["x", "y", "length"]
    turned = np.array([1.0, -1, 1])
    other = pair_correlations(["x", "y"], margins * turned[:, None], longer * turned)
    np.testing.assert_allclose(told["spearman"], other["spearman"])
    # Both ways round: 3 -1 2 -3 1 -2 has the ranks 6 3 5 1 4 2, and 5 -2 1 -5 2 -1 has 6 2 4 1 5 3: 1 - 6 * 4 / 210.
    assert told["spearman"][0][2] == pytest.approx(1 - 24 / 210)
