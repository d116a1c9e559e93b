"""A scorer is checked when it loads: an answer gets the same score, whatever it is batched with and padded by.

    check_invariance(score)                # ScoringError with both figures where scores move

Reward models that read the wrong token, or attend to padding, are the commonest silent fault of this trade (RewardBench
issue 137, RLHF-Reward-Modeling issue 49, Transformers issue 26869, NeMo-Aligner issue 439).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from rhumbline.errors import ScoringError
from rhumbline.records import Message, Prompt
from rhumbline.rewards.features import Pair, Side

TOLERANCE = 1e-4  # of the 0-100 range, so 0.01 points
Score = Callable[[Sequence[Pair], int, Side], NDArray[np.float64]]  # pairs, token budget, padding side -> (N, H)


def _pair(question: str, answer: str) -> Pair:
    return Prompt(id=question[:16], messages=(Message(role="user", content=question),)), answer


# Of unlike lengths, so that a batch of them all has much padding.
PROBES: tuple[Pair, ...] = (
    _pair("Why is the sky blue?", "Air scatters blue light more than red light, so blue reaches us from all sides."),
    _pair("Why is the sky blue?", "No."),
    _pair("Name three primary colours.", "Red, yellow and blue."),
    _pair(
        "How do I keep basil alive in winter?",
        "Put the pot in the brightest window that you have, well away from cold draughts. Water it when the surface of "
        "the soil is dry, and never let it stand in water. Pinch off the tips each week, so that it branches instead "
        "of flowering. A small lamp for six hours a day helps where the winter is dark.",
    ),
)


def check_invariance(score: Score, pairs: Sequence[Pair] = PROBES, tolerance: float = TOLERANCE) -> tuple[float, float]:
    """How far scores move with batch size and with padding side, as shares of the 0-100 range.

    Raises ScoringError with both figures where either is above `tolerance` or not a number.
    """
    large = 1 << 20
    together_NH = score(pairs, large, "right")
    alone_NH = np.concatenate([score([pair], 1, "right") for pair in pairs])
    left_NH = score(pairs, large, "left")
    by_batch = float(np.abs(together_NH - alone_NH).max()) / 100
    by_side = float(np.abs(together_NH - left_NH).max()) / 100
    if not (by_batch <= tolerance and by_side <= tolerance):
        raise ScoringError(
            f"scores depend on the batch: they move by {by_batch:.2g} of their range with the batch size and by "
            f"{by_side:.2g} with the padding side, allowed is {tolerance:g}. Such a reward would rank answers by their "
            "neighbours: check that padding is masked, and that the backbone runs in float32"
        )
    return by_batch, by_side
