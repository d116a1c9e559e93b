"""What a run's actors find for the held-out answers of a policy: the KL from the initial policy, scores of one head.

    measures = Measures(store, accounts)
    nats = measures.kl("t=1", completions, references)            # {"p1/d0/s0": 3.2, ...}; starts the pool where it must
    own = measures.scores("t=1", scored, scorers, head)           # [(completion, score), ...], more is better

Both are kept in the run's store as evaluation/<label>.<what>.json, batch by batch, and what is there is not asked for again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from actors.accounts import Accounts
from actors.pool import Failed, Pool
from rhumbline import config
from rhumbline.evaluation import frontier
from rhumbline.records import Completion, Scored
from rhumbline.rewards.objectives import Calibration, Head
from rhumbline.store import RunStore


class Measures:
    """Of one run."""

    def __init__(self, store: RunStore, accounts: Accounts) -> None:
        self.store, self.accounts = store, accounts

    def kl(self, label: str, completions: Sequence[Completion], references: Pool) -> dict[str, float]:
        """Completion id -> nats; missing where its shard failed."""
        known = self.store.marked(f"evaluation/{label}.kl") or {}
        if not references.started and any(c.id not in known for c in completions):
            references.__enter__()
        return self._measured(f"evaluation/{label}", "kl", completions, references, "kl")

    def scores(
        self, label: str, answers: Sequence[Scored], scorers: Pool, head: Head
    ) -> list[tuple[Completion, float]]:
        """Answers and what a head gives them, more is better; without those whose shard failed."""
        sign = 1 if head.higher_is_better else -1
        completions = [one.completion for one in answers]
        known = self._measured(f"evaluation/{label}", "win_rate", completions, scorers, "head", head.name)
        return [(one, sign * known[one.id]) for one in completions if one.id in known]

    def _measured(
        self, stage: str, what: str, completions: Sequence[Completion], pool: Pool, method: str, *arguments: Any
    ) -> dict[str, float]:
        """Completion id -> a number that a pool's actors find for it; kept in the store as <stage>.<what>.json."""
        mark = f"{stage}.{what}"
        known: dict[str, Any] = self.store.marked(mark) or {}
        asked = [c for c in completions if c.id not in known]
        if asked:
            began, shards = time.monotonic(), batches(asked, 128)
            for index, result in pool.map(method, ((i, (b, *arguments)) for i, b in enumerate(shards))):
                batch, now = shards[index], time.monotonic()
                if isinstance(result, Failed):  # the next session tries again
                    self.store.event("failed", stage=mark, shard=index, reason=result.error, samples=len(batch))
                    continue
                known |= dict(zip((c.id for c in batch), result, strict=True))
                self.store.mark(mark, known)
                tokens = sum(len(c.token_ids) for c in batch)
                self.accounts.add(f"{stage}-{what}", now - began, len(batch), tokens, on_top=True)
                began = now
        return {key: float(value) for key, value in known.items()}


def batches(completions: Sequence[Completion], size: int) -> list[list[Completion]]:
    """What an actor is handed at a time."""
    return [list(completions[i : i + size]) for i in range(0, len(completions), size)]


def reference_point(recipe: config.Run, calibration: Calibration) -> dict[str, float]:
    """The recipe's, or the calibration samples' worst minus a tenth of their range; objective units."""
    if recipe.evaluation.reference_point is not None:
        return recipe.evaluation.reference_point
    objectives = recipe.rewards.objectives
    signs_K = np.array([o.sign for o in objectives.values()], dtype=np.float64)
    ends_2K = frontier.maximised([calibration.minimum, calibration.maximum], signs_K)
    point_K = frontier.reference_point(ends_2K.min(axis=0), np.ptp(ends_2K, axis=0)) * signs_K
    return dict(zip(objectives, point_K.tolist(), strict=True))
