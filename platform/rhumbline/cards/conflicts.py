"""Pairs on which objectives contradict each other: the same two answers, one better by one head, the other by another.

    told = conflicts(names, margins_PH, judged_P, winners_P, texts_P2, prompts_P, num_resamples=1000, seed=0)
    told["accuracy"]                       # {'value': 0.58, 'low': 0.53, 'high': 0.63}
    told["one_score"]                      # 0.5: the most that any single score can reach on these judgements

A single score puts one of the two answers first, whatever it is asked, so it is right for one of two contrary judgements. What is
above that can only come from heads that differ. P judgements, H heads.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rhumbline.cards.accuracy import TIE, credits
from rhumbline.cards.resampling import Resamples


def conflicts(
    names: Sequence[str],
    margins_PH: ArrayLike,
    judged_P: Sequence[str],
    winners_P: ArrayLike,
    texts_P2: Sequence[tuple[Hashable, Hashable]],
    prompts_P: ArrayLike,
    *,
    num_resamples: int,
    seed: int,
) -> dict[str, Any] | None:
    """Each judgement's own head on the pairs where heads are judged contrarily; None where there are none.

    `texts_P2` says which answers a and b are, so that a pair is known in either order; `judged_P` which head a judgement is
    for, and those of other heads, and ties, are left out. `n` counts judgements, `pairs` the pairs of answers; `all_right` is
    the share of pairs of which every judgement has the better answer in front.
    """
    margins, winners, prompts = np.asarray(margins_PH, dtype=np.float64), np.asarray(winners_P), np.asarray(prompts_P)
    column = {name: h for h, name in enumerate(names)}
    judgements: dict[frozenset[Hashable], list[int]] = defaultdict(list)
    for p, texts in enumerate(texts_P2):
        if winners[p] != TIE and judged_P[p] in column and texts[0] != texts[1]:
            judgements[frozenset(texts)].append(p)

    def better(p: int) -> Hashable:
        return texts_P2[p][int(winners[p])]

    found = []
    for members in judgements.values():
        contrary = [
            p for p in members if any(judged_P[q] != judged_P[p] and better(q) != better(p) for q in members if q != p)
        ]
        if contrary:
            found.append(contrary)
    if not found:
        return None
    rows = [p for members in found for p in members]
    toward_R = np.array([1.0 if winners[p] == 0 else -1.0 for p in rows])
    own_R = toward_R * margins[rows, [column[judged_P[p]] for p in rows]]
    right_R = credits(own_R, np.zeros_like(own_R))
    ends = np.cumsum([len(members) for members in found])
    starts = np.concatenate([[0], ends[:-1]])
    whole_C = [float(right_R[start:end].min() == 1.0) for start, end in zip(starts, ends, strict=True)]
    most = sum(max(Counter(better(p) for p in members).values()) for members in found)
    return {
        "n": len(rows),
        "pairs": len(found),
        "accuracy": Resamples(prompts[rows], num_resamples, seed).mean(right_R),
        "one_score": most / len(rows),
        "all_right": Resamples(prompts[[members[0] for members in found]], num_resamples, seed).mean(whole_C),
    }
