"""Advantages: how much better than expected a token or an answer was. Plain numbers, no gradient.

    rewards_R = token_rewards(scores_N, k1(logp_R, reference_logp_R), beta, lengths)          # PPO
    advantages_R, returns_R = gae(rewards_R, values_R, lengths, gamma=1.0, lam=0.95)
    advantages_R = whiten(advantages_R, moments(advantages_R))            # moments added up over the whole step

    advantages_N, metrics = standardised(rewards_N, groups_N)                                 # GRPO
    advantages_N, metrics = per_objective(rewards_NK, groups_N, direction_K)                  # GDPO

N answers, K objectives, R tokens: answer after answer, `lengths` of each. The answers of a group, those to one prompt
under one direction, must all be in the call; otherwise nothing depends on how a step was cut. A group of one answer,
and one whose rewards are all the same, say nothing about better or worse: their advantages are 0, and they are counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from rhumbline.losses.rows import same_rows, widen

Grouped = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, dict[str, float]]]


@torch.no_grad()
def token_rewards(
    scores_N: torch.Tensor,
    kl_R: torch.Tensor,
    beta: float,
    lengths: Sequence[int],
    *,
    score_clip: float | None = None,
) -> torch.Tensor:
    """(R,) -beta kl_r, and on each answer's last token its score as well (arXiv:1909.08593, equation 2).

    The KL is k1, whose sum over an answer is the log-ratio of the answer. An answer without tokens has no place for its score.
    """
    same_rows(scores_N)
    assert len(scores_N) == len(lengths), f"{len(scores_N)} scores for {len(lengths)} answers"
    assert len(kl_R) == sum(lengths), f"the KL of {len(kl_R)} tokens for {sum(lengths)}"
    scores_N = widen(scores_N)
    if score_clip is not None:
        scores_N = scores_N.clamp(-score_clip, score_clip)
    lengths_N = torch.tensor(lengths, device=kl_R.device, dtype=torch.long)
    rewards_R = -beta * widen(kl_R)
    rewards_R[(lengths_N.cumsum(0) - 1)[lengths_N > 0]] += scores_N[lengths_N > 0].to(rewards_R)
    return rewards_R


@torch.no_grad()
def gae(
    rewards_R: torch.Tensor,
    values_R: torch.Tensor,
    lengths: Sequence[int],
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(advantages_R, returns_R): A_t = d_t + gamma lam A_{t+1}, d_t = r_t + gamma V_{t+1} - V_t, returns A + V.

    Generalised advantage estimation (Schulman et al., arXiv:1506.02438, equation 16). `values_R` are of the state before
    each token. What follows the last token is worth 0: the answer is over, also where a limit cut it off, since its score is
    of what is there. Returns are those of the advantages before whitening.
    """
    same_rows(rewards_R, values_R)
    assert len(values_R) == sum(lengths), f"{len(values_R)} values for {sum(lengths)} tokens"
    values_R = widen(values_R)
    lengths_N = torch.tensor(lengths, device=values_R.device, dtype=torch.long)
    longest = max(lengths, default=0)
    inside_NT = torch.arange(longest, device=values_R.device) < lengths_N[:, None]
    values_NT, delta_NT = values_R.new_zeros(2, *inside_NT.shape)
    values_NT[inside_NT], delta_NT[inside_NT] = values_R, rewards_R.to(values_R)
    after_NT = torch.nn.functional.pad(values_NT[:, 1:], (0, 1 if longest > 0 else 0))
    delta_NT += gamma * after_NT - values_NT  # 0 in the padding, which all three are
    ahead_N = values_R.new_zeros(len(lengths))
    for t in reversed(range(longest)):
        delta_NT[:, t] = ahead_N = delta_NT[:, t] + gamma * lam * ahead_N
    advantages_R = delta_NT[inside_NT]
    return advantages_R, advantages_R + values_R


@torch.no_grad()
def moments(values_R: torch.Tensor) -> torch.Tensor:
    """(3,) number, sum and sum of squares, fp64: what `whiten` needs, to be added up over micro-batches and workers."""
    values_R = values_R.double()
    return torch.stack([values_R.new_tensor(len(values_R)), values_R.sum(), values_R.square().sum()])


@torch.no_grad()
def whiten(values_R: torch.Tensor, step_moments: torch.Tensor, eps: float = 1e-8) -> torch.Tensor:
    """(x - mean) / sqrt(var + eps), mean and unbiased variance (denominator n - 1) of the whole step's `moments`."""
    number, total, squares = map(float, step_moments)
    mean = total / max(number, 1.0)
    variance = max(squares - number * mean**2, 0.0) / max(number - 1, 1.0)
    return ((values_R.double() - mean) / math.sqrt(variance + eps)).to(widen(values_R).dtype)


