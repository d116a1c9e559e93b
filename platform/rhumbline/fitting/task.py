"""What a reward network is trained on, as plain data: inputs, which of them are drawn together, and their targets.

    task = build(recipe)                       # reads the data sets; DataError where they do not serve the kind
    task.inputs[i], task.members[u]            # a unit is drawn as a whole: an answer, a prompt's answers, a comparison
    save(task, path); load(path)               # what a worker is handed

The kind of the recipe says what a unit is and what `targets` holds; `fitting.kinds` says what is learned from it. N inputs,
U units, H heads, P pairs.

    kind         unit                                  targets
    regression   an answer                             labels (U, H) on 0-100, NaN: none
    absolute     an answer                             labels (U,) in 0..1, weights (U,)
    preference   a prompt's distinct answers           unit, better, worse, head, source, strength, weight, each (P,): better and
                                                       worse are places in a unit, source is one in recipe.comparisons
    comparer     a comparison, read in both orders     winner (U,): 0 the first answer of the first member, 1 the other, 2 a tie

Conversations are on one side of the splits. Besides what the data sets hold out for the test, a share of the training
conversations (recipe.validation) is held out here: early stopping and calibration look at it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rhumbline import durable
from rhumbline.data.prompts import conversation_id
from rhumbline.errors import DataError
from rhumbline.fitting.absolute_labels import Labelled, aggregate, loss_weights, resample, weighting
from rhumbline.fitting.checks import check
from rhumbline.fitting.comparisons import Contests, gather_comparisons
from rhumbline.fitting.labels import Answers, gather
from rhumbline.fitting.paraphrases import paraphrased
from rhumbline.fitting.recipe import RewardRecipe
from rhumbline.records import Message, Prompt
from rhumbline.rewards.reading import profile_text

Split = Literal["train", "validation", "test"]
CLASSES = ("a", "b", "tie")
_PLACES = 10_000  # conversations are told apart to a hundredth of a percent


@dataclass(frozen=True, slots=True)
class Input:
    """What the network reads at once: an answer to a prompt, or two."""

    prompt: Prompt
    answer: str
    other: str | None = None  # the second answer, of a comparison
    profile: str | None = None  # what is known about the judge, as it is written into the prompt


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """The data of one training."""

    kind: str
    inputs: tuple[Input, ...]  # (N,)
    members: tuple[tuple[int, ...], ...]  # (U,) places in `inputs`
    splits: tuple[Split, ...]  # (U,)
    groups: tuple[str, ...]  # (U,) conversations
    sources: tuple[str, ...]  # (U,) names of data sets; preference: of its first pair, several may share its answers
    folds: tuple[int, ...]  # (U,) of a cross-validation; -1: none
    targets: Mapping[str, NDArray[np.float64]]
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # data set -> rows by what became of them

    def within(self, split: Split) -> list[int]:
        """Places of the units of a split."""
        return [u for u, own in enumerate(self.splits) if own == split]

    def read_by(self, units: list[int]) -> list[int]:
        """Places of the inputs of these units, each once, in order."""
        return sorted({i for u in units for i in self.members[u]})

    def lengths_of_both(self, units: list[int]) -> NDArray[np.int64]:
        """(U, 2) characters of the two answers of comparisons, in the order of the data."""
        firsts = [self.inputs[self.members[u][0]] for u in units]
        return np.array([(len(one.answer), len(one.other or "")) for one in firsts], dtype=np.int64).reshape(-1, 2)

    def fold(self, held_out: int) -> Task:
        """The same task tested on one fold of the training rows and trained on the others; its own test rows are gone."""
        splits = tuple(
            own if own == "test" else "test" if fold == held_out else own
            for own, fold in zip(self.splits, self.folds, strict=True)
        )
        kept = [u for u, own in enumerate(self.splits) if own != "test"]
        return replace(self._only(kept), splits=tuple(splits[u] for u in kept))

    def _only(self, units: list[int]) -> Task:
        assert "unit" not in self.targets, "pairs are not renumbered"
        return replace(
            self,
            members=tuple(self.members[u] for u in units),
            splits=tuple(self.splits[u] for u in units),
            groups=tuple(self.groups[u] for u in units),
            sources=tuple(self.sources[u] for u in units),
            folds=tuple(self.folds[u] for u in units),
            targets={name: values[units] for name, values in self.targets.items()},
        )


def build(recipe: RewardRecipe) -> Task:
    """Read the recipe's data. Raises DataError for data that cannot be read or leave nothing to train or to test on."""
    task = _BUILDERS[recipe.kind](recipe)
    check(recipe, task)
    for fold in range(recipe.folds):
        check(recipe, task.fold(fold), f"fold {fold + 1} of {recipe.folds}: ")
    return task


