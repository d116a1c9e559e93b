from __future__ import annotations

import math

import pytest
import torch

from rhumbline.losses.comparison import CLASSES, averaged_over_orders, cross_entropy

LN2 = math.log(2)
HALF = torch.tensor([[LN2, 0.0, 0.0]])  # probabilities 1/2, 1/4, 1/4


def sample(n: int = 9, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits_NC = torch.randn(n, 3, generator=generator, dtype=torch.float64).requires_grad_()
    classes_N = torch.randint(0, 3, (n,), generator=generator)
    return logits_NC, classes_N, torch.rand(n, generator=generator, dtype=torch.float64)


def test_loss_and_metrics_by_hand():
    # -ln 1/2, and the uniform guess, ln 3 = 1.0986. Three classes share the first place: right by a third.
    logits_NC = torch.cat([HALF, torch.zeros(1, 3)])
    classes_N = torch.tensor([CLASSES.index("a"), CLASSES.index("tie")])
    loss, metrics = cross_entropy(logits_NC, classes_N, 3.0, weights_N=torch.tensor([1.0, 2.0]))
    assert float(loss) == pytest.approx((LN2 + 2 * math.log(3)) / 3)
    assert metrics == {
        "loss": pytest.approx((LN2 + 2 * math.log(3)) / 3),
        "log_loss_sum": pytest.approx(LN2 + 2 * 1.0986123),
        "correct_sum": pytest.approx(1 + 2 / 3),
        "weight_sum": 3.0,
    }


def test_label_smoothing_by_hand():
    # 0.7 ln 2 + 0.3 (ln 2 + ln 4 + ln 4) / 3 = 1.2 ln 2; the log loss that is reported is without it.
    loss, metrics = cross_entropy(HALF, torch.tensor([0]), 1.0, label_smoothing=0.3)
    assert float(loss) == pytest.approx(1.2 * LN2)
    assert metrics["log_loss_sum"] == pytest.approx(LN2)


def test_gradient_by_hand():
    # softmax - onehot
    logits_NC = HALF.clone().requires_grad_()
    cross_entropy(logits_NC, torch.tensor([2]), 1.0)[0].backward()
    assert logits_NC.grad is not None
    assert torch.allclose(logits_NC.grad, torch.tensor([[0.5, 0.25, -0.75]]))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_it_equals_torch_s_own(smoothing):
    logits_NC, classes_N, _ = sample()
    expected = torch.nn.functional.cross_entropy(logits_NC, classes_N, label_smoothing=smoothing)
    loss, _ = cross_entropy(logits_NC, classes_N, float(len(classes_N)), smoothing)
    assert torch.allclose(loss, expected)


@pytest.mark.parametrize("cut", [1, 4])
def test_micro_batches_with_one_denominator_add_up_to_the_whole_smoothed_or_not(cut):
    # The label smoother of transformers took the mean of each micro-batch (issue 46731).
    logits_NC, classes_N, weights_N = sample()
    denominator = float(weights_N.sum())
    whole, metrics = cross_entropy(logits_NC, classes_N, denominator, 0.1, weights_N)
    (expected,) = torch.autograd.grad(whole, logits_NC)
    parts = (slice(0, cut), slice(cut, None))
    pieces = [cross_entropy(logits_NC[part], classes_N[part], denominator, 0.1, weights_N[part]) for part in parts]
    (gradient,) = torch.autograd.grad(sum(loss for loss, _ in pieces), logits_NC)
    assert torch.allclose(gradient, expected, rtol=1e-12)
    for name, value in metrics.items():
        assert sum(piece[name] for _, piece in pieces) == pytest.approx(value)


def test_gradients_by_finite_difference():
    logits_NC, classes_N, weights_N = sample(n=3)
    other_NC = sample(n=3, seed=1)[0]
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, classes_N, 2.0, 0.1, weights_N)[0], logits_NC)
    assert torch.autograd.gradcheck(averaged_over_orders, (logits_NC, other_NC))


def test_bf16_logits_are_lost_in_fp32_and_no_number_is_not_hidden():
    loss, _ = cross_entropy(torch.zeros(1, 3, dtype=torch.bfloat16), torch.tensor([0]), 1.0)
    assert loss.dtype == torch.float32
    broken, _ = cross_entropy(torch.full((1, 3), float("nan")), torch.tensor([0]), 1.0)
    assert broken.isnan()


def test_averaging_over_orders_by_hand():
    # As shown (1/2, 1/4, 1/4); exchanged (1/2, 3/10, 1/5), where the second answer is called a.
    exchanged_NC = torch.tensor([[0.5, 0.3, 0.2]]).log()
    p_NC = averaged_over_orders(HALF, exchanged_NC).exp()
    assert p_NC.tolist()[0] == pytest.approx([0.4, 0.375, 0.225])


def test_a_preference_for_a_place_cancels_and_one_for_an_answer_stays():
    # Always for the first place: even. Without exchanging back, the place would win with 0.9.
    first_NC = torch.tensor([[0.9, 0.05, 0.05]]).log()
    second_NC = first_NC[:, [1, 0, 2]]
    assert averaged_over_orders(first_NC, first_NC).exp().tolist()[0] == pytest.approx([0.475, 0.475, 0.05])
    assert averaged_over_orders(first_NC, second_NC).exp().tolist()[0] == pytest.approx([0.9, 0.05, 0.05])


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exchanging_the_answers_exchanges_a_and_b_exactly(num_classes, dtype):
    generator = torch.Generator().manual_seed(0)
    ab_NC, ba_NC = (10 * torch.randn(101, num_classes, generator=generator).to(dtype) for _ in range(2))
    one, other = averaged_over_orders(ab_NC, ba_NC), averaged_over_orders(ba_NC, ab_NC)
    assert one.dtype == torch.float32
    assert torch.equal(one[:, :2], other[:, [1, 0]])
    assert torch.equal(one[:, 2:], other[:, 2:])
    assert torch.allclose(one.exp().sum(-1), torch.ones(101))


def test_logits_far_apart_stay_finite():
    log_p_NC = averaged_over_orders(torch.tensor([[500.0, 0.0, 0.0]]), torch.tensor([[0.0, 500.0, 0.0]]))
    assert log_p_NC.tolist()[0] == pytest.approx([0.0, -500.0, -500.0])
