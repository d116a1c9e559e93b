"""What each kind of reward network learns: the loss of a few units of a task, and figures on units that it has not seen.

    learned = KINDS[recipe.kind](task, recipe)
    members = learned.members(u, epoch)                       # inputs that the network reads for unit u
    mass = learned.mass(units)                                # of the whole step, all workers: the denominators
    loss = learned.loss(outputs_MH, units, epochs, mass)      # outputs of the members of these units, in order
    learned.figures(outputs_NH, units)                        # {'accuracy': 0.71, 'log_loss': 0.58}

A loss is a sum over units divided by the mass of the step, so a step may be cut into micro-batches and shared by workers as one
likes. N inputs, U units, M members of the units at hand, H outputs, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from rhumbline.cards.accuracy import log_loss, pair_accuracy
from rhumbline.fitting.recipe import ComparerLoss, PreferenceLoss, RewardRecipe
from rhumbline.fitting.task import Task
from rhumbline.losses import ABSOLUTE_FORMS
from rhumbline.losses.comparison import averaged_over_orders, cross_entropy
from rhumbline.losses.preference import bradley_terry
from rhumbline.losses.regression import labelled, masked_mse
from rhumbline.rewards.objectives import spearman

Array = NDArray[np.float64]
Figures = dict[str, float | None]
# A figure of a held-out split, and which way is better.
BETTER = {"loss": -1, "log_loss": -1, "accuracy": 1, "spearman": 1}


class Learned(Protocol):
    """One kind, on one task."""

    def __init__(self, task: Task, recipe: RewardRecipe) -> None: ...

    def members(self, unit: int, epoch: int) -> tuple[int, ...]:
        """The inputs that are read for a unit when it is drawn for the `epoch`-th time, from 0."""
        ...

    def mass(self, units: Sequence[int]) -> torch.Tensor:
        """What the sum of these units' losses is divided by: a number, or one per head."""
        ...

    def loss(
        self, outputs_MH: torch.Tensor, units: Sequence[int], epochs: Sequence[int], mass: torch.Tensor
    ) -> torch.Tensor:
        """The share of these units in the loss of a step of that mass."""
        ...

    def figures(self, outputs_NH: Array, units: Sequence[int]) -> Figures:
        """Figures over units from the outputs of all inputs (only theirs are looked at). None: not defined."""
        ...


def standard(task: Task) -> tuple[Array, Array]:
    """(H,) mean and standard deviation of the training labels of each head, on 0-100; denominator n.

    A network starts near 0 and moves slowly: it learns (label - mean) / std, and its score is mean + std * output.
    """
    labels_UH = task.targets["labels"][task.within("train")]
    spread_H = np.nanstd(labels_UH, axis=0)
    # Labels that are all alike spread by rounding alone.
    return np.nanmean(labels_UH, axis=0), np.where(spread_H > 1e-6, spread_H, 1.0)


class Regression:
    """A unit is an answer, its labels those of the heads that were rated. The loss is in variances: 1 is the mean's."""

    def __init__(self, task: Task, recipe: RewardRecipe) -> None:  # noqa: ARG002  the interface's
        self.task = task
        mean_H, std_H = standard(task)
        self.labels_UH = (task.targets["labels"] - mean_H) / std_H

    def members(self, unit: int, epoch: int) -> tuple[int, ...]:  # noqa: ARG002  the interface's
        return self.task.members[unit]

    def mass(self, units: Sequence[int]) -> torch.Tensor:
        return labelled(torch.from_numpy(self.labels_UH[list(units)]))

    def loss(
        self,
        outputs_MH: torch.Tensor,
        units: Sequence[int],
        epochs: Sequence[int],  # noqa: ARG002  the interface's
        mass: torch.Tensor,
    ) -> torch.Tensor:
        labels_MH = torch.from_numpy(self.labels_UH[list(units)]).to(outputs_MH.device)
        return masked_mse(outputs_MH, labels_MH, mass.to(outputs_MH.device))[0]

    def figures(self, outputs_NH: Array, units: Sequence[int]) -> Figures:
        said_MH = outputs_NH[[self.task.members[u][0] for u in units]]
        labels_MH = self.labels_UH[list(units)]
        known = [h for h in range(labels_MH.shape[1]) if not np.isnan(labels_MH[:, h]).all()]
        return {
            "loss": _mean([float(np.nanmean((said_MH[:, h] - labels_MH[:, h]) ** 2)) for h in known]),
            "spearman": _mean([_ranked(said_MH[:, h], labels_MH[:, h]) for h in known]),
        }


