from __future__ import annotations

import math

import pytest
import torch

from rhumbline.losses import KL_ESTIMATORS
from rhumbline.losses.kl import MOST, k1, k2, k3, k3_k2, straight_through


def test_estimators_by_hand():
    # log_ratio = -1 - (-1.5) = 0.5
    logp, reference = torch.tensor([-1.0]), torch.tensor([-1.5])
    assert k1(logp, reference).item() == pytest.approx(0.5)
    assert k2(logp, reference).item() == pytest.approx(0.125)
    assert k3(logp, reference).item() == pytest.approx(math.exp(-0.5) - 1 + 0.5)


def test_k1_and_k3_are_unbiased_and_k2_is_not():
    # Exact expectation under pi = (0.8, 0.2) against (0.5, 0.5).
    pi, ref = torch.tensor([0.8, 0.2], dtype=torch.float64), torch.tensor([0.5, 0.5], dtype=torch.float64)
    exact = float((pi * (pi / ref).log()).sum())
    means = {name: float((pi * k(pi.log(), ref.log())).sum()) for name, k in KL_ESTIMATORS.items()}
    assert means["k1"] == pytest.approx(exact, abs=1e-6)
    assert means["k3"] == pytest.approx(exact, abs=1e-6)
    assert abs(means["k2"] - exact) > 0.01


def test_k3_is_never_negative_and_never_overflows():
    log_ratio = torch.tensor([-1000.0, -5.0, -1e-4, 0.0, 1e-4, 5.0, 1000.0])
    values = k3(log_ratio, torch.zeros(7))
    assert (values >= 0).all()
    assert values.isfinite().all()


def test_no_token_comes_to_more_than_10_nats_of_k3():
    # e^2.6 - 1 - 2.6 = 9.86; e^2.7 - 1 - 2.7 = 11.2; the other way round e^-10.5 - 1 + 10.5 = 9.5, and 12 is about 11.
    logp = torch.tensor([-2.6, -2.7, -15.0, 10.5, 12.0], requires_grad=True)
    values = k3(logp, torch.zeros(5))
    assert values.tolist() == pytest.approx([9.863738, MOST, MOST, 9.500028, MOST])
    assert MOST == 10.0
    assert k3_k2(logp, torch.zeros(5)).tolist() == values.tolist()
    values.sum().backward()
    assert logp.grad is not None
    assert (logp.grad == 0).tolist() == [False, True, True, False, True]


@pytest.mark.parametrize(("estimator", "slope"), [(k1, 1.0), (k2, 0.7), (k3, 1 - math.exp(-0.7))])
def test_gradients_by_finite_difference(estimator, slope):
    logp = torch.tensor([-0.3], requires_grad=True)
    reference = torch.tensor([-1.0])
    estimator(logp, reference).sum().backward()
    assert logp.grad is not None
    numeric = (estimator(torch.tensor([-0.29]), reference) - estimator(torch.tensor([-0.31]), reference)) / 0.02
    assert logp.grad.item() == pytest.approx(slope, rel=1e-4)
    assert logp.grad.item() == pytest.approx(numeric.item(), rel=1e-3)


def test_only_the_gradient_of_k2_is_that_of_the_kl():
    # pi = softmax(theta); E_pi[grad k(log pi(x))], sampled tokens held fixed, against the true gradient of KL(pi || ref).
    theta = torch.tensor([1.0, -0.4], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    pi = theta.softmax(0)
    (true,) = torch.autograd.grad((pi * (pi.log() - reference)).sum(), theta)

    def expected(estimator):
        logp = theta.log_softmax(0)
        (gradient,) = torch.autograd.grad((logp.exp().detach() * estimator(logp, reference)).sum(), theta)
        return gradient

    assert torch.allclose(expected(k2), true, atol=1e-6)
    assert torch.allclose(expected(k3_k2), true, atol=1e-6)
    assert not torch.allclose(expected(k1), true, atol=1e-2)
    assert not torch.allclose(expected(k3), true, atol=1e-2)


def test_what_k1_and_k3_lead_to_instead():
    # On average k1 nowhere, and k3 down KL(ref || pi).
    theta = torch.tensor([1.0, -0.4, 0.3], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    (reverse,) = torch.autograd.grad((reference * (reference.log() - theta.log_softmax(0))).sum(), theta)
    for estimator, wanted in ((k1, torch.zeros(3, dtype=torch.float64)), (k3, reverse)):
        logp = theta.log_softmax(0)
        (gradient,) = torch.autograd.grad((logp.exp().detach() * estimator(logp, reference.log())).sum(), theta)
        assert torch.allclose(gradient, wanted, atol=1e-12)


def test_straight_through_has_the_value_of_one_and_the_gradient_of_the_other():
    logp = torch.tensor([-0.3, -2.0, -30.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-1.0, -0.5, -2.0], dtype=torch.float64)
    for value, gradient in ((k3, k2), (k1, k3), (k2, k1)):
        estimate = straight_through(value=value, gradient=gradient)
        assert torch.equal(estimate(logp, reference), value(logp, reference))
        slopes = [torch.autograd.grad(k(logp, reference).sum(), logp)[0] for k in (estimate, gradient)]
        assert torch.equal(*slopes)
    # The clamp of k3's value leaves the gradient of k2 alone: log-ratio -28.
    assert torch.autograd.grad(k3_k2(logp, reference).sum(), logp)[0][2].item() == pytest.approx(-28.0)


@pytest.mark.parametrize("estimator", [k1, k2, k3])
def test_fp64_stays_fp64(estimator):
    logp = torch.tensor([-0.3, -2.0, -0.7], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-1.0, -0.5, -0.7], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: estimator(x, reference), logp)
    assert estimator(logp.detach().bfloat16(), reference.bfloat16()).dtype == torch.float32


def test_every_estimator_is_in_the_dict():
    assert set(KL_ESTIMATORS) >= {"k1", "k2", "k3", "k3_k2"}
