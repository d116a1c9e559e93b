"""Regression on rated heads: mean square error, each head over the answers that have a label for it.

    denominator_H = labelled(labels_NH)                      # summed over the micro-batches and workers of the step
    loss, metrics = masked_mse(outputs_NH, labels_NH, denominator_H)

N answers, H heads. A missing label is NaN and nothing else: 0 is a rating, and so is -100 on a scale that has it.
NeMo-Aligner masks by the value -100 and divides by the number of all labels of a micro-batch; a head then weighs as
often as it was rated, and a step changes with how it was cut. Here every head has a denominator, and weighs the same.
"""

from __future__ import annotations

import torch

from rhumbline.losses.rows import row_weights, widen


def labelled(labels_NH: torch.Tensor, weights_N: torch.Tensor | None = None) -> torch.Tensor:
    """(H,) the weight of the answers with a label, this group's share of the step's denominators."""
    labels_NH = widen(labels_NH)
    return (row_weights(weights_N, labels_NH[:, 0])[:, None] * ~labels_NH.isnan()).sum(0)


def masked_mse(
    outputs_NH: torch.Tensor,
    labels_NH: torch.Tensor,
    denominator_H: torch.Tensor,
    weights_N: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """sum_h sum_n w_n (o_nh - y_nh)^2 / denominator_h / H over the labels that are there (DPA, arXiv:2402.18571).

    In squared units of the labels; computed in fp32 or better. A missing label has no gradient. A head without any
    label in the step (denominator 0) costs nothing and is still one of the H.

    Metrics: `loss`, and for head number h the sums `squared_error_sum/h` and `weight_sum/h`, whose quotient is its
    mean square error over whatever they are added up.
    """
    outputs_NH = widen(outputs_NH)
    assert outputs_NH.shape == labels_NH.shape, f"outputs {tuple(outputs_NH.shape)}, labels {tuple(labels_NH.shape)}"
    labels_NH = labels_NH.to(outputs_NH)
    error_NH = torch.where(labels_NH.isnan(), 0.0, outputs_NH - labels_NH)
    squares_H = (row_weights(weights_N, outputs_NH[:, 0])[:, None] * error_NH.square()).sum(0)
    denominator_H = denominator_H.to(outputs_NH)
    # 0 / 0 inside a `where` would still send NaN backwards.
    loss = (squares_H / torch.where(denominator_H > 0, denominator_H, 1.0)).sum() / len(squares_H)
    sums = {"squared_error_sum": squares_H.detach(), "weight_sum": labelled(labels_NH, weights_N)}
    metrics = {f"{name}/{h}": value for name, sum_H in sums.items() for h, value in enumerate(sum_H.tolist())}
    return loss, {"loss": float(loss.detach()), **metrics}