def save(task: Task, path: Path) -> None:
    """Write a task as JSON, atomically."""
    durable.replace(path, durable.to_json({**asdict(task)}).encode("utf-8", "surrogatepass"))


def load(path: Path) -> Task:
    """What `save` wrote."""
    raw: dict[str, Any] = json.loads(path.read_bytes().decode("utf-8", "surrogatepass"))
    inputs = tuple(_input(one) for one in raw["inputs"])
    members = tuple(tuple(one) for one in raw["members"])
    targets = {name: np.array(values, dtype=np.float64) for name, values in raw["targets"].items()}  # null becomes NaN
    lists = {name: tuple(raw[name]) for name in ("splits", "groups", "sources", "folds")}
    return Task(kind=raw["kind"], inputs=inputs, members=members, targets=targets, counts=raw["counts"], **lists)


def _input(raw: Mapping[str, Any]) -> Input:
    asked = raw["prompt"]
    turns = tuple(Message(**turn) for turn in asked["messages"])
    return Input(Prompt(id=asked["id"], messages=turns, reference=asked["reference"]), *(raw[k] for k in _TEXTS))


_TEXTS = ("answer", "other", "profile")


# --- by kind ----------------------------------------------------------------------------------------------------------


def _rated(recipe: RewardRecipe) -> Task:
    answers = gather(recipe)
    return _of_answers(recipe, answers, {"labels": answers.labels_NH})


def _absolute(recipe: RewardRecipe) -> Task:
    """One label per answer, the uneven ones drawn as the recipe says: a unit is a draw, so an answer may have several."""
    wanted, answers = recipe.absolute, gather(recipe)
    names = [head.name for head in recipe.rated_heads()]
    if isinstance(wanted.weights, str):
        weights = weighting(wanted.weights)
    else:
        weights = {str(wanted.label): 1.0} if wanted.weights is None else wanted.weights
    ratings = dict(zip(names, answers.labels_NH.T / 100, strict=True))
    labels_N = aggregate(ratings, weights)
    known = np.flatnonzero(~np.isnan(labels_N))
    if not len(known):
        raise DataError(f"{recipe.name}: no answer has the ratings that `absolute` asks for ({', '.join(names)})")
    whole = _of_answers(recipe, answers, {"labels": labels_N, "weights": np.ones(len(labels_N))})._only(known.tolist())
    if wanted.paraphrase is not None:
        whole = _with_paraphrases(recipe, whole)
    labels_U = whole.targets["labels"]
    train = np.array(whole.within("train"), dtype=np.int64)
    drawn = train[
        resample(
            labels_U[train],
            low=wanted.low,
            high=wanted.high,
            oversample=wanted.oversample,
            undersample_to=wanted.undersample_to,
            seed=recipe.seed,
        )
    ]
    others = [u for u, own in enumerate(whole.splits) if own != "train"]
    task = whole._only([*drawn.tolist(), *others])
    weights_U = np.ones(len(task.members))
    weights_U[: len(drawn)] = loss_weights(labels_U[drawn], low=wanted.low, strength=wanted.loss_weight_strength)
    return replace(task, targets={**task.targets, "weights": weights_U})


def _with_paraphrases(recipe: RewardRecipe, task: Task) -> Task:
    """The task with paraphrases of the answers of the low end that are trained on, and with nothing else changed."""
    labels_U = task.targets["labels"]
    low = [u for u in task.within("train") if labels_U[u] <= recipe.absolute.low]
    read = [task.inputs[task.members[u][0]] for u in low]
    asked = [
        Labelled(prompt=one.prompt, response=one.answer, label=float(labels_U[u]), source=task.sources[u])
        for u, one in zip(low, read, strict=True)
    ]
    assert recipe.absolute.paraphrase is not None
    made = paraphrased(asked, recipe.absolute.paraphrase, recipe.seed)
    new, first = made.rows, len(task.inputs)
    counts = {
        source: {**told, "paraphrases": sum(one.source == source for one in new)}
        for source, told in task.counts.items()
    }
    learned: list[Split] = ["train"] * len(new)
    return replace(
        task,
        inputs=(*task.inputs, *(Input(one.prompt, one.response) for one in new)),
        members=(*task.members, *((first + i,) for i in range(len(new)))),
        splits=(*task.splits, *learned),
        groups=(*task.groups, *(conversation_id(one.prompt) for one in new)),
        sources=(*task.sources, *(one.source for one in new)),
        folds=(*task.folds, *(-1 for _ in new)),
        targets={
            "labels": np.append(labels_U, [one.label for one in new]),
            "weights": np.append(task.targets["weights"], np.ones(len(new))),
        },
        counts=counts,
    )


