from __future__ import annotations

import math

import pytest
import torch

from rhumbline.losses.advantages import standardised
from rhumbline.losses.grpo import answer_weights, grpo
from rhumbline.losses.kl import k1, k2, k3, k3_k2
from rhumbline.losses.ppo import ppo


def sample(R: int = 9) -> list[torch.Tensor]:
    """Log-probabilities, old ones, advantages, weights and the reference's, in fp64."""
    generator = torch.Generator().manual_seed(0)
    logp_R, old_R, weights_R, reference_R = torch.rand(4, R, generator=generator, dtype=torch.float64)
    return [-logp_R, -old_R, torch.randn(R, generator=generator, dtype=torch.float64), weights_R, -reference_R]


def test_the_three_denominators_by_hand():
    # Two answers of 3 and 1 tokens, at most 4; the second weighs 2.
    assert answer_weights((3, 1), (1.0, 2.0), "token") == ([1.0, 1.0, 1.0, 2.0], 5.0)
    assert answer_weights((3, 1), (1.0, 2.0), "sample") == ([1 / 3, 1 / 3, 1 / 3, 2.0], 3.0)
    assert answer_weights((3, 1), (1.0, 2.0), "constant", length=4) == ([1.0, 1.0, 1.0, 2.0], 12.0)
    with pytest.raises(AssertionError, match="needs a length"):
        answer_weights((3, 1), (1.0, 2.0), "constant")


def test_the_push_on_a_token_of_a_long_bad_answer():
    # Answers of 10 and 1 tokens, A = -1 each, first update: d loss / d logp = w / denominator.
    pushes = {}
    for reduction in ("token", "sample", "constant"):
        weights, mass = answer_weights((10, 1), (1.0, 1.0), reduction, length=16)
        logp_R = torch.zeros(11, requires_grad=True)
        loss, _ = grpo(logp_R, torch.zeros(11), -torch.ones(11), torch.tensor(weights), mass)
        (gradient,) = torch.autograd.grad(loss, logp_R)
        pushes[reduction] = (gradient[0].item(), gradient[10].item())
    assert pushes["token"] == (pytest.approx(1 / 11), pytest.approx(1 / 11))
    assert pushes["sample"] == (pytest.approx(1 / 20), pytest.approx(1 / 2))  # a tenth for being long: GRPO's bias
    assert pushes["constant"] == (pytest.approx(1 / 32), pytest.approx(1 / 32))


def test_a_step_by_hand():
    # One prompt, rewards 0 and 1: advantages -+ 0.5 / sqrt(1/2). Ratios 1. KL of the second answer's token: log-ratio ln 2,
    # k3 = 1/2 - 1 + ln 2.
    advantages_N, _ = standardised(torch.tensor([0.0, 1.0]), torch.zeros(2), eps=0.0)
    advantages_R = advantages_N.repeat_interleave(torch.tensor([2, 1]))
    weights, mass = answer_weights((2, 1), (1.0, 1.0), "sample")
    logp_R = torch.tensor([-1.0, -2.0, -1.0])
    reference_R = torch.tensor([-1.0, -2.0, -1.0 - math.log(2)])
    loss, metrics = grpo(
        logp_R, logp_R, advantages_R, torch.tensor(weights), mass, reference_logp_R=reference_R, beta=0.1, kl=k3
    )
    kl = math.log(2) - 0.5
    assert advantages_N.tolist() == pytest.approx([-math.sqrt(0.5), math.sqrt(0.5)])
    assert float(loss) == pytest.approx(0.1 * kl / 2, abs=1e-7)  # the two answers' policy terms cancel
    assert metrics["kl_sum"] == pytest.approx(kl)
    assert metrics["loss"] == float(loss)


@pytest.mark.parametrize("estimator", [k1, k2, k3, k3_k2])
def test_the_kl_that_is_reported_is_the_one_that_is_charged(estimator):
    *tensors, reference_R = sample()
    plain, _ = ppo(*tensors, 3.0)
    charged, metrics = grpo(*tensors, 3.0, reference_logp_R=reference_R, beta=0.2, kl=estimator)
    assert float(charged - plain) == pytest.approx(0.2 * metrics["kl_sum"] / 3.0)


def test_the_importance_weight_is_of_the_policy_s_term_alone():
    *tensors, reference_R = sample()
    options = {"behaviour_logp_R": tensors[1] - 0.5, "importance_cap": 3.0}  # every weight is exp 0.5
    plain, _ = ppo(*tensors, 3.0)
    loss, metrics = grpo(*tensors, 3.0, reference_logp_R=reference_R, beta=0.2, **options)
    assert float(loss) == pytest.approx(math.exp(0.5) * float(plain) + 0.2 * metrics["kl_sum"] / 3.0)
    assert metrics["kl_sum"] == pytest.approx(float((tensors[3] * k3(tensors[0], reference_R)).sum()))


def test_no_reference_or_a_beta_of_zero_is_ppo():
    *tensors, reference_R = sample()
    plain, metrics = ppo(*tensors, 3.0, clip_high=0.3)
    assert grpo(*tensors, 3.0, clip_high=0.3) == (plain, metrics)
    loss, seen = grpo(*tensors, 3.0, clip_high=0.3, reference_logp_R=reference_R)
    assert torch.equal(loss, plain)
    assert seen == metrics | {"kl_sum": seen["kl_sum"]}
    with pytest.raises(AssertionError, match="needs reference_logp_R"):
        grpo(*tensors, 3.0, beta=0.1)


@pytest.mark.parametrize("estimator", [k1, k2, k3])
def test_gradient_by_finite_difference(estimator):
    logp_R, *rest, reference_R = sample()
    logp_R.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: grpo(x, *rest, 2.5, reference_logp_R=reference_R, beta=0.3, kl=estimator)[0], logp_R
    )


@pytest.mark.parametrize("cut", [1, 4])
def test_micro_batches_with_one_denominator_add_up_to_the_whole(cut):
    tensors = sample()
    logp_R = tensors[0].requires_grad_()
    pieces = [
        grpo(*(t[part] for t in tensors[:4]), 2.5, reference_logp_R=tensors[4][part], beta=0.3)
        for part in (slice(None), slice(0, cut), slice(cut, None))
    ]
    whole, first, second = (torch.autograd.grad(loss, logp_R, retain_graph=True)[0] for loss, _ in pieces)
    assert torch.allclose(first + second, whole, rtol=1e-12)
    for name, value in pieces[0][1].items():
        assert pieces[1][1][name] + pieces[2][1][name] == pytest.approx(value)


def test_extreme_log_probabilities_stay_finite():
    logp_R = torch.tensor([0.0, -1e4], requires_grad=True)
    reference_R = torch.tensor([-1e4, 0.0])
    loss, metrics = grpo(
        logp_R, logp_R.detach(), torch.ones(2), torch.ones(2), 2.0, reference_logp_R=reference_R, beta=0.1
    )
    loss.backward()
    assert loss.isfinite()
    assert logp_R.grad is not None
    assert logp_R.grad.isfinite().all()
    assert math.isfinite(metrics["kl_sum"])
