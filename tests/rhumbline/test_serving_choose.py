"""The best of n answers, and the neighbours that they are sampled under."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rhumbline.directions import Cone, angle_between_deg, angle_deg, from_angle_deg, normalise
from rhumbline.errors import DirectionError, ScoringError
from rhumbline.scalarise import Standardiser
from rhumbline.serving.choose import best, neighbours
from tests.rhumbline.steering_fakes import ARC, served, served_3


def test_the_best_answer_worked_by_hand() -> None:
    # z = (r - 50) / 10: (2, 1), (1, -1), (0, -2); v = (0.8, -0.6): 1.0, 1.4, 1.2
    rewards = [[70.0, 60.0], [60.0, 40.0], [50.0, 30.0]]
    choice = best(rewards, (0.8, -0.6), served().standardiser)
    assert (choice.index, choice.rewards, choice.num_candidates) == (1, (60.0, 40.0), 3)
    assert choice.value == pytest.approx(1.4)
    assert best(rewards, (1.0, 0.0), served().standardiser).index == 0
    assert best(rewards, (0.0, -1.0), served().standardiser).index == 2


def test_scales_are_those_of_training() -> None:
    rewards, v = [[60.0, 50.0], [50.0, 53.0]], normalise((1.0, 1.0))
    assert best(rewards, v, Standardiser.identity(2)).index == 0
    assert (
        best(rewards, v, Standardiser((50.0, 50.0), (10.0, 1.0))).index == 1
    )  # 3 points are 3 standard deviations there
    assert served(standardise=False).standardiser == Standardiser.identity(2)


def test_of_equals_the_first() -> None:
    assert best([[50.0, 50.0]] * 3, (1.0, 0.0), Standardiser.identity(2)).index == 0


def test_the_neighbour_that_won_is_told() -> None:
    under = [(1.0, 0.0), from_angle_deg(-20)]
    choice = best([[1.0, 0.0], [2.0, 0.0]], (1.0, 0.0), Standardiser.identity(2), under)
    assert choice.sampled_under == under[1]
    assert choice.to_json(("a", "b")) == {
        "best_of": 2,
        "index": 1,
        "value": 2.0,
        "sampled_under": {"a": 0.9397, "b": -0.342},
    }


@pytest.mark.parametrize("rewards", [[], [[float("nan"), 1.0]], [[float("inf"), 1.0]], [1.0, 2.0]])
def test_a_failed_score_never_chooses(rewards: object) -> None:
    with pytest.raises(ScoringError):
        best(rewards, (1.0, 0.0), Standardiser.identity(2))  # type: ignore[arg-type]  # that is the point


def test_neighbours_spread_over_what_is_trained() -> None:
    found = neighbours(ARC, from_angle_deg(-22.5), 3, 15, seed=1)
    angles = [angle_deg(v) for v in found]
    assert angles[0] == pytest.approx(-22.5)
    assert sorted(angles[1:]) == pytest.approx([-37.5, -7.5], abs=0.5)  # both ends of the neighbourhood
    edge = [angle_deg(v) for v in neighbours(ARC, (1.0, 0.0), 5, 30, seed=1)]
    assert edge[0] == 0
    assert min(edge) == pytest.approx(-30, abs=0.5)
    assert max(edge) == 0
    assert neighbours(ARC, (1.0, 0.0), 1) == [(1.0, 0.0)]


@given(
    st.integers(2, 5),
    st.floats(5, 170),
    st.floats(0.5, 45),
    st.integers(1, 8),
    st.integers(0, 2**32 - 1),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=100)
def test_neighbours_are_near_trained_and_the_same_again(K: int, half: float, within: float, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    cone = Cone(tuple(f"o{k}" for k in range(K)), normalise(rng.standard_normal(K)), half)
    direction = tuple(cone.sample(rng, 1)[0].tolist())
    found = neighbours(cone, direction, n, within, seed)
    assert found == neighbours(cone, direction, n, within, seed)
    assert (len(found), found[0]) == (n, direction)
    for one in found:
        assert angle_between_deg(one, direction) <= within + 1e-6
        assert angle_between_deg(one, cone.axis) <= half + 1e-6


@pytest.mark.parametrize(("n", "within"), [(0, 30), (3, 0), (3, 46), (3, float("nan"))])
def test_bounds(n: int, within: float) -> None:
    with pytest.raises(DirectionError, match="neighbours need"):
        neighbours(served_3().cone, served_3().default, n, within)
