"""Which few answers of a person to show: greedily by what they say of who it is, or at random. Over `questions`.

    shown = informative(people, candidates_Q, number=4, seed=0)  # question indices, the most telling first
    shown = at_random(candidates_Q, number=4, seed=0)

The greedy choice is `questions.greedy`, system C's equation 3, which is for people who all answered. Here whoever did not
choose at a question counts with its majority: so a question that few were asked splits few, and is seldom taken.
U users, Q questions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rhumbline.users.disagreement import counts
from rhumbline.users.population import Ints, Population
from rhumbline.users.questions import greedy


def informative(people: Population, candidates: npt.ArrayLike, number: int, seed: int) -> list[int]:
    """At most `number` of the questions `candidates`, greedily by I(U; Q_j | Q_S); of equal ones the earlier.

    Once no question tells anybody further apart, the rest is drawn.
    """
    left: Ints = np.asarray(candidates, dtype=np.int64)
    if not len(left):
        return []
    taken = [int(left[at]) for at, _ in greedy(completed(people)[:, left], number)]
    rest = at_random(np.setdiff1d(left, taken), number - len(taken), seed)
    return taken + rest


def completed(people: Population) -> Ints:
    """(U, Q) choices, the question's most frequent one (of equal ones the first) for whoever did not choose."""
    filled: Ints = np.where(people.chosen, people.choices_UQ, counts(people).argmax(axis=1))
    return filled


def at_random(candidates: npt.ArrayLike, number: int, seed: int) -> list[int]:
    """At most `number` of the questions `candidates`, drawn without replacement."""
    left: Ints = np.asarray(candidates, dtype=np.int64)
    return [int(q) for q in np.random.default_rng(seed).permutation(left)[: max(number, 0)]]
