"""Learner: one training run to completion as a Ray Train `TorchTrainer` around a train loop of the library.

    figures = learn(examples, recipe.learner, policy_dir=initial, out_dir="checkpoints/t=1", name="smol-t1",
                    storage="train", seed=7)
    figures["final_loss"]                  # out_dir is in Hugging Face layout, with the probe that weight syncs ask for
    learn_rewards(task, recipe, out_dir="rewards/mine", name="mine", storage="train", seed=0)    # a reward network

Any number of workers (gloo on CPUs, NCCL on GPUs), torch or DeepSpeed. A killed worker restarts the group from its last
committed checkpoint; a killed driver finds the run again by its name and goes on from there. Ray Train commits a
checkpoint a moment after it was reported, so steps may be made twice: they come out the same.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, Unpack

from actors.trainer import Steps, fit, raise_left
from actors.workers import RESULT
from rhumbline import config, durable, tables
from rhumbline.errors import DataError
from rhumbline.records import Example, Judged, Pair

if TYPE_CHECKING:
    from rhumbline.fitting.recipe import RewardRecipe
    from rhumbline.fitting.task import Task

SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's


class Kept(TypedDict):
    """What every training is told besides what it learns."""

    out_dir: str | Path  # published atomically
    name: str  # with `storage`: how a run finds its state again, so never use them for another run
    storage: str | Path
    seed: int
    on_step: NotRequired[Callable[[dict[str, Any]], None] | None]  # gets every step's figures as they come


def learn(
    examples: Sequence[Example],
    learner: config.Learner,
    *,
    policy_dir: str | Path,
    adapter_dir: str | Path | None = None,
    teacher_dir: str | Path | None = None,
    trust_remote_code: bool = False,
    **kept: Unpack[Kept],
) -> dict[str, Any]:
    """Train and publish `out_dir`; returns `TrainResult` as a dict. Idempotent: a finished run is found again.

    `policy_dir` holds the weights that training starts from, `adapter_dir` a LoRA of them to go on with, `teacher_dir`
    the frozen teacher: names that every node resolves, or absolute paths on storage that they share. Raises the worker's
    own error, where it is one of ours, else TrainingError.
    """
    if not examples:
        raise DataError(
            f"{kept['name']}: nothing was selected, so there is nothing to learn from. Sample more (samples, prompts.limit), or "
            "keep more (selection)"
        )
    return _complete(
        "policy",
        {
            **_started_from(policy_dir, adapter_dir, trust_remote_code),
            "teacher_dir": None if teacher_dir is None else str(teacher_dir),
        },
        learner,
        lambda file: durable.replace(file, tables.to_parquet(list(examples))),
        **kept,
    )


def learn_preferences(
    samples: Sequence[Pair] | Sequence[Judged],
    loss: config.PreferenceLoss,
    learner: config.Learner,
    *,
    objectives: Sequence[str],
    policy_dir: str | Path,
    adapter_dir: str | Path | None = None,
    trust_remote_code: bool = False,
    **kept: Unpack[Kept],
) -> dict[str, Any]:
    """The same for DPO and its kin on pairs, KTO and BCO on judged answers. The reference is what training starts from."""
    if not samples:
        raise DataError(
            f"{kept['name']}: no pair is left to learn from. Lower gap, sample more (samples, prompts.limit), or give other pairs"
        )
    return _complete(
        "preferences",
        {
            **_started_from(policy_dir, adapter_dir, trust_remote_code),
            "loss": loss.model_dump(mode="json"),
            "objectives": list(objectives),
        },
        learner,
        lambda file: durable.replace(file, tables.to_parquet(list(samples))),
        **kept,
    )


def learn_rewards(task: Task, recipe: RewardRecipe, **kept: Unpack[Kept]) -> dict[str, Any]:
    """The same for a reward network: returns `fitting.training.FitResult` as a dict, without its paths; `out_dir` has its
    schema, and what it gives to held-out inputs (`fitting.results.finish`). The backbone is a name that every node resolves.
    """
    from rhumbline.fitting.task import save

    return _complete(
        "rewards",
        {"recipe": recipe.model_dump(mode="json")},
        recipe.learner,
        lambda file: save(task, file),
        **kept,
    )


def _started_from(policy_dir: str | Path, adapter_dir: str | Path | None, trust_remote_code: bool) -> dict[str, Any]:
    return {
        "policy_dir": str(policy_dir),
        "adapter_dir": None if adapter_dir is None else str(Path(adapter_dir).resolve()),
        "trust_remote_code": trust_remote_code,
    }


def _complete(
    loop: str,
    settings: dict[str, Any],
    learner: config.Learner,
    write_data: Callable[[Path], None],
    *,
    out_dir: str | Path,
    name: str,
    storage: str | Path,
    seed: int,
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Run one of `actors.workers.LOOPS` to its end, or find that an earlier driver has; see `learn`."""
    out, storage = Path(out_dir).resolve(), Path(storage).resolve()
    data, steps, failure = (storage / f"{name}.{end}" for end in ("data", "steps.jsonl", "failure.json"))
    if not (out / RESULT).is_file():
        storage.mkdir(parents=True, exist_ok=True)
        write_data(data)  # a path, not a pickle: workers read it themselves
        for stale in (steps, failure):
            stale.unlink(missing_ok=True)
        handed = {
            "loop": loop,
            "settings": settings,
            "data": str(data),
            "steps": str(steps),
            "failure": str(failure),
            "learner": learner.model_dump(mode="json"),
            "out_dir": str(out),
            "seed": seed,
        }
        snapshot = storage / name / SNAPSHOT
        if snapshot.is_file() and durable.parse_json(snapshot.read_bytes()) is None:
            # Ray Train rewrites it in place: torn by a kill or a full disk, it would refuse every attempt to go on.
            shutil.rmtree(storage / name, ignore_errors=True)
        with Steps(name, steps, on_step) as watched:
            fit(handed, learner, name, storage, watched.look)
        raise_left(failure)
    result: dict[str, Any] = json.loads((out / RESULT).read_text(encoding="utf-8"))
    shutil.rmtree(storage / name, ignore_errors=True)  # the optimiser's state: not needed any more, and large
    for file in (data, steps):
        file.unlink(missing_ok=True)
    return result
