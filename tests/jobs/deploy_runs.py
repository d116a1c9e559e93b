"""Deployments as a person starts them: jobs/deploy.py on a Ray cluster of the test's own, vLLM with the embedded model.

with cluster(tmp_path, cpus=3) as one, one.deploy("embedded", "name=m", ...) as job: ...
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.jobs.dpa_runs import ROOT, environment

WAIT_S = 900.0  # for what takes a minute on a machine that has nothing else to do
# Small, and ready soon: the settings of a policy whose answers nobody judges.
QUICK = [
    "policy.engine={max_model_len: 512, max_num_seqs: 16, enforce_eager: true}",
    "policy.env={VLLM_CPU_CI_ENV: '1'}",
    "rewards.recipe=smol",
    "limits={requests_per_minute: 1.0e+6, burst: 100000, max_concurrent: 1000, deadline_s: 240}",
]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass(frozen=True)
class Cluster:
    """A Ray head that serves, and where its API is."""

    address: str  # of Ray
    port: int  # of HTTP
    folder: Path

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def keys(self) -> Path:
        return self.folder / "keys.json"

    def deploy(self, source: str, *arguments: str, timeout: float = WAIT_S) -> subprocess.CompletedProcess[str]:
        """Run jobs/deploy.py against this cluster until it comes back."""
        own = [f"http.port={self.port}", f"keys={self.keys}", f"users.url=sqlite:///{self.folder}/users.db"]
        return subprocess.run(
            [sys.executable, "jobs/deploy.py", source, *own, *QUICK, *arguments],
            cwd=ROOT,
            env={**environment(), "RAY_ADDRESS": self.address},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def key(self, name: str = "test") -> str:
        done = self.deploy("embedded", "--new-key", name)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@contextlib.contextmanager
def cluster(folder: Path, cpus: float) -> Iterator[Cluster]:
    """Ray in processes of its own, which all are gone afterwards. The caller's process is connected to it."""
    import ray

    ports = {name: free_port() for name in ("port", "ray-client-server-port", "dashboard-agent-listen-port")}
    temp = Path(f"/tmp/rt{os.getpid()}")  # short: Unix sockets lie below it
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--num-cpus={cpus:g}"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    command += [f"--temp-dir={temp}", "--include-dashboard=false", "--disable-usage-stats"]
    command += ["--min-worker-port=0", "--max-worker-port=0"]
    log = folder / "ray.log"
    with log.open("w") as file:
        head = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    address = f"127.0.0.1:{ports['port']}"
    try:
        until(lambda: _listens(ports["port"]), "Ray", lambda: log.read_text())
        ray.init(address=address, namespace="rhumbline", log_to_driver=False, configure_logging=False)
        yield Cluster(address, free_port(), folder)
    finally:
        ray.shutdown()
        for pid in (*descendants(head.pid), head.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        head.wait(60)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2):
        return True
    return False


def descendants(root: int) -> list[int]:
    """Processes below one, the nearest first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            children.setdefault(int(entry.read_text().rpartition(")")[2].split()[1]), []).append(int(entry.parent.name))
    out = list(children.get(root, ()))
    for pid in out:
        out += children.get(pid, ())
    return out


def until(condition: Callable[[], Any], what: str, said: Callable[[], str] = str, timeout: float = WAIT_S) -> Any:
    """What the condition gives, as soon as that is something."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"{what} never came\n{said()}")
        time.sleep(0.25)
    return found


def call(app: str, deployment: str, method: str) -> Any:
    """A method of one of the replicas of an application."""
    from ray import serve

    handle: Any = serve.get_deployment_handle(deployment, app)
    return getattr(handle, method).remote().result(timeout_s=120)


def policies(name: str) -> list[str]:
    """Applications of a model's policies."""
    from ray import serve

    return [app for app in serve.status().applications if app.startswith(f"{name}--") and "--rewards-" not in app]


def ready(base: str) -> bool:
    """Whether the endpoint would answer a request now."""
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{base}/ready", timeout=30).status_code == 200
    return False
