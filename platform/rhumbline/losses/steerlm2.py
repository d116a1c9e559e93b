"""SteerLM 2.0: draw the policy to P(y | a, x), the answers that a model of attributes expects of the wanted attributes a.

    target_N, metrics = target_weights(attribute_logp_N, prior_logp_N, proposal_logp_N, prompts_N)
    pull_N, metrics = pull(target_N, policy_logp_N, proposal_logp_N, prompts_N)           # at every step
    loss, _ = sft(logits_RV, targets_R, pull_N.repeat_interleave(counts_N), denominator=prompts_of_the_step)

N answers, drawn from a proposal Q' and scored by log-probabilities in nats: `attribute` log P(a | x, y), `prior` log P(y | x),
`proposal` log Q'(y | a, x), `policy` log Q(y | a, x); of whole answers, summed over their tokens. The answers to one prompt
must all be in the call (Wang et al., HelpSteer2, arXiv:2406.08673, on SteerLM 2.0).

By Bayes P(y | a, x) ~ P(a | x, y) P(y | x), so its expectations are means over the samples, each weighted by
w' = softmax(log P(a | x, y) + log P(y | x) - log Q'(y | a, x)) within its prompt: self-normalised importance sampling. Those of
the policy itself are weighted by b' = softmax(log Q - log Q'). The gradient of KL(P || Q), so estimated, is
-sum_n (w'_n - b'_n) grad log Q(y_n), 0 where the policy has what was asked; without b' it would be noise there.

NeMo-Aligner divides a prompt's loss by the mean length of its answers, which the paper does not: prompts with short answers
then weigh more. Here the denominator is the number of prompts.
"""

from __future__ import annotations

import torch

from rhumbline.losses.rows import same_rows, widen


@torch.no_grad()
def target_weights(
    attribute_logp_N: torch.Tensor, prior_logp_N: torch.Tensor, proposal_logp_N: torch.Tensor, prompts_N: torch.Tensor
) -> tuple[torch.Tensor, dict[str, float]]:
    """(N,) w', adding up to 1 within each prompt. All 0 where every answer is impossible (-inf): nothing to learn there.

    Metrics, sums over the prompts: `prompts`; `dead_prompts`, those all 0; `ess_sum` of 1 / sum_n w'_n^2, the effective sample
    size, between 1 and the prompt's answers (0 of a dead one). Near 1, one answer rules each prompt: as log-probabilities
    of whole answers differ by many nats, that is common, and the weighting then is a costly best-of-n.
    """
    same_rows(attribute_logp_N, prior_logp_N, proposal_logp_N, prompts_N)
    log_w_N = widen(attribute_logp_N).double() + prior_logp_N.double() - proposal_logp_N.double()
    place_N, G = _places(prompts_N)
    weights_N = _log_softmax(log_w_N, place_N, G).exp()
    mass_G, squares_G = _sums(weights_N, place_N, G), _sums(weights_N.square(), place_N, G)
    dead_G = mass_G == 0
    ess_G = torch.where(dead_G, 0.0, 1 / torch.where(dead_G, 1.0, squares_G))
    metrics = {"prompts": float(G), "dead_prompts": float(dead_G.sum()), "ess_sum": float(ess_G.sum())}
    return weights_N.to(widen(attribute_logp_N).dtype), metrics


@torch.no_grad()
def pull(
    target_N: torch.Tensor, policy_logp_N: torch.Tensor, proposal_logp_N: torch.Tensor, prompts_N: torch.Tensor
) -> tuple[torch.Tensor, dict[str, float]]:
    """(N,) w' - b', adding up to 0 within each prompt: the weight of each answer in `losses.sft`, below 0 to unlearn it.

    Metrics: `prompts`, and `kl_sum` over them of sum_n w'_n log(w'_n / b'_n), nats: the estimate of KL(P || Q) whose gradient
    this is. One answer to a prompt says nothing: 0.
    """
    same_rows(target_N, policy_logp_N, proposal_logp_N, prompts_N)
    wide_N, (place_N, G) = target_N.double(), _places(prompts_N)
    log_b_N = _log_softmax(policy_logp_N.double() - proposal_logp_N.double(), place_N, G)
    alive_N = _sums(wide_N, place_N, G)[place_N] > 0
    pull_N = torch.where(alive_N, wide_N - log_b_N.exp(), 0.0)
    kl = (torch.xlogy(wide_N, wide_N) - torch.where(wide_N > 0, wide_N * log_b_N, 0.0)).sum()
    return pull_N.to(widen(target_N).dtype), {"prompts": float(G), "kl_sum": float(kl)}


def _places(prompts_N: torch.Tensor) -> tuple[torch.Tensor, int]:
    names_G, place_N = torch.unique(prompts_N, return_inverse=True)
    return place_N, len(names_G)


def _sums(values_N: torch.Tensor, place_N: torch.Tensor, G: int) -> torch.Tensor:
    return values_N.new_zeros(G).index_add(0, place_N, values_N)


def _log_softmax(log_w_N: torch.Tensor, place_N: torch.Tensor, G: int) -> torch.Tensor:
    """(N,) within each of G groups; -inf throughout where a group has nothing else, which would be NaN."""
    assert (log_w_N < torch.inf).all(), "a log-weight is NaN or inf: was an answer drawn that the proposal rules out?"
    most_G = log_w_N.new_full((G,), -torch.inf).scatter_reduce(0, place_N, log_w_N, "amax")
    shifted_N = log_w_N - torch.where(most_G == -torch.inf, 0.0, most_G)[place_N]
    return shifted_N - _sums(shifted_N.exp(), place_N, G).clamp(min=torch.finfo(log_w_N.dtype).tiny).log()[place_N]
