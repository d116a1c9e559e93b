"""Answers that a policy is to learn from online: what was asked, what was sampled, and how it was rewarded.

    batch = [Trajectory(id="p1/d0/s0", group="p1/d0", prompt_ids=(1, 2), response_ids=(3, 4, 0), ...), ...]
    check(batch, grouped=True)
    scores_N = scores(batch, "sphere")                # v . r with |v| = 1, what the policy is to raise
    write(batch, "failed-batch.parquet")              # a batch that broke an update, to look at: read() gives it back

N answers, K objectives, T tokens.
"""

from __future__ import annotations

import dataclasses
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rhumbline import durable
from rhumbline.data.chat import Encoded
from rhumbline.errors import TrainingError
from rhumbline.scalarise import linear

Weights = Literal["sphere", "simplex"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One sampled answer with its reward vector."""

    id: str
    group: str  # the query's id: answers to one prompt under one direction
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]  # (T,) as sampled, with the end token where it ended by itself
    engine_logprobs: tuple[float, ...]  # (T,) of the engine that sampled, nats; empty: unknown
    rewards: tuple[float, ...]  # (K,) standardised
    direction: tuple[float, ...]  # (K,) weights of the rewards, before they are scaled
    truncated: bool  # cut at the most tokens that an answer may have

    @property
    def encoded(self) -> Encoded:
        """As tokens of which the answer's are learned."""
        mask = (False,) * len(self.prompt_ids) + (True,) * len(self.response_ids)
        return Encoded(token_ids=self.prompt_ids + self.response_ids, loss_mask=mask)


def check(batch: Sequence[Trajectory], *, grouped: bool) -> None:
    """Raises TrainingError for what cannot be learned from; `grouped`: answers are compared within their group."""
    if not batch:
        raise TrainingError(
            "no answer to learn from: all of the step's were dropped. See why answers failed or had no score"
        )
    for one in batch:
        tokens, known = len(one.response_ids), len(one.engine_logprobs)
        if tokens == 0 or len(one.prompt_ids) == 0:
            raise TrainingError(f"answer {one.id} has {len(one.prompt_ids)} tokens of prompt and {tokens} of its own")
        if known not in (0, tokens):
            raise TrainingError(f"answer {one.id} has {tokens} tokens, and {known} log-probabilities of the engine")
        if len(one.rewards) != len(one.direction) or len(one.rewards) != len(batch[0].rewards):
            raise TrainingError(
                f"answer {one.id} has {len(one.rewards)} rewards and {len(one.direction)} weights, the batch has "
                f"{len(batch[0].rewards)} objectives"
            )
        if not (np.isfinite(one.rewards).all() and np.isfinite(one.direction).all()):
            raise TrainingError(
                f"answer {one.id} has the rewards {one.rewards} under the weights {one.direction}: expected numbers. An "
                "answer that could not be scored must be dropped before"
            )
        if not any(one.direction):
            raise TrainingError(f"answer {one.id} has no direction: all its weights are 0")
    if grouped:
        alone = [group for group, size in Counter(one.group for one in batch).items() if size == 1]
        if alone:
            raise TrainingError(
                f"{len(alone)} groups have one answer, which has nothing to be compared with; the first is {alone[0]}. "
                "Set samples to 2 or more; where answers failed, leave their whole group out"
            )


def weights(batch: Sequence[Trajectory], scaling: Weights) -> NDArray[np.float64]:
    """(N, K) the directions, of length 1 on the sphere, of absolute weights that sum to 1 on the simplex."""
    v_NK = np.array([one.direction for one in batch], dtype=np.float64)
    norm_N = np.abs(v_NK).sum(1) if scaling == "simplex" else np.sqrt(np.square(v_NK).sum(1))
    scaled_NK: NDArray[np.float64] = v_NK / norm_N[:, None]
    return scaled_NK


def scores(batch: Sequence[Trajectory], scaling: Weights) -> NDArray[np.float64]:
    """(N,) v . r, each answer under its own direction."""
    v_NK = weights(batch, scaling)
    return np.array([linear([one.rewards], v_K)[0] for one, v_K in zip(batch, v_NK, strict=True)])


def groups(batch: Sequence[Trajectory]) -> list[int]:
    """(N,) the number of each answer's group, in order of appearance."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(one.group, len(numbers)) for one in batch]


def write(batch: Sequence[Trajectory], path: str | Path) -> Path:
    """One row per answer, as Parquet; the whole file or none."""
    target, buffer = Path(path), io.BytesIO()
    pq.write_table(pa.Table.from_pylist([dataclasses.asdict(one) for one in batch]), buffer)
    target.parent.mkdir(parents=True, exist_ok=True)
    durable.replace(target, buffer.getvalue())
    return target


def read(path: str | Path) -> list[Trajectory]:
    """What `write` wrote."""
    rows: list[dict[str, Any]] = pq.read_table(Path(path)).to_pylist()
    fields: list[dict[str, Any]] = [{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows]
    return [Trajectory(**one) for one in fields]
