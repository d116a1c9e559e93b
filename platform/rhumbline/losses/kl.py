"""Estimators of the KL divergence of the policy from a reference, from log-probabilities of sampled tokens.

    k3(logp_T, reference_logp_T).mean()

With x ~ pi and log_ratio = log pi(x) - log pi_ref(x), nats (Schulman 2020, 'Approximating KL divergence'):

    k1 = log_ratio                      unbiased, high variance, may be negative
    k2 = log_ratio^2 / 2                biased, low variance; on-policy its gradient is that of the KL
    k3 = exp(-log_ratio) - 1 + log_ratio    unbiased, never negative; held to 10 nats a token
    k3_k2                               the value of k3, the gradient of k2

k1 and, below 10 nats, k3 are unbiased in value, not in gradient (Tang and Munos, arXiv:2506.09477). What each draws pi to
when it is a loss, on tokens that pi drew, g = grad log pi(x):

    k1   E[g] = 0                       nowhere: noise
    k2   E[log_ratio g]                 down KL(pi || pi_ref), of one token given those before it
    k3   E[(1 - pi_ref / pi) g]         down KL(pi_ref || pi), the other way round; where pi_ref gives a token nothing it
                                        stays at 1, and that of k2 grows

So as a loss term use k2 or `k3_k2`; inside a reward, which has no gradient, use k1. Once an update has moved pi from the
policy that drew the tokens, all of them are off by that ratio. Shapes are kept; fp32 or better.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from rhumbline.losses.rows import widen

CLAMP = 20.0  # nats; bounds exp(-log_ratio) where the policy gives a token almost nothing
MOST = 10.0  # nats; of one token's k3

Estimator = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def k1(logp: torch.Tensor, reference_logp: torch.Tensor) -> torch.Tensor:
    return widen(logp) - widen(reference_logp)


def k2(logp: torch.Tensor, reference_logp: torch.Tensor) -> torch.Tensor:
    return k1(logp, reference_logp).square() / 2


def k3(logp: torch.Tensor, reference_logp: torch.Tensor) -> torch.Tensor:
    """At most 10 nats, and the log-ratio within +-20 before the exponential: as in verl, SkyRL and NeMo.

    At a log-ratio of -20 one token would come to 5e8 nats and be the mean of its step. From 10 on (log-ratios below -2.6, and
    above 11) the estimate is too low, and k3 has no gradient; `k3_k2` keeps that of k2.
    """
    log_ratio = k1(logp, reference_logp).clamp(-CLAMP, CLAMP)
    return (torch.expm1(-log_ratio) + log_ratio).clamp(max=MOST)


def straight_through(value: Estimator, gradient: Estimator) -> Estimator:
    """An estimator with the value of one and the gradient of another: value + gradient - stop(gradient)."""

    def estimate(logp: torch.Tensor, reference_logp: torch.Tensor) -> torch.Tensor:
        slope = gradient(logp, reference_logp)
        return value(logp, reference_logp).detach() + (slope - slope.detach())

    return estimate


k3_k2 = straight_through(value=k3, gradient=k2)
