"""One score in [0, 1] for one answer, learned from a label in [0, 1]; three forms of the same interface.

    loss, metrics = sigmoid_bce(logits_N, labels_N, denominator)
    loss, metrics = mse_with_penalty(outputs_N, labels_N, denominator, penalty=0.02)

mse_with_penalty   the output is the score; what lies outside [0, 1] costs `penalty` of its distance on top
sigmoid_mse        the output is a logit, its sigmoid the score
sigmoid_bce        the same, with cross-entropy: a confident mistake keeps its gradient, in `sigmoid_mse` it loses it

The forms and the penalty of 2% are those of Khan, "Combined Preference-Based & Absolute Reward Signals for RLHF
Fine-tuning" (thesis, Koblenz 2024, section 5.3), which chose the last and found the first unable to stay in range.

Labels are checked, since cross-entropy with a label outside [0, 1] falls without end. Computed in fp32 or better.
Metrics of all three: `loss`, and the weighted sums `squared_error_sum`, `absolute_error_sum` of the score, and
`weight_sum` to divide them by.
"""

from __future__ import annotations

import torch

from rhumbline.losses.rows import report, row_weights, same_rows, widen


def mse_with_penalty(
    outputs_N: torch.Tensor,
    labels_N: torch.Tensor,
    denominator: float,
    *,
    penalty: float = 0.02,
    weights_N: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """sum_n w_n ((o - y)^2 + penalty max(o - 1, -o, 0)) / denominator."""
    outputs_N, labels_N = _checked(outputs_N, labels_N)
    outside_N = (outputs_N - 1).clamp(min=0) + (-outputs_N).clamp(min=0)
    loss_N = (outputs_N - labels_N).square() + penalty * outside_N
    return _weighted(loss_N, outputs_N, labels_N, denominator, weights_N)


def sigmoid_mse(
    logits_N: torch.Tensor, labels_N: torch.Tensor, denominator: float, *, weights_N: torch.Tensor | None = None
) -> tuple[torch.Tensor, dict[str, float]]:
    """sum_n w_n (sigmoid(o) - y)^2 / denominator."""
    logits_N, labels_N = _checked(logits_N, labels_N)
    scores_N = logits_N.sigmoid()
    return _weighted((scores_N - labels_N).square(), scores_N, labels_N, denominator, weights_N)


def sigmoid_bce(
    logits_N: torch.Tensor, labels_N: torch.Tensor, denominator: float, *, weights_N: torch.Tensor | None = None
) -> tuple[torch.Tensor, dict[str, float]]:
    """sum_n w_n (-y log sigmoid(o) - (1 - y) log sigmoid(-o)) / denominator, nats.

    At its least where sigmoid(o) = y; that least is the entropy of the label, not 0.
    """
    logits_N, labels_N = _checked(logits_N, labels_N)
    loss_N = torch.nn.functional.binary_cross_entropy_with_logits(logits_N, labels_N, reduction="none")
    return _weighted(loss_N, logits_N.sigmoid(), labels_N, denominator, weights_N)


def _checked(outputs_N: torch.Tensor, labels_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    outputs_N = widen(outputs_N)
    same_rows(outputs_N, labels_N)
    assert ((labels_N >= 0) & (labels_N <= 1)).all(), "expected labels in [0, 1]"  # NaN fails too
    return outputs_N, labels_N.to(outputs_N)


def _weighted(
    loss_N: torch.Tensor,
    scores_N: torch.Tensor,
    labels_N: torch.Tensor,
    denominator: float,
    weights_N: torch.Tensor | None,
) -> tuple[torch.Tensor, dict[str, float]]:
    weights_N = row_weights(weights_N, loss_N)
    loss = (weights_N * loss_N).sum() / denominator
    error_N = scores_N - labels_N
    return loss, report(loss, weights_N, squared_error_sum=error_N.square(), absolute_error_sum=error_N.abs())
