"""Who owns a run: one driver, named in status.json, alive as long as its heartbeat is fresh. The store holds a lease.

lease = take(path)                     # RunError while another driver lives; a dead one's run is taken over
lease.start()                          # a heartbeat every 10 s until release
lease.beat("iterations/t=1/rollouts", {"done": 3, "total": 10})
lease.release("done")

with held(path, "--out"):              # all of it: taken, beating, and let go with the state that the work ends in
    ...
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from rhumbline import durable
from rhumbline.errors import RunError

STATUS = "status.json"
GUARD = ".lock"
STALE_AFTER_S = 60.0  # without a heartbeat for this long, a driver counts as dead
BEAT_EVERY_S = 10.0

State = Literal["running", "done", "failed", "stopped"]


class Lease:
    """The right to write to one run directory. Made by `take`."""

    def __init__(self, path: Path, status: dict[str, Any]) -> None:
        self.path = path
        self._status = status
        self._writing = threading.Lock()
        self._stop = threading.Event()
        self._beats: threading.Thread | None = None

    def check(self) -> None:
        """Raises RunError where the lease is released or another driver has taken the run over."""
        holder = read_status(self.path)
        if self._status["state"] != "running":
            raise RunError(f"{self.path} was closed: open it again to write")
        if holder.get("token") != self._status["token"]:
            raise RunError(f"{self.path} was taken over by process {holder.get('pid')} on {holder.get('host')}")

    def beat(self, stage: str | None = None, progress: Mapping[str, float] | None = None) -> None:
        """Show that the driver lives and what it does. Raises RunError as `check` does."""
        self.check()
        with self._writing:
            if stage is not None:
                self._status |= {"stage": stage, "progress": {}}
            if progress:
                self._status["progress"] = dict(progress)
            self._write()

    def start(self) -> None:
        """Beat in the background until `release`."""
        self._beats = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._beats.start()

    def release(self, state: State, reason: str = "") -> None:
        """Write the final state and let go. A run that another driver has taken over is left alone."""
        self._stop.set()
        if self._beats is not None:
            self._beats.join()
            self._beats = None
        try:
            self.check()
        except RunError:
            return
        with self._writing:
            self._status |= {"state": state, "reason": reason}
            self._write()

    def _run(self) -> None:
        while not self._stop.wait(BEAT_EVERY_S):
            try:
                self.beat()
            except RunError:  # the driver itself meets the same at its next publish
                return

    def _write(self) -> None:
        self._status["heartbeat"] = time.time()
        # A heartbeat that a full disk swallows is not worth a run: the next shard will say so.
        with contextlib.suppress(OSError):
            durable.replace(self.path / STATUS, durable.to_json(self._status, indent=1).encode())


@contextmanager
def held(path: Path, instead: str = "--name") -> Iterator[Lease]:
    """Own a folder as long as the block lasts. Raises RunError while another driver lives; `instead` is as of `take`."""
    owner = take(path, instead)
    owner.start()
    try:
        yield owner
    except BaseException as e:
        stopped = isinstance(e, KeyboardInterrupt | SystemExit)
        owner.release("stopped" if stopped else "failed", "on request" if stopped else f"{type(e).__name__}: {e}")
        raise
    owner.release("done")


def take(path: Path, instead: str = "--name") -> Lease:
    """Become the owner of a run directory. RunError while another driver lives, OSError where it cannot be written.

    instead: the option of the command line that names another folder.
    """
    with (path / GUARD).open("wb") as guard:
        # Two drivers that find the same dead one must not both win. A file system without locks leaves the heartbeat.
        with contextlib.suppress(OSError):
            fcntl.flock(guard, fcntl.LOCK_EX)
        holder = read_status(path)
        if is_live(holder):
            raise RunError(
                f"{path} is in use by process {holder['pid']} on {holder['host']} "
                f"(heartbeat {time.time() - holder['heartbeat']:.0f} s ago): stop it first, or choose another {instead}"
            )
        status = {
            "state": "running",
            "stage": holder.get("stage", ""),
            "heartbeat": time.time(),
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "token": uuid.uuid4().hex,
        }
        durable.replace(path / STATUS, durable.to_json(status, indent=1).encode())
    return Lease(path, status)


def read_status(path: Path) -> dict[str, Any]:
    """status.json: state, stage, heartbeat (seconds since 1970), pid, host, progress; empty where there is none."""
    try:
        return durable.parse_json((path / STATUS).read_bytes()) or {}
    except FileNotFoundError:
        return {}


def is_live(status: Mapping[str, Any]) -> bool:
    """True where its driver may still write: running, a fresh heartbeat and, on this host, a living process."""
    silent_s = abs(time.time() - float(status.get("heartbeat") or 0.0))
    if status.get("state") != "running" or silent_s >= STALE_AFTER_S:
        return False
    if status.get("host") != socket.gethostname():
        return True  # its process cannot be asked
    try:
        os.kill(int(status["pid"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, as another user's
        return True
    return True
