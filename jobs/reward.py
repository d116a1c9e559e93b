#!/usr/bin/env python
"""Train a reward model of any kind that a recipe names.

ray job submit --working-dir . -- python jobs/reward.py --recipe jobs/recipes/rewards/oasst.yaml
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

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rhumbline.cli import user_errors
from rhumbline.config import dump
from rhumbline.fitting.recipe import RewardRecipe, load

if TYPE_CHECKING:
    from rhumbline.fitting.labels import Answers
    from rhumbline.fitting.task import Task
    from rhumbline.rewards.features import Pair

HERE = Path(__file__).resolve().parent
RESULT = "training.json"


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
    with ready(recipe, local) as train:
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


Log = Callable[[dict[str, Any]], None]  # takes the figures of a step
# Task, folder to work in, name, where the steps go -> checkpoint, result.
Train = Callable[["Task", Path, str, Log], tuple[Path, dict[str, Any]]]


@contextmanager
def ready(recipe: RewardRecipe, local: bool) -> Iterator[Train]:
    """The function that trains one network: in this process, or on Ray, which is started and asked for room once."""
    if local:
        yield partial(train_here, recipe)
        return
    from cluster import placement
    from cluster.session import nodes, session
    from rhumbline.errors import ResourceError

    wanted = recipe.learner
    rows = [("learner", wanted.num_workers, wanted.num_cpus, wanted.num_gpus)]
    with session() as have:
        missing = [*placement.lacking(have, placement.totals(rows)), *placement.too_large(nodes(), rows)]
        if missing:
            raise ResourceError(f"the cluster lacks what the recipe asks for (learner): {'; '.join(missing)}")
        yield partial(train_on_ray, recipe)


def train_on_ray(recipe: RewardRecipe, task: Task, work: Path, name: str, log: Log) -> tuple[Path, dict[str, Any]]:
    """By Ray Train. The data and the recipe are in the run's name: another one starts afresh."""
    from actors.learner import learn_rewards
    from rhumbline.fitting.training import identity

    run = f"{name}-{identity(recipe, task, recipe.seed)[:12]}"
    work.mkdir(parents=True, exist_ok=True)
    result = learn_rewards(
        task,
        recipe,
        out_dir=work / f"{run}-model",
        name=run,
        storage=work,
        seed=recipe.seed,
        on_step=log,
    )
    return work / f"{run}-model", result


def train_here(recipe: RewardRecipe, task: Task, work: Path, name: str, log: Log) -> tuple[Path, dict[str, Any]]:
    """The same by this process alone."""
    from rhumbline.durable import replace, to_json
    from rhumbline.errors import ConfigError
    from rhumbline.fitting.results import finish
    from rhumbline.fitting.training import fit, identity, told
    from rhumbline.learning.checkpoints import latest

    if recipe.learner.num_workers > 1:
        raise ConfigError("--local is one worker: set learner.num_workers=1, or leave --local out")
    folder = work / f"{name}-{identity(recipe, task, recipe.seed)[:12]}-model"
    if not (folder / RESULT).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        said = [time.monotonic()]

        def report(figures: dict[str, Any], checkpoint: Path | None) -> None:  # noqa: ARG001
            log(figures)
            step, steps = figures["learn/step"], figures["learn/steps"]
            if step == steps or time.monotonic() - said[0] > 5:
                said[0] = time.monotonic()
                print(f"{name} learn  {step}/{steps} steps  loss {figures['learn/loss']:.3f}", flush=True)

        result = fit(
            task,
            recipe=recipe,
            out_dir=folder,
            seed=recipe.seed,
            resume_from=latest(folder / "steps"),
            report=report,
        )
        finish(task, recipe, folder)
        shutil.rmtree(folder / "steps", ignore_errors=True)  # a kill until here goes on from the last one
        replace(folder / RESULT, to_json(told(result)).encode())
    return folder, json.loads((folder / RESULT).read_text(encoding="utf-8"))


