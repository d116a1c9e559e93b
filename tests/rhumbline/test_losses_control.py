from __future__ import annotations

import dataclasses
import json

import pytest

from rhumbline.losses import KL_CONTROLLERS
from rhumbline.losses.control import Coefficient, adaptive, fixed

START = Coefficient(value=0.02)


def test_adaptive_by_hand():
    # KL 1.1 of 1: error 0.1; 1000 of 10,000 samples: beta * 1.01. KL 3: the error is clipped to 0.2; KL 0: to -0.2.
    for kl, expected in ((1.1, 0.0202), (3.0, 0.0204), (0.0, 0.0196), (-5.0, 0.0196), (1.0, 0.02)):
        assert adaptive(START, kl, 1000, target=1.0, horizon=10_000).value == pytest.approx(expected)


def test_fixed_stays_whatever_the_kl():
    assert fixed(START, 1e9, 1000) == START


def test_it_finds_the_coefficient_that_gives_the_target():
    # A policy whose KL is 0.1 / beta: the target 2 needs 0.05.
    state, kl = START, 0.0
    for _ in range(200):
        kl = 0.1 / state.value
        state = adaptive(state, kl, 1000, target=2.0)
    assert kl == pytest.approx(2.0, rel=0.01)
    assert state.value == pytest.approx(0.05, rel=0.01)
    assert state.stuck_high == state.stuck_low == 0


def test_a_target_that_cannot_be_reached_shows_at_the_bound():
    state = START
    for _ in range(30):
        state = adaptive(state, 5.0, 1000, target=1.0, high=0.025)
    # 0.02 * 1.02^12 = 0.0254 is the first beyond it; 19 of the 30 updates end there.
    assert state == Coefficient(value=0.025, stuck_high=19)
    assert adaptive(state, 1.0, 1000, target=1.0, high=0.025).stuck_high == 0  # at the bound, and at the target
    state = adaptive(state, 0.9, 1000, target=1.0, high=0.025)
    assert state.stuck_high == 0  # it comes back
    for _ in range(2000):
        state = adaptive(state, 0.0, 1000, target=1.0, low=0.01)
    assert state.value == 0.01
    assert state.stuck_low > 1900
    assert adaptive(state, 1.0, 1000, target=1.0, low=0.01).stuck_low == 0  # at the bound, and at the target


def test_a_coefficient_of_zero_can_grow():
    assert adaptive(Coefficient(value=0.0), 5.0, 1000, target=1.0, low=1e-4).value == 1e-4


def test_the_state_is_plain_and_resumes():
    state = adaptive(START, 3.0, 1000, target=1.0)
    assert Coefficient(**json.loads(json.dumps(dataclasses.asdict(state)))) == state


def test_what_cannot_be_controlled_is_refused():
    for kl, samples, options, message in (
        (float("nan"), 100, {"target": 1.0}, "the KL is nan"),
        (float("inf"), 100, {"target": 1.0}, "the KL is inf"),
        (1.0, 100, {"target": 0.0}, "above 0"),
        (1.0, 100, {"target": 1.0, "low": 0.0}, "bounds"),
        (1.0, 100, {"target": 1.0, "horizon": 20}, "too many"),
    ):
        with pytest.raises(AssertionError, match=message):
            adaptive(START, kl, samples, **options)


def test_an_extreme_kl_moves_it_no_further_than_a_fifth():
    assert adaptive(START, 1e300, 1000, target=1e-300).value == pytest.approx(0.0204)


def test_every_controller_is_in_the_dict():
    assert set(KL_CONTROLLERS) >= {"fixed", "adaptive"}
