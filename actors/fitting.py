"""What jobs/reward.py asks of machines: networks trained and features read, by Ray or in this process alone.

    with training(recipe, local=False) as train:                     # Ray is started, and asked for room, once
        folder, result = train(task, work, "mine", log_to(work / "metrics.jsonl"))
    for features, lengths in features_of(recipe, pairs, local=True):
        ...

What was trained in one way is found and gone on with in the same way: by its name, which holds a hash of recipe and data.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.workers import RESULT
from rhumbline.fitting.recipe import RewardRecipe

if TYPE_CHECKING:
    from rhumbline.fitting.task import Task
    from rhumbline.rewards.features import Pair


Log = Callable[[dict[str, Any]], None]  # takes the figures of a step
# Task, folder to work in, name, where the steps go -> checkpoint, result.
Train = Callable[["Task", Path, str, Log], tuple[Path, dict[str, Any]]]


@contextmanager
def training(recipe: RewardRecipe, local: bool) -> Iterator[Train]:
    """The function that trains one network: in this process, or on Ray, which is started and asked for room once."""
    if local:
        yield partial(_train_here, recipe)
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
        yield partial(_train_on_ray, recipe)


def _train_on_ray(recipe: RewardRecipe, task: Task, work: Path, name: str, log: Log) -> tuple[Path, dict[str, Any]]:
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


def _train_here(recipe: RewardRecipe, task: Task, work: Path, name: str, log: Log) -> tuple[Path, dict[str, Any]]:
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

        def report(figures: dict[str, Any], checkpoint: Path | None) -> None:  # noqa: ARG001  the interface's
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


# --- features ----------------------------------------------------------------------------------------------------------


def features_of(recipe: RewardRecipe, pairs: list[Pair], local: bool) -> Iterator[Any]:
    """Features and lengths of answers under the recipe's frozen backbone, shard by shard in their order."""
    return (_extract_here if local else _extract_on_ray)(recipe, pairs)


def _shards(recipe: RewardRecipe, pairs: list[Pair]) -> list[list[Pair]]:
    """Units of work."""
    size = recipe.extraction.shard
    return [pairs[i : i + size] for i in range(0, len(pairs), size)]


def _extract_here(recipe: RewardRecipe, pairs: list[Pair]) -> Iterator[Any]:
    """Features of each shard, in order, by this process."""
    from rhumbline.rewards.features import Extractor

    extractor = Extractor(**_extractor(recipe))
    extractor.setup()
    done = 0
    for shard in _shards(recipe, pairs):
        yield extractor.features(shard)
        done += len(shard)
        print(f"features  {done}/{len(pairs)} answers", flush=True)


def _extract_on_ray(recipe: RewardRecipe, pairs: list[Pair]) -> Iterator[Any]:
    """The same by a pool of actors."""
    from actors.pool import Failed, Pool
    from actors.progress import Progress
    from cluster import placement
    from cluster.session import nodes, session
    from rhumbline.errors import ResourceError, ScoringError
    from rhumbline.rewards.features import Extractor

    wanted, units = recipe.extraction, _shards(recipe, pairs)
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
