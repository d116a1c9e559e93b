from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rhumbline.losses.ppo import ppo, value_loss
from rhumbline.losses.sft import token_weights

LN2 = math.log(2)


def one_token(ratio: float, advantage: float, **options: Any) -> tuple[float, dict[str, float]]:
    logp_R = torch.tensor([math.log(ratio)], dtype=torch.float64)
    loss, metrics = ppo(logp_R, torch.zeros(1), torch.tensor([advantage]), torch.ones(1), 1.0, **options)
    return float(loss), metrics


def sample(seed: int = 0, R: int = 12) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """Log-probabilities, old ones, advantages and weights in fp64, with every option at once."""
    generator = torch.Generator().manual_seed(seed)
    logp_R, old_logp_R, behaviour_R, entropy_R = -torch.rand(4, R, generator=generator, dtype=torch.float64) * 1.5
    advantages_R = torch.randn(R, generator=generator, dtype=torch.float64)
    weights_R = torch.rand(R, generator=generator, dtype=torch.float64)
    options = {
        "clip_low": 0.1,
        "clip_high": 0.3,
        "dual_clip": 1.5,
        "behaviour_logp_R": behaviour_R,
        "importance_cap": 1.2,
        "entropy_R": -entropy_R,
    }
    return [logp_R, old_logp_R, advantages_R, weights_R], options


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.1, 2.0, -2.2, None),  # inside: -A ratio
        (1.5, 2.0, -2.4, "clipped_high_sum"),  # better and already likelier: -A 1.2
        (0.5, 2.0, -1.0, None),  # better and less likely: the way back is open
        (0.5, -2.0, 1.6, "clipped_low_sum"),  # worse and already less likely: -A 0.8
        (1.5, -2.0, 3.0, None),  # worse and likelier
        (9.0, -2.0, 18.0, None),  # without a bound
    ],
)
def test_each_side_of_the_clip_by_hand(ratio, advantage, loss, clipped):
    value, metrics = one_token(ratio, advantage)
    assert value == pytest.approx(loss)
    for name in ("clipped_low_sum", "clipped_high_sum", "clipped_dual_sum"):
        assert metrics[name] == (name == clipped)


def test_the_clips_are_two():
    assert one_token(1.5, 1.0, clip_low=0.1, clip_high=0.4)[0] == pytest.approx(-1.4)
    assert one_token(0.5, -1.0, clip_low=0.1, clip_high=0.4)[0] == pytest.approx(0.9)


def test_the_dual_clip_by_hand():
    loss, metrics = one_token(9.0, -2.0, dual_clip=3.0)
    assert loss == pytest.approx(6.0)
    assert metrics["clipped_dual_sum"] == 1.0
    assert one_token(2.5, -2.0, dual_clip=3.0)[0] == pytest.approx(5.0)
    assert one_token(9.0, 2.0, dual_clip=3.0)[0] == pytest.approx(-2.4)  # only where A < 0
    with pytest.raises(AssertionError, match="more than 1"):
        one_token(1.0, 1.0, dual_clip=1.0)


def test_metrics_by_hand():
    # Ratios 2 (A = 1, clipped) and 1 (A = -1); weights 3 and 1. KL(old || new) by k3 of the first: 2 - 1 - ln 2.
    logp_R, entropy_R = torch.tensor([LN2 - 1, -1.0]), torch.tensor([0.5, 0.1])
    loss, metrics = ppo(
        logp_R, -torch.ones(2), torch.tensor([1.0, -1.0]), torch.tensor([3.0, 1.0]), 4.0, entropy_R=entropy_R
    )
    assert metrics == {
        "loss": pytest.approx((3 * -1.2 + 1) / 4),
        "ratio_sum": pytest.approx(7.0),
        "old_kl_sum": pytest.approx(3 * (1 - LN2)),
        "clipped_low_sum": 0.0,
        "clipped_high_sum": 3.0,
        "clipped_dual_sum": 0.0,
        "entropy_sum": pytest.approx(1.6),
        "weight_sum": 4.0,
    }
    assert float(loss) == metrics["loss"]


