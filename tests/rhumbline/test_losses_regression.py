from __future__ import annotations

import pytest
import torch

from rhumbline.losses.regression import labelled, masked_mse

NAN = float("nan")


def sample(n: int = 12, heads: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Outputs, labels with holes, weights; fp64."""
    generator = torch.Generator().manual_seed(seed)
    outputs_NH, labels_NH = (torch.randn(n, heads, generator=generator, dtype=torch.float64) for _ in range(2))
    labels_NH[torch.rand(n, heads, generator=generator) < 0.4] = NAN
    return outputs_NH.requires_grad_(), labels_NH, torch.rand(n, generator=generator, dtype=torch.float64)


def test_loss_metrics_and_gradient_by_hand():
    # Head 0: errors 10 and -10 over two labels, 200 / 2. Head 1: error 6 over one label, 36 / 1. Mean of the heads: 68.
    outputs_NH = torch.tensor([[10.0, 50.0], [20.0, 56.0], [7.0, 7.0]], requires_grad=True)
    labels_NH = torch.tensor([[0.0, NAN], [30.0, 50.0], [NAN, NAN]])
    denominator_H = labelled(labels_NH)
    assert denominator_H.tolist() == [2.0, 1.0]
    loss, metrics = masked_mse(outputs_NH, labels_NH, denominator_H)
    assert float(loss.detach()) == pytest.approx(68.0)
    assert metrics == {
        "loss": pytest.approx(68.0),
        "squared_error_sum/0": 200.0,
        "squared_error_sum/1": 36.0,
        "weight_sum/0": 2.0,
        "weight_sum/1": 1.0,
    }
    loss.backward()  # 2 (o - y) / denominator_h / H
    assert outputs_NH.grad is not None
    assert outputs_NH.grad.tolist() == [[5.0, 0.0], [-5.0, 6.0], [0.0, 0.0]]


def test_weights_by_hand():
    # (3 * 1^2 + 1 * 2^2) / (3 + 1)
    labels_NH, weights_N = torch.zeros(2, 1), torch.tensor([3.0, 1.0])
    denominator_H = labelled(labels_NH, weights_N)
    assert denominator_H.tolist() == [4.0]
    loss, metrics = masked_mse(torch.tensor([[1.0], [2.0]]), labels_NH, denominator_H, weights_N)
    assert float(loss) == pytest.approx(7 / 4)
    assert metrics["squared_error_sum/0"] == 7.0


@pytest.mark.parametrize("label", [0.0, -0.0, -100.0])
def test_a_label_of_zero_or_of_minus_100_is_a_label(label):
    # NeMo-Aligner masks by -100; a mask by truthiness drops the lowest rating.
    outputs_NH = torch.tensor([[5.0]], requires_grad=True)
    loss, _ = masked_mse(outputs_NH, torch.tensor([[label]]), torch.ones(1))
    loss.backward()
    assert float(loss.detach()) == (5.0 - label) ** 2
    assert outputs_NH.grad is not None
    assert float(outputs_NH.grad) == 2 * (5.0 - label)


def test_a_head_that_was_seldom_rated_weighs_as_much_as_another():
    # Nine labels with an error of 1, one with an error of 3: (9 / 9 + 9 / 1) / 2. Pooled it would be 18 / 10.
    labels_NH = torch.zeros(10, 2)
    labels_NH[9, 0] = NAN
    labels_NH[:9, 1] = NAN
    outputs_NH = torch.tensor([[1.0, 3.0]]).expand(10, 2)
    loss, _ = masked_mse(outputs_NH, labels_NH, labelled(labels_NH))
    assert float(loss) == pytest.approx(5.0)


def test_a_head_without_a_label_in_the_step_has_no_loss_and_no_nan():
    outputs_NH = torch.tensor([[1.0, 2.0]], requires_grad=True)
    labels_NH = torch.tensor([[0.0, NAN]])
    loss, metrics = masked_mse(outputs_NH, labels_NH, labelled(labels_NH))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.5)
    assert metrics["weight_sum/1"] == 0.0
    assert outputs_NH.grad is not None
    assert outputs_NH.grad.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("cut", [1, 5, 11])
def test_micro_batches_with_one_denominator_add_up_to_the_whole(cut):
    outputs_NH, labels_NH, weights_N = sample()
    denominator_H = labelled(labels_NH, weights_N)
    parts = [slice(0, cut), slice(cut, None)]
    assert torch.allclose(sum(labelled(labels_NH[part], weights_N[part]) for part in parts), denominator_H)
    whole, metrics = masked_mse(outputs_NH, labels_NH, denominator_H, weights_N)
    (expected,) = torch.autograd.grad(whole, outputs_NH)
    pieces = [masked_mse(outputs_NH[part], labels_NH[part], denominator_H, weights_N[part]) for part in parts]
    (gradient,) = torch.autograd.grad(sum(loss for loss, _ in pieces), outputs_NH)
    assert torch.allclose(gradient, expected, rtol=1e-12)
    for name, value in metrics.items():
        assert sum(piece[name] for _, piece in pieces) == pytest.approx(value)


def test_gradient_by_finite_difference():
    outputs_NH, labels_NH, weights_N = sample(n=4)
    denominator_H = labelled(labels_NH, weights_N)
    assert torch.autograd.gradcheck(lambda o: masked_mse(o, labels_NH, denominator_H, weights_N)[0], outputs_NH)


def test_bf16_outputs_are_lost_in_fp32_and_no_number_is_not_hidden():
    labels_NH = torch.tensor([[1.0]])
    loss, _ = masked_mse(torch.tensor([[3.0]], dtype=torch.bfloat16), labels_NH, torch.ones(1))
    assert loss.dtype == torch.float32
    assert float(loss) == 4.0
    broken, _ = masked_mse(torch.tensor([[NAN]]), labels_NH, torch.ones(1))
    assert broken.isnan()
