"""A training's state on disk: written every few steps, found again after a kill, refused by another training.

    which = identity({"lr": 1e-4, "seed": 7}, (repr(sample) for sample in samples))
    state = resume(engine, folder, which)          # {"step": 40, ...}, or step 0 without a folder
    folder = write(engine, "out/steps", {**state, "step": 50}, which, world)

Weights and the optimiser's state are the engine's; the step and whatever else the loop carries are in state.json, which is
written last. Under every train loop of the library.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rhumbline import durable
from rhumbline.errors import TrainingError
from rhumbline.learning.engine import DeepSpeedEngine, Engine, World

STATE = "state.json"
# What may differ between a training and its continuation: without dropout in the adapter (learner.lora.dropout) the update
# depends on none of them. Its random numbers fall differently on another division into workers and micro-batches.
FREE = {
    "num_workers",
    "num_cpus",
    "num_gpus",
    "threads",
    "micro_batch_tokens",
    "gradient_checkpointing",
    "checkpoint_every",
    "max_failures",
}


def write(
    engine: Engine, parent: str | Path, state: Mapping[str, Any], which: str, world: World, extra: Path | None = None
) -> Path | None:
    """Write a step's state; the one before goes once this one is complete. None where this worker wrote nothing.

    Under torch rank 0 writes, under DeepSpeed every rank its shard. `extra`: a file that goes with it under its own name.
    """
    folder = Path(parent) / f"{state['step']:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    engine.save(folder)
    if world.rank == 0:
        if extra is not None:
            shutil.copyfile(extra, folder / extra.name)
        durable.replace(folder / STATE, durable.to_json({**state, "identity": which}).encode())
        for old in folder.parent.iterdir():
            if old.name < folder.name:
                shutil.rmtree(old, ignore_errors=True)
    return folder if world.rank == 0 or isinstance(engine, DeepSpeedEngine) else None


def resume(engine: Engine, folder: str | Path | None, which: str) -> dict[str, Any]:
    """The state in `folder`, its weights and the optimiser's put into `engine`; {"step": 0} where `folder` is None.

    Raises TrainingError for a folder that holds none, and for one of another training.
    """
    if folder is None:
        return {"step": 0}
    try:
        state: dict[str, Any] = json.loads((Path(folder) / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise TrainingError(f"{folder} is no checkpoint to go on from: {e}") from e
    if state.get("identity") != which:
        raise TrainingError(
            f"{folder} belongs to a training with other examples, another seed or other learner settings: start "
            "afresh, or put them back"
        )
    engine.load(Path(folder))
    return state


def latest(parent: str | Path) -> Path | None:
    """The newest complete checkpoint under `parent`."""
    folders = Path(parent).glob(f"*/{STATE}")
    return max((file.parent for file in folders), key=lambda folder: folder.name, default=None)


def identity(settings: Any, samples: Iterable[str]) -> str:
    """A hash of what a training depends on: its settings as plain data, and its samples in order."""
    digest = hashlib.sha256()
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for sample in samples:
        digest.update(sample.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