class Absolute:
    """A unit is a draw of an answer with one label in 0..1."""

    def __init__(self, task: Task, recipe: RewardRecipe) -> None:
        self.task, self.form = task, ABSOLUTE_FORMS[recipe.absolute.form]
        self.labels_U, self.weights_U = task.targets["labels"], task.targets["weights"]

    def members(self, unit: int, epoch: int) -> tuple[int, ...]:  # noqa: ARG002  the interface's
        return self.task.members[unit]

    def mass(self, units: Sequence[int]) -> torch.Tensor:
        return torch.tensor(self.weights_U[list(units)].sum())

    def loss(
        self,
        outputs_MH: torch.Tensor,
        units: Sequence[int],
        epochs: Sequence[int],  # noqa: ARG002  the interface's
        mass: torch.Tensor,
    ) -> torch.Tensor:
        labels_M, weights_M = (
            torch.from_numpy(values[list(units)]).to(outputs_MH.device) for values in (self.labels_U, self.weights_U)
        )
        return self.form(outputs_MH[:, 0], labels_M, float(mass), weights_N=weights_M)[0]

    def figures(self, outputs_NH: Array, units: Sequence[int]) -> Figures:
        if not units:
            return {"loss": None, "spearman": None}
        said_M = torch.from_numpy(outputs_NH[[self.task.members[u][0] for u in units], 0])
        labels_M = self.labels_U[list(units)]
        loss = self.form(said_M, torch.from_numpy(labels_M), float(len(units)))[0]
        return {"loss": float(loss), "spearman": _ranked(said_M.numpy(), labels_M)}


