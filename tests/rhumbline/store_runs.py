"""Run directories for tests: new ones, those of a killed driver, and those of a driver elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from rhumbline.config import Recipe, validate
from rhumbline.records import Message, Prompt
from rhumbline.store import RunStore

STAGE = "iterations/t=1/rollouts"


def recipe(**changes: Any) -> Recipe:
    raw: dict[str, Any] = {
        "name": "run",
        "rewards": {
            "sources": [{"kind": "rules", "heads": {"length": {"rule": "verbosity"}, "other": {"rule": "verbosity"}}}],
            "objectives": {"a": {"heads": {"length": 1}}, "b": {"heads": {"other": 1}}},
        },
    }
    return validate(raw | changes, "test")


def prompts(*ids: str) -> list[Prompt]:
    return [Prompt(id=i, messages=(Message(role="user", content=f"Why {i}?"),)) for i in ids]


def kill(store: RunStore) -> None:
    """What a killed driver leaves: a run that says it goes on, of a process that is gone."""
    status = store.status() | {"pid": dead_pid()}
    (store.path / "status.json").write_text(json.dumps(status))


def dead_pid() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def resume(store: RunStore, **changes: Any) -> RunStore:
    return RunStore.create(store.path.parent, recipe(**changes), resume=True)


def set_status(store: RunStore, **changes: Any) -> None:
    (store.path / "status.json").write_text(json.dumps(store.status() | changes))
