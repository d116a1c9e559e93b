"""A comparer reads a prompt and two answers and says which is better: classes a, b and, where the data has it, tie.

    loss, metrics = cross_entropy(logits_NC, classes_N, denominator)
    log_p_NC = averaged_over_orders(logits_ab_NC, logits_ba_NC)

N comparisons, C classes in the order of `CLASSES`; a comparer without ties has the first two. A model that reads both
answers prefers a place as well as an answer. Averaged over the two orders it cannot: with the answers exchanged, a
and b are exchanged and nothing else.
"""

from __future__ import annotations

import math

import torch

from rhumbline.losses.rows import report, row_weights, widen

CLASSES = ("a", "b", "tie")


def cross_entropy(
    logits_NC: torch.Tensor,
    classes_N: torch.Tensor,
    denominator: float,
    label_smoothing: float = 0.0,
    weights_N: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """sum_n w_n (-(1 - e) log p_n[class] - e mean_c log p_n[c]) / denominator, nats; computed in fp32 or better.

    e is the label smoothing. The denominator holds for the smoothed part as well: where that is a mean over the
    micro-batch (transformers issue 46731), gradients grow with the number of micro-batches.

    Metrics: `loss`, and the weighted sums `log_loss_sum` (without smoothing), `correct_sum` (of k classes that share
    the first place each is right by 1/k) and `weight_sum` to divide them by.
    """
    log_p_NC = widen(logits_NC).log_softmax(-1)
    log_loss_N = -log_p_NC.gather(1, classes_N[:, None])[:, 0]
    weights_N = row_weights(weights_N, log_loss_N)
    loss_N = (1 - label_smoothing) * log_loss_N - label_smoothing * log_p_NC.mean(-1)
    loss = (weights_N * loss_N).sum() / denominator
    first_NC = logits_NC.detach() == logits_NC.detach().amax(-1, keepdim=True)
    correct_N = first_NC.gather(1, classes_N[:, None])[:, 0] / first_NC.sum(-1)
    return loss, report(loss, weights_N, log_loss_sum=log_loss_N, correct_sum=correct_N)


def averaged_over_orders(logits_ab_NC: torch.Tensor, logits_ba_NC: torch.Tensor) -> torch.Tensor:
    """(N, C) log of the mean of both orders' probabilities, as seen with a first.

    `logits_ba_NC` are of the same comparisons with the answers exchanged, as the model gave them: its a is our b.
    """
    exchanged = [1, 0, *range(2, logits_ba_NC.shape[-1])]
    # fp64: vectorised fp32 rounds by place, and the symmetry would hold to an ulp only.
    log_ab_NC = logits_ab_NC.double().log_softmax(-1)
    log_ba_NC = logits_ba_NC.double().log_softmax(-1)[:, exchanged]
    return (torch.logaddexp(log_ab_NC, log_ba_NC) - math.log(2)).to(widen(logits_ab_NC).dtype)
