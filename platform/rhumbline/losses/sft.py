"""Supervised fine-tuning: the cross-entropy of the response's tokens.

    weights_R, mass = token_weights(counts=(3, 1), weights=(1.0, 1.0), reduction="token")
    loss, metrics = sft(logits_RV, targets_R, weights_R, denominator=mass)

R learned tokens, V vocabulary, N samples. The denominator is an argument, because it must be that of the whole
optimiser step: every micro-batch of every worker. With a micro-batch's own count the gradient would depend on how the
step was cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

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

    Summed over the micro-batches of a step whose weights sum to `denominator` this is the weighted mean. The gradient
    reaches the logits alone.
    """
    loss: torch.Tensor = _CrossEntropy.apply(logits_RV, targets_R, weights_R / denominator)  # type: ignore[no-untyped-call]  # torch leaves `apply` untyped
    return loss, {"loss": float(loss.detach())}


class _CrossEntropy(torch.autograd.Function):
    """A few rows at a time, the gradient at once: fp32 copies of all logits would be the largest tensors of a step."""

    @staticmethod
    def forward(ctx: Any, logits_RV: torch.Tensor, targets_R: torch.Tensor, weights_R: torch.Tensor) -> torch.Tensor:
        loss_R, gradient_RV = torch.empty_like(weights_R), torch.empty_like(logits_RV)
        for rows in chunks(logits_RV):
            targets = targets_R[rows, None]
            log_q = logits_RV[rows].float().log_softmax(-1)
            loss_R[rows] = -log_q.gather(1, targets)[:, 0]
            gradient = log_q.exp_().scatter_add_(1, targets, torch.full_like(targets, -1, dtype=log_q.dtype))
            gradient_RV[rows] = gradient.mul_(weights_R[rows, None])
        ctx.save_for_backward(gradient_RV)
        return (loss_R * weights_R).sum()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient_RV,) = ctx.saved_tensors
        return gradient_RV * grad_outputs[0], None, None


def chunks(logits_RV: torch.Tensor) -> list[slice]:
    """Slices of rows: few enough on a CPU that their logits stay in its cache (`distill` is 4 times as fast for it)."""
    size = 16 if logits_RV.device.type == "cpu" else 1024
    return [slice(first, first + size) for first in range(0, len(logits_RV), size)]
