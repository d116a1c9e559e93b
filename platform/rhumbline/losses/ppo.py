"""PPO over learned tokens: the clipped policy loss and the clipped value loss.

    weights_R, mass = token_weights(counts, weights, "token")          # losses.sft; mass summed over the whole step
    loss, metrics = ppo(logp_R, old_logp_R, advantages_R, weights_R, mass, clip_low=0.4, clip_high=0.4)
    loss, metrics = value_loss(values_R, old_values_R, returns_R, weights_R, mass, clip=0.2)

R learned tokens. `old_logp_R` are the learner's own before the first update on these rollouts, advantages
and returns come from `losses.advantages`; none of them has a gradient. Rollouts that another policy drew, an engine
that rounds otherwise or weights one step old, bring their own log-probabilities as `behaviour_logp_R`.
"""

from __future__ import annotations

import torch

from rhumbline.losses.kl import CLAMP, k3
from rhumbline.losses.rows import report, row_weights, same_rows, widen


def ppo(
    logp_R: torch.Tensor,
    old_logp_R: torch.Tensor,
    advantages_R: torch.Tensor,
    weights_R: torch.Tensor,
    denominator: float,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    behaviour_logp_R: torch.Tensor | None = None,
    importance_cap: float = 2.0,
    entropy_R: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """sum_r w_r i_r max(-A_r ratio_r, -A_r clip(ratio_r, 1 - clip_low, 1 + clip_high)) / denominator.

    ratio = pi(token) / pi_old(token) (Schulman et al., arXiv:1707.06347, equation 7); an upper clip of its own is DAPO's
    (arXiv:2503.14476, section 3.1). Dual clip: where A < 0 a token costs at most -A c, so that a ratio that has run away
    cannot rule the step (Ye et al., arXiv:1912.09729; c = 3 there).

    i = min(pi_old / pi_behaviour, importance_cap), held fixed, 1 without `behaviour_logp_R`: the truncated importance
    weight (IMPALA, arXiv:1802.01561, equation 1). It corrects what pi_old cannot: the ratio is taken against pi_old, not
    against what drew the tokens. An engine's log-probabilities as `old_logp_R` already hold the correction; do not
    give them again here. Computed in fp32 or better; the log-ratios are clamped to +-20, so no token overflows.

    Metrics: `loss`, and sums over the tokens, weighted: `ratio_sum`, `old_kl_sum` (k3 of KL(pi_old || pi)), the
    tokens without a gradient `clipped_low_sum` (A < 0), `clipped_high_sum` (A > 0), `clipped_dual_sum`, whose total
    over `weight_sum` is the clip fraction; `entropy_sum` if given; with behaviour `importance_sum` (of i),
    `importance_capped_sum` (tokens at the cap) and `mismatch_sum`, |pi_old - pi_behaviour|: its mean should stay under
    0.005 where engine and learner hold the same weights.
    """
    same_rows(logp_R, old_logp_R, advantages_R, weights_R)
    logp_R = widen(logp_R)
    old_logp_R, advantages_R = old_logp_R.detach().to(logp_R), advantages_R.detach().to(logp_R)
    weights_R = row_weights(weights_R, logp_R)
    ratio_R = (logp_R - old_logp_R).clamp(-CLAMP, CLAMP).exp()
    loss_R = torch.maximum(-advantages_R * ratio_R, -advantages_R * ratio_R.clamp(1 - clip_low, 1 + clip_high))
    good_R, bad_R = advantages_R > 0, advantages_R < 0
    rows_R = {
        "ratio_sum": ratio_R,
        "old_kl_sum": k3(old_logp_R, logp_R),
        "clipped_low_sum": bad_R & (ratio_R < 1 - clip_low),
        "clipped_high_sum": good_R & (ratio_R > 1 + clip_high),
        "clipped_dual_sum": torch.zeros_like(bad_R),
    }
    if dual_clip is not None:
        assert dual_clip > 1, f"a dual clip of {dual_clip} would cut the first update too: expected more than 1"
        loss_R = torch.where(bad_R, torch.minimum(loss_R, -advantages_R * dual_clip), loss_R)
        rows_R["clipped_dual_sum"] = bad_R & (ratio_R > dual_clip)
    if entropy_R is not None:
        same_rows(entropy_R, logp_R)
        rows_R["entropy_sum"] = entropy_R.to(logp_R)
    if behaviour_logp_R is not None:
        same_rows(behaviour_logp_R, logp_R)
        behaviour_logp_R = behaviour_logp_R.detach().to(logp_R)
        importance_R = (old_logp_R - behaviour_logp_R).clamp(-CLAMP, CLAMP).exp()
        rows_R["importance_capped_sum"] = importance_R > importance_cap
        rows_R["mismatch_sum"] = (old_logp_R.exp() - behaviour_logp_R.exp()).abs()
        importance_R = importance_R.clamp(max=importance_cap)
        rows_R["importance_sum"] = importance_R
        loss_R = importance_R * loss_R
    loss = (weights_R * loss_R).sum() / denominator
    return loss, report(loss, weights_R, **rows_R)


def value_loss(
    values_R: torch.Tensor,
    old_values_R: torch.Tensor,
    returns_R: torch.Tensor,
    weights_R: torch.Tensor,
    denominator: float,
    *,
    clip: float | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """sum_r w_r max((V - G)^2, (V_old + clip(V - V_old, +-c) - G)^2) / 2 / denominator, in squared units of the reward.

    G the returns, V_old the values that the advantages were made from (arXiv:2005.12729, section 3). With the larger of
    the two a value that has moved further than c waits; one that has moved away from G does not. Without `clip` half
    the square error. Computed in fp32 or better.

    Metrics: `loss`, `weight_sum`, and sums, weighted: `clipped_sum`, `error_sum` (of G - V), `squared_error_sum`,
    `return_sum`, `squared_return_sum`. With means of those over whatever they are added up, the explained variance is
    1 - (squared_error - error^2) / (squared_return - return^2).
    """
    same_rows(values_R, old_values_R, returns_R, weights_R)
    values_R = widen(values_R)
    old_values_R, returns_R = old_values_R.detach().to(values_R), returns_R.detach().to(values_R)
    weights_R = row_weights(weights_R, values_R)
    plain_R = squares_R = (values_R - returns_R).square()
    if clip is not None:
        near_R = old_values_R + (values_R - old_values_R).clamp(-clip, clip)
        squares_R = torch.maximum(plain_R, (near_R - returns_R).square())
    loss = (weights_R * squares_R).sum() / 2 / denominator
    return loss, report(
        loss,
        weights_R,
        clipped_sum=squares_R > plain_R,
        error_sum=returns_R - values_R,
        squared_error_sum=plain_R,
        return_sum=returns_R,
        squared_return_sum=returns_R.square(),
    )
