"""From a trained network's outputs to its schema and its card: what `jobs/reward.py` does after training.

    schema = finish(task, recipe, folder)                # schema.json, and what the network gives to held-out inputs
    card = describe(recipe, task, predictions(folder), schema, result, command="python jobs/reward.py ...")

Lengths are counted in characters: they are the baseline of every figure, and no tokenizer's. N inputs, U units, P pairs, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rhumbline.cards import sections
from rhumbline.cards.length_only import LengthClasses, LengthOnly
from rhumbline.fitting.kinds import Comparer as LearnedComparer
from rhumbline.fitting.kinds import Preference, standard
from rhumbline.fitting.recipe import RewardRecipe
from rhumbline.fitting.task import Split, Task
from rhumbline.fitting.training import read
from rhumbline.rewards.comparer import Comparer
from rhumbline.rewards.features import Pair
from rhumbline.rewards.network import Network
from rhumbline.rewards.objectives import Calibration
from rhumbline.rewards.trained import (
    Maps,
    Schema,
    absolute_maps,
    comparer_maps,
    preference_maps,
    publish,
    regression_maps,
)

Array = NDArray[np.float64]
PREDICTIONS = "predictions.npy"
_LINKS: dict[str, Literal["identity", "sigmoid"]] = {
    "mse_with_penalty": "identity",
    "sigmoid_mse": "sigmoid",
    "sigmoid_bce": "sigmoid",
}


def finish(task: Task, recipe: RewardRecipe, folder: str | Path) -> Schema:
    """Read the held-out inputs with a network that `training.fit` has written; keep its outputs and write its schema."""
    network = Network.load(folder, trust_remote_code=recipe.trust_remote_code)
    budget = recipe.learner.micro_batch_tokens
    splits: tuple[Split, ...] = ("validation", "test") if recipe.validation > 0 else ("train", "test")
    wanted = task.read_by([u for split in splits for u in task.within(split)])
    outputs_NH = np.full((len(task.inputs), len(recipe.outputs())), np.nan)
    outputs_NH[wanted] = network.raw([read(network, task.inputs[i]) for i in wanted], budget)
    np.save(Path(folder) / PREDICTIONS, outputs_NH, allow_pickle=False)
    schema = schema_of(recipe, task, outputs_NH, network.fingerprint)

    def score(pairs: Sequence[Pair]) -> Array:
        if recipe.kind == "comparer":
            return schema.scores(Comparer(network, budget).known(pairs))
        return schema.scores(network.raw([network.reader.pair(*pair) for pair in pairs], budget))

    return publish(folder, schema, score)


def predictions(folder: str | Path) -> Array:
    """(N, H) what `finish` kept: outputs for inputs of the validation and the test split, NaN for the others.

    Without a validation split the training inputs are among them: something has to set the scale of scores.
    """
    outputs_NH: Array = np.load(Path(folder) / PREDICTIONS, allow_pickle=False)
    return outputs_NH


def schema_of(recipe: RewardRecipe, task: Task, outputs_NH: Array, fingerprint: Mapping[str, Any]) -> Schema:
    """What the outputs mean: heads, maps to 0-100 and their calibration, frozen on the calibration split."""
    maps = MAPS[recipe.kind](recipe, task, outputs_NH)
    assert recipe.kind != "ridge"
    schema = Schema(
        kind=recipe.kind,
        heads=recipe.heads(),
        base=recipe.backbone,
        fingerprint=dict(fingerprint),
        maps=maps,
        conditional=any(task.inputs[i].profile is not None for i in task.read_by(task.within("train"))),
    )
    if recipe.kind == "comparer":
        return schema
    own = calibration_inputs(recipe, task)
    names = [head.name for head in schema.heads]
    fitted = Calibration.fit(names, schema.scores(outputs_NH[own]), _lengths(task, own))
    return replace(schema, calibration=fitted)


def calibration_inputs(recipe: RewardRecipe, task: Task) -> list[int]:
    """Inputs whose scores set the scale: of the validation split, which was not trained on, else of the training split."""
    return task.read_by(task.within("validation" if recipe.validation > 0 else "train"))


def describe(
    recipe: RewardRecipe,
    task: Task,
    outputs_NH: Array,
    schema: Schema,
    result: Mapping[str, Any],
    command: str,
    folds: Sequence[tuple[Task, Array]] = (),
) -> dict[str, Any]:
    """The card, as data: `card.write` makes files of it. `result`: the FitResult as a dict; `folds`: of a cross-validation."""
    draws = {"num_resamples": recipe.bootstrap, "seed": recipe.seed}
    card: dict[str, Any] = {
        "name": recipe.name,
        "id": schema.id,
        "command": command,
        "facts": _facts(recipe, task, result),
        "data": {name: {"licence": _licence(recipe, name), **counts} for name, counts in task.counts.items()},
        **SECTIONS[recipe.kind](recipe, task, outputs_NH, schema, draws),
        "training": {key: value for key, value in result.items() if key not in ("checkpoint", "adapter")},
        "notes": recipe.notes,
        "recipe": recipe.model_dump(mode="json"),
    }
    if folds:
        card["cross_validation"] = _cross_validated(recipe, folds, draws)
        told = card["cross_validation"]["classes"]["all"]
        card["facts"]["Cross-validation"] = (
            f"{len(folds)} folds over the training conversations, {told['n']} comparisons: log loss "
            f"{told['log_loss']['value']:.4f}, length only {told['length_log_loss']['value']:.4f}, "
            f"class prior {told['prior_log_loss']['value']:.4f}, uniform {told['uniform_log_loss']:.4f}"
        )
    return card


# --- what outputs mean ------------------------------------------------------------------------------------------------


def _regression_maps(recipe: RewardRecipe, task: Task, outputs_NH: Array) -> Maps:  # noqa: ARG001  one signature for all kinds
    mean_H, std_H = standard(task)
    return regression_maps(mean_H.tolist(), std_H.tolist())


def _preference_maps(recipe: RewardRecipe, task: Task, outputs_NH: Array) -> Maps:
    return preference_maps(outputs_NH[calibration_inputs(recipe, task)])


def _absolute_maps(recipe: RewardRecipe, task: Task, outputs_NH: Array) -> Maps:
    return absolute_maps(outputs_NH[calibration_inputs(recipe, task)], link=_LINKS[recipe.absolute.form])


def _comparer_maps(recipe: RewardRecipe, task: Task, outputs_NH: Array) -> Maps:  # noqa: ARG001  one signature for all kinds
    return comparer_maps()


MAPS: dict[str, Callable[[RewardRecipe, Task, Array], Maps]] = {
    "regression": _regression_maps,
    "preference": _preference_maps,
    "absolute": _absolute_maps,
    "comparer": _comparer_maps,
}

# --- sections of the card ---------------------------------------------------------------------------------------------


def _rated(
    recipe: RewardRecipe,  # noqa: ARG001  one signature for all kinds
    task: Task,
    outputs_NH: Array,
    schema: Schema,
    draws: dict[str, int],
) -> dict[str, Any]:
    names = [head.name for head in schema.heads]
    ends = {head.name: head.ends for head in schema.heads}
    return _ratings(task, names, schema.scores(outputs_NH), task.targets["labels"], draws, ends)


def _absolute(
    recipe: RewardRecipe,  # noqa: ARG001  one signature for all kinds
    task: Task,
    outputs_NH: Array,
    schema: Schema,
    draws: dict[str, int],
) -> dict[str, Any]:
    labels_U1 = 100 * task.targets["labels"][:, None]
    scores_N1 = schema.scores(outputs_NH, "probability")
    return _ratings(task, [head.name for head in schema.heads], scores_N1, labels_U1, draws)


def _ratings(
    task: Task,
    names: Sequence[str],
    scores_NH: Array,
    labels_UH: Array,
    draws: dict[str, int],
    ends: Mapping[str, tuple[float, float]] | None = None,  # a head's lowest and highest label; None: 0 and 100
) -> dict[str, Any]:
    """A unit is an answer; baselines are fitted on what was trained on."""
    train, test = (task.read_by(task.within(split)) for split in ("train", "test"))
    label_of = {members[0]: u for u, members in enumerate(task.members)}  # an answer that is drawn twice has one label
    labels = {split: labels_UH[[label_of[i] for i in own]] for split, own in (("train", train), ("test", test))}
    lengths = {"train": _lengths(task, train), "test": _lengths(task, test)}
    lines = [LengthOnly.fit(labels["train"][:, h], lengths["train"]) for h in range(len(names))]
    units = [label_of[i] for i in test]
    return sections.rated(
        names,
        scores_NH[test],
        labels["test"],
        lengths["test"],
        [task.groups[u] for u in units],
        [task.sources[u] for u in units],
        length_only_NH=np.stack([line(lengths["test"]) for line in lines], axis=1),
        ends=ends,
        num_resamples=draws["num_resamples"],
        seed=draws["seed"],
    )


def _paired(
    recipe: RewardRecipe, task: Task, outputs_NH: Array, schema: Schema, draws: dict[str, int]
) -> dict[str, Any]:
    learned, names = Preference(task, recipe), np.array([head.name for head in schema.heads])
    sources = np.array(list(recipe.comparisons))
    rng = np.random.default_rng(recipe.seed)

    def sides(split: Split) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], list[int]]:
        """(P, 2) inputs in a drawn order, lest the place tell the winner; winners, heads, and the place of each pair."""
        units = task.within(split)
        better_P, worse_P, heads_P = learned.sides(units)
        winner_P = rng.integers(2, size=len(better_P))
        inputs_P2 = np.where(winner_P[:, None] == 0, np.stack([better_P, worse_P], 1), np.stack([worse_P, better_P], 1))
        return inputs_P2, winner_P, heads_P, [p for u in units for p in learned.pairs[u]]

    seen_P2, seen_winners, seen_heads, _ = sides("train")
    inputs_P2, winner_P, heads_P, place_P = sides("test")
    unit_P, source_P = (task.targets[name][place_P].astype(np.int64) for name in ("unit", "source"))
    baselines = {
        str(name): LengthClasses.fit(
            seen_winners[seen_heads == h], _lengths(task, seen_P2[seen_heads == h]), num_classes=2
        )
        for h, name in enumerate(names)
    }
    return sections.paired(
        names.tolist(),
        outputs_NH[inputs_P2[:, 0]] - outputs_NH[inputs_P2[:, 1]],
        names[heads_P],
        winner_P,
        _lengths(task, inputs_P2),
        [task.groups[u] for u in unit_P],
        sources[source_P].tolist(),
        texts_P2=[(int(a), int(b)) for a, b in inputs_P2],
        length_only=baselines,
        temperature=1.0,
        **draws,
    )


def _compared(
    recipe: RewardRecipe,
    task: Task,
    outputs_NH: Array,
    schema: Schema,  # noqa: ARG001  one signature for all kinds
    draws: dict[str, int],
) -> dict[str, Any]:
    return _classes(recipe, [(task, outputs_NH)], draws)


def _cross_validated(
    recipe: RewardRecipe, folds: Sequence[tuple[Task, Array]], draws: dict[str, int]
) -> dict[str, Any]:
    """Every training comparison as the network that was trained without its fold judges it; baselines are fold by fold too."""
    return _classes(recipe, folds, draws)


def _classes(recipe: RewardRecipe, parts: Sequence[tuple[Task, Array]], draws: dict[str, int]) -> dict[str, Any]:
    """Figures over the test units of every part together."""
    said, one_order, winners, lengths, groups, sources = [], [], [], [], [], []
    baseline, seen = None, None
    for task, outputs_NH in parts:
        learned, units, train = LearnedComparer(task, recipe), task.within("test"), task.within("train")
        said.append(learned.probabilities(outputs_NH, units))
        logits_UC = outputs_NH[[task.members[u][0] for u in units]]
        shifted_UC = np.exp(logits_UC - logits_UC.max(axis=1, keepdims=True))
        one_order.append(shifted_UC / shifted_UC.sum(axis=1, keepdims=True))
        winners.append(learned.winner_U[units])
        lengths.append(task.lengths_of_both(units))
        groups += [task.groups[u] for u in units]
        sources += [task.sources[u] for u in units]
        if len(parts) == 1:
            seen = learned.winner_U[train]
            baseline = LengthClasses.fit(seen, task.lengths_of_both(train), num_classes=len(recipe.outputs()))
    return sections.compared(
        np.concatenate(said),
        np.concatenate(winners),
        np.concatenate(lengths),
        groups,
        sources,
        one_order_PC=np.concatenate(one_order),
        length_only=baseline,
        train_winners=seen,
        **draws,
    )


SECTIONS: dict[str, Callable[[RewardRecipe, Task, Array, Schema, dict[str, int]], dict[str, Any]]] = {
    "regression": _rated,
    "absolute": _absolute,
    "preference": _paired,
    "comparer": _compared,
}


def _lengths(task: Task, inputs: Any) -> NDArray[np.int64]:
    """Characters of the answers of inputs, in the shape of `inputs`."""
    every_N = np.array([len(one.answer) for one in task.inputs], dtype=np.int64)
    return every_N[np.asarray(inputs, dtype=np.int64)]


# --- what it is -------------------------------------------------------------------------------------------------------


def _facts(recipe: RewardRecipe, task: Task, result: Mapping[str, Any]) -> dict[str, str]:
    network, learner = recipe.network, recipe.learner
    if learner.lora is not None:
        trained = f"LoRA, r {learner.lora.r}, alpha {learner.lora.alpha:g}"
    else:
        trained = "the head alone" if network.freeze else "all weights"
    kept = f"step {result['kept_step']} of {result['steps_planned']}"
    if result["metric"] is not None and result["kept_value"] is not None:
        kept += f", with the best {result['metric']} on the validation split: {result['kept_value']:.4f}"
    drawn = {"preference": "prompts", "comparer": "comparisons"}.get(recipe.kind, "answers")
    return {
        "Kind": recipe.kind,
        "Backbone": f"`{recipe.backbone}`, trained: {trained}",
        "Reads": f"at most {network.max_tokens} tokens, pooled: {network.pooling}"
        + (", its logits added to those of a regression on the lengths" if network.length_expert else ""),
        "Trained on": f"{result['num_units']} {drawn}, {learner.epochs} epochs, {learner.batch_size} a step, "
        f"lr {learner.lr:g}, seed {recipe.seed}",
        "Kept": kept,
        "Held out of training": f"{len(task.within('validation'))} {drawn} to calibrate and to stop by, "
        f"{len(task.within('test'))} to test",
    }


def _licence(recipe: RewardRecipe, source: str) -> str:
    return recipe.ratings[source].licence if source in recipe.ratings else recipe.comparisons[source].licence
