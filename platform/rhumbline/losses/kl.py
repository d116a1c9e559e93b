"""Estimators of the KL divergence of the policy from a reference, from log-probabilities of sampled tokens.

    k3(logp_T, reference_logp_T).mean()

With x ~ pi and log_ratio = log pi(x) - log pi_ref(x), nats (Schulman 2020, 'Approximating KL divergence'):

    k1 = log_ratio                      unbiased, high variance, may be negative
    k2 = log_ratio^2 / 2                biased, low variance; on-policy its gradient is that of the KL
    k3 = exp(-log_ratio) - 1 + log_ratio    unbiased, never negative

k1 and k3 are unbiased in value, not in gradient: as a loss term use k2; inside a reward use k1. Shapes are kept.
"""

from __future__ import annotations

import torch

CLAMP = 20.0  # nats; bounds exp(-log_ratio) where a reference gives a token almost nothing


def k1(logp: torch.Tensor, reference_logp: torch.Tensor) -> torch.Tensor:
    return logp.float() - reference_logp.float()


def k2(logp: torch.Tensor, reference_logp: torch.Tensor) -> torch.Tensor:
    return k1(logp, reference_logp).square() / 2


def k3(logp: torch.Tensor, reference_logp: torch.Tensor) -> torch.Tensor:
    """The log-ratio is clamped to +-20 before the exponential, or one token could overflow the mean."""
    log_ratio = k1(logp, reference_logp).clamp(-CLAMP, CLAMP)
    return torch.expm1(-log_ratio) + log_ratio
