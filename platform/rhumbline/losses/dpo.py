"""Preference optimisation on pairs: the policy should move towards the chosen answer and away from the rejected one.

    loss, metrics = dpo(
        chosen_P, rejected_P, reference_chosen_P, reference_rejected_P, chosen_tokens_P, rejected_tokens_P,
        denominator=mass, beta=0.1,
    )

P pairs, K objectives. A log-probability is that of a sequence, nats, summed over its learned tokens, whose number
stands in `*_tokens_P`; those of the reference have no gradient. Recipes name the losses of one interface in
`losses.PAIRED_LOSSES`:

dpo   Rafailov et al., arXiv:2305.18290, equation 7; conservative with label smoothing; MODPO with `modpo`'s margin
ipo   Azar et al., arXiv:2310.12036, equation 17, per token
jpo   Bansal et al., arXiv:2404.00530: `dpo` of the joint probability of prompt and answer. The two sides may answer
      different prompts, and the caller sums over the prompts' tokens too. With one prompt its tokens cancel: dpo.

With the policy still at the reference `dpo` is ln 2 and `ipo` is 1 / (2 beta)^2 per pair; a loss that stays there
means that nothing is learned (trl issue 4023).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rhumbline.losses.rows import report, row_weights, same_rows, surprise, widen


def dpo(
    chosen_P: torch.Tensor,
    rejected_P: torch.Tensor,
    reference_chosen_P: torch.Tensor,
    reference_rejected_P: torch.Tensor,
    chosen_tokens_P: torch.Tensor,
    rejected_tokens_P: torch.Tensor,
    denominator: float,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    margin_P: torch.Tensor | None = None,
    weights_P: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """sum_p w_p (-(1 - e) log sigmoid(x_p) - e log sigmoid(-x_p)) / denominator, nats; computed in fp32 or better.

    x = beta (log_ratio_chosen - log_ratio_rejected) - margin, log_ratio = log pi / pi_ref of a sequence. e is the
    label smoothing, the share of pairs taken to be the wrong way round (conservative DPO, Mitchell 2023). A pair that
    is turned round has its margin turned too, so the margin is inside both terms with the sign of the gap; that of
    `preference.bradley_terry` is a distance to be won by either side, and is not.

    Metrics: `loss`, and sums over the pairs, weighted: `chosen_reward_sum` and `rejected_reward_sum` of
    beta log_ratio, `margin_sum` of their difference (without `margin_P`), `correct_sum` of x > 0 (x = 0 is half
    right), `chosen_logp_sum`, `rejected_logp_sum`, `chosen_tokens_sum`, `rejected_tokens_sum` (a margin may also grow
    while the chosen answers become less likely: the log-probabilities tell), and `weight_sum` to divide them by.
    """
    same_rows(chosen_P, rejected_P, reference_chosen_P, reference_rejected_P, chosen_tokens_P, rejected_tokens_P)
    chosen_reward_P = beta * _log_ratio(chosen_P, reference_chosen_P)
    rejected_reward_P = beta * _log_ratio(rejected_P, reference_rejected_P)
    x_P = gap_P = chosen_reward_P - rejected_reward_P
    if margin_P is not None:
        same_rows(margin_P, gap_P)
        x_P = gap_P - margin_P.detach().to(gap_P)
    weights_P = row_weights(weights_P, x_P)
    # -log sigmoid(-x) is x more than -log sigmoid(x). So written, x = 0 is ln 2 to the last bit for every e.
    loss_P = surprise(x_P) + label_smoothing * x_P
    loss = (weights_P * loss_P).sum() / denominator
    return loss, report(
        loss,
        weights_P,
        chosen_reward_sum=chosen_reward_P,
        rejected_reward_sum=rejected_reward_P,
        margin_sum=gap_P,
        correct_sum=(x_P > 0) + 0.5 * (x_P == 0),
        chosen_logp_sum=chosen_P,
        rejected_logp_sum=rejected_P,
        chosen_tokens_sum=chosen_tokens_P,
        rejected_tokens_sum=rejected_tokens_P,
    )


def ipo(
    chosen_P: torch.Tensor,
    rejected_P: torch.Tensor,
    reference_chosen_P: torch.Tensor,
    reference_rejected_P: torch.Tensor,
    chosen_tokens_P: torch.Tensor,
    rejected_tokens_P: torch.Tensor,
    denominator: float,
    *,
    beta: float = 0.1,
    weights_P: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """sum_p w_p (h_p - 1 / (2 beta))^2 / denominator, squared nats per token; computed in fp32 or better.

    h = log_ratio_chosen / tokens_chosen - log_ratio_rejected / tokens_rejected; beta is the paper's tau. The paper
    writes sums; its authors confirmed to TRL that its results are of means. OpenRLHF keeps the sums, with which a
    long answer reaches the target by a tiny change of each token.

    Metrics as those of `dpo`, with rewards of beta log_ratio / tokens; the loss draws their difference to 1/2.
    """
    same_rows(chosen_P, rejected_P, reference_chosen_P, reference_rejected_P, chosen_tokens_P, rejected_tokens_P)
    assert (chosen_tokens_P > 0).all(), "a chosen answer without a learned token has no mean"
    assert (rejected_tokens_P > 0).all(), "a rejected answer without a learned token has no mean"
    chosen_mean_P = _log_ratio(chosen_P, reference_chosen_P) / chosen_tokens_P
    rejected_mean_P = _log_ratio(rejected_P, reference_rejected_P) / rejected_tokens_P
    h_P = chosen_mean_P - rejected_mean_P
    weights_P = row_weights(weights_P, h_P)
    loss = (weights_P * (h_P - 1 / (2 * beta)).square()).sum() / denominator
    return loss, report(
        loss,
        weights_P,
        chosen_reward_sum=beta * chosen_mean_P,
        rejected_reward_sum=beta * rejected_mean_P,
        margin_sum=beta * h_P,
        correct_sum=(h_P > 0) + 0.5 * (h_P == 0),
        chosen_logp_sum=chosen_P,
        rejected_logp_sum=rejected_P,
        chosen_tokens_sum=chosen_tokens_P,
        rejected_tokens_sum=rejected_tokens_P,
    )


def modpo(
    gaps_PK: torch.Tensor, weights_K: Sequence[float], learned: int, beta: float = 0.1
) -> tuple[float, torch.Tensor]:
    """The `beta` and `margin_P` with which `dpo` is MODPO (Zhou et al., arXiv:2310.03708).

        beta, margin_P = modpo(gaps_PK, weights_K=(0.8, 0.2), learned=0)

    The pairs say which answer is better for the objective number k, `learned`, in the sense that its weight wants: where
    w_k is below 0, the chosen answer is the one with less of it. A reward is known for the others. With gap_i the reward of
    the chosen answer less that of the rejected one, the loss of a pair is

        -log sigmoid((beta (log_ratio_chosen - log_ratio_rejected) - sum_{i != k} w_i gap_i) / |w_k|)

    so `dpo` gets beta / |w_k| and the margin sum_{i != k} w_i gap_i / |w_k|. Column k of the gaps is not read and may be
    NaN. Gaps are log-odds, as those of Bradley-Terry: on a scale of 0 to 100 they would drown the pairs. Only
    the ratios of the weights and beta / |w_k| matter: those of a unit vector have a smaller beta than those that sum to 1.
    """
    assert gaps_PK.shape[1:] == (len(weights_K),), f"gaps {tuple(gaps_PK.shape)} for {len(weights_K)} weights"
    own = abs(weights_K[learned])
    assert own > 0, f"the objective of the pairs has the weight {own}, expected another than 0"
    others = [k for k in range(len(weights_K)) if k != learned]
    gaps = widen(gaps_PK)[:, others]
    return beta / own, (gaps * gaps.new_tensor([weights_K[k] / own for k in others])).sum(-1)


def _log_ratio(policy_P: torch.Tensor, reference_P: torch.Tensor) -> torch.Tensor:
    """(P,) log pi / pi_ref. Each answer with its own reference first: such differences are small and round little."""
    return widen(policy_P) - widen(reference_P.detach())
