"""Scorer: completions in, reward vectors out. Loads once per run; the vectors serve every direction.

scorer = Scorer(rewards=recipe.rewards, policy="embedded", threads=2)
scorer.setup()                         # raises where scores would move with batch size or padding
scorer.score(completions)              # list[Scored], rewards (K,) on 0-100
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from rhumbline import config
from rhumbline.learning.policy import set_threads
from rhumbline.records import Completion, Scored
from rhumbline.rewards.model import RewardModel


class Scorer:
    """Plain Python: tests construct it directly, `Pool` makes it a Ray actor."""

    def __init__(
        self, *, rewards: config.Rewards, policy: str, threads: int | None, trust_remote_code: bool = False
    ) -> None:
        self.rewards, self.policy, self.threads = rewards, policy, threads
        self.trust_remote_code = trust_remote_code

    def setup(self) -> None:
        """Load the reward model, which checks that its scores do not depend on the batch."""
        set_threads(self.threads)
        trusted = self.trust_remote_code
        self.model = RewardModel.build(self.rewards, policy=self.policy, trust_remote_code=trusted)
        self.model.setup()

    def pid(self) -> int:
        return os.getpid()

    def score(self, completions: Sequence[Completion]) -> list[Scored]:
        """(N,) in the order given. An answer that cannot be scored raises ScoringError: it never becomes a zero."""
        rewards_NK = self.model.score([(c.query.prompt, c.text) for c in completions])
        return [
            Scored(completion=c, rewards=tuple(float(r) for r in rewards_K))
            for c, rewards_K in zip(completions, rewards_NK, strict=True)
        ]

    def head(self, completions: Sequence[Completion], name: str) -> list[float]:
        """(N,) what one head of the sources makes of them, whether an objective is made of it or not."""
        return [float(x) for x in self.model.score_head([(c.query.prompt, c.text) for c in completions], name)]
