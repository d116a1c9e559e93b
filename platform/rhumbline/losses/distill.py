"""Context distillation: the student, asked in one way, learns the whole distribution of the teacher, asked in another.

    loss, metrics = distill(student_RV, teacher_RV, weights_R, denominator=mass)

The teacher is the frozen initial policy asked in words, the student is asked by the direction codec
(arXiv:2209.15189). Both see the same response, so row r of both is the distribution of the same token. R learned
tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy


def distill(
    student_RV: torch.Tensor, teacher_RV: torch.Tensor, weights_R: torch.Tensor, denominator: float
) -> tuple[torch.Tensor, dict[str, float]]:
    """sum_r w_r * KL(p_teacher_r || p_student_r) / denominator, nats at temperature 1; both sides are logits.

    Forward KL (it covers every mode of the teacher), computed in fp32 as cross-entropy less the teacher's entropy. No
    gradient reaches the teacher. The denominator is the whole step's, as in `losses.sft`.
    """
    with torch.no_grad():
        log_p_RV = teacher_RV.float().log_softmax(-1)
        p_RV = log_p_RV.exp()
        # where, not a product: a token of probability 0 has log p = -inf, and its share is 0, not NaN.
        entropy_R = -torch.where(p_RV > 0, p_RV * log_p_RV, 0.0).sum(-1)
    kl_R = cross_entropy(student_RV.float(), p_RV, reduction="none") - entropy_R
    loss = (weights_R * kl_R).sum() / denominator
    return loss, {"loss": float(loss.detach())}
