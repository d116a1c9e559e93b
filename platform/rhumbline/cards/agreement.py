"""How far two scorers say the same about the same pairs of answers.

    verdicts([1.2, 0.0, -3.0])                                  # [0, 2, 1]: a, tie, b
    cohens_kappa([0, 0, 1, 1], [0, 1, 1, 1])                    # 0.5
    agree(first_P, second_P, prompts_P, num_resamples=1000, seed=0)    # {'n', 'percent', 'kappa'}

Percent alone flatters: two scorers that both say 'a' nine times in ten agree on 82% by chance. Kappa takes that off.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rhumbline.cards.resampling import Resamples


def verdicts(margins_P: ArrayLike) -> NDArray[np.int64]:
    """(P,) 0 where a has the higher score, 1 where b has, 2 where both have the same; from score of a less that of b."""
    margins = np.asarray(margins_P, dtype=np.float64)
    return np.where(margins > 0, 0, np.where(margins < 0, 1, 2))


def cohens_kappa(first_P: ArrayLike, second_P: ArrayLike) -> float | None:
    """(p_o - p_e) / (1 - p_e) (Cohen 1960): agreement beyond what their shares of verdicts give by chance.

    1 is perfect, 0 chance, below 0 worse. None where chance alone agrees always, and of no pairs.
    """
    first, second = np.asarray(first_P, dtype=np.int64), np.asarray(second_P, dtype=np.int64)
    if not len(first):
        return None
    size = int(max(first.max(), second.max())) + 1
    expected = float(np.bincount(first, minlength=size) @ np.bincount(second, minlength=size)) / len(first) ** 2
    observed = float((first == second).mean())
    return None if expected >= 1 else (observed - expected) / (1 - expected)


def agree(
    first_P: ArrayLike, second_P: ArrayLike, prompts_P: ArrayLike, *, num_resamples: int, seed: int
) -> dict[str, Any]:
    """Percent and kappa of two lists of verdicts on the same pairs, with intervals over prompts."""
    first, second = np.asarray(first_P, dtype=np.int64), np.asarray(second_P, dtype=np.int64)
    draws = Resamples(prompts_P, num_resamples, seed)
    return {
        "n": len(first),
        "percent": draws.mean(100.0 * (first == second)),
        "kappa": draws.interval(lambda i: cohens_kappa(first[i], second[i])),
    }


def pairs_within(prompts_N: ArrayLike) -> NDArray[np.int64]:
    """(P, 2) indices of every two answers to the same prompt, the earlier one first."""
    prompts = np.asarray(prompts_N)
    found = [np.flatnonzero(prompts == one) for one in np.unique(prompts)]
    rows = [np.stack([own[i] for i in np.triu_indices(len(own), 1)], axis=1) for own in found]
    return np.concatenate([np.empty((0, 2), dtype=np.int64), *rows])
