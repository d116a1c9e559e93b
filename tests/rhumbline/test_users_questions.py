"""Which question to ask: information against its definition, D-optimality against determinants, system C's greedy set."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhumbline.directions import Cone, from_angle_deg
from rhumbline.errors import DataError
from rhumbline.users.posterior import TIE, A, B, ChoiceModel, Particles, choice_probabilities
from rhumbline.users.questions import CHOOSERS, greedy, information, set_information

ARC = Cone(("helpfulness", "verbosity"), (1.0, 0.0), 45.0)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def choose(name: str, person: Particles, d_NK: list[tuple[float, ...]], closed: tuple[int, ...] = ()) -> int:
    open_UN = np.array([[n not in closed for n in range(len(d_NK))]])
    return int(CHOOSERS[name](person, np.array([d_NK]), open_UN, rng(1))[0])


@pytest.mark.parametrize("ties", [True, False])
def test_information_is_the_mutual_information_of_answer_and_direction(ties: bool) -> None:
    model, M = ChoiceModel(ties=ties, lapse=0.05), 7
    w_MK, d_NK = rng(0).normal(size=(M, 3)), rng(1).normal(size=(5, 3))
    seen = information(w_MK[None], np.array([2.0]), np.array([0.7]), d_NK[None], model)[0]
    for n, d_K in enumerate(d_NK):
        joint = [[float(p) / M for p in choice_probabilities(2.0 * (w_K @ d_K), 0.7, 0.05, ties)] for w_K in w_MK]
        answers = [sum(row[c] for row in joint) for c in range(model.answers)]
        brute = sum(row[c] * math.log(row[c] / (answers[c] / M)) for row in joint for c in range(model.answers))
        assert seen[n] == pytest.approx(brute, abs=1e-12)


def test_two_answers_that_score_the_same_say_nothing() -> None:
    """Volume removal would take them first: nobody's answer is certain there."""
    model, w_UMK = ChoiceModel(ties=False), ARC.sample(rng(), 100)[None]
    seen = information(w_UMK, np.array([3.0]), np.array([1.0]), np.array([[[0.0, 0.0], [0.3, 1.0]]]), model)[0]
    assert seen[0] == pytest.approx(0, abs=1e-12)
    assert seen[1] > 0.1


def test_bald_halves_what_is_left() -> None:
    person = Particles(ARC, rng(), particles=1024)
    everybody_agrees, halves, edge = (2.0, 0.3), (0.0, 2.0), (1.3, 1.5)
    assert choose("bald", person, [everybody_agrees, edge, halves]) == 2
    assert choose("bald", person, [everybody_agrees, edge, halves], closed=(2,)) == 1
    for _ in range(3):
        person.update([halves], [A])  # the second weight is above 0
    # Now the boundary of (-0.8, 1.8) at 24 degrees cuts what is left, that of (0, 2) at 0 no more.
    assert choose("bald", person, [halves, (-0.8, 1.8)]) == 1


def test_bald_does_not_depend_on_the_order_or_the_names_of_objectives() -> None:
    d_NK = rng(4).normal(size=(30, 3))
    chosen = []
    for order in ([0, 1, 2], [2, 0, 1]):
        cone = Cone(tuple("abc"), np.array([1.0, 0.5, -0.5])[order], 45.0)
        person = Particles(cone, rng(), particles=4096)
        person.w_UMK = Cone(tuple("abc"), (1.0, 0.5, -0.5), 45.0).sample(rng(9), 4096)[None][:, :, order]
        chosen.append(choose("bald", person, [tuple(d) for d in d_NK[:, order]]))
    assert chosen[0] == chosen[1]


def test_d_optimal_takes_the_largest_determinant() -> None:
    person = Particles(Cone(tuple("abc"), (1.0, 1.0, 1.0), 45.0), rng(), particles=1024, model=ChoiceModel(ties=False))
    for t in range(4):
        person.update(rng(t).normal(size=(1, 3)), [t % 2])
    d_NK = rng(7).normal(0, 1.4, (40, 3))
    w_UMK, beta_UM, _ = person.thinned(256)
    theta_K = (beta_UM[0][:, None] * w_UMK[0]).mean(axis=0)
    before = np.linalg.inv(np.cov((person.cone.sample(rng(0), 2048) * 3.0).T) + 1e-6 * np.eye(3))

    def gained(d_QK: np.ndarray) -> float:
        p_Q = 1 / (1 + np.exp(-d_QK @ theta_K))
        return float(np.linalg.slogdet(before + (d_QK.T * (p_Q * (1 - p_Q))) @ d_QK)[1])

    asked_QK = person.d_UQK[0]
    best = int(np.argmax([gained(np.concatenate([asked_QK, d_K[None]])) for d_K in d_NK]))
    assert choose("d_optimal", person, [tuple(d) for d in d_NK]) == best


