from __future__ import annotations

import math

import pytest
import torch

from rhumbline.losses import ABSOLUTE_FORMS
from rhumbline.losses.absolute import mse_with_penalty, sigmoid_bce, sigmoid_mse

LN3 = math.log(3)  # sigmoid(ln 3) = 3/4
forms = pytest.mark.parametrize("form", ABSOLUTE_FORMS.values(), ids=ABSOLUTE_FORMS)


def sample(n: int = 8, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Outputs on both sides of [0, 1], labels with both ends, weights; fp64."""
    generator = torch.Generator().manual_seed(seed)
    outputs_N = (3 * torch.randn(n, generator=generator, dtype=torch.float64)).requires_grad_()
    labels_N = torch.rand(n, generator=generator, dtype=torch.float64)
    labels_N[:2] = torch.tensor([0.0, 1.0])
    return outputs_N, labels_N, torch.rand(n, generator=generator, dtype=torch.float64)


def test_mse_with_penalty_by_hand():
    # Squares 0.25, 1, 0; half outside on either side costs 2% of 0.5. Weights 2, 1, 1.
    outputs_N, labels_N = torch.tensor([1.5, -0.5, 0.25], requires_grad=True), torch.tensor([1.0, 0.5, 0.25])
    loss, metrics = mse_with_penalty(outputs_N, labels_N, 4.0, weights_N=torch.tensor([2.0, 1.0, 1.0]))
    assert metrics == {
        "loss": pytest.approx((2 * 0.26 + 1.01) / 4),
        "squared_error_sum": pytest.approx(2 * 0.25 + 1.0),
        "absolute_error_sum": pytest.approx(2 * 0.5 + 1.0),
        "weight_sum": 4.0,
    }
    loss.backward()  # w (2 (o - y) + 0.02 sign) / 4: back into the range on both sides
    assert outputs_N.grad is not None
    assert outputs_N.grad.tolist() == [pytest.approx(2 * 1.02 / 4), pytest.approx(-2.02 / 4), 0.0]


def test_the_penalty_can_be_chosen_and_spares_what_is_inside():
    inside, _ = mse_with_penalty(torch.tensor([0.0, 1.0, 0.5]), torch.tensor([0.0, 1.0, 0.5]), 3.0, penalty=100.0)
    outside, _ = mse_with_penalty(torch.tensor([2.0]), torch.tensor([1.0]), 1.0, penalty=3.0)
    assert float(inside) == 0.0
    assert float(outside) == pytest.approx(1 + 3)


def test_sigmoid_mse_by_hand():
    # sigmoid(ln 3) = 3/4 against 0 and 1/4.
    loss, metrics = sigmoid_mse(torch.tensor([LN3, LN3]), torch.tensor([0.0, 0.25]), 2.0)
    assert float(loss) == pytest.approx((9 / 16 + 1 / 4) / 2)
    assert metrics["absolute_error_sum"] == pytest.approx(3 / 4 + 1 / 2)


def test_sigmoid_bce_by_hand():
    # -ln 1/4, -ln 3/4 and half of each; the errors reported are those of the probability.
    loss, metrics = sigmoid_bce(torch.full((3,), LN3), torch.tensor([0.0, 1.0, 0.5]), 3.0)
    assert float(loss) == pytest.approx(1.5 * (math.log(4) + math.log(4 / 3)) / 3)
    assert metrics["squared_error_sum"] == pytest.approx(9 / 16 + 1 / 16 + 1 / 16)


def test_sigmoid_bce_is_least_where_the_probability_is_the_label():
    logits_N, labels_N = torch.tensor([LN3, -LN3], requires_grad=True), torch.tensor([0.75, 0.25])
    loss, _ = sigmoid_bce(logits_N, labels_N, 2.0)
    loss.backward()
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert float(loss.detach()) == pytest.approx(entropy)
    assert logits_N.grad is not None
    assert logits_N.grad.tolist() == pytest.approx([0.0, 0.0], abs=1e-7)


def test_a_confident_mistake_keeps_its_gradient_with_cross_entropy_alone():
    # A sigmoid followed by logarithms would be infinite: sigmoid(-1000) is 0 in fp32.
    for form, loss_of, slope in ((sigmoid_bce, 1000.0, -1.0), (sigmoid_mse, 1.0, 0.0)):
        logits_N = torch.tensor([-1000.0], requires_grad=True)
        loss, _ = form(logits_N, torch.ones(1), 1.0)
        loss.backward()
        assert float(loss.detach()) == pytest.approx(loss_of)
        assert logits_N.grad is not None
        assert logits_N.grad.tolist() == [pytest.approx(slope)]


@forms
def test_a_label_of_zero_is_a_label(form):
    outputs_N = torch.tensor([0.5], requires_grad=True)
    loss, metrics = form(outputs_N, torch.zeros(1), 1.0)
    loss.backward()
    assert metrics["weight_sum"] == 1.0
    assert outputs_N.grad is not None
    assert float(outputs_N.grad) > 0


@forms
@pytest.mark.parametrize("label", [-0.01, 1.01, 75.0, float("nan")])
def test_a_label_outside_the_range_is_refused(form, label):
    with pytest.raises(AssertionError, match=r"labels in \[0, 1\]"):
        form(torch.zeros(1), torch.tensor([label]), 1.0)


@forms
def test_a_column_of_outputs_is_refused(form):
    with pytest.raises(AssertionError, match="expected vectors"):
        form(torch.zeros(3, 1), torch.zeros(3), 3.0)


@forms
@pytest.mark.parametrize("cut", [1, 5])
def test_micro_batches_with_one_denominator_add_up_to_the_whole(form, cut):
    outputs_N, labels_N, weights_N = sample()
    denominator = float(weights_N.sum())
    whole, metrics = form(outputs_N, labels_N, denominator, weights_N=weights_N)
    (expected,) = torch.autograd.grad(whole, outputs_N)
    parts = (slice(0, cut), slice(cut, None))
    pieces = [form(outputs_N[part], labels_N[part], denominator, weights_N=weights_N[part]) for part in parts]
    (gradient,) = torch.autograd.grad(sum(loss for loss, _ in pieces), outputs_N)
    assert torch.allclose(gradient, expected, rtol=1e-12)
    for name, value in metrics.items():
        assert sum(piece[name] for _, piece in pieces) == pytest.approx(value)


@forms
def test_gradient_by_finite_difference(form):
    outputs_N, labels_N, weights_N = sample()
    assert torch.autograd.gradcheck(lambda o: form(o, labels_N, 3.0, weights_N=weights_N)[0], outputs_N)


@forms
def test_bf16_outputs_are_lost_in_fp32_and_no_number_is_not_hidden(form):
    loss, _ = form(torch.tensor([0.5], dtype=torch.bfloat16), torch.ones(1), 1.0)
    assert loss.dtype == torch.float32
    broken, _ = form(torch.tensor([float("nan")]), torch.ones(1), 1.0)
    assert broken.isnan()
