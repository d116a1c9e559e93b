"""Wins over the initial policy by one scorer, which may be held out of the training: what people call a win rate.

    wins = win_shares(own, initial)            # both: (completion, score) of the same held-out prompts
    wins["p1/d0/s0"]                           # 0.5: of two answers of the initial policy one scores higher, one lower
    PolicyEvaluation.from_scored(scored, ..., wins=wins, wins_by="helpfulness").win_rate

An answer's share is the mean over the initial policy's answers to its prompt of [own > other] + 0.5 [own = other]. The mean
over a prompt's own answers is then that over all pairs, and means over prompts follow as those of rewards and KL do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from rhumbline.records import Completion

Judged = Iterable[tuple[Completion, float]]  # an answer and its score, more is better


def win_shares(own: Judged, initial: Judged) -> dict[str, float]:
    """Completion id -> share of wins in 0..1; without answers to a prompt that the initial policy has none to.

    Own scores 3 and 1 against 1 and 2: the first beats both, 1; the second ties and loses, 0.25. The prompt's win rate is 0.625.
    """
    others: dict[str, list[float]] = defaultdict(list)
    for completion, score in initial:
        others[completion.query.prompt.id].append(score)
    shares = {}
    for completion, score in own:
        against = others.get(completion.query.prompt.id)
        if against:
            shares[completion.id] = sum((score > x) + 0.5 * (score == x) for x in against) / len(against)
    return shares
