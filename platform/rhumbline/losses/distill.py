"""Context distillation: the student, asked in one way, learns the whole distribution of the teacher, asked in another.

    loss, metrics = distill(student_RV, teacher_RV, weights_R, denominator=mass)

The teacher is a frozen policy asked in words, the student is asked by the direction codec alone
(arXiv:2209.15189). Both see the same response, so row r of both is the distribution of the same token. R learned
tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch

from rhumbline.losses.sft import chunks


def distill(
    student_RV: torch.Tensor, teacher_RV: torch.Tensor, weights_R: torch.Tensor, denominator: float
) -> tuple[torch.Tensor, dict[str, float]]:
    """sum_r w_r * KL(p_teacher_r || p_student_r) / denominator, nats at temperature 1; both sides are logits.

    Forward KL: it covers every mode of the teacher. Computed in fp32; the gradient reaches the student alone. The
    denominator is the whole step's, as in `losses.sft`.
    """
    loss: torch.Tensor = _ForwardKL.apply(student_RV, teacher_RV, weights_R / denominator)  # type: ignore[no-untyped-call]  # torch leaves `apply` untyped
    return loss, {"loss": float(loss.detach())}


class _ForwardKL(torch.autograd.Function):
    """A few rows at a time, the gradient at once, as in `losses.sft`: d KL / d student logits = q - p."""

    @staticmethod
    def forward(ctx: Any, student_RV: torch.Tensor, teacher_RV: torch.Tensor, weights_R: torch.Tensor) -> torch.Tensor:
        kl_R, gradient_RV = torch.empty_like(weights_R), torch.empty_like(student_RV)
        for rows in chunks(student_RV):
            log_p = teacher_RV[rows].float().log_softmax(-1)
            log_q = student_RV[rows].float().log_softmax(-1)
            p = log_p.exp()
            # A token that the teacher rules out has log p = -inf; its share is 0, not NaN.
            kl_R[rows] = log_p.sub_(log_q).mul_(p).masked_fill_(p == 0, 0.0).sum(-1)
            gradient_RV[rows] = log_q.exp_().sub_(p).mul_(weights_R[rows, None])
        ctx.save_for_backward(gradient_RV)
        return (kl_R * weights_R).sum()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient_RV,) = ctx.saved_tensors
        return gradient_RV * grad_outputs[0], None, None
