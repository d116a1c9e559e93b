"""Disentangling quality from length: two heads that share the preference, one of which takes what length explains.

    ranking, _ = bradley_terry(quality_N + length_scores_N, better_P, worse_P, pairs)
    parting, _ = disentangle(quality_N, length_scores_N, lengths_N, w_quality_D, w_length_D)
    loss = ranking + parting

ODIN (arXiv:2402.07319). The length head is dropped when rewards are given. N answers of a step, D hidden units.

A correlation is one number of all N answers and does not add up over micro-batches; in batches sorted by length it
means nothing. For a step that is cut, take the scores of all its answers without a gradient, then the gradient of
`disentangle` with respect to them; in each micro-batch `(gradient_n * scores_n).sum()` gives its share exactly. The
same holds for workers: scores that are gathered from others carry no gradient.
"""

from __future__ import annotations

import torch

from rhumbline.losses.rows import same_rows, widen


def disentangle(
    quality_N: torch.Tensor,
    length_scores_N: torch.Tensor,
    lengths_N: torch.Tensor,
    w_quality_D: torch.Tensor,
    w_length_D: torch.Tensor,
    *,
    correlation: float = 1.0,
    orthogonal: float = 1.0,
) -> tuple[torch.Tensor, dict[str, float]]:
    """correlation (|rho(r_quality, L)| - rho(r_length, L)) + orthogonal |cos(w_quality, w_length)|.

    rho is Pearson's correlation with the length L, w the heads' weights.
    Metrics: `loss`, and its three parts `quality_correlation`, `length_correlation` (both signed) and `overlap`.
    """
    rho_quality = length_correlation(quality_N, lengths_N)
    rho_length = length_correlation(length_scores_N, lengths_N)
    overlap = orthogonality(w_quality_D, w_length_D)
    loss = correlation * (rho_quality.abs() - rho_length) + orthogonal * overlap
    return loss, {
        "loss": float(loss.detach()),
        "quality_correlation": float(rho_quality.detach()),
        "length_correlation": float(rho_length.detach()),
        "overlap": float(overlap.detach()),
    }


def length_correlation(scores_N: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
    """Pearson's correlation of scores with lengths, in [-1, 1], differentiable in the scores.

    0 with no gradient where either is constant, as all scores of a fresh head may be: `torch.corrcoef` gives NaN.
    """
    same_rows(scores_N, lengths_N)
    score_N, length_N = scores_N.double(), lengths_N.double()  # fp32 sums of squares would give more than 1
    if _is_constant(score_N.detach()) or _is_constant(length_N):
        return (widen(scores_N) * 0).sum()
    score_N, length_N = score_N - score_N.mean(), length_N - length_N.mean()
    rho: torch.Tensor = (score_N @ length_N) / (score_N.norm() * length_N.norm())
    return rho.to(widen(scores_N).dtype)


def orthogonality(w_quality_D: torch.Tensor, w_length_D: torch.Tensor) -> torch.Tensor:
    """|cos| of the angle between the weights of two heads: 0 where they read different directions."""
    cosine: torch.Tensor = torch.nn.functional.cosine_similarity(widen(w_quality_D), widen(w_length_D), dim=0)
    return cosine.abs()


def _is_constant(values_N: torch.Tensor) -> bool:
    """Equal up to fp32: what is left is rounding, which divided by its own norm would be a correlation of anything."""
    return bool((values_N - values_N.mean()).norm() <= 1e-6 * values_N.norm())