def standardised(
    rewards_N: torch.Tensor, groups_N: torch.Tensor, *, eps: float = 1e-4
) -> tuple[torch.Tensor, dict[str, float]]:
    """(r - mean) / (std + eps) within each group of n (GRPO, arXiv:2402.03300, section 4.1.2).

    std^2 has the denominator n - 1, as in other implementations; the paper does not say. Choose eps below the differences of
    rewards that mean something: what is much smaller counts as equal.
    """
    deviation_N, place_N, size_G, metrics = _deviations(rewards_N, groups_N)
    squares_G = torch.zeros_like(size_G).index_add(0, place_N, deviation_N.square())
    std_G = (squares_G / (size_G - 1).clamp(min=1)).sqrt()
    scale_G = torch.where(std_G > 0, std_G + eps, 1.0)  # eps may be 0
    return (deviation_N / scale_G[place_N]).to(widen(rewards_N).dtype), metrics


def centred(rewards_N: torch.Tensor, groups_N: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    """r - mean within each group (Dr. GRPO, arXiv:2503.20783, section 3.2): easy and hard prompts weigh as they vary."""
    deviation_N, _, _, metrics = _deviations(rewards_N, groups_N)
    return deviation_N.to(widen(rewards_N).dtype), metrics


def leave_one_out(rewards_N: torch.Tensor, groups_N: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    """r - mean of the group's others, n / (n - 1) (r - mean) (RLOO, arXiv:2402.14740): an unbiased baseline."""
    deviation_N, place_N, size_G, metrics = _deviations(rewards_N, groups_N)
    return (deviation_N * (size_G / (size_G - 1).clamp(min=1))[place_N]).to(widen(rewards_N).dtype), metrics


def per_objective(
    rewards_NK: torch.Tensor, groups_N: torch.Tensor, direction: torch.Tensor, *, normalise: Grouped = standardised
) -> tuple[torch.Tensor, dict[str, float]]:
    """sum_k v_k normalise(r_k): every objective on its own within the group, then the weighted sum (GDPO, arXiv:2601.05242).

    direction (K,), or (N, K) where each prompt has its own v. Summed first, rewards whose parts differ but whose sums agree
    have the same advantage, and the objective with the widest range rules whatever v says. GDPO whitens the sums over the
    step after that: `whiten`, `moments`. Per objective k `constant_groups/k`: there it has no say, whatever its weight.
    """
    assert rewards_NK.ndim == 2, f"expected rewards (N, K), got {tuple(rewards_NK.shape)}"
    wanted = (tuple(rewards_NK.shape), tuple(rewards_NK.shape[1:]))
    assert tuple(direction.shape) in wanted, f"direction {tuple(direction.shape)} for rewards {wanted[0]}"
    parts = [normalise(rewards_N, groups_N) for rewards_N in rewards_NK.unbind(1)]
    advantages_NK = torch.stack([advantages_N for advantages_N, _ in parts], 1)
    metrics = {name: count for name, count in parts[0][1].items() if name != "constant_groups"}
    metrics |= {f"constant_groups/{k}": counts["constant_groups"] for k, (_, counts) in enumerate(parts)}
    return (advantages_NK * direction.detach().to(advantages_NK)).sum(1), metrics


@torch.no_grad()
def _deviations(
    rewards_N: torch.Tensor, groups_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, float]]:
    """r - mean (N,) in fp64, exactly 0 in groups without a difference; each answer's place among G groups, their sizes."""
    same_rows(rewards_N, groups_N)
    assert rewards_N.isfinite().all(), (
        "a reward is no number: an answer that could not be scored is no member of its group"
    )
    rewards_N = rewards_N.double()
    names_G, place_N = torch.unique(groups_N, return_inverse=True)
    zeros_G = rewards_N.new_zeros(len(names_G))
    size_G = zeros_G.index_add(0, place_N, torch.ones_like(rewards_N))
    most_G = zeros_G.scatter_reduce(0, place_N, rewards_N, "amax", include_self=False)
    least_G = zeros_G.scatter_reduce(0, place_N, rewards_N, "amin", include_self=False)
    # Compared, not computed: a mean that rounds would leave a deviation for the division to blow up.
    same_G = most_G == least_G
    mean_G = zeros_G.index_add(0, place_N, rewards_N) / size_G
    deviation_N = torch.where(same_G[place_N], 0.0, rewards_N - mean_G[place_N])
    single_G = size_G == 1
    counts = torch.stack([single_G.sum(), (same_G & ~single_G).sum()]).tolist()
    metrics = {"groups": len(names_G), "single_groups": counts[0], "constant_groups": counts[1]}
    return deviation_N, place_N, size_G, {name: float(count) for name, count in metrics.items()}
