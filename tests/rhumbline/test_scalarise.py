"""Scalarisations and the standardiser, with numbers worked by hand."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rhumbline.errors import ConfigError, DirectionError
from rhumbline.scalarise import SCALARISATIONS, Scalarisation, Standardiser, chebyshev, linear

numbers = st.floats(-100, 100)
weights = st.floats(-1, 1).filter(lambda w: w == 0 or abs(w) > 1e-3)


@st.composite
def rewards_and_directions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    N, K = draw(st.integers(1, 8)), draw(st.integers(2, 4))
    rewards_NK = draw(hnp.arrays(np.float64, (N, K), elements=numbers))
    direction_K = draw(hnp.arrays(np.float64, K, elements=weights).filter(np.any))
    return rewards_NK, direction_K / np.linalg.norm(direction_K)


def test_linear_by_hand() -> None:
    # 0.8 * 70 - 0.6 * 30 = 38; 0.8 * 60 - 0.6 * 10 = 42
    np.testing.assert_allclose(linear([[70, 30], [60, 10]], (0.8, -0.6)), [38, 42])


def test_chebyshev_by_hand() -> None:
    # Wanted values (r1, -r2): (70, -30), (60, -10); the best of each: (70, -10).
    # gaps: 0.8 * 0 and 0.6 * 20 = 12 | 0.8 * 10 = 8 and 0. Value: -(max + 0.05 * sum) = -12.6 | -8.4
    np.testing.assert_allclose(chebyshev([[70, 30], [60, 10]], (0.8, -0.6)), [-12.6, -8.4])
    # With utopia (80, 0): gaps 8 and 18 | 16 and 6, rho 0
    np.testing.assert_allclose(chebyshev([[70, 30], [60, 10]], (0.8, -0.6), (80, 0), 0.0), [-18, -16])


def test_chebyshev_reaches_the_concave_part_that_no_weighted_sum_does() -> None:
    front = [[1.0, 0.0], [0.45, 0.45], [0.0, 1.0]]  # the middle lies below the chord
    angles = np.linspace(0, math.pi / 2, 50)
    assert 1 not in {int(np.argmax(linear(front, (math.cos(a), math.sin(a))))) for a in angles}
    assert int(np.argmax(chebyshev(front, (math.sqrt(0.5), math.sqrt(0.5))))) == 1


@given(rewards_and_directions(), st.sampled_from(sorted(SCALARISATIONS)), st.randoms())
@settings(deadline=None)
def test_the_order_of_objectives_does_not_matter(
    case: tuple[np.ndarray, np.ndarray], name: str, random: Random
) -> None:
    rewards_NK, direction_K = case
    order = list(range(len(direction_K)))
    random.shuffle(order)
    scalarise = SCALARISATIONS[name]
    np.testing.assert_allclose(
        scalarise(rewards_NK[:, order], direction_K[order]), scalarise(rewards_NK, direction_K), atol=1e-9
    )


@given(rewards_and_directions(), st.sampled_from(sorted(SCALARISATIONS)))
@settings(deadline=None)
def test_more_of_what_is_wanted_is_never_worth_less(case: tuple[np.ndarray, np.ndarray], name: str) -> None:
    rewards_NK, direction_K = case
    better_NK = rewards_NK.copy()
    better_NK[0] += 5 * np.sign(direction_K)
    options = {} if name == "linear" else {"utopia_K": np.full(len(direction_K), 200.0)}
    scalarise = SCALARISATIONS[name]
    after_N, before_N = scalarise(better_NK, direction_K, **options), scalarise(rewards_NK, direction_K, **options)
    assert after_N[0] > before_N[0]
    np.testing.assert_array_equal(after_N[1:], before_N[1:])


@given(rewards_and_directions())
@settings(deadline=None)
def test_equal_rewards_have_exactly_equal_values(case: tuple[np.ndarray, np.ndarray]) -> None:
    rewards_NK, direction_K = case
    values_N = linear(np.vstack([rewards_NK, rewards_NK[:1].repeat(17, axis=0)]), direction_K)
    assert len(set(values_N[-17:].tolist()) | {values_N[0]}) == 1


@pytest.mark.parametrize("scalarise", list(SCALARISATIONS.values()))
@pytest.mark.parametrize(("rewards", "direction"), [([[1, 2]], (1, 0, 0)), ([1, 2], (1, 0)), ([[1, 2]], [[1, 0]])])
def test_shapes_that_do_not_fit_are_refused(scalarise: Scalarisation, rewards: Any, direction: Any) -> None:
    with pytest.raises(DirectionError, match=r"expected \(N, K\) and \(K,\)"):
        scalarise(rewards, direction)


def test_standardiser_by_hand() -> None:
    # Columns 10, 20, 30: mean 20, std sqrt(200 / 3); 1, 1, 4: mean 2, std sqrt 2.
    fitted = Standardiser.fit([[10, 1], [20, 1], [30, 4]], ["helpfulness", "verbosity"])
    assert fitted.mean_K == (20, 2)
    assert fitted.std_K == pytest.approx((math.sqrt(200 / 3), math.sqrt(2)))
    np.testing.assert_allclose(fitted([[20, 2 + math.sqrt(2)]]), [[0, 1]])
    assert Standardiser.from_dict(fitted.to_dict()) == fitted


@given(
    hnp.arrays(np.float64, (6, 3), elements=st.integers(-50, 50).map(float)).filter(lambda a: np.all(np.ptp(a, 0) > 0))
)
def test_what_it_was_fit_on_gets_mean_0_and_std_1(rewards_NK: np.ndarray) -> None:
    z_NK = Standardiser.fit(rewards_NK)(rewards_NK)
    np.testing.assert_allclose(z_NK.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(z_NK.std(axis=0), 1)


def test_identity_changes_nothing() -> None:
    np.testing.assert_array_equal(Standardiser.identity(2)([[61.5, -3.25]]), [[61.5, -3.25]])


@pytest.mark.parametrize(
    ("mean", "std", "says"),
    [
        ((0.0, 0.0), (1.0, 0.0), "objective verbosity has standard deviation 0"),
        ((0.0, 0.0), (1.0, -1.0), "objective verbosity has standard deviation -1"),
        ((0.0, math.nan), (1.0, 1.0), "objective verbosity: calibration mean nan"),
        ((0.0, 0.0), (math.inf, 1.0), "objective helpfulness: calibration"),
        ((0.0, 0.0), (1.0,), "2 means and 1 standard deviations"),
        ((), (), "0 means"),
    ],
)
def test_statistics_that_cannot_standardise_are_refused(mean: Any, std: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Standardiser(mean, std, ("helpfulness", "verbosity"))


def test_a_constant_objective_is_refused_although_its_spread_rounds() -> None:
    rewards_NK = np.array([[0.1, k] for k in range(6)])
    assert rewards_NK.std(axis=0)[0] > 0  # why equality has to be looked at
    with pytest.raises(ConfigError, match="objective helpfulness has standard deviation 0"):
        Standardiser.fit(rewards_NK, ["helpfulness", "verbosity"])
    with pytest.raises(ConfigError, match="N > 0"):
        Standardiser.fit(np.empty((0, 2)))


def test_a_standardiser_of_other_objectives_is_refused() -> None:
    with pytest.raises(DirectionError, match="the calibration has 2 objectives"):
        Standardiser.identity(2)([[1.0, 2.0, 3.0]])
