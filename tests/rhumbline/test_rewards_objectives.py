"""Heads, objectives as linear maps of them, and calibration."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhumbline.config import Objective
from rhumbline.errors import ConfigError
from rhumbline.rewards.objectives import SCALES, Calibration, Head, Objectives, spearman


def head(name: str, source: str = "s", scale: str = "unit") -> Head:
    return Head(name=name, source=source, **SCALES[scale])


HEADS = (head("a"), head("b"), head("c"))


def test_helpsteer_is_20_r_plus_10() -> None:
    assert head("h", scale="helpsteer").score([0, 1, 2, 3, 4]).tolist() == [10, 30, 50, 70, 90]


def test_the_released_models_golden_vector_in_helpsteers_units() -> None:
    # methods: (68.99269 - 10) / 20 = 2.9496, (35.853596 - 10) / 20 = 1.2927
    assert head("h", scale="helpsteer").raw([68.99269, 35.853596]) == pytest.approx([2.9496345, 1.2926798])


def test_ultrafeedback_stays_within_0_and_100_unlike_20_r_plus_10() -> None:
    assert head("u", scale="ultrafeedback").score([1, 3, 5]).tolist() == [10, 50, 90]
    assert head("u", scale="ultrafeedback-overall").score([1, 10]) == pytest.approx([10, 90])
    assert head("o").score([0, 0.25, 1]).tolist() == [0, 25, 100]


def test_a_missing_label_stays_missing() -> None:
    assert np.isnan(head("h").score([np.nan])).all()


def test_a_head_refuses_a_scale_that_does_not_rise() -> None:
    with pytest.raises(ConfigError, match="raw_low < raw_high"):
        Head(name="h", source="s", raw_low=1, raw_high=1, scale=1, offset=0)


def test_objectives_are_the_linear_maps_that_the_recipe_writes() -> None:
    objectives = Objectives.build(
        {"x": Objective(heads={"c": 0.5, "a": 0.5}), "y": Objective(heads={"b": -1.0}, sign=-1)}, HEADS
    )
    # x = (10 + 30) / 2, y = -20; then (0 + 4) / 2, -2
    assert objectives([[10, 20, 30], [0, 2, 4]]).tolist() == [[20, -20], [2, -2]]
    assert objectives.names == ("x", "y")
    assert objectives.signs == (1, -1)
    assert objectives(np.empty((0, 3))).shape == (0, 2)


@given(st.permutations(["x", "y", "z"]), st.lists(st.floats(-100, 200), min_size=6, max_size=6))
def test_permuting_objectives_permutes_rewards(order: list[str], scores: list[float]) -> None:
    wanted = {
        "x": Objective(heads={"a": 1.0}),
        "y": Objective(heads={"b": 0.3, "c": 0.7}),
        "z": Objective(heads={"c": -2.0}),
    }
    scores_NH = np.reshape(scores, (2, 3))
    before, after = Objectives.build(wanted, HEADS), Objectives.build({name: wanted[name] for name in order}, HEADS)
    assert np.array_equal(after(scores_NH), before(scores_NH)[:, [list(wanted).index(name) for name in order]])


@given(st.permutations([0, 1, 2]))
def test_heads_are_found_by_name_not_by_place(order: list[int]) -> None:
    wanted = {"x": Objective(heads={"a": 1.0, "b": 0.5}), "y": Objective(heads={"c": 1.0})}
    scores_NH = np.array([[1.0, 2.0, 3.0]])
    shuffled = Objectives.build(wanted, [HEADS[i] for i in order])
    assert np.array_equal(shuffled(scores_NH[:, order]), Objectives.build(wanted, HEADS)(scores_NH))


def test_an_objective_without_its_head_names_key_value_and_what_there_is() -> None:
    with pytest.raises(ConfigError) as e:
        Objectives.build({"help": Objective(heads={"helpfulnes": 0.5})}, [head("helpfulness"), head("verbosity")])
    said = str(e.value)
    for part in (
        "rewards.objectives.help.heads.helpfulnes = 0.5",
        "Did you mean 'helpfulness'?",
        "helpfulness, verbosity",
    ):
        assert part in said


def test_two_sources_may_not_give_the_same_head() -> None:
    with pytest.raises(ConfigError, match=r"two heads are called 'a' \(of one and two\)"):
        Objectives.build({"x": Objective(heads={"a": 1.0})}, [head("a", "one"), head("a", "two")])


def test_an_objective_of_zeros_is_refused() -> None:
    with pytest.raises(ConfigError, match="rewards nothing"):
        Objectives.build({"x": Objective(heads={"a": 0.0})}, HEADS)


# --- calibration ------------------------------------------------------------------------------------------------------


def test_calibration_by_hand() -> None:
    # Column 1: 0, 10, 20, 30, 40 rises with length: rank correlation 1. Column 2 is constant.
    calibration = Calibration.fit(["x", "y"], [[0, 7], [10, 7], [20, 7], [30, 7], [40, 7]], [1, 2, 3, 5, 8])
    assert calibration.n == 5
    assert calibration.mean == (20, 7)
    assert calibration.std == (pytest.approx(np.sqrt(200)), 0)  # (400 + 100 + 0 + 100 + 400) / 5
    assert (calibration.minimum, calibration.maximum) == ((0, 7), (40, 7))
    assert (calibration.p10[0], calibration.p50[0], calibration.p90[0]) == pytest.approx((4, 20, 36))
    assert calibration.length_correlation == (pytest.approx(1), None)
    with pytest.raises(ConfigError, match="objective y has standard deviation 0"):
        calibration.standardiser()


def test_calibration_survives_json_and_standardises() -> None:
    rng = np.random.default_rng(0)
    rewards_NK = rng.normal(50, [3, 20], size=(200, 2))
    calibration = Calibration.fit(["x", "y"], rewards_NK, rng.integers(1, 100, 200))
    again = Calibration.from_dict(json.loads(json.dumps(calibration.to_dict())))
    assert again == calibration
    z_NK = again.standardiser()(rewards_NK)
    assert z_NK.mean(axis=0) == pytest.approx([0, 0], abs=1e-9)
    assert z_NK.std(axis=0) == pytest.approx([1, 1])


@pytest.mark.parametrize(
    ("rewards", "lengths"), [([[1.0, 2.0]], [3]), ([[1.0, np.nan], [1.0, 2.0]], [3, 4]), ([[1.0], [2.0]], [3, 4])]
)
def test_calibration_refuses_too_little_nan_and_what_does_not_fit(
    rewards: list[list[float]], lengths: list[int]
) -> None:
    with pytest.raises(ConfigError):
        Calibration.fit(["x", "y"], rewards, lengths)


def test_spearman_is_none_where_it_is_not_defined() -> None:
    assert spearman([1, 1], [1, 2]) is None
    assert spearman([3, 1, 2], [30, 10, 20]) == pytest.approx(1)