def log_to(path: Path, fold: int | None = None) -> Log:
    """Every step goes to `path`; those of a fold with its number."""
    from rhumbline.metrics import MetricsLog

    log = MetricsLog(path)

    def step(figures: dict[str, Any]) -> None:
        log.log(int(figures["learn/step"]), figures if fold is None else {**figures, "learn/fold": fold})

    return step


def keep_steps(path: Path, to: Path) -> None:
    """The steps as they are published, each once: what a kill made be made again is in `path` twice. `path` stays until all is
    done: a kill after this comes here again.
    """
    from rhumbline import durable

    steps = {(line.get("learn/fold"), line["step"]): line for line in durable.read(path)}
    durable.replace(to, "".join(durable.to_json(line) + "\n" for line in steps.values()).encode())


def finished(out: Path, which: str) -> bool:
    """Is the reward model in `out` the one that would come out?"""
    try:
        result = json.loads((out / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (out / "card.json").is_file() and result.get("identity") == which


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
    extracted = (extract_here if local else extract_on_ray)(recipe, [*answers.pairs, *PROBES])
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


def shards(recipe: RewardRecipe, pairs: list[Pair]) -> list[list[Pair]]:
    """Units of work."""
    size = recipe.extraction.shard
    return [pairs[i : i + size] for i in range(0, len(pairs), size)]


def extract_here(recipe: RewardRecipe, pairs: list[Pair]) -> Iterator[Any]:
    """Features of each shard, in order, by this process."""
    from rhumbline.rewards.features import Extractor

    extractor = Extractor(**_extractor(recipe))
    extractor.setup()
    done = 0
    for shard in shards(recipe, pairs):
        yield extractor.features(shard)
        done += len(shard)
        print(f"features  {done}/{len(pairs)} answers", flush=True)


def extract_on_ray(recipe: RewardRecipe, pairs: list[Pair]) -> Iterator[Any]:
    """The same by a pool of actors."""
    from actors.pool import Failed, Pool
    from actors.progress import Progress
    from cluster import placement
    from cluster.session import nodes, session
    from rhumbline.errors import ResourceError, ScoringError
    from rhumbline.rewards.features import Extractor

    wanted, units = recipe.extraction, shards(recipe, pairs)
    rows = [("extractor", wanted.replicas, wanted.num_cpus, wanted.num_gpus)]
    with session() as have:
        missing = [*placement.lacking(have, placement.totals(rows)), *placement.too_large(nodes(), rows)]
        if missing:
            raise ResourceError(f"the cluster lacks what the recipe asks for (extraction): {'; '.join(missing)}")
        pool = Pool(
            Extractor,
            _extractor(recipe),
            role="extractor",
            replicas=wanted.replicas,
            num_cpus=wanted.num_cpus,
            num_gpus=wanted.num_gpus,
            deadline_s=wanted.deadline_s,
        )
        with pool, Progress("features", len(pairs), run=recipe.name, unit="answers") as progress:
            for i, result in pool.map("features", ((i, (unit,)) for i, unit in enumerate(units))):
                if isinstance(result, Failed):
                    raise ScoringError(f"the features of shard {i} failed {result.attempts} times: {result.error}")
                yield result
                progress.advance(len(units[i]))


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


def _extractor(recipe: RewardRecipe) -> dict[str, Any]:
    from rhumbline.fitting.frozen import spec_of

    wanted = recipe.extraction
    return {
        "folder": recipe.backbone,
        "spec": spec_of(recipe),
        "token_budget": wanted.token_budget,
        "threads": wanted.threads,
        "trust_remote_code": recipe.trust_remote_code,
    }


def _shown(recipe: Path) -> str:
    """A shipped recipe as one types it: no path of this machine goes into a card."""
    path = recipe.resolve()
    return str(path.relative_to(HERE.parent) if path.is_relative_to(HERE.parent) else path.name)


if __name__ == "__main__":
    typer.run(main)