def test_every_chooser_respects_what_was_asked_and_says_when_nothing_is_left() -> None:
    person = Particles(ARC, rng(), particles=256)
    d_NK = [(0.1 * n, 1.0) for n in range(5)]
    for name in CHOOSERS:
        taken: list[int] = []
        for _ in d_NK:
            taken.append(choose(name, person, d_NK, closed=tuple(taken)))
        assert sorted(taken) == list(range(5)), name
        with pytest.raises(DataError, match="no question left"):
            choose(name, person, d_NK, closed=tuple(range(5)))


def test_random_takes_any() -> None:
    person = Particles(ARC, rng(), persons=3000, particles=16)
    d_UNK, open_UN = np.ones((3000, 4, 2)), np.tile([True, False, True, True], (3000, 1))
    counts = np.bincount(CHOOSERS["random"](person, d_UNK, open_UN, rng(1)), minlength=4)
    assert counts[1] == 0
    assert (np.abs(counts[[0, 2, 3]] - 1000) < 120).all()


def test_the_greedy_choice_splits_the_prior_whatever_was_answered() -> None:
    middle, upper = (-math.sin(0.0), 1.0), tuple(np.array(from_angle_deg(112.5)))  # boundaries at 0 and 22.5 degrees
    for answer in (A, B, TIE):
        person = Particles(ARC, rng(), particles=256)
        assert choose("greedy", person, [upper, middle]) == 1
        person.update([middle], [answer])
        assert choose("greedy", person, [middle, upper, (2.0, 0.1)]) == 1


def test_system_cs_greedy_set_by_hand() -> None:
    # Questions: all alike; 1 of 4 differs; 2 and 2; the same 2 and 2 again; the other 2 and 2.
    answers_UQ = np.array([[5, 1, 0, 0, 1], [5, 0, 0, 0, 0], [5, 0, 1, 1, 1], [5, 0, 1, 1, 0]])
    chosen = greedy(answers_UQ, 5)
    assert [q for q, _ in chosen] == [2, 4]  # then everybody is told apart: nothing is gained any more
    assert [known for _, known in chosen] == pytest.approx([math.log(2), math.log(4)])


def test_the_information_of_a_set_is_equation_3() -> None:
    answers_UQ = rng(3).integers(0, 3, (100, 6))
    patterns = [tuple(row) for row in answers_UQ[:, [1, 4]].tolist()]
    share = {pattern: patterns.count(pattern) / 100 for pattern in patterns}
    equation = sum(-math.log(share[pattern]) for pattern in patterns) / 100
    seen = set_information(answers_UQ[:, 1].astype(np.int64), answers_UQ.astype(np.int64))
    assert seen[4] == pytest.approx(equation)
    assert seen[1] == pytest.approx(set_information(np.zeros(100, dtype=np.int64), answers_UQ.astype(np.int64))[1])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_the_greedy_set_is_at_least_63_percent_of_the_best(seed: int) -> None:
    """Entropy is submodular: Nemhauser, Wolsey and Fisher's bound, 1 - 1/e."""
    answers_UQ = rng(seed).integers(0, 2, (12, 6))
    nobody = np.zeros(12, dtype=np.int64)

    def known(subset: tuple[int, ...]) -> float:
        codes = np.unique(answers_UQ[:, subset], axis=0, return_inverse=True)[1].reshape(-1, 1)
        return float(set_information(nobody, codes.astype(np.int64))[0])

    chosen = greedy(answers_UQ, 3)
    best = max(known(subset) for subset in itertools.combinations(range(6), 3))
    assert not chosen or chosen[-1][1] == pytest.approx(known(tuple(q for q, _ in chosen)))
    assert (chosen[-1][1] if chosen else 0.0) >= (1 - 1 / math.e) * best - 1e-9


def test_a_table_that_is_no_table_is_refused() -> None:
    for wrong in (np.zeros((3, 0), dtype=int), np.zeros(3, dtype=int), np.zeros((2, 2))):
        with pytest.raises(DataError, match="whole numbers"):
            greedy(wrong, 2)