def test_the_first_update_is_the_policy_gradient():
    # ratio 1: loss -A, gradient -A w / denominator, and nothing is clipped.
    logp_R = torch.tensor([-1.0, -2.0], requires_grad=True)
    loss, metrics = ppo(logp_R, logp_R.detach(), torch.tensor([2.0, -3.0]), torch.ones(2), 2.0, dual_clip=3.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.5)
    assert logp_R.grad is not None
    assert logp_R.grad.tolist() == [-1.0, 1.5]
    assert metrics["clipped_low_sum"] + metrics["clipped_high_sum"] + metrics["clipped_dual_sum"] == 0


def test_importance_by_hand_is_capped_and_reported():
    # pi_old 1/2 and 1/2, drawn with 1/4 and 1/3 (weights 2 and 1.5, cap 1.8), pi = pi_old.
    old_R, behaviour_R = torch.full((2,), -LN2), torch.tensor([1 / 4, 1 / 3]).log()
    loss, metrics = ppo(
        old_R, old_R, torch.tensor([1.0, 2.0]), torch.ones(2), 1.0, behaviour_logp_R=behaviour_R, importance_cap=1.8
    )
    assert float(loss) == pytest.approx(-1.8 - 3.0)
    assert metrics["importance_sum"] == pytest.approx(3.3)
    assert metrics["importance_capped_sum"] == 1.0
    assert metrics["mismatch_sum"] == pytest.approx(1 / 4 + 1 / 6)


def test_a_behaviour_that_is_the_old_policy_changes_nothing():
    (logp_R, old_R, advantages_R, weights_R), _ = sample()
    plain, _ = ppo(logp_R, old_R, advantages_R, weights_R, 2.0)
    same, metrics = ppo(logp_R, old_R, advantages_R, weights_R, 2.0, behaviour_logp_R=old_R)
    assert torch.equal(plain, same)
    assert metrics["importance_sum"] == pytest.approx(metrics["weight_sum"])
    assert metrics["mismatch_sum"] == 0


def test_importance_weights_make_the_gradient_that_of_the_policy():
    # Tokens drawn from another distribution; weighted, their exact mean gradient is the policy's own.
    theta = torch.tensor([0.3, -0.5, 0.1], dtype=torch.float64, requires_grad=True)
    drawn = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    advantages = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    (true,) = torch.autograd.grad(-(theta.softmax(0) * advantages).sum(), theta)

    def gradient(**options: Any) -> torch.Tensor:
        logp = theta.log_softmax(0)
        loss, _ = ppo(logp, logp.detach(), advantages, drawn, 1.0, **options)
        return torch.autograd.grad(loss, theta)[0]

    assert torch.allclose(gradient(behaviour_logp_R=drawn.log()), true, atol=1e-12)
    assert not torch.allclose(gradient(), true, atol=1e-2)


@pytest.mark.parametrize("seed", range(3))
def test_gradient_by_finite_difference(seed):
    (logp_R, *rest), options = sample(seed)
    assert torch.autograd.gradcheck(lambda x: ppo(x, *rest, 2.5, **options)[0], logp_R.requires_grad_())


@pytest.mark.parametrize("cut", [1, 5, 11])
@pytest.mark.parametrize("reduction", ["token", "sample"])
def test_micro_batches_with_one_denominator_add_up_to_the_whole(cut, reduction):
    tensors, options = sample()
    weights, mass = token_weights((3, 7, 2), (1.0, 0.5, 2.0), reduction)
    tensors[3] = torch.tensor(weights, dtype=torch.float64)
    logp_R = tensors[0].requires_grad_()
    whole, metrics = ppo(*tensors, mass, **options)
    (expected,) = torch.autograd.grad(whole, logp_R)
    pieces = []
    for part in (slice(0, cut), slice(cut, None)):
        of_part = {k: v[part] if isinstance(v, torch.Tensor) else v for k, v in options.items()}
        pieces.append(ppo(*(tensor[part] for tensor in tensors), mass, **of_part))
    (gradient,) = torch.autograd.grad(sum(loss for loss, _ in pieces), logp_R)
    assert torch.allclose(gradient, expected, rtol=1e-12)
    for name, value in metrics.items():
        assert sum(piece[name] for _, piece in pieces) == pytest.approx(value)


