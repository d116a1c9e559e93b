"""GRPO over learned tokens: PPO's clipped policy loss, plus an optional KL to the reference policy.

    advantages_N, groups = standardised(rewards_N, groups_N)             # losses.advantages; prompts are groups
    advantages_R = advantages_N.repeat_interleave(counts_N)              # every token of an answer has the answer's
    weights_R, mass = answer_weights(counts, weights, "constant", length=512)
    loss, metrics = grpo(
        logp_R, old_logp_R, advantages_R, weights_R, mass, reference_logp_R=reference_logp_R, beta=0.04, kl=k3_k2
    )

There is no second policy loss: with other advantages this is RLOO, Dr. GRPO, GDPO, or PPO with its KL in the loss.
R learned tokens, N answers. The denominator is the whole step's, as in `losses.sft`, for both terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from rhumbline.losses.kl import Estimator, k3_k2
from rhumbline.losses.ppo import ppo
from rhumbline.losses.rows import report, row_weights, same_rows, widen
from rhumbline.losses.sft import token_weights

AnswerReduction = Literal["token", "sample", "constant"]


def answer_weights(
    counts: Sequence[int], weights: Sequence[float], reduction: AnswerReduction = "token", *, length: int | None = None
) -> tuple[list[float], float]:
    """The weight of each learned token (R,), and this group's share of the step's denominator.

    counts (N,) learned tokens per answer, weights (N,) of the answers. By what the sum is divided:

    token      the tokens of the step: every token counts alike, long answers for more (DAPO, arXiv:2503.14476, section 3.3)
    sample     each answer's own tokens, then the answers: the mean of means (GRPO, arXiv:2402.03300, equation 3); a long
               bad answer is pushed down less per token than a short one
    constant   `length` times the answers, whatever they hold: no answer's length is in its weight (Dr. GRPO,
               arXiv:2503.20783, section 3.2). `length` is a scale alone, the most tokens an answer may have

    'token' and 'sample' are `losses.sft.token_weights`.
    """
    if reduction != "constant":
        return token_weights(counts, weights, reduction)
    assert length is not None, "the constant denominator needs a length"
    spread, _ = token_weights(counts, weights, "token")
    return spread, length * sum(weights)


def grpo(
    logp_R: torch.Tensor,
    old_logp_R: torch.Tensor,
    advantages_R: torch.Tensor,
    weights_R: torch.Tensor,
    denominator: float,
    *,
    reference_logp_R: torch.Tensor | None = None,
    beta: float = 0.0,
    kl: Estimator = k3_k2,
    **clipping: Any,
) -> tuple[torch.Tensor, dict[str, float]]:
    """ppo(...) + beta sum_r w_r kl(logp_r, reference_logp_r) / denominator (arXiv:2402.03300, equations 3 and 4).

    `clipping` are the options of `ppo`. The paper differentiates k3; `k3_k2` has its value and the right gradient
    (`losses.kl`). Metrics: those of `ppo`, its `loss` now of both terms, and with a reference `kl_sum`, the weighted sum of
    the very estimate that beta multiplies. A beta of 0 reports the KL and adds nothing.

    Only the policy's term is clipped and has the importance weight of `behaviour_logp_R`; the KL's has neither, as in TRL and
    verl. Where another policy drew the tokens, as an engine one version behind, it is a mean over that one's tokens: near the KL
    while the two are near, and with k2 or `k3_k2` a pull of each token's log-probability towards the reference's all the same.
    """
    loss, metrics = ppo(logp_R, old_logp_R, advantages_R, weights_R, denominator, **clipping)
    if reference_logp_R is None:
        assert beta == 0, f"a KL term of {beta} needs reference_logp_R"
        return loss, metrics
    same_rows(reference_logp_R, logp_R)
    kl_R = kl(widen(logp_R), reference_logp_R.detach())
    weights_R = row_weights(weights_R, kl_R)
    if beta != 0:  # 0 times a gradient that is infinite would be NaN
        loss = loss + beta * (weights_R * kl_R).sum() / denominator
    return loss, metrics | report(loss, weights_R, kl_sum=kl_R)
