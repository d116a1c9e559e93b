"""A cluster to serve on: the one that runs, which keeps serving, or one of this process's own, until it is told to stop.

with standing() as own:                # own: nobody else is here, and all of it goes when this ends
    ...
    if own:
        wait()                         # Ctrl-C or SIGTERM
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import ray
from ray import serve

from cluster import session

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def standing() -> Iterator[bool]:
    """Connect as jobs do (cluster.session); a cluster of our own is taken down at the end, requests under way first.

    Yields whether it is our own. Raises ConnectionError where no cluster answers at RAY_ADDRESS.
    """
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")  # a line per request; the replicas' files have them
    session.start(dashboard=False)
    own = is_own()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # `roll_out` says what happens
    try:
        yield own
    finally:
        if own:
            served: Any = serve  # the function is untyped
            with contextlib.suppress(Exception):  # what is left dies with the cluster
                served.shutdown()
        ray.shutdown()


def is_own() -> bool:
    """Whether `cluster.session.start` starts a cluster here rather than joining one."""
    return os.environ.get("RAY_ADDRESS") in (None, "", "local") and "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ


def wait() -> None:
    """Until SIGTERM or SIGINT."""
    told = threading.Event()

    def tell(_signum: int, _frame: Any) -> None:
        told.set()

    before = {signum: signal.signal(signum, tell) for signum in _SIGNALS}
    try:
        while not told.wait(1.0):  # a wait without an end would hold signals back
            pass
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler if handler is not None else signal.SIG_DFL)


def room(update: str) -> dict[str, float]:
    """Resources that an update may count on: those that nobody holds now, or all where what runs stops first (replace)."""
    cluster: Any = ray  # the function is untyped
    found = session.resources() if update == "replace" else cluster.available_resources()
    return {str(kind): float(amount) for kind, amount in found.items()}