def test_extreme_log_probabilities_stay_finite():
    logp_R = torch.tensor([0.0, -1e4, 0.0, -1e4], requires_grad=True)
    old_R = torch.tensor([-1e4, 0.0, -1e4, 0.0])
    loss, metrics = ppo(
        logp_R, old_R, torch.tensor([1.0, 1.0, -1.0, -1.0]), torch.ones(4), 4.0, behaviour_logp_R=-old_R - 1e4
    )
    loss.backward()
    assert loss.isfinite()
    assert logp_R.grad is not None
    assert logp_R.grad.isfinite().all()
    assert all(math.isfinite(value) for value in metrics.values())


def test_bf16_is_computed_in_fp32_and_columns_are_refused():
    loss, _ = ppo(torch.zeros(2).bfloat16(), torch.full((2,), -0.1), torch.ones(2), torch.ones(2), 2.0)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(-math.exp(0.1), rel=1e-6)
    with pytest.raises(AssertionError, match="expected vectors"):
        ppo(torch.zeros(2), torch.zeros(2, 1), torch.ones(2), torch.ones(2), 1.0)


def test_value_loss_by_hand():
    # G = 1 of V_old = 0. V = 0.5 has moved by more than 0.2: with 0.2 the error is larger, 0.8^2 / 2, and has no gradient.
    # V = -0.5 has moved away: 1.5^2 / 2 is the larger one, and it is free to come back.
    for value, clip, expected, gradient, clipped in (
        (0.5, None, 0.125, -0.5, 0.0),
        (0.5, 0.2, 0.32, 0.0, 1.0),
        (-0.5, 0.2, 1.125, -1.5, 0.0),
        (0.1, 0.2, 0.405, -0.9, 0.0),
    ):
        values_R = torch.tensor([value], requires_grad=True)
        loss, metrics = value_loss(values_R, torch.zeros(1), torch.ones(1), torch.ones(1), 1.0, clip=clip)
        loss.backward()
        assert float(loss.detach()) == pytest.approx(expected)
        assert values_R.grad is not None
        assert values_R.grad.item() == pytest.approx(gradient)
        assert metrics["clipped_sum"] == clipped


def test_explained_variance_from_the_sums():
    # Returns 0, 2, 4 (variance 8/3); errors -1, 1, 0 (mean 0, variance 2/3): 3/4 is explained.
    values_R, returns_R = torch.tensor([1.0, 1.0, 4.0]), torch.tensor([0.0, 2.0, 4.0])
    _, metrics = value_loss(values_R, values_R, returns_R, torch.ones(3), 3.0)
    mean = {name: value / metrics["weight_sum"] for name, value in metrics.items()}
    unexplained = mean["squared_error_sum"] - mean["error_sum"] ** 2
    assert 1 - unexplained / (mean["squared_return_sum"] - mean["return_sum"] ** 2) == pytest.approx(3 / 4)


def test_value_loss_gradient_and_micro_batches():
    generator = torch.Generator().manual_seed(0)
    values_R, old_R, returns_R, weights_R = torch.randn(4, 8, generator=generator, dtype=torch.float64)
    weights_R, values_R = weights_R.abs(), values_R.clone().requires_grad_()

    def loss(x: torch.Tensor, rows: slice = slice(None)) -> torch.Tensor:
        return value_loss(x[rows], old_R[rows], returns_R[rows], weights_R[rows], 2.5, clip=0.5)[0]

    assert torch.autograd.gradcheck(loss, values_R)
    assert torch.allclose(loss(values_R, slice(0, 3)) + loss(values_R, slice(3, None)), loss(values_R), rtol=1e-12)
