"""Rated answers as a matrix of labels, ready to fit heads on: N answers, H heads, NaN where a rating was not given.

    answers = gather(recipe)
    answers.labels_NH[answers.train_N]         # on 0-100

A conversation is on one side of the split only: rows are grouped by the first thing that the user said, and training
rows of a group that also occurs in the test split are left out and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rhumbline.data.prompts import conversation_id
from rhumbline.data.ratings import Rated, load_ratings
from rhumbline.errors import DataError, did_you_mean
from rhumbline.fitting.recipe import Ratings, RewardRecipe
from rhumbline.rewards.objectives import Head

if TYPE_CHECKING:  # torch is not needed to gather labels
    from rhumbline.rewards.features import Pair

_HELD_OUT = 10  # every tenth group, where a data set has no test split


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """Rated answers of all data sets, in recipe order."""

    pairs: tuple[Pair, ...]  # (N,)
    labels_NH: NDArray[np.float64]  # 0-100; NaN: not rated
    groups_N: NDArray[np.str_]  # conversations
    sources_N: NDArray[np.str_]  # names of data sets
    train_N: NDArray[np.bool_]  # the others are the test split
    dropped: Mapping[str, int]  # data set -> training rows left out, for their conversation is tested on

    def counts(self, source: str) -> dict[str, int]:
        """Rows of one data set: train, test, dropped."""
        own_N = self.sources_N == source
        train, test = int((own_N & self.train_N).sum()), int((own_N & ~self.train_N).sum())
        return {"train": train, "test": test, "dropped": self.dropped[source]}


def gather(recipe: RewardRecipe) -> Answers:
    """Read every data set of the recipe.

    Raises DataError, with the recipe's key, for a file that is missing or unreadable, a label that nothing has, and a
    rating outside its scale.
    """
    heads = recipe.rated_heads()
    rows: list[tuple[Rated, str, bool]] = []
    for source, ratings in recipe.ratings.items():
        rows += [(rated, source, train) for rated, train in _split(ratings, source)]
    groups = [conversation_id(rated.prompt) for rated, _, _ in rows]
    tested = {group for group, (_, _, train) in zip(groups, rows, strict=True) if not train}
    kept = [i for i, (_, _, train) in enumerate(rows) if not (train and groups[i] in tested)]
    gone = Counter(source for i, (_, source, train) in enumerate(rows) if train and groups[i] in tested)
    labels_NH = np.array([_labels(*rows[i][:2], recipe, heads) for i in kept]).reshape(len(kept), len(heads))
    train_N = np.array([rows[i][2] for i in kept], dtype=np.bool_)
    for head, labels_N in zip(heads, labels_NH[train_N].T, strict=True):
        if np.isnan(labels_N).all():
            label = recipe.ratings[head.source].heads[head.name].label or head.name
            known = sorted({name for rated, source, _ in rows if source == head.source for name in rated.ratings})
            raise DataError(
                f"ratings.{head.source}.heads.{head.name}: no training answer has the rating {label!r}."
                f"{did_you_mean(label, known)} Ratings in the data: {', '.join(known) or 'none'}"
            )
    return Answers(
        pairs=tuple((rows[i][0].prompt, rows[i][0].response) for i in kept),
        labels_NH=labels_NH,
        groups_N=np.array([groups[i] for i in kept]),
        sources_N=np.array([rows[i][1] for i in kept]),
        train_N=train_N,
        dropped={source: gone[source] for source in recipe.ratings},
    )


def _split(ratings: Ratings, source: str) -> list[tuple[Rated, bool]]:
    """(answer, is it for training)."""
    try:
        train = load_ratings(ratings.path, ratings.train, ratings.limit)
        if ratings.test is None:
            return [(one, int(conversation_id(one.prompt), 16) % _HELD_OUT != 0) for one in train]
        test = load_ratings(ratings.path, ratings.test, ratings.limit)
    except DataError as e:
        raise DataError(
            f"ratings.{source}: {e}. Paths are relative to where the job is started; another file is named by "
            f"ratings.{source}.path=FILE"
        ) from None
    return [(one, True) for one in train] + [(one, False) for one in test]


def _labels(rated: Rated, source: str, recipe: RewardRecipe, heads: Sequence[Head]) -> list[float]:
    """(H,) on 0-100; heads of other data sets and ratings that were not given are NaN."""
    out = []
    for head in heads:
        wanted = recipe.ratings[head.source].heads[head.name]
        raw = rated.ratings.get(wanted.label or head.name) if head.source == source else None
        if raw is not None and not head.raw_low <= raw <= head.raw_high:
            raise DataError(
                f"ratings.{source}.heads.{head.name}: a rating is {raw:g}, its scale goes from {head.raw_low:g} to "
                f"{head.raw_high:g} (prompt {rated.prompt.id}): set `scale`"
            )
        out.append(float("nan") if raw is None else float(head.score(raw)))
    return out