def _of_answers(recipe: RewardRecipe, answers: Answers, targets: Mapping[str, NDArray[np.float64]]) -> Task:
    """A unit per answer."""
    groups = [str(group) for group in answers.groups_N]
    return Task(
        kind=recipe.kind,
        inputs=tuple(Input(prompt, answer) for prompt, answer in answers.pairs),
        members=tuple((i,) for i in range(len(groups))),
        splits=tuple(_split(g, bool(t), recipe.validation) for g, t in zip(groups, answers.train_N, strict=True)),
        groups=tuple(groups),
        sources=tuple(str(source) for source in answers.sources_N),
        folds=(-1,) * len(groups),
        targets=targets,
        counts={source: answers.counts(source) for source in recipe.ratings},
    )


def _preference(recipe: RewardRecipe) -> Task:
    """A unit per prompt and profile with all its pairs."""
    contests = gather_comparisons(recipe)
    heads = [head.name for head in recipe.heads()]
    inputs: list[Input] = []
    places: dict[tuple[Any, ...], int] = {}  # distinct answer -> place in `inputs`
    units: dict[tuple[Any, ...], int] = {}
    members: list[list[int]] = []
    firsts: list[int] = []  # (U,) the comparison that a unit began with
    pairs: list[tuple[int, int, int, int, int, float]] = []
    sources = list(recipe.comparisons)
    for n, row in enumerate(contests.rows):
        key = (row.prompt.messages, profile_text(row.profile))
        unit = units.setdefault(key, len(units))
        if unit == len(members):
            members.append([])
            firsts.append(n)
        at = []
        for answer in (row.a, row.b):
            i = places.setdefault((*key, answer), len(inputs))
            if i == len(inputs):
                inputs.append(Input(row.prompt, answer, None, key[1]))
                members[unit].append(i)
            at.append(members[unit].index(i))
        better, worse = at if row.winner == "a" else at[::-1]
        strength = float("nan") if row.strength is None else row.strength
        pairs.append((unit, better, worse, heads.index(row.head), sources.index(str(contests.sources_N[n])), strength))
    table = np.array(pairs, dtype=np.float64).reshape(-1, 6)
    per_prompt = np.bincount(table[:, 0].astype(np.int64), minlength=len(members)).astype(np.float64)
    by_prompt = getattr(recipe.loss, "per", "pair") == "prompt"
    weight_P = 1 / per_prompt[table[:, 0].astype(int)] if by_prompt else np.ones(len(table))
    columns = dict(zip(("unit", "better", "worse", "head", "source", "strength"), table.T, strict=True))
    return _of_contests(recipe, contests, inputs, members, firsts, {**columns, "weight": weight_P})


def _comparer(recipe: RewardRecipe) -> Task:
    """A unit per comparison, its members the two orders of its answers."""
    contests = gather_comparisons(recipe)
    inputs: list[Input] = []
    members: list[list[int]] = []
    for row in contests.rows:
        profile = profile_text(row.profile)
        members.append([len(inputs), len(inputs) + 1])
        inputs += [Input(row.prompt, row.a, row.b, profile), Input(row.prompt, row.b, row.a, profile)]
    winner_U = np.array([CLASSES.index(row.winner) for row in contests.rows], dtype=np.float64)
    return _of_contests(recipe, contests, inputs, members, list(range(len(members))), {"winner": winner_U})


def _of_contests(
    recipe: RewardRecipe,
    contests: Contests,
    inputs: list[Input],
    members: list[list[int]],
    firsts: list[int],
    targets: Mapping[str, NDArray[np.float64]],
) -> Task:
    groups = [str(contests.groups_N[n]) for n in firsts]
    trains = [bool(contests.train_N[n]) for n in firsts]
    return Task(
        kind=recipe.kind,
        inputs=tuple(inputs),
        members=tuple(tuple(one) for one in members),
        splits=tuple(_split(g, t, recipe.validation) for g, t in zip(groups, trains, strict=True)),
        groups=tuple(groups),
        sources=tuple(str(contests.sources_N[n]) for n in firsts),
        folds=tuple(int(contests.folds_N[n]) for n in firsts),
        targets=targets,
        counts={name: {**contests.counts(name), **contests.dropped[name]} for name in recipe.comparisons},
    )


_BUILDERS: dict[str, Callable[[RewardRecipe], Task]] = {
    "regression": _rated,
    "absolute": _absolute,
    "preference": _preference,
    "comparer": _comparer,
}


def _split(group: str, train: bool, validation: float) -> Split:
    """By the conversation's hash, whose last digits decide about the test where a data set has none: other digits here."""
    if not train:
        return "test"
    return "validation" if int(group, 16) // 1000 % _PLACES < validation * _PLACES else "train"
