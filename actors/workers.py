"""Workers: what each rank of a Ray Train run does, from the data that it is handed the path of to the checkpoint of rank 0.

    worker({"loop": "policy", "settings": {...}, "data": "train/t1.data", "out_dir": "checkpoints/t=1", ...})

The loops are the library's; `LOOPS` says what each is called with. Steps go to a file, states to Ray Train, and a fault that
every attempt would meet to another file: `actors.trainer` reads them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from actors import probes
from rhumbline import config, durable, tables
from rhumbline.errors import TrainingError, UserError
from rhumbline.records import Example, Judged, Pair

RESULT = "training.json"
COLLECTIVE_TIMEOUT_S = 600  # torch waits 1800 s for a rank that is dead


def environment(learner: config.Learner) -> dict[str, str]:
    """Of a worker's process, before torch is imported."""
    env = {"TOKENIZERS_PARALLELISM": "false"}
    if learner.threads is not None:
        env["OMP_NUM_THREADS"] = str(learner.threads)  # Ray sets it from num_cpus
    if learner.engine == "deepspeed" and learner.num_gpus == 0:
        env["DS_ACCELERATOR"] = "cpu"
    return env


def worker(handed: dict[str, Any]) -> None:
    """One rank. A fault of the recipe, the data or a node would meet every attempt: it is left for the driver."""
    import ray.train

    context, failure = ray.train.get_context(), Path(handed["failure"])
    if failure.is_file():  # an attempt before this one left it: end, so that the driver reads it
        return
    try:
        _train(handed, context.get_world_rank())
    except (UserError, TrainingError) as e:
        durable.replace(failure, json.dumps({"kind": type(e).__name__, "message": str(e)}).encode())
        if context.get_world_size() > 1:  # the others may wait for this rank within a collective
            raise


def _train(handed: dict[str, Any], rank: int) -> None:
    """Rank 0 writes the checkpoint, and what its loop adds to it, under a temporary name and renames it."""
    import ray.train

    out = Path(handed["out_dir"])
    if (out / RESULT).is_file():  # an earlier driver got this far and died before it could say so
        return
    unfinished = out.with_name(f".{out.name}{durable.TEMPORARY}")
    resume = ray.train.get_checkpoint()
    learner = config.Learner.model_validate(handed["learner"])
    with ExitStack() as stack:
        where = {
            "out_dir": unfinished,
            "seed": handed["seed"],
            "rank": rank,
            "world_size": ray.train.get_context().get_world_size(),
            "resume_from": None if resume is None else stack.enter_context(resume.as_directory()),
            "report": _report(Path(handed["steps"]) if rank == 0 else None, learner.checkpoint_every),
        }
        result = LOOPS[handed["loop"]](handed["settings"], Path(handed["data"]), learner, where)
    if rank == 0:
        shutil.rmtree(unfinished / "steps", ignore_errors=True)
        (unfinished / RESULT).write_text(json.dumps(result, default=str), encoding="utf-8")
        shutil.rmtree(out, ignore_errors=True)
        unfinished.rename(out)


def _policy(settings: dict[str, Any], data: Path, learner: config.Learner, where: dict[str, Any]) -> dict[str, Any]:
    from rhumbline.learning.train import fit

    examples = [row for row in tables.from_parquet(data.read_bytes()) if isinstance(row, Example)]
    result = fit(examples, learner=learner, **settings, **where)
    if where["rank"] == 0:
        _probe(settings, where, examples)
    return asdict(result)


def _preferences(
    settings: dict[str, Any], data: Path, learner: config.Learner, where: dict[str, Any]
) -> dict[str, Any]:
    from rhumbline.learning.preferences import fit_preferences

    rows = tables.from_parquet(data.read_bytes())
    pairs, judged = [r for r in rows if isinstance(r, Pair)], [r for r in rows if isinstance(r, Judged)]
    loss = config.PreferenceLoss.model_validate(settings.pop("loss"))
    result = fit_preferences(pairs or judged, learner=learner, loss=loss, **settings, **where)
    if where["rank"] == 0:
        told = [(pair.id, pair.messages, pair.chosen, pair.chosen_complete) for pair in pairs]
        told += [(one.id, one.messages, one.response, one.complete) for one in judged]
        examples = [Example(id=i, messages=m, response=text, complete=whole) for i, m, text, whole in told]
        _probe(settings, where, examples)
    return asdict(result)


def _probe(settings: dict[str, Any], where: dict[str, Any], examples: Sequence[Example]) -> None:
    start = probes.started_from(settings["policy_dir"], settings["adapter_dir"])
    probes.write(where["out_dir"], examples, start, settings["trust_remote_code"])


def _rewards(
    settings: dict[str, Any],
    data: Path,
    learner: config.Learner,  # noqa: ARG001  the recipe holds it
    where: dict[str, Any],
) -> dict[str, Any]:
    from rhumbline.fitting.recipe import RewardRecipe
    from rhumbline.fitting.results import finish
    from rhumbline.fitting.task import load
    from rhumbline.fitting.training import fit, told

    task, recipe = load(data), RewardRecipe.model_validate(settings["recipe"])
    result = fit(task, recipe=recipe, **where)
    if where["rank"] == 0:
        finish(task, recipe, where["out_dir"])
    return told(result)


LOOPS: dict[str, Callable[[dict[str, Any], Path, config.Learner, dict[str, Any]], dict[str, Any]]] = {
    "policy": _policy,
    "preferences": _preferences,
    "rewards": _rewards,
}


def _report(steps: Path | None, checkpoint_every: int) -> Callable[[dict[str, Any], Path | None], None]:
    """Every step goes to a file that the driver reads, only checkpoints to Ray Train.

    `ray.train.report` returns when the controller has looked, about once a second: at every step it would be a brake.
    """

    def report(figures: dict[str, Any], folder: Path | None) -> None:
        import ray.train

        step, total = figures["learn/step"], figures["learn/steps"]
        if steps is not None:
            with steps.open("a", encoding="utf-8") as file:
                file.write(json.dumps(figures) + "\n")
        if step % checkpoint_every == 0 and step < total:
            # A barrier: every rank has to be here, also one that wrote nothing.
            checkpoint = None if folder is None else ray.train.Checkpoint.from_directory(str(folder))
            ray.train.report(figures, checkpoint=checkpoint)

    return report
