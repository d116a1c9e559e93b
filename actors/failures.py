"""Actors that Ray never starts again by itself, and what it means when one of them fails: lost, or an error raised on purpose.

handle = ray.remote(Scorer).options(**once(num_cpus=1, num_gpus=0, env={})).remote(...)
try:
    ray.get(handle.score.remote(batch))
except LOST as e:                      # whoever owns the actor decides whether a new one takes its place
    print(one_line(e))
except RayTaskError as e:
    raise (ours(e) or e) from e
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError, WorkerCrashedError

from rhumbline.errors import RhumblineError, UserError

# The actor is gone, or what it answered: of the call itself they say nothing.
LOST = (RayActorError, NodeDiedError, ObjectLostError, OutOfMemoryError, WorkerCrashedError)


def once(*, num_cpus: float, num_gpus: float, env: Mapping[str, str]) -> dict[str, Any]:
    """Options of an actor that is neither restarted nor asked again by Ray: retries are its owner's."""
    return {
        "num_cpus": num_cpus,
        "num_gpus": num_gpus,
        "max_restarts": 0,
        "max_task_retries": 0,
        "runtime_env": {"env_vars": dict(env)},
    }


def ours(error: BaseException) -> BaseException | None:
    """What an actor's method raised on purpose, as it was raised; None for any other error."""
    cause = getattr(error, "cause", None)
    return type(cause)(*cause.args) if isinstance(cause, RhumblineError | UserError) else None


def one_line(error: BaseException) -> str:
    """For people: its kind, and the first line of what it says."""
    said = str(error).strip()
    return f"{type(error).__name__}: {said.splitlines()[0] if said else 'no reason given'}"
