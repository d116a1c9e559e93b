from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from rhumbline.losses.preference import bradley_terry
from rhumbline.losses.sft import token_weights

LN3 = math.log(3)  # sigmoid(ln 3) = 3/4
FIRST, SECOND = torch.tensor([0]), torch.tensor([1])  # one pair: answer 0 beats answer 1


def one_pair(gap: float, **options: Any) -> float:
    loss, _ = bradley_terry(torch.tensor([gap, 0.0]), FIRST, SECOND, 1.0, **options)
    return float(loss)


def sample(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Scores of four answers in fp64, their six pairs, every option at once."""
    generator = torch.Generator().manual_seed(seed)
    scores_N = torch.randn(4, generator=generator, dtype=torch.float64).requires_grad_()
    better, worse = zip(*itertools.combinations(range(4), 2), strict=True)
    options = {
        "strength_P": torch.tensor([1.0, 2.0, 0.0, 3.0, float("nan"), 1.0]),
        "margin": "strength",
        "scale_by_strength": True,
        "centring": 0.01,
        "label_smoothing": 0.1,
        "weights_P": torch.rand(6, generator=generator),
    }
    return scores_N, torch.tensor(better), torch.tensor(worse), options


def test_loss_metrics_and_gradient_by_hand():
    # Gaps ln 3 and 0: -ln 3/4 and -ln 1/2. Equal scores are half right.
    scores_N = torch.tensor([LN3, 0.0, 0.0], requires_grad=True)
    loss, metrics = bradley_terry(scores_N, torch.tensor([0, 1]), torch.tensor([1, 2]), denominator=2.0)
    total = math.log(4 / 3) + math.log(2)
    assert metrics == {
        "loss": pytest.approx(total / 2),
        "log_loss_sum": pytest.approx(total),
        "correct_sum": 1.5,
        "margin_sum": pytest.approx(LN3),
        "weight_sum": 2.0,
    }
    loss.backward()
    # d/d gap = -(1 - sigmoid(gap)) / 2: -1/8 and -1/4. Answer 1 loses the first pair and wins the second.
    assert scores_N.grad is not None
    assert scores_N.grad.tolist() == [pytest.approx(-1 / 8), pytest.approx(1 / 8 - 1 / 4), pytest.approx(1 / 4)]


def test_margin_by_hand():
    assert one_pair(LN3, margin=LN3) == pytest.approx(math.log(2))
    assert one_pair(LN3, margin="strength", strength_P=torch.tensor([LN3])) == pytest.approx(math.log(2))


def test_scaling_by_strength_by_hand():
    for strength in (1.0, 3.0):
        scaled = one_pair(LN3, scale_by_strength=True, strength_P=torch.tensor([strength]))
        assert scaled == pytest.approx(strength * math.log(4 / 3))


def test_label_smoothing_by_hand():
    # The pair as labelled, and the same pair the other way round.
    assert one_pair(LN3, label_smoothing=0.1) == pytest.approx(0.9 * math.log(4 / 3) + 0.1 * math.log(4))
    # With a margin both must be won by it: sigmoid(ln 3 - ln 3) = 1/2, sigmoid(-ln 3 - ln 3) = 1/10.
    expected = 0.9 * math.log(2) + 0.1 * math.log(10)
    assert one_pair(LN3, margin=LN3, label_smoothing=0.1) == pytest.approx(expected)


def test_centring_by_hand_is_of_the_sum_and_not_of_the_difference():
    # TRL's first version took the difference (pull request 1932), which undoes what the loss is for.
    for scores, extra in (([2.0, 1.0], 0.01 * 9), ([1.0, -1.0], 0.0)):
        plain, _ = bradley_terry(torch.tensor(scores), FIRST, SECOND, 1.0)
        centred, _ = bradley_terry(torch.tensor(scores), FIRST, SECOND, 1.0, centring=0.01)
        assert float(centred - plain) == pytest.approx(extra, abs=1e-7)


def test_a_strength_of_zero_is_a_strength_and_no_strength_is_none():
    for absent, plain in ((0.0, 0.0), (float("nan"), math.log(4 / 3))):
        strength_P = torch.tensor([absent])
        assert one_pair(LN3, scale_by_strength=True, strength_P=strength_P) == pytest.approx(plain)
        assert one_pair(LN3, margin="strength", strength_P=strength_P) == pytest.approx(math.log(4 / 3))


def test_each_strength_stays_with_its_pair():
    # ms-swift dropped absent margins, so that later ones moved to other pairs (pull request 9927).
    scores_N, strength_P = torch.tensor([LN3, 0.0]), torch.tensor([float("nan"), LN3])
    both, _ = bradley_terry(
        scores_N, torch.tensor([0, 1]), torch.tensor([1, 0]), 1.0, margin="strength", strength_P=strength_P
    )
    # ln 3 without a margin; -ln 3 - ln 3 with one: -ln 3/4 - ln 1/10.
    assert float(both) == pytest.approx(math.log(4 / 3) + math.log(10))


def test_strengths_that_are_asked_for_must_be_there_and_not_negative():
    for options in ({"margin": "strength"}, {"scale_by_strength": True}):
        with pytest.raises(AssertionError, match="need strength_P"):
            one_pair(1.0, **options)
        with pytest.raises(AssertionError, match="below 0"):
            one_pair(1.0, strength_P=torch.tensor([-1.0]), **options)


def test_a_column_of_scores_is_refused():
    with pytest.raises(AssertionError, match="expected vectors"):
        bradley_terry(torch.zeros(2, 1), FIRST, SECOND, 1.0)


def test_options_at_their_defaults_change_nothing():
    scores_N, better_P, worse_P, _ = sample()
    plain, _ = bradley_terry(scores_N, better_P, worse_P, 6.0)
    spelt, _ = bradley_terry(
        scores_N, better_P, worse_P, 6.0, margin=0.0, centring=0.0, label_smoothing=0.0, strength_P=torch.zeros(6)
    )
    assert torch.equal(plain, spelt)


def test_every_pair_is_a_comparison_of_its_own():
    # RLHFlow's ODIN sums the scores of the batch before the sigmoid: gaps of 10 and -10 would cancel to ln 2.
    scores_N = torch.tensor([10.0, 0.0, 0.0, 10.0])
    loss, metrics = bradley_terry(scores_N, torch.tensor([0, 2]), torch.tensor([1, 3]), denominator=2.0)
    assert float(loss) == pytest.approx(5.0, abs=1e-3)
    assert metrics["correct_sum"] == 1.0


def test_a_shift_of_all_scores_matters_only_to_centring():
    scores_N, better_P, worse_P, options = sample()
    for centring, equal in ((0.0, True), (0.01, False)):
        losses = [
            bradley_terry(scores_N + shift, better_P, worse_P, 6.0, **options | {"centring": centring})[0]
            for shift in (0.0, 3.0)
        ]
        assert torch.allclose(*losses) is equal


def test_naming_the_answers_in_another_order_changes_nothing():
    scores_N, better_P, worse_P, options = sample()
    order = torch.tensor([2, 0, 3, 1])
    place = order.argsort()
    expected, metrics = bradley_terry(scores_N, better_P, worse_P, 6.0, **options)
    moved, same = bradley_terry(scores_N[order], place[better_P], place[worse_P], 6.0, **options)
    assert torch.equal(moved, expected)
    assert same == metrics


def test_a_confident_mistake_is_finite_and_keeps_its_gradient():
    # -log(sigmoid(x)) is infinite here, and with 1e-8 inside the logarithm its gradient is 0.
    scores_N = torch.tensor([-1000.0, 0.0], requires_grad=True)
    loss, _ = bradley_terry(scores_N, FIRST, SECOND, 1.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1000.0)
    assert scores_N.grad is not None
    assert scores_N.grad.tolist() == [-1.0, 1.0]


def test_prompts_weigh_the_same_however_many_pairs_they_have():
    # Equation of InstructGPT: the mean over the K-choose-2 pairs of a prompt, then over prompts. Three pairs and one.
    scores_N = torch.tensor([0.0, 0.0, 0.0, LN3, 0.0])
    weights, mass = token_weights((3, 1), (1.0, 1.0), "sample")
    better_P, worse_P = torch.tensor([0, 0, 1, 3]), torch.tensor([1, 2, 2, 4])
    loss, _ = bradley_terry(scores_N, better_P, worse_P, mass, weights_P=torch.tensor(weights))
    assert float(loss) == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)


def test_two_heads_are_paired_by_place():
    # Answer 0 is the better one for head 0, answer 1 for head 1: places n * 2 + h.
    outputs_NH = torch.tensor([[LN3, 0.0], [0.0, LN3]], requires_grad=True)
    loss, metrics = bradley_terry(outputs_NH.reshape(-1), torch.tensor([0, 3]), torch.tensor([2, 1]), 2.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(math.log(4 / 3))
    assert metrics["correct_sum"] == 2.0
    assert outputs_NH.grad is not None
    assert torch.allclose(outputs_NH.grad, torch.tensor([[-1.0, 1.0], [1.0, -1.0]]) / 8)


@pytest.mark.parametrize("cut", [1, 3, 5])
def test_micro_batches_with_one_denominator_add_up_to_the_whole(cut):
    scores_N, better_P, worse_P, options = sample()
    denominator = float(options["weights_P"].sum())
    whole, metrics = bradley_terry(scores_N, better_P, worse_P, denominator, **options)
    (expected,) = torch.autograd.grad(whole, scores_N)
    pieces = []
    for part in (slice(0, cut), slice(cut, None)):
        of_part = options | {name: options[name][part] for name in ("strength_P", "weights_P")}
        pieces.append(bradley_terry(scores_N, better_P[part], worse_P[part], denominator, **of_part))
    (gradient,) = torch.autograd.grad(sum(loss for loss, _ in pieces), scores_N)
    assert torch.allclose(gradient, expected, rtol=1e-12)
    for name, value in metrics.items():
        assert sum(piece[name] for _, piece in pieces) == pytest.approx(value)


def test_gradient_by_finite_difference():
    scores_N, better_P, worse_P, options = sample()
    assert torch.autograd.gradcheck(lambda s: bradley_terry(s, better_P, worse_P, 2.5, **options)[0], scores_N)


def test_bf16_scores_are_lost_in_fp32_and_no_number_is_not_hidden():
    loss, _ = bradley_terry(torch.tensor([1.0, 0.0], dtype=torch.bfloat16), FIRST, SECOND, 1.0)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-1)))
    assert math.isnan(one_pair(float("nan")))
