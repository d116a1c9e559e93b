"""The baselines of length: a line for ratings, a multinomial regression for pairs, and the shares of the classes."""

from __future__ import annotations

import numpy as np
import pytest

from rhumbline.cards.accuracy import log_loss
from rhumbline.cards.length_only import LengthClasses, LengthOnly, class_prior, held_out_classes, held_out_line
from rhumbline.rewards.objectives import spearman


def test_length_only_is_a_line_on_log_length() -> None:
    lengths = np.array([1, 3, 9, 40])
    line = LengthOnly.fit([*(5 + 2 * np.log1p(lengths)), np.nan], [*lengths, 7])
    assert (line.slope, line.intercept) == pytest.approx((2, 5))
    assert line([0]) == pytest.approx([5])
    assert LengthOnly.fit([1, 3], [4, 4]) == LengthOnly(0.0, 2.0)


def test_shares_of_the_classes_by_hand() -> None:
    # a 2, b 1, tie 1, each seen once more; with the place unknown a and b share their 3.
    assert class_prior([0, 0, 1, 2], both_orders=False) == pytest.approx(np.array([3, 2, 2]) / 7)
    assert class_prior([0, 0, 1, 2]) == pytest.approx(np.array([2.5, 2.5, 2]) / 7)
    assert class_prior([0, 0, 0], 2) == pytest.approx([0.5, 0.5])


def judged(n: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """The longer answer wins more often, and answers of about the same length tie."""
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.normal(4, 0.8, size=(n, 2)))
    d = np.log(lengths[:, 0] / lengths[:, 1]) + rng.normal(0, 0.6, n)
    return np.where(np.abs(d) < 0.4, 2, np.where(d > 0, 0, 1)), lengths


def test_classes_by_length_beat_the_prior_and_the_uniform_guess() -> None:
    winners, lengths = judged()
    model = LengthClasses.fit(winners[:400], lengths[:400])
    loss = log_loss(model(lengths[400:]), winners[400:])
    assert loss < log_loss(np.tile(class_prior(winners[:400]), (200, 1)), winners[400:]) - 0.1 < np.log(3)
    longer_a, longer_b, same = model([[90, 10], [10, 90], [50, 50]])
    assert longer_a[0] > 0.7
    assert same[2] > longer_a[2]
    np.testing.assert_allclose(longer_a, longer_b[[1, 0, 2]], atol=1e-3)
    np.testing.assert_allclose(model(lengths).sum(axis=1), 1)


@pytest.mark.parametrize("classes", [2, 3])
def test_its_logits_give_its_probabilities(classes: int) -> None:
    winners, lengths = judged()
    told = winners < classes
    model = LengthClasses.fit(winners[told], lengths[told], classes)
    d = np.log((1 + lengths[:, 0]) / (1 + lengths[:, 1]))
    weights_C3 = np.array(model.logits())
    logits = np.stack([np.ones_like(d), d, np.abs(d)], axis=1) @ weights_C3.T
    found = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, model(lengths), atol=0.01)  # which are smoothed by one pair of each class
    np.testing.assert_array_equal(weights_C3[1], weights_C3[0] * [1, -1, 1])
    assert (weights_C3[2:, 1] == 0).all()


def test_logits_of_a_class_that_was_never_seen_are_small_and_finite() -> None:
    lengths = np.array([[9, 1], [1, 9], [5, 2]] * 40)
    bias_a, _, bias_tie = (b for b, _, _ in LengthClasses.fit([0, 1, 0] * 40, lengths).logits())
    assert -6 < bias_tie < bias_a - 2
    same = LengthClasses.fit([0, 1, 2], [[5, 5]] * 3).logits()  # length tells nothing apart
    np.testing.assert_allclose(same, [[np.log(1 / 3), 0, 0]] * 3)


def test_the_place_of_an_answer_is_no_clue() -> None:
    """Of chosen and rejected the first always wins: a baseline with an intercept for places would know every answer."""
    lengths = np.exp(np.random.default_rng(1).normal(4, 1, size=(300, 2)))
    model = LengthClasses.fit(np.zeros(300), lengths, num_classes=2)
    np.testing.assert_allclose(model([[50, 50]]), [[0.5, 0.5]], atol=1e-3)
    assert log_loss(model(lengths), np.zeros(300, dtype=int)) > 0.6


@pytest.mark.parametrize(("winners", "lengths"), [([2, 2], [[1, 9], [9, 1]]), ([0, 1], [[5, 5], [5, 5]]), ([], [])])
def test_where_length_tells_nothing_apart_the_shares_are_given(winners: list[int], lengths: list[list[int]]) -> None:
    model = LengthClasses.fit(winners, lengths)
    np.testing.assert_allclose(model([[3, 4]]), [class_prior(winners)])


def test_an_unseen_class_is_possible() -> None:
    model = LengthClasses.fit([0, 1, 0], [[9, 1], [1, 9], [5, 2]])
    assert model([[5, 5]])[0, 2] == pytest.approx(1 / 6)


def test_held_out_means_other_prompts() -> None:
    labels, lengths, prompts = [10.0, 10.0, 90.0, 90.0], [3, 3, 5, 5], ["p", "p", "q", "q"]
    assert held_out_line(labels, lengths, prompts).tolist() == [50] * 4  # neither fold alone shows a slope
    # Prompts q and r rise by 20 from a length of 1 to one of 3, p does not; the mean of all is 40.
    three = held_out_line([40, 40, 30, 50, 30, 50], [1, 3, 1, 3, 1, 3], list("ppqqrr"))
    assert three[:2] == pytest.approx([30, 50])
    assert np.isnan(held_out_line(labels, lengths, ["p"] * 4)).all()
    winners, sides = judged(100)
    guess = held_out_classes(winners, sides, np.arange(100) // 2)
    assert guess.shape == (100, 3)
    assert log_loss(guess, winners) < np.log(3)


def test_a_baseline_that_knows_nothing_ranks_nothing() -> None:
    """The other prompts' mean is low where a prompt's own labels are high: ranked by it, a useless baseline looks harmful."""
    found = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        prompts = np.repeat(np.arange(10), 6)
        labels = 50 + 15 * rng.normal(size=10)[prompts] + 5 * rng.normal(size=60)
        base = held_out_line(labels, np.exp(rng.normal(4, 1, size=60)), prompts)
        found.append(spearman(base, labels))
    assert abs(np.mean(found)) < 0.1


def test_of_no_label_nothing_is_predicted() -> None:
    assert np.isnan(LengthOnly.fit([np.nan, np.nan], [1, 2])([3])).all()
    assert np.isnan(held_out_line([np.nan] * 4, [1, 2, 3, 4], list("ppqq"))).all()
