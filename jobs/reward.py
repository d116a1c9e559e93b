#!/usr/bin/env python
"""Train a reward model of any kind that a recipe names.

ray job submit --runtime-env cluster/runtime_env.yaml -- python jobs/reward.py --recipe FILE --out /mnt/rhumbline/rewards/mine
python jobs/reward.py --recipe jobs/recipes/rewards/oasst.yaml features.layer=18 --out rewards/mine
python jobs/reward.py --recipe jobs/recipes/rewards/oasst-preference.yaml --local

kind ridge: regression heads on a frozen language model, in closed form
    labels      rated answers on 0-100; what was not rated stays missing
    features    hidden states of the frozen backbone over each answer, pooled
    fit         one ridge regression per head; its penalty by cross-validation over prompts
    card        how well each head predicts ratings that it has not seen, beside what length alone predicts
    save        heads.safetensors, schema.json, card.json, card.md

kinds regression, preference, absolute and comparer: a network, by gradient
    task        answers or comparisons, and which of them train, validate and test
    folds       comparer: a network per fold, for the cross-validation
    learn       the train loop on Ray Train; killed, the same command goes on where it was
    card        figures on the test split beside what length alone gives
    save        weights that transformers loads, schema.json, card.json, card.md, metrics.jsonl
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rhumbline.cli import user_errors
from rhumbline.config import dump
from rhumbline.fitting.recipe import RewardRecipe, load

if TYPE_CHECKING:
    from rhumbline.fitting.labels import Answers
    from rhumbline.fitting.task import Task

HERE = Path(__file__).resolve().parent


def main(
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value, laid over the recipe")] = None,
    recipe: Annotated[Path, typer.Option(help="a YAML file")] = HERE / "recipes" / "rewards" / "oasst.yaml",
    out: Annotated[Path | None, typer.Option(help="folder to write to; rewards/<name> by default")] = None,
    local: Annotated[bool, typer.Option("--local", help="run everything in this process, without Ray")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would be done, and do nothing")] = False,
) -> None:
    """Train a reward model."""
    with user_errors():
        settings = load(recipe, overrides or [])
        from rhumbline.rewards.regression import check_target
        from rhumbline.store import lasting

        folder = out if out is not None else Path("rewards") / settings.name
        check_target(lasting(folder))
        command = " ".join(["python jobs/reward.py --recipe", _shown(recipe), *(overrides or [])])
        KINDS[settings.kind](settings, folder, local, dry_run, command)


# --- a network --------------------------------------------------------------------------------------------------------


def network(recipe: RewardRecipe, out: Path, local: bool, dry_run: bool, command: str) -> None:
    """The algorithm of every kind that is trained by gradient."""
    from actors.fitting import finished, keep_steps, log_to, training
    from rhumbline.cards import card
    from rhumbline.fitting.results import describe, predictions
    from rhumbline.fitting.task import build
    from rhumbline.fitting.training import identity
    from rhumbline.rewards.trained import Schema

    task = build(recipe)
    if dry_run:
        show_task(recipe, task, out)
        return
    which = identity(recipe, task, recipe.seed)
    if finished(out, which):
        print(f"reward model: {out}, finished before by this recipe on this data")
        return
    work = out.absolute().with_name(f".{out.name}-training")  # beside `out`, so that the end is one rename
    steps = work / f"metrics-{which[:12]}.jsonl"  # another recipe with the same --out has a file of its own
    with training(recipe, local) as train:
        folds = []
        for fold in range(recipe.folds):
            part = task.fold(fold)
            trained, _ = train(part, work, f"{recipe.name}-fold{fold}", log_to(steps, fold))
            folds.append((part, predictions(trained)))
        trained, result = train(task, work, recipe.name, log_to(steps))
    told = describe(recipe, task, predictions(trained), Schema.load(trained), result, command, folds)
    card.write(trained, told)
    keep_steps(steps, trained / "metrics.jsonl")
    shutil.rmtree(out, ignore_errors=True)
    trained.rename(out)
    shutil.rmtree(work)
    print(card.markdown(told))
    print(f"reward model: {out}")


def show_task(recipe: RewardRecipe, task: Task, out: Path) -> None:
    """Print the resolved recipe and what it would read, train and write."""
    import numpy as np

    print(dump(recipe))
    for source, counts in task.counts.items():
        print(f"{source}: " + ", ".join(f"{number} {what}" for what, number in counts.items()))
    splits = ", ".join(f"{len(task.within(split))} to {split}" for split in ("train", "validation", "test"))
    print(f"{len(task.inputs)} inputs in {len(task.members)} units: {splits.replace('to validation', 'to validate')}")
    if "labels" in task.targets:
        named = task.targets["labels"].reshape(len(task.members), -1).T
        for head, labels_U in zip(recipe.outputs(), named, strict=True):
            rated = labels_U[~np.isnan(labels_U)]
            print(f"{head}: {len(rated)} labels, mean {rated.mean():.3g}, std {rated.std():.3g}")
    steps = -(-len(task.within("train")) * recipe.learner.epochs // recipe.learner.batch_size)
    folds = f", and a network for each of {recipe.folds} folds" if recipe.folds else ""
    print(f"would train {recipe.outputs()} for {steps} steps{folds}")
    print(f"would write: {out}")


# --- ridge heads on a frozen backbone ---------------------------------------------------------------------------------


def ridge(recipe: RewardRecipe, out: Path, local: bool, dry_run: bool, command: str) -> None:
    """The algorithm of the closed form."""
    import numpy as np

    from actors.fitting import features_of
    from rhumbline.cards import card
    from rhumbline.fitting.frozen import describe, fit
    from rhumbline.fitting.labels import gather
    from rhumbline.learning.policy import resolve
    from rhumbline.rewards.features import identity
    from rhumbline.rewards.invariance import PROBES

    answers = gather(recipe)
    if dry_run:
        show(recipe, answers, out)
        return
    extracted = features_of(recipe, [*answers.pairs, *PROBES], local)
    features, lengths = zip(*extracted, strict=True)
    features_ND, probes_PD = np.split(np.concatenate(features), [len(answers.pairs)])
    lengths_N, probes_P = np.split(np.concatenate(lengths), [len(answers.pairs)])

    known = identity(resolve(recipe.backbone), recipe.trust_remote_code)
    heads, fits = fit(recipe, answers, features_ND, lengths_N, known)
    heads = heads.with_probes(heads.score(probes_PD, probes_P))
    told = describe(recipe, answers, heads, fits, features_ND, lengths_N, command)
    heads.save(out)
    card.write(out, told)
    print(card.markdown(told))
    print(f"heads: {out}")


def show(recipe: RewardRecipe, answers: Answers, out: Path) -> None:
    """Print the resolved recipe and what it would read and write."""
    import numpy as np

    print(dump(recipe))
    for source in recipe.ratings:
        print(f"{source}: " + ", ".join(f"{number} {what}" for what, number in answers.counts(source).items()))
    for head, labels_N in zip(recipe.heads(), answers.labels_NH.T, strict=True):
        rated = labels_N[~np.isnan(labels_N)]
        print(f"{head.name}: {len(rated)} labels, mean {rated.mean():.1f}, std {rated.std():.1f} of 0-100")
    print(f"would write: {out}")


KINDS: dict[str, Callable[[RewardRecipe, Path, bool, bool, str], None]] = {
    "ridge": ridge,
    "regression": network,
    "preference": network,
    "absolute": network,
    "comparer": network,
}


def _shown(recipe: Path) -> str:
    """A shipped recipe as one types it: no path of this machine goes into a card."""
    path = recipe.resolve()
    return str(path.relative_to(HERE.parent) if path.is_relative_to(HERE.parent) else path.name)


if __name__ == "__main__":
    typer.run(main)
