"""Controllability by hand, and against scipy over random ties."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rhumbline.evaluation.controllability import (
    angular_error_deg,
    calibration_slope,
    kendall,
    monotonicity_violations,
    regret,
    spearman,
    word_overlap,
)

ARC = np.radians([0.0, -15.0, -30.0, -45.0])
DIRECTIONS = np.stack([np.cos(ARC), np.sin(ARC)], axis=1)
sevens = arrays(np.float64, 7, elements=st.integers(0, 4).map(float))


def test_regret_by_hand() -> None:
    # v1 = (1, 0): its own prompt earns 3, the other 2: no regret
    # v2 = (.6, .8): its own earns .6 * 2 + .8 * 1 = 2, the other .6 * 3 + .8 * 4 = 5
    assert regret([[1.0, 0.0], [0.6, 0.8]], [[3.0, 4.0], [2.0, 1.0]]) == pytest.approx([0.0, 3.0])


@settings(max_examples=50, deadline=None)
@given(arrays(np.float64, (4, 2), elements=st.floats(-9, 9)))
def test_regret_is_the_double_loop_and_never_negative(rewards: np.ndarray) -> None:
    loop = [max(v @ r for r in rewards) - v @ rewards[i] for i, v in enumerate(DIRECTIONS)]
    assert regret(DIRECTIONS, rewards) == pytest.approx(loop, abs=1e-9)
    assert np.all(regret(DIRECTIONS, rewards) >= 0)


def test_rank_correlations_by_hand() -> None:
    # ranks 1 2 3 4 against 1 3 2 4: rho = 1 - 6 * 2 / (4 * 15) = .8; tau: 5 concordant, 1 discordant of 6
    assert spearman([-45, -30, -15, 0], [20.0, 31.0, 30.0, 60.0]) == pytest.approx(0.8)
    assert kendall([-45, -30, -15, 0], [20.0, 31.0, 30.0, 60.0]) == pytest.approx(4 / 6)


@settings(max_examples=100, deadline=None)
@given(sevens, sevens)
def test_rank_correlations_equal_scipy_with_ties(requested: np.ndarray, achieved: np.ndarray) -> None:
    if len(set(requested)) == 1 or len(set(achieved)) == 1:
        assert np.isnan(spearman(requested, achieved))
        assert np.isnan(kendall(requested, achieved))
        return
    assert spearman(requested, achieved) == pytest.approx(scipy.stats.spearmanr(requested, achieved).statistic)
    assert kendall(requested, achieved) == pytest.approx(scipy.stats.kendalltau(requested, achieved).statistic)


def test_statistics_keep_the_resamples_axis() -> None:
    rewards = np.random.default_rng(0).normal(size=(5, 4, 2))
    assert regret(DIRECTIONS, rewards) == pytest.approx(np.stack([regret(DIRECTIONS, r) for r in rewards]))
    for statistic in (spearman, kendall, calibration_slope):
        rows = [statistic(DIRECTIONS[:, 1], r[:, 1]) for r in rewards]
        assert statistic(DIRECTIONS[:, 1], rewards[..., 1]) == pytest.approx(np.stack(rows))
    errors = [float(angular_error_deg(DIRECTIONS, r)) for r in rewards]
    assert angular_error_deg(DIRECTIONS, rewards) == pytest.approx(errors)


def test_angular_error_does_not_depend_on_units() -> None:
    achieved = DIRECTIONS * [30.0, 0.2] + [50.0, 7.0]
    assert angular_error_deg(DIRECTIONS, achieved) == pytest.approx(0.0, abs=1e-5)


def test_angular_error_of_the_opposite_and_of_a_policy_that_does_not_listen() -> None:
    assert angular_error_deg(DIRECTIONS, -DIRECTIONS) == pytest.approx(180.0)
    assert angular_error_deg(DIRECTIONS, np.tile([60.0, 40.0], (4, 1))) == pytest.approx(90.0)


def test_angular_error_of_a_quarter_turn_by_hand() -> None:
    # a symmetric cross, achieved turned by 90 degrees: every request is answered at a right angle
    cross = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    assert angular_error_deg(cross, cross @ np.array([[0.0, 1.0], [-1.0, 0.0]])) == pytest.approx(90.0)
    swapped = cross[[0, 1, 3, 2]]  # two of four right, two answered by each other's neighbour (90 degrees)
    assert angular_error_deg(cross, swapped) == pytest.approx(45.0)


def test_monotonicity_violations_by_hand() -> None:
    # in the order of the request: 20, 31, 30, 60, 55: two steps down
    assert monotonicity_violations([0, -45, -30, -15, 10], [60.0, 20.0, 31.0, 30.0, 55.0]) == 2
    # two directions that ask for equally much are one level: 20, mean(10, 40) = 25, 30
    assert monotonicity_violations([0.0, 0.5, 0.5, 1.0], [20.0, 10.0, 40.0, 30.0]) == 0
    assert monotonicity_violations([0.0, 1.0], [5.0, 5.0]) == 0


def test_calibration_slope_by_hand() -> None:
    # centred weights -.5, 0, .5 and rewards 10, 20, 60: (-.5 * -20 + .5 * 30) / .5 = 50 points per unit of weight
    assert calibration_slope([0.0, 0.5, 1.0], [10.0, 20.0, 60.0]) == pytest.approx(50.0)
    assert np.isnan(calibration_slope([1.0, 1.0], [10.0, 20.0]))


@pytest.mark.parametrize(
    ("first", "second", "overlap"),
    [("A cat sat.", "a dog sat", 0.5), ("Yes", "yes!", 1.0), ("one", "two", 0.0), ("", "", 1.0), ("", "word", 0.0)],
)
def test_word_overlap(first: str, second: str, overlap: float) -> None:
    assert word_overlap(first, second) == pytest.approx(overlap)
