"""What each kind learns, in numbers worked by hand; and that a step's loss is the sum of its parts."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rhumbline.fitting.kinds import KINDS, Comparer, Preference, Regression, standard
from tests.rhumbline.reward_tasks import recipe_of, task_of

NOWHERE = Path("none")
ALL = ["regression", "absolute", "preference", "comparer"]


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("swap", ["alternate", "both"])
def test_a_step_is_the_sum_of_its_parts_however_it_is_cut(kind: str, swap: str) -> None:
    sections = {"loss": {"swap": swap}} if kind == "comparer" else {}
    task, recipe = task_of(kind), recipe_of(kind, NOWHERE, **sections)
    learned = KINDS[kind](task, recipe)
    units, epochs = [3, 0, 7, 5, 2], [0, 1, 0, 1, 1]
    mass = learned.mass(units)
    generator = torch.Generator().manual_seed(0)
    outputs = {
        u: torch.randn(len(learned.members(u, e)), len(recipe.outputs()), generator=generator)
        for u, e in zip(units, epochs, strict=True)
    }

    def loss(places: list[int]) -> float:
        own = [units[j] for j in places]
        outputs_MH = torch.cat([outputs[u] for u in own])
        return float(learned.loss(outputs_MH, own, [epochs[j] for j in places], mass))

    whole = loss([0, 1, 2, 3, 4])
    assert whole == pytest.approx(loss([4, 1]) + loss([0]) + loss([3, 2]), rel=1e-5)
    assert float(learned.mass(units).sum()) == pytest.approx(
        float((learned.mass([3, 0]) + learned.mass([7, 5, 2])).sum())
    )


def test_labels_are_standardised_on_what_is_trained_on() -> None:
    task, recipe = task_of("regression"), recipe_of("regression", NOWHERE)
    mean_H, std_H = standard(task)
    train = task.targets["labels"][:16]
    assert mean_H == pytest.approx(np.nanmean(train, axis=0))
    learned = Regression(task, recipe)
    # Outputs of 0 are the mean: their loss over the training split is the mean of the heads' variances, 1.
    units = task.within("train")
    outputs_MH = torch.zeros(16, 2)
    assert float(learned.loss(outputs_MH, units, [0] * 16, learned.mass(units))) == pytest.approx(1.0)
    perfect = torch.from_numpy(np.nan_to_num((train - mean_H) / std_H))
    assert float(learned.loss(perfect, units, [0] * 16, learned.mass(units))) == pytest.approx(0.0)


def test_labels_that_are_all_alike_are_not_divided_by_rounding() -> None:
    task = task_of("regression")
    alike = np.full_like(task.targets["labels"], 100 / 3)
    assert standard(replace(task, targets={"labels": alike}))[1].tolist() == [1.0, 1.0]


def test_all_pairs_of_a_prompt_from_its_answers_read_once() -> None:
    task = task_of("preference")
    learned = Preference(task, recipe_of("preference", NOWHERE))
    assert learned.members(5, 0) == (15, 16, 17)
    # Head 0 scores 2, 1, 0: its pairs (0, 1), (0, 2), (1, 2) lose log(1 + e^-1) twice and log(1 + e^-2). Head 1 scores
    # 1, 1, 0 and prefers the third answer to the first: log(1 + e^1). Four pairs.
    outputs_MH = torch.tensor([[2.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    wanted = (2 * math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 4
    assert float(learned.mass([5])) == 4
    assert float(learned.loss(outputs_MH, [5], [0], learned.mass([5]))) == pytest.approx(wanted)
    outputs_NH = np.full((len(task.inputs), 2), np.nan)
    outputs_NH[15:18] = outputs_MH.numpy()
    figures = learned.figures(outputs_NH, [5])
    assert figures["accuracy"] == 0.75
    assert figures["log_loss"] == pytest.approx(wanted)


def test_a_comparer_sees_each_order_in_turn_and_the_class_follows() -> None:
    task = task_of("comparer")
    learned = Comparer(task, recipe_of("comparer", NOWHERE))
    for u in range(6):
        orders = {learned.members(u, epoch) for epoch in range(2)}
        assert orders == {(2 * u,), (2 * u + 1,)}
        assert learned.members(u, 0) == learned.members(u, 2)
    # Unit 0 was won by its first answer: a in the data's order, b in the other.
    sure = {0: torch.tensor([[9.0, 0.0, 0.0]]), 1: torch.tensor([[0.0, 9.0, 0.0]])}
    for epoch in range(2):
        order = learned.members(0, epoch)[0]
        assert float(learned.loss(sure[order], [0], [epoch], torch.tensor(1.0))) < 0.01
    # Both orders together: what prefers a place is undecided on average.
    outputs_NH = np.tile([[9.0, 0.0, 0.0]], (len(task.inputs), 1))
    assert learned.probabilities(outputs_NH, [0])[0] == pytest.approx([0.5, 0.5, 0.0], abs=1e-3)


def test_figures_of_nothing_are_not_defined() -> None:
    for kind in ("absolute", "preference", "comparer"):
        task = task_of(kind)
        outputs_NH = np.zeros((len(task.inputs), 3))
        figures = KINDS[kind](task, recipe_of(kind, NOWHERE)).figures(outputs_NH, [])
        assert set(figures.values()) == {None}