class Preference:
    """A unit is a prompt's distinct answers, each read once, and its pairs: all K-choose-2 of a ranking, equation 2.12."""

    def __init__(self, task: Task, recipe: RewardRecipe) -> None:
        assert isinstance(recipe.loss, PreferenceLoss)
        self.task, self.options = task, recipe.loss
        self.pairs: list[list[int]] = [[] for _ in task.members]  # (U,) places in the columns of targets
        for p, unit in enumerate(task.targets["unit"].astype(int)):
            self.pairs[unit].append(p)

    def members(self, unit: int, epoch: int) -> tuple[int, ...]:  # noqa: ARG002  the interface's
        return self.task.members[unit]

    def mass(self, units: Sequence[int]) -> torch.Tensor:
        return torch.tensor(self.task.targets["weight"][[p for u in units for p in self.pairs[u]]].sum())

    def loss(
        self,
        outputs_MH: torch.Tensor,
        units: Sequence[int],
        epochs: Sequence[int],  # noqa: ARG002  the interface's
        mass: torch.Tensor,
    ) -> torch.Tensor:
        sizes = np.array([len(self.task.members[u]) for u in units])
        starts = dict(zip(units, np.cumsum(sizes) - sizes, strict=True))
        chosen = [p for u in units for p in self.pairs[u]]
        t = {name: values[chosen] for name, values in self.task.targets.items()}
        first_P = np.array([starts[u] for u in t["unit"].astype(int)])
        width = outputs_MH.shape[1]
        better_P, worse_P = (
            torch.from_numpy((first_P + t[side]).astype(np.int64) * width + t["head"].astype(np.int64))
            for side in ("better", "worse")
        )
        device, o = outputs_MH.device, self.options
        return bradley_terry(
            outputs_MH.reshape(-1),
            better_P.to(device),
            worse_P.to(device),
            float(mass),
            strength_P=torch.from_numpy(t["strength"]).to(device),
            margin=o.margin,
            scale_by_strength=o.scale_by_strength,
            centring=o.centring,
            label_smoothing=o.label_smoothing,
            weights_P=torch.from_numpy(t["weight"]).to(device),
        )[0]

    def sides(self, units: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """(P,) inputs of the better and the worse answers of these units' pairs, and the heads that they were judged by."""
        chosen = [p for u in units for p in self.pairs[u]]
        t = {name: self.task.targets[name][chosen].astype(np.int64) for name in ("unit", "better", "worse", "head")}
        better, worse = (
            np.array([self.task.members[u][i] for u, i in zip(t["unit"], t[side], strict=True)], dtype=np.int64)
            for side in ("better", "worse")
        )
        return better, worse, t["head"]

    def figures(self, outputs_NH: Array, units: Sequence[int]) -> Figures:
        better_P, worse_P, heads_P = self.sides(units)
        good_P, bad_P = outputs_NH[better_P, heads_P], outputs_NH[worse_P, heads_P]
        if not len(good_P):
            return {"accuracy": None, "log_loss": None}
        return {
            "accuracy": pair_accuracy(good_P, bad_P),
            "log_loss": float(np.logaddexp(0.0, bad_P - good_P).mean()),
        }


class Comparer:
    """A unit is a comparison; its two members are its answers in both orders, and the class follows the order."""

    def __init__(self, task: Task, recipe: RewardRecipe) -> None:
        assert isinstance(recipe.loss, ComparerLoss)
        self.task, self.options, self.seed = task, recipe.loss, recipe.seed
        self.winner_U = task.targets["winner"].astype(np.int64)
        # Which order comes first; the other one follows in the next epoch.
        self.first_U = np.random.default_rng(recipe.seed).integers(2, size=len(task.members))

    def members(self, unit: int, epoch: int) -> tuple[int, ...]:
        return tuple(self.task.members[unit][order] for order in self._orders(unit, epoch))

    def _orders(self, unit: int, epoch: int) -> tuple[int, ...]:
        """0: as the data has it, 1: swapped."""
        if self.options.swap == "alternate":
            return (int(self.first_U[unit] + epoch) % 2,)
        return (0, 1) if self.options.swap == "both" else (0,)

    def mass(self, units: Sequence[int]) -> torch.Tensor:
        return torch.tensor(float(len(units) * (2 if self.options.swap == "both" else 1)))

    def loss(
        self, outputs_MH: torch.Tensor, units: Sequence[int], epochs: Sequence[int], mass: torch.Tensor
    ) -> torch.Tensor:
        classes_M = [
            _swapped(int(self.winner_U[u])) if order == 1 else int(self.winner_U[u])
            for u, epoch in zip(units, epochs, strict=True)
            for order in self._orders(u, epoch)
        ]
        return cross_entropy(
            outputs_MH,
            torch.tensor(classes_M, device=outputs_MH.device),
            float(mass),
            label_smoothing=self.options.label_smoothing,
        )[0]

    def probabilities(self, outputs_NH: Array, units: Sequence[int]) -> Array:
        """(U, C) averaged over both orders, as seen with the data's first answer first."""
        ab, ba = (torch.from_numpy(outputs_NH[[self.task.members[u][order] for u in units]]) for order in (0, 1))
        out: Array = averaged_over_orders(ab, ba).exp().numpy()
        return out

    def figures(self, outputs_NH: Array, units: Sequence[int]) -> Figures:
        if not units:
            return {"log_loss": None, "accuracy": None}
        p_UC, winner_U = self.probabilities(outputs_NH, units), self.winner_U[list(units)]
        return {
            "log_loss": log_loss(p_UC, winner_U),
            "accuracy": float((p_UC.argmax(axis=1) == winner_U).mean()),
        }


KINDS: dict[str, type[Learned]] = {
    "regression": Regression,
    "absolute": Absolute,
    "preference": Preference,
    "comparer": Comparer,
}


def _swapped(winner: int) -> int:
    """The class with the answers exchanged."""
    return {0: 1, 1: 0}.get(winner, winner)


def _ranked(said: Array, labels: Array) -> float | None:
    known = ~np.isnan(labels)
    return spearman(said[known], labels[known])


def _mean(values: Sequence[float | None]) -> float | None:
    """Over those that are defined."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
