"""Selection at serving time: the best of n sampled answers for a direction, and the neighbours to sample them under (RPS).

    for direction in neighbours(served.cone, resolved.effective, n=5, within_deg=30.0, seed=7): ...   # one answer under each
    choice = best(rewards_NK, resolved.effective, served.standardiser)
    answers[choice.index]

Best-of-n: argmax over n of v . z, z = (r - mean) / std as in training (DPA, arXiv:2402.18571, section 3). RPS
(arXiv:2510.20498): the n answers come from n directions near v and v still chooses, because a policy is often better served
by another way of asking at the edge of what it was trained for. N samples, K objectives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rhumbline.directions import Cone, Direction, angle_between_deg
from rhumbline.errors import DirectionError, ScoringError
from rhumbline.scalarise import Standardiser, linear
from rhumbline.serving.requests import MAX_NEIGHBOURS_DEG, NEIGHBOURS_DEG

_CANDIDATES = 512  # directions that neighbours are picked from


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which of the sampled answers is returned."""

    index: int  # of the answer, from 0
    value: float  # v . z of it, standard deviations
    rewards: tuple[float, ...]  # (K,) of it, 0-100
    num_candidates: int  # N
    sampled_under: Direction | None = None  # (K,) the neighbour whose words it was sampled under; None: the asked one's

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        """For the echo."""
        out: dict[str, Any] = {"best_of": self.num_candidates, "index": self.index, "value": round(self.value, 4)}
        if self.sampled_under is not None:
            out["sampled_under"] = {n: round(v, 4) + 0.0 for n, v in zip(names, self.sampled_under, strict=True)}
        return out


def best(
    rewards_NK: ArrayLike,
    direction: Direction,
    standardiser: Standardiser,
    sampled_under: Sequence[Direction] | None = None,
) -> Choice:
    """The answer with the largest v . z; of equals the first. sampled_under: (N,) neighbours, where there were any.

    Raises ScoringError where there is no answer or a reward is not finite, DirectionError where shapes do not fit.
    """
    rewards = np.asarray(rewards_NK, dtype=np.float64)
    if rewards.ndim != 2 or not len(rewards) or not np.isfinite(rewards).all():
        raise ScoringError(f"choosing needs finite rewards of at least one answer, (N, K), got shape {rewards.shape}")
    value_N = linear(standardiser(rewards), direction)
    index = int(np.argmax(value_N))
    return Choice(
        index=index,
        value=float(value_N[index]),
        rewards=tuple(rewards[index].tolist()),
        num_candidates=len(rewards),
        sampled_under=None if sampled_under is None else sampled_under[index],
    )


def neighbours(
    cone: Cone, direction: Direction, n: int, within_deg: float = NEIGHBOURS_DEG, seed: int = 0
) -> list[Direction]:
    """n directions of the cone at most `within_deg` from `direction`, itself first, then each the farthest from those before.

    The same for the same arguments. Near the edge of the cone they all lie on its inner side. Raises DirectionError for n < 1,
    within_deg outside (0, 45], and a direction outside the cone by more than a codec rounds.
    """
    if n < 1 or not 0 < within_deg <= MAX_NEIGHBOURS_DEG:
        raise DirectionError(
            f"neighbours need n >= 1 within (0, {MAX_NEIGHBOURS_DEG:g}] degrees, got {n} within {within_deg:g}"
        )
    here = cone.project(direction)[0]
    near = Cone(cone.names, here, within_deg)
    drawn = [tuple(v.tolist()) for v in near.sample(np.random.default_rng(seed), _CANDIDATES)]
    inside_MK = np.array(
        [here] + [v for v in drawn if cone.contains(v) and angle_between_deg(v, direction) <= within_deg]
    )
    chosen, nearest_M = [direction], inside_MK @ np.asarray(direction)
    while len(chosen) < n:
        index = int(np.argmin(nearest_M))
        chosen.append(tuple(inside_MK[index].tolist()))
        nearest_M = np.maximum(nearest_M, inside_MK @ inside_MK[index])
    return chosen
