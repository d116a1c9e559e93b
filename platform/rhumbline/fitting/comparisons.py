"""Comparisons of all data sets of a recipe, split for training: what preference models and comparers are trained on.

    contests = gather_comparisons(recipe)
    contests.rows[0].winner                              # 'a', 'b' or 'tie'
    contests.folds_N == 2                                # the rows that the third fold holds out
    contests.counts("pandalm")                           # {'train': 663, 'test': 132, 'dropped': 4}

As with ratings, a conversation is on one side of the split only, and in one fold only. N comparisons.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rhumbline.data.comparisons import Comparison, load_comparisons
from rhumbline.data.prompts import conversation_id
from rhumbline.errors import DataError
from rhumbline.fitting.recipe import ComparerLoss, ComparisonData, RewardRecipe

_HELD_OUT = 10  # every tenth conversation, where a data set has no test split


@dataclass(frozen=True, slots=True, eq=False)
class Contests:
    """Comparisons of all data sets, in recipe order."""

    rows: tuple[Comparison, ...]  # (N,)
    groups_N: NDArray[np.str_]  # conversations
    sources_N: NDArray[np.str_]  # names of data sets
    train_N: NDArray[np.bool_]  # the others are the test split
    folds_N: NDArray[np.int64]  # which fold holds a training row out; -1: none does
    dropped: Mapping[str, Mapping[str, int]]  # data set -> reason -> rows that were left out

    def counts(self, source: str) -> dict[str, int]:
        """Rows of one data set: train, test, dropped."""
        own_N = self.sources_N == source
        train, test = int((own_N & self.train_N).sum()), int((own_N & ~self.train_N).sum())
        return {"train": train, "test": test, "dropped": sum(self.dropped[source].values())}


def gather_comparisons(recipe: RewardRecipe) -> Contests:
    """Read every data set of the recipe. Ties stay where the recipe learns them, elsewhere they are left out and counted.

    Raises DataError, with the recipe's key, for a file that is missing or unreadable, a data set without a training row,
    and fewer conversations than folds. Whether what is left serves the kind is for `fitting.checks` to say.
    """
    ties = isinstance(recipe.loss, ComparerLoss) and recipe.loss.ties
    rows: list[tuple[Comparison, str, bool]] = []
    dropped: dict[str, Counter[str]] = {}
    for source, data in recipe.comparisons.items():
        dropped[source] = Counter()
        for one, train in _split(data, source, dropped[source]):
            if one.winner == "tie" and not ties:
                dropped[source]["tie"] += 1
            else:
                rows.append((one, source, train))
    groups = [conversation_id(one.prompt) for one, _, _ in rows]
    tested = {group for group, (_, _, train) in zip(groups, rows, strict=True) if not train}
    kept = []
    for i, (_, source, train) in enumerate(rows):
        if train and groups[i] in tested:
            dropped[source]["tested on"] += 1
        else:
            kept.append(i)
    train_N = np.array([rows[i][2] for i in kept], dtype=np.bool_)
    for source in recipe.comparisons:
        if not any(rows[i][1] == source and rows[i][2] for i in kept):
            raise DataError(f"comparisons.{source}: no training row is left; left out: {_say(dropped[source])}")
    groups_N = np.array([groups[i] for i in kept])
    return Contests(
        rows=tuple(rows[i][0] for i in kept),
        groups_N=groups_N,
        sources_N=np.array([rows[i][1] for i in kept]),
        train_N=train_N,
        folds_N=_folds(groups_N, train_N, recipe.folds, recipe.seed),
        dropped=dropped,
    )


def fold_of(groups: Sequence[str], folds: int, seed: int) -> dict[str, int]:
    """Group -> fold, 0 to folds - 1, so that folds hold about as many rows: `groups` has one name per row.

    Groups are taken in the order of a hash, each for the fold with the fewest rows so far, so what a fold holds does not
    depend on the order of the rows. Raises DataError where there are fewer groups than folds.
    """
    sizes = Counter(groups)
    if len(sizes) < folds:
        raise DataError(f"{len(sizes)} conversations are too few for {folds} folds (folds)")
    filled = [0] * folds
    out = {}
    for group in sorted(sizes, key=lambda name: hashlib.sha256(f"{seed}\x1f{name}".encode()).digest()):
        out[group] = filled.index(min(filled))
        filled[out[group]] += sizes[group]
    return out


def _split(data: ComparisonData, source: str, skipped: Counter[str]) -> list[tuple[Comparison, bool]]:
    """(comparison, is it for training); what the file's reader left out is added to `skipped`."""

    def load(split: str | None) -> tuple[Comparison, ...]:
        found = load_comparisons(
            data.path,
            split,
            data.limit,
            head=data.head,
            winner=data.winner,
            strength=data.strength,
            profile=data.profile,
            where=data.where,
        )
        skipped.update(found.skipped)
        return found.rows

    try:
        train = load(data.train)
        if data.test is None:
            return [(one, int(conversation_id(one.prompt), 16) % _HELD_OUT != 0) for one in train]
        test = load(data.test)
    except DataError as e:
        raise DataError(
            f"comparisons.{source}: {e}. Paths are relative to where the job is started; another file is named by "
            f"comparisons.{source}.path=FILE"
        ) from None
    return [(one, True) for one in train] + [(one, False) for one in test]


def _folds(groups_N: NDArray[np.str_], train_N: NDArray[np.bool_], folds: int, seed: int) -> NDArray[np.int64]:
    """(N,) the fold that holds each training row out; -1 for the test split, and where there are no folds."""
    out_N = np.full(len(groups_N), -1, dtype=np.int64)
    if folds:
        fold = fold_of(groups_N[train_N].tolist(), folds, seed)
        out_N[train_N] = [fold[group] for group in groups_N[train_N].tolist()]
    return out_N


def _say(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items() if count) or "nothing"
