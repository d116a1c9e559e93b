"""Simulated people: where their directions lie, and that they answer as their manner says."""

from __future__ import annotations

import numpy as np
import pytest

from rhumbline.directions import Cone
from rhumbline.errors import ConfigError
from rhumbline.users.posterior import TIE, A, B, angles_deg
from rhumbline.users.simulated import MANNERS, Manner, SimulatedUser, answer_all, cluster_weights, draw

FOUR = Cone(tuple("abcd"), (1.0, 1.0, 1.0, 1.0), 45.0)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("law", ["uniform", "dirichlet", "clusters"])
def test_people_lie_in_the_cone(law: str) -> None:
    people = draw(law, FOUR, rng(), 100)
    assert people.shape == (100, 4)
    assert np.linalg.norm(people, axis=1) == pytest.approx(1)
    assert all(FOUR.contains(w_K) for w_K in people)


def test_system_cs_people_are_weights_and_the_last_is_the_uniform_one() -> None:
    for law in ("dirichlet", "clusters"):
        people = draw(law, Cone(tuple("abcd"), (1.0, 1.0, 1.0, 1.0), 90.0), rng(), 100)
        assert (people >= 0).all()
        assert people[-1].tolist() == pytest.approx([0.5] * 4)
    weights = cluster_weights(rng(), 99)
    assert len(weights) == 99
    assert weights.sum(axis=1) == pytest.approx(1)
    assert weights[:49].mean(axis=0) == pytest.approx([0.25] * 4, abs=0.08)
    assert weights[49:79].mean(axis=0) == pytest.approx([0.07, 0.03, 0.6, 0.3], abs=0.1)
    assert weights[79:].mean(axis=0) == pytest.approx([0.75, 0.05, 0.12, 0.08], abs=0.1)
    assert len(cluster_weights(rng(), 11)) == 11


def test_a_negative_axis_turns_the_weights() -> None:
    people = draw("dirichlet", Cone(("helpfulness", "verbosity"), (0.7, -0.7), 45.0), rng(), 50)
    assert (people[:, 0] >= -1e-9).all()
    assert (people[:, 1] <= 1e-9).all()


def test_answers_come_as_often_as_the_manner_says() -> None:
    # x = 2 ln 2 with nu = 1/2: (2/3, 1/6, 1/6); a tenth by chance: 0.9 p + 1/30.
    manner = Manner(beta=2.0, lapse=0.1, nu=0.5)
    w_UK, d_UK = np.tile([1.0, 0.0], (60_000, 1)), np.tile([np.log(2), 5.0], (60_000, 1))
    shares = np.bincount(answer_all(w_UK, d_UK, manner, rng()), minlength=3) / 60_000
    assert shares[[A, B, TIE]] == pytest.approx([0.9 * 2 / 3 + 1 / 30, 0.9 / 6 + 1 / 30, 0.9 / 6 + 1 / 30], abs=0.01)


def test_who_never_calls_a_tie_does_not_by_chance_either() -> None:
    answers = answer_all(np.tile([1.0, 0.0], (2000, 1)), np.zeros((2000, 2)), Manner(beta=3.0, lapse=0.5), rng())
    assert set(answers.tolist()) == {A, B}


def test_equal_luck_leans_the_same_way() -> None:
    w_UK = np.tile([1.0, 0.0], (500, 1))
    weak = answer_all(w_UK, np.tile([0.1, 0.0], (500, 1)), MANNERS["with_ties"], rng(3))
    strong = answer_all(w_UK, np.tile([0.8, 0.0], (500, 1)), MANNERS["with_ties"], rng(3))
    assert (strong[weak == A] == A).all()
    assert (strong == A).sum() > (weak == A).sum()


def test_an_inconsistent_person_contradicts_itself_more() -> None:
    def flips(manner: str) -> float:
        w_UK, d_UK = FOUR.sample(rng(1), 4000), rng(2).normal(0, 1.4, (4000, 4))
        first, again = (answer_all(w_UK, d_UK, MANNERS[manner], rng(seed)) for seed in (5, 6))
        return float((first != again).mean())

    assert flips("inconsistent") > flips("with_ties") + 0.05
    assert flips("noisy") > flips("with_ties") + 0.05


def test_the_wobble_is_as_wide_as_it_says() -> None:
    """With a beta that decides every comparison, a question on the boundary at 15 degrees splits as the normal law has it."""
    w_UK = np.tile([1.0, 0.0], (20_000, 1))
    at_15 = np.array([-np.sin(np.radians(15)), np.cos(np.radians(15))])
    answers = answer_all(w_UK, np.tile(at_15, (20_000, 1)), Manner(beta=1e6, wobble_deg=15.0), rng())
    assert (answers == A).mean() == pytest.approx(0.159, abs=0.015)  # above one standard deviation


def test_one_person_is_a_crowd_of_one() -> None:
    user = SimulatedUser(direction=(1.0, 0.0), manner=Manner(beta=50.0))
    assert user.choose((1.0, 0.0), rng()) == "a"
    assert user.choose((-1.0, 0.0), rng()) == "b"
    assert SimulatedUser(direction=(1.0, 0.0), manner=Manner(beta=1.0, nu=1e9)).choose((0.2, 0.0), rng()) == "tie"


def test_directions_are_spread_over_the_cone() -> None:
    assert np.median(angles_deg(draw("uniform", FOUR, rng(), 2000), np.full((2000, 4), 0.5))) > 30


def test_faults_are_named() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'dirichlet'"):
        draw("dirichlett", FOUR, rng(), 10)
    with pytest.raises(ConfigError, match="4 objectives, the cone 2"):
        draw("clusters", Cone(("a", "b"), (1.0, 0.0), 45.0), rng(), 10)
