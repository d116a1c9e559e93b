"""Accuracy, log loss and calibration of pairs, by hand, and what must not change them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rhumbline.cards.accuracy import (
    calibration_error,
    chosen,
    credits,
    log_loss,
    measure_classes,
    measure_pairs,
    pair_accuracy,
    reliability,
)
from rhumbline.cards.length_only import LengthClasses

DRAWS = {"num_resamples": 50, "seed": 0}


def test_equal_scores_are_half_right() -> None:
    assert credits([2, 1, 1], [1, 1, 2]).tolist() == [1, 0.5, 0]
    assert pair_accuracy([2, 1, 1], [1, 1, 2]) == 0.5
    assert pair_accuracy([], []) is None


def test_log_loss_by_hand() -> None:
    assert log_loss([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]], [0, 2]) == pytest.approx((math.log(2) - math.log(0.7)) / 2)
    assert log_loss([[1 / 3] * 3] * 4, [0, 1, 2, 2]) == pytest.approx(1.0986, abs=1e-4)
    assert log_loss([[0.0, 1.0]], [0]) == pytest.approx(-math.log(1e-12))  # certain and wrong, yet finite


def test_calibration_by_hand() -> None:
    bins = reliability([0.05, 0.15, 0.18, 1.0], [0, 1, 0, 1])
    assert [(b["n"], b["observed"]) for b in bins] == [(1, 0), (2, 0.5), (1, 1)]
    assert [b["predicted"] for b in bins] == pytest.approx([0.05, 0.165, 1])
    # (1 * 0.05 + 2 * 0.335 + 0) / 4
    assert calibration_error(bins) == pytest.approx(0.18)
    assert calibration_error([]) is None
    (one,) = reliability([-3.0], [0.2])  # a score below its scale belongs to the lowest bin
    assert (one["low"], one["predicted"]) == (0, -3)
    # A score on an edge belongs to the bin above it, also where the edge is no binary fraction.
    assert [b["n"] for b in reliability([0.3, 0.6, 0.7, 0.29], [0] * 4)] == [1, 1, 1, 1]


def test_figures_of_pairs_by_hand() -> None:
    figures = measure_pairs(
        [1, -2, 0, 5], [0, 0, 1, 2], [[9, 4], [3, 8], [5, 5], [1, 2]], list("pqrs"), temperature=1.0, **DRAWS
    )
    assert (figures["n"], figures["ties"], figures["prompts"]) == (3, 1, 3)
    assert figures["accuracy"]["value"] == 0.5  # right, wrong, the same score
    assert figures["length_accuracy"]["value"] == 0.5
    assert figures["gain"] == {"value": 0, "low": 0, "high": 0}  # pair by pair the same credits
    wanted = (math.log1p(math.exp(-1)) + math.log1p(math.exp(2)) + math.log(2)) / 3
    assert figures["log_loss"]["value"] == pytest.approx(wanted)
    assert figures["uniform_log_loss"] == pytest.approx(0.6931, abs=1e-4)
    # Score and length of the first less the second, both ways round: (1, 5), (-2, -5), (0, 0) and their negatives. Ranks
    # 5, 1, 3.5, 2, 6, 3.5 and 5.5, 1.5, 3.5, 1.5, 5.5, 3.5: their correlation is 16 / sqrt(17 * 16).
    assert figures["score_with_length"]["value"] == pytest.approx(16 / math.sqrt(17 * 16))


def sample(n: int = 300) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(5)
    margins = rng.normal(size=n)
    winners = np.where(rng.random(n) < 0.15, 2, (rng.random(n) > 1 / (1 + np.exp(-2 * margins))).astype(int))
    return margins, winners, rng.integers(1, 90, size=(n, 2)), np.arange(n) // 3


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_exchanging_the_sides_changes_nothing(temperature: float | None) -> None:
    margins, winners, lengths, prompts = sample()
    turned = np.where(winners == 2, 2, 1 - winners)
    one = measure_pairs(margins, winners, lengths, prompts, temperature=temperature, **DRAWS)
    other = measure_pairs(-margins, turned, lengths[:, ::-1], prompts, temperature=temperature, **DRAWS)
    for name in ("accuracy", "length_accuracy", "gain", "log_loss", "ece", "score_with_length"):
        assert one[name] == pytest.approx(other[name], abs=1e-6), name
    assert one["length_log_loss"] == pytest.approx(other["length_log_loss"], abs=1e-3)  # to the solver's tolerance


def test_a_scale_that_other_prompts_set_is_nearly_the_true_one() -> None:
    margins, winners, lengths, prompts = sample(3000)
    true = measure_pairs(margins, winners, lengths, prompts, temperature=0.5, **DRAWS)
    fitted = measure_pairs(40 * margins, winners, lengths, prompts, **DRAWS)  # the units of a score do not matter
    assert fitted["log_loss"]["value"] == pytest.approx(true["log_loss"]["value"], abs=0.01)
    assert fitted["accuracy"] == true["accuracy"]
    assert fitted["ece"]["value"] < 0.05


def test_a_scorer_that_is_worse_than_chance_is_not_read_backwards() -> None:
    margins, winners, lengths, prompts = sample()
    figures = measure_pairs(-margins, winners, lengths, prompts, **DRAWS)
    assert figures["accuracy"]["value"] < 0.4
    assert figures["log_loss"]["value"] == pytest.approx(math.log(2))


def test_one_prompt_allows_nothing_held_out() -> None:
    figures = measure_pairs([1.0, 2.0], [0, 0], [[1, 2], [3, 4]], ["p", "p"], **DRAWS)
    assert figures["accuracy"]["value"] == 1
    assert figures["log_loss"]["value"] is None
    assert "ece" not in figures
    assert measure_pairs([], [], [], [], **DRAWS) == {"n": 0, "ties": 0, "prompts": 0}


def test_the_uniform_guess_is_worth_ln_3() -> None:
    winners, lengths = [0, 1, 2, 2], [[5, 1], [1, 5], [3, 3], [2, 2]]
    figures = measure_classes([[1 / 3] * 3] * 4, winners, lengths, list("pqrs"), **DRAWS)
    assert figures["winners"] == {"a": 1, "b": 1, "tie": 2}
    assert figures["uniform_log_loss"] == math.log(3)
    assert figures["log_loss"]["value"] == pytest.approx(math.log(3))
    assert figures["accuracy"]["value"] == pytest.approx(1 / 3)
    assert figures["decided_accuracy"]["value"] == 0.5
    assert figures["length_accuracy"]["value"] == 1
    assert figures["score_with_length"]["value"] is None  # it never varies
    # a and b share 2 of 4, ties have 2; one more each: (2, 2, 3) / 7
    assert figures["prior_log_loss"]["value"] == pytest.approx(-(math.log(2 / 7) + math.log(3 / 7)) / 2)
    assert figures["one_order_log_loss"] is None
    assert figures["swap_gain"] is None


def test_a_comparer_with_knowledge_beats_its_baselines_and_averaging_gains() -> None:
    margins, winners, lengths, prompts = sample(900)
    p_a = 0.85 / (1 + np.exp(-2 * margins))
    knows = np.stack([p_a, 0.85 - p_a, np.full(900, 0.15)], axis=1)
    tilted = knows * [1.6, 0.6, 1.0]  # read in one order alone, it prefers the first
    figures = measure_classes(
        knows,
        winners,
        lengths,
        prompts,
        one_order_PC=tilted / tilted.sum(axis=1, keepdims=True),
        length_only=LengthClasses.fit(winners, lengths),
        train_winners=winners,
        **DRAWS,
    )
    loss = figures["log_loss"]["value"]
    for name in ("length_log_loss", "prior_log_loss", "placed_prior_log_loss", "one_order_log_loss"):
        assert loss < figures[name]["value"], name
    assert figures["gain"]["low"] > 0
    assert figures["swap_gain"]["value"] == pytest.approx(figures["one_order_log_loss"]["value"] - loss)
    assert figures["swap_gain"]["low"] > 0  # of the same pairs: narrower than the two losses apart
    assert figures["accuracy"]["value"] > figures["length_only_accuracy"]["value"]
    assert figures["length_ece"]["value"] < 0.1


def test_the_best_class_of_several_is_a_share() -> None:
    largest, right = chosen([[0.4, 0.4, 0.2], [0.1, 0.2, 0.7], [math.nan] * 3], [0, 1, 2])
    assert largest[:2].tolist() == [0.4, 0.7]
    assert right[:2].tolist() == [0.5, 0]
    assert math.isnan(right[2])  # a baseline that is not known is not wrong


def test_chosen_before_rejected_says_who_won_so_places_are_no_baseline() -> None:
    figures = measure_classes([[0.5, 0.3, 0.2]] * 3, [0, 0, 2], [[1, 2]] * 3, list("pqr"), **DRAWS)
    assert figures["placed_prior_log_loss"] is None


def test_a_comparer_without_ties_is_measured_on_decided_pairs() -> None:
    figures = measure_classes([[0.8, 0.2], [0.8, 0.2], [0.5, 0.5]], [0, 1, 2], [[1, 2]] * 3, list("pqr"), **DRAWS)
    assert figures["n"] == 2
    assert figures["accuracy"]["value"] == 0.5
    assert figures["uniform_log_loss"] == pytest.approx(math.log(2))
