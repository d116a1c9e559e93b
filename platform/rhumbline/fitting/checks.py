"""Does a task hold what its kind learns? What the splits take away may have been all of it. Between `task` and a training.

check(recipe, task)                                  # DataError that says what is missing and which key to change
check(recipe, task.fold(2), "fold 3 of 5: ")
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from rhumbline.errors import DataError
from rhumbline.fitting.recipe import METRICS, ComparerLoss, PreferenceLoss, RewardRecipe

if TYPE_CHECKING:
    from rhumbline.fitting.task import Task


def check(recipe: RewardRecipe, task: Task, where: str = "") -> None:
    """Every split that is asked for has a unit, everything that is learned occurs in training, and early stopping has a
    figure to go by. `where` begins a message.
    """
    for split in ("train", "test"):
        if split not in task.splits:
            raise DataError(f"{recipe.name}: {where}no row is left to {split} on: {_counted(task.counts)}")
    if recipe.validation > 0 and "validation" not in task.splits:
        raise DataError(
            f"{recipe.name}: {where}none of {len(task.within('train'))} training units falls into validation, a share of "
            f"{recipe.validation:g}: raise `validation`, or set it to 0"
        )
    for fault in _CHECKS[recipe.kind](recipe, task):
        raise DataError(f"{recipe.name}: {where}{fault}")


def _regression(recipe: RewardRecipe, task: Task) -> Iterator[str]:
    labels_UH = task.targets["labels"]
    for head, labels_U in zip(recipe.heads(), labels_UH[task.within("train")].T, strict=True):
        if np.isnan(labels_U).all():
            yield f"head {head.name}: no answer that is trained on has its label: lower `validation`, or leave it out"
    yield from _watched(recipe, [np.unique(own[~np.isnan(own)]).size for own in labels_UH[task.within("validation")].T])


def _absolute(recipe: RewardRecipe, task: Task) -> Iterator[str]:
    yield from _watched(recipe, [np.unique(task.targets["labels"][task.within("validation")]).size])
    if recipe.validation > 0 and len(task.read_by(task.within("validation"))) < 2:
        yield "one answer in validation sets no scale for the scores: raise `validation`, or set it to 0"


def _watched(recipe: RewardRecipe, distinct_H: list[int]) -> Iterator[str]:
    """Early stopping by a figure that is never defined would keep the first weights that it looked at.

    distinct_H: how many different labels each head has in validation. Equal ones have no ranks.
    """
    if recipe.early_stopping is None:
        return
    metric = recipe.early_stopping.metric or METRICS[recipe.kind][0]
    if max(distinct_H) < (2 if metric == "spearman" else 1):
        yield (
            f"early_stopping: {metric} is not defined on the validation split, where no head has "
            f"{'two different labels' if metric == 'spearman' else 'a label'}: raise `validation`, or leave it out"
        )


def _preference(recipe: RewardRecipe, task: Task) -> Iterator[str]:
    assert isinstance(recipe.loss, PreferenceLoss)
    trained_U = np.array([split == "train" for split in task.splits])
    trained_P = trained_U[task.targets["unit"].astype(np.int64)]
    heads_P, strength_P = task.targets["head"][trained_P], task.targets["strength"][trained_P]
    for h, head in enumerate(recipe.heads()):
        if not (heads_P == h).any():
            yield (
                f"head {head.name}: no pair that is trained on was judged by it: lower `validation`, or leave out "
                f"comparisons.{head.source}"
            )
    by_strength = {
        "loss.margin=strength": recipe.loss.margin == "strength",
        "loss.scale_by_strength": recipe.loss.scale_by_strength,
    }
    for key, asked in by_strength.items():
        if asked and np.isnan(strength_P).all():
            yield f"{key} would do nothing: no training pair has a strength, name its column (comparisons.*.strength)"


def _comparer(recipe: RewardRecipe, task: Task) -> Iterator[str]:
    """Where answers are swapped in training, the classes `a` and `b` are as one."""
    assert isinstance(recipe.loss, ComparerLoss)
    names = ("a", "b", "tie")
    found = Counter(names[int(winner)] for winner in task.targets["winner"][task.within("train")])
    said = ", ".join(f"{name} {count}" for name, count in sorted(found.items()))
    if recipe.loss.swap != "none":
        found["a"] = found["b"] = found["a"] + found["b"]
    missing = [name for name in recipe.outputs() if not found[name]]
    if missing == ["tie"]:
        yield (
            f"comparisons: no training row ends in a tie, which the comparer would learn ({said}): set loss.ties=false, or "
            "give data with ties"
        )
    elif len(missing) == 1:
        yield (
            f"comparisons: no training row ends in {missing[0]!r}, which the comparer would learn ({said}): loss.swap=none "
            "keeps the answers in their order, set alternate or both"
        )
    elif missing:
        yield f"comparisons: training rows end in {said} alone, which leaves a comparer nothing to tell apart: give others"


_CHECKS: dict[str, Callable[[RewardRecipe, Task], Iterator[str]]] = {
    "regression": _regression,
    "absolute": _absolute,
    "preference": _preference,
    "comparer": _comparer,
}


def _counted(counts: Mapping[str, Mapping[str, int]]) -> str:
    return "; ".join(f"{name}: {', '.join(f'{n} {what}' for what, n in one.items())}" for name, one in counts.items())
