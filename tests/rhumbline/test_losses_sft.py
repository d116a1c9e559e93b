from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rhumbline.losses.sft import sft, token_weights


def test_loss_by_hand():
    # Row 0: softmax(0, ln 3) = (1/4, 3/4), target 1: -ln 3/4. Row 1: even over two, target 0: ln 2.
    logits_RV = torch.tensor([[0.0, math.log(3)], [5.0, 5.0]])
    loss, metrics = sft(logits_RV, torch.tensor([1, 0]), torch.tensor([1.0, 2.0]), denominator=3.0)
    expected = (math.log(4 / 3) + 2 * math.log(2)) / 3
    assert float(loss) == pytest.approx(expected)
    assert metrics == {"loss": pytest.approx(expected)}


def test_gradient_by_hand():
    # d/dlogit = w (softmax - onehot) / denominator
    logits_RV = torch.tensor([[0.0, math.log(3)]], requires_grad=True)
    loss, _ = sft(logits_RV, torch.tensor([1]), torch.tensor([2.0]), denominator=4.0)
    loss.backward()
    assert logits_RV.grad is not None
    assert logits_RV.grad.tolist() == [[pytest.approx(0.5 * 0.25), pytest.approx(0.5 * -0.25)]]


def test_bf16_logits_are_lost_in_fp32():
    logits_RV = torch.tensor([[0.0, 3.0, -2.0]], dtype=torch.bfloat16)
    loss, _ = sft(logits_RV, torch.tensor([2]), torch.ones(1), denominator=1.0)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(2 + math.log(1 + math.exp(3) + math.exp(-2)))


def test_many_rows_equal_torch_s_own_loss_and_gradient():
    generator = torch.Generator().manual_seed(0)
    logits_RV = torch.randn(50, 9, generator=generator, requires_grad=True)
    targets_R = torch.randint(0, 9, (50,), generator=generator)
    weights_R = torch.rand(50, generator=generator)
    expected = (torch.nn.functional.cross_entropy(logits_RV, targets_R, reduction="none") * weights_R).sum() / 7
    (expected_gradient,) = torch.autograd.grad(3 * expected, logits_RV)
    loss, _ = sft(logits_RV, targets_R, weights_R, denominator=7.0)
    (gradient,) = torch.autograd.grad(3 * loss, logits_RV)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert torch.allclose(gradient, expected_gradient, atol=1e-7)


def test_gradient_by_finite_difference():
    # The loss is of fp32, so a step of 1/64 in the logits, exact there, and a tolerance above its rounding.
    generator = torch.Generator().manual_seed(1)
    logits_RV = torch.randn(5, 4, generator=generator, requires_grad=True)
    targets_R, weights_R = torch.tensor([0, 3, 1, 1, 2]), torch.tensor([1.0, 0.5, 2.0, 0.0, 1.0])

    def loss(x_RV: torch.Tensor) -> torch.Tensor:
        return sft(x_RV, targets_R, weights_R, denominator=3.0)[0]

    loss(logits_RV).backward()
    assert logits_RV.grad is not None
    for r in range(5):
        for v in range(4):
            step_RV = torch.zeros(5, 4)
            step_RV[r, v] = 1 / 64
            numeric = 32 * (loss(logits_RV.detach() + step_RV) - loss(logits_RV.detach() - step_RV))
            assert logits_RV.grad[r, v].item() == pytest.approx(numeric.item(), abs=1e-4)
    assert logits_RV.grad[3].tolist() == [0.0] * 4  # of no weight


def test_the_parts_of_a_step_add_up_to_it():
    generator = torch.Generator().manual_seed(2)
    logits_RV, targets_R = torch.randn(7, 5, generator=generator), torch.randint(0, 5, (7,), generator=generator)
    weights_R = torch.rand(7, generator=generator)
    parts = [sft(logits_RV[rows], targets_R[rows], weights_R[rows], 3.0)[0] for rows in (slice(0, 3), slice(3, None))]
    assert float(sum(parts)) == pytest.approx(float(sft(logits_RV, targets_R, weights_R, 3.0)[0]), rel=1e-6)


def test_token_weights_by_hand():
    # Two samples of 3 and 1 tokens; the second weighs 2.
    assert token_weights((3, 1), (1.0, 2.0), "token") == ([1.0, 1.0, 1.0, 2.0], 5.0)
    assert token_weights((3, 1), (1.0, 2.0), "sample") == ([1 / 3, 1 / 3, 1 / 3, 2.0], 3.0)
    assert token_weights((0, 1), (5.0, 2.0), "sample") == ([2.0], 2.0)  # what has no tokens weighs nothing
    assert token_weights((0, 1), (5.0, 2.0), "token") == ([2.0], 2.0)


@given(
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=6),
    reduction=st.sampled_from(["token", "sample"]),
    seed=st.integers(0, 1000),
)
def test_the_spread_weights_sum_to_the_denominator(counts, reduction, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(len(counts), generator=generator).tolist()
    spread, mass = token_weights(counts, weights, reduction)
    assert len(spread) == sum(counts)
    assert sum(spread) == pytest.approx(mass)
