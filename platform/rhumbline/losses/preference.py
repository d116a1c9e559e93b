"""Bradley-Terry: of two answers to a prompt, the better one should score higher.

    better_P, worse_P = torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2])     # a prompt with three ranked answers
    loss, metrics = bradley_terry(scores_N, better_P, worse_P, denominator=3.0)

N distinct answers, each read once, and P pairs of them by place. With H heads, pair by `outputs_NH.reshape(-1)` and
the places `n * H + h`. Weights: `sft.token_weights(pairs_per_prompt, ones, "token")` for the mean over pairs,
`"sample"` for the mean over prompts, each over its K-choose-2 pairs.
"""

from __future__ import annotations

from typing import Literal

import torch

from rhumbline.losses.rows import report, row_weights, same_rows, surprise, widen


def bradley_terry(
    scores_N: torch.Tensor,
    better_P: torch.Tensor,
    worse_P: torch.Tensor,
    denominator: float,
    *,
    strength_P: torch.Tensor | None = None,
    margin: float | Literal["strength"] = 0.0,
    scale_by_strength: bool = False,
    centring: float = 0.0,
    label_smoothing: float = 0.0,
    weights_P: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """sum_p w_p (s_p ((1 - e) l(r_w - r_l - m_p) + e l(r_l - r_w - m_p)) + c (r_w + r_l)^2) / denominator, nats.

    l(x) = -log sigmoid(x) (Ouyang et al., arXiv:2203.02155, equation 1). Options:

    margin            m, a number or each pair's strength (Llama 2, arXiv:2307.09288, equation 2)
    scale_by_strength s, each pair's strength (HelpSteer2-Preference, arXiv:2410.01257); the denominator stays that of
                      the weights
    centring          c, draws the two scores to a mean of 0 (arXiv:2312.09244, equation 2; TRL advises 0.01)
    label_smoothing   e, the share of labels taken to be the wrong way round (conservative DPO)

    A strength is 0 or more, and 0 counts: no margin, or no say at all when scaled. NaN is a pair without one: margin 0,
    scale 1. Computed in fp32 or better.

    Metrics: `loss`, and sums over the pairs, weighted: `log_loss_sum` of l(r_w - r_l) without options, `correct_sum`
    (equal scores are half right), `margin_sum` of r_w - r_l, and `weight_sum` to divide them by.
    """
    scores_N = widen(scores_N)
    same_rows(scores_N)
    same_rows(better_P, worse_P)
    better, worse = scores_N[better_P], scores_N[worse_P]
    gap = better - worse
    margin_P = _stated(strength_P, gap, 0.0) if margin == "strength" else margin
    loss_P = (1 - label_smoothing) * surprise(gap - margin_P) + label_smoothing * surprise(-gap - margin_P)
    if scale_by_strength:
        loss_P = _stated(strength_P, gap, 1.0) * loss_P
    weights_P = row_weights(weights_P, gap)
    loss = (weights_P * (loss_P + centring * (better + worse).square())).sum() / denominator
    return loss, report(
        loss,
        weights_P,
        log_loss_sum=surprise(gap),
        correct_sum=(gap > 0) + 0.5 * (gap == 0),
        margin_sum=gap,
    )


def _stated(strength_P: torch.Tensor | None, like_P: torch.Tensor, otherwise: float) -> torch.Tensor:
    """(P,) the strengths, `otherwise` where a pair has none."""
    assert strength_P is not None, "margin='strength' and scale_by_strength need strength_P"
    same_rows(strength_P, like_P)
    strength_P = strength_P.to(like_P)
    assert not (strength_P < 0).any(), "a strength below 0 would prefer the worse answer"
    return torch.where(strength_P.isnan(), otherwise, strength_P)
