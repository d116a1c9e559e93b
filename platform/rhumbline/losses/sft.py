"""Supervised fine-tuning: the cross-entropy of the response's tokens.

    weights_R, mass = token_weights(counts=(3, 1), weights=(1.0, 1.0), reduction="token")
    loss, metrics = sft(logits_RV, targets_R, weights_R, denominator=mass)

R learned tokens, V vocabulary, N samples. The denominator is an argument, because it must be that of the whole
optimiser step: every micro-batch of every worker. With a micro-batch's own count the gradient would depend on how the
step was cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch.nn.functional import cross_entropy

Reduction = Literal["token", "sample"]


def token_weights(
    counts: Sequence[int], weights: Sequence[float], reduction: Reduction = "token"
) -> tuple[list[float], float]:
    """The weight of each learned token (R,), and their sum, this group's share of the step's denominator.

    counts (N,) learned tokens per sample, weights (N,) of the samples. 'token': every token counts as its sample
    weighs, so long responses count for more. 'sample': every sample counts as it weighs, its tokens sharing that.
    """
    per_token = [w if reduction == "token" else w / n for n, w in zip(counts, weights, strict=True) if n > 0]
    spread = [w for w, n in zip(per_token, (n for n in counts if n > 0), strict=True) for _ in range(n)]
    mass = sum(w * n for n, w in zip(counts, weights, strict=True)) if reduction == "token" else 0.0
    if reduction == "sample":
        mass = sum(w for n, w in zip(counts, weights, strict=True) if n > 0)
    return spread, mass


def sft(
    logits_RV: torch.Tensor, targets_R: torch.Tensor, weights_R: torch.Tensor, denominator: float
) -> tuple[torch.Tensor, dict[str, float]]:
    """sum_r w_r * -log softmax(logits_r)[target_r] / denominator, nats; computed in fp32.

    Summed over the micro-batches of a step whose weights sum to `denominator` this is the weighted mean.
    """
    loss_R = cross_entropy(logits_RV.float(), targets_R, reduction="none")
    loss = (weights_R * loss_R).sum() / denominator
    return loss, {"loss": float(loss.detach())}
