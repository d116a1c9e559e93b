"""Finished runs as they lie on a disk, for whoever serves them: recipe, checkpoints, marks, scores, evaluations."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rhumbline.config import JOBS, validate
from rhumbline.store import RunStore
from tests.rhumbline.evaluation_fakes import evaluation, obedient
from tests.rhumbline.steering_fakes import contract

RAW: dict[str, Any] = {
    "name": "mine",
    "rewards": {
        "sources": [{"kind": "rules", "heads": {"a": {"rule": "verbosity"}, "b": {"rule": "verbosity"}}}],
        "objectives": {"helpfulness": {"heads": {"a": 1}}, "verbosity": {"heads": {"b": 1}, "sign": -1}},
    },
}


def weights(folder: Path) -> Path:
    """A folder that looks as if it held full weights; what is in them is `check_base`'s business."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder


def run(root: Path, *, last: int = 2, evaluated: bool = True, **changes: Any) -> Path:
    """A finished run of jobs/dpa.py with checkpoints 1..last, of a policy that obeys."""
    recipe = validate({**RAW, **changes}, "test", kind=JOBS[changes.get("job", "dpa")])
    with RunStore.create(root, recipe, resume=False, inputs={"reward model": "abc"}) as store:
        store.mark("rewards/calibration", contract().calibration)
        for t in range(1, last + 1):
            folder = weights(store.checkpoint_dir(t))
            if recipe.steered:
                contract(iteration=t).write(folder)
            store.mark(f"iterations/t={t}/learn", {"checkpoint": f"checkpoints/t={t}"})
            if evaluated:
                scored = obedient(quality=50 + t)
                store.publish(f"evaluation/t={t}/scores", 0, scored)
                store.mark(f"evaluation/t={t}", evaluation(t, scored).to_json())
    return store.path


def soup_run(root: Path, folders: Sequence[Path] | None = None) -> Path:
    """A finished run of jobs/soups.py with mixtures from helpfulness alone to both halves; `folders`: their weights, None: none
    that could be loaded, three times.
    """
    count = 3 if folders is None else len(folders)
    recipe = validate(
        {**RAW, "job": "soups", "train": "x.yaml", "initial": {"strategy": "none"}}, "test", kind=JOBS["soups"]
    )
    with RunStore.create(root, recipe, resume=False, inputs={"reward model": "abc"}) as store:
        store.mark("rewards/calibration", contract().calibration)
        for t, share in enumerate(np.linspace(1.0, 0.5, count).tolist(), 1):
            folder = store.checkpoint_dir(t)
            if folders is None:
                weights(folder)
            else:
                shutil.copytree(folders[t - 1], folder)
            shares = {"helpfulness": share, "verbosity": 1 - share}
            (folder / "soup.json").write_text(json.dumps({"weights": shares}))
            store.mark(f"iterations/t={t}/learn", {"checkpoint": f"checkpoints/t={t}", "weights": shares})
        scored = obedient(angles_deg=(-45.0, 0.0))
        store.publish("evaluation/mixtures/t=1/scores", 0, scored[:40])
        store.publish("evaluation/mixtures/t=2/scores", 0, scored[40:])
        store.mark("evaluation/soup", evaluation(0, scored).to_json())
    return store.path
