"""A job's life on a Ray cluster: find or start it, stop when asked to, leave nothing behind.

    with session() as have:                # the cluster of `ray job submit`, of RAY_ADDRESS, else one of its own
        have["CPU"]                        # what it has in all
        nodes()                            # [{'CPU': 64.0, 'GPU': 8.0, ...}, ...]

SIGTERM (`ray job stop`) and SIGINT (Ctrl-C) raise `Stopped` at once, and the process ends with 143 or 130. What is recorded
is safe, so the same command with `--resume` goes on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

import ray

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_IN_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set for the driver by Ray's job supervisor


class Stopped(SystemExit):
    """Somebody asked the job to stop. No `Exception`, so that nothing that retries swallows it."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)  # as shells have it
        self.signum = signum

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.signum).name}"


@contextlib.contextmanager
def session(
    *, address: str | None = None, num_cpus: float | None = None, dashboard: bool = True, log_to_driver: bool = False
) -> Iterator[Mapping[str, float]]:
    """Connect, take the signals, and disconnect at the end; yields the cluster's resources.

    `address` None: the job's cluster, else RAY_ADDRESS, else a new local cluster with `num_cpus` (None: all). It never
    attaches to a cluster that merely happens to run on this machine. `log_to_driver`: show what actors print.
    ConnectionError where no cluster answers at the address.
    """
    start(address=address, num_cpus=num_cpus, dashboard=dashboard, log_to_driver=log_to_driver)
    came: list[int] = []
    try:
        with _signals(came):
            yield resources()
    except (SystemExit, KeyboardInterrupt):
        if not came:
            raise
        # Within ray.get and ray.wait, Ray puts a SystemExit(1) of its own in the place of ours.
        stopped = Stopped(came[0])
        print(f"{stopped}: what is finished is recorded, and the same command with --resume goes on", file=sys.stderr)
        raise stopped from None
    finally:
        ray.shutdown()


def start(
    *, address: str | None = None, num_cpus: float | None = None, dashboard: bool = True, log_to_driver: bool = False
) -> None:
    """`ray.init` for a job, without the signals: see `session`."""
    wanted = address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"log_to_driver": log_to_driver, "namespace": "rhumbline"}
    if wanted in (None, "", "local") and _IN_JOB not in os.environ:
        # Ray 2.60 switches authentication on for local clusters and leaves a token in the home folder: say it.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        options |= {"address": "local", "num_cpus": num_cpus, "include_dashboard": dashboard}
    else:
        options["address"] = wanted or "auto"
    try:
        _answers(str(options["address"]))
        ray.init(**options)
    except (ConnectionError, OSError) as e:
        raise ConnectionError(
            f"no Ray cluster answers at {options['address']}: {e}. Start one (`ray start --head`), correct "
            "RAY_ADDRESS, or unset it for a cluster of this job's own"
        ) from e


def _answers(address: str) -> None:
    """OSError where nothing listens at `host:port`: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=5.0).close()


def resources() -> dict[str, float]:
    """What the cluster has in all: {'CPU': 2.0, 'memory': ...}."""
    cluster: Any = ray  # the function is untyped
    return {str(kind): float(amount) for kind, amount in cluster.cluster_resources().items()}


def nodes() -> list[dict[str, float]]:
    """What each living node has in all."""
    cluster: Any = ray  # the function is untyped
    return [
        {str(kind): float(amount) for kind, amount in node["Resources"].items()}
        for node in cluster.nodes()
        if node["Alive"]
    ]


@contextlib.contextmanager
def _signals(came: list[int]) -> Iterator[None]:
    """Note and raise a signal; after `ray.init`, which installs its own handler for SIGTERM. In a thread nothing is installed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(signum: int, _: FrameType | None) -> None:
        came.append(signum)
        raise Stopped(signum)

    before = {signum: signal.signal(signum, handle) for signum in _SIGNALS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler if handler is not None else signal.SIG_DFL)
