"""The two servers that benchmarks/serving.py compares, on one machine with one model and one set of engine settings.

with ours(settings) as here, plain(settings, here.folder, port=8128, log=log) as there: ...
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from actors import deployment, updating
from actors.engine_settings import engine_settings, environment
from actors.standing import room, standing
from cluster.session import nodes
from rhumbline.config.deploy import Deploy
from rhumbline.serving.served import Served, open_served

START_S = 900.0


@dataclass(frozen=True, slots=True)
class Ours:
    base: str  # of the API
    served: Served
    folder: Path  # of the full weights
    policy: str  # the policy's Serve application

    def load(self) -> dict[str, int]:
        """What the policy's replica says of its engine."""
        from ray import serve

        handle: Any = serve.get_deployment_handle("policy", self.policy)
        told: dict[str, int] = handle.load.remote().result(timeout_s=60)
        return told


@dataclass(frozen=True, slots=True)
class Plain:
    base: str  # of the API
    pid: int


def used_s(but: Plain) -> float:
    """CPU seconds so far of this process's children and theirs without the rival's: of Ray and our servers."""
    theirs = {but.pid, *(child.pid for child in psutil.Process(but.pid).children(recursive=True))}
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        if process.pid not in theirs:
            with contextlib.suppress(psutil.Error):
                spent = process.cpu_times()
                total += spent.user + spent.system
    return total


@contextlib.contextmanager
def ours(settings: Deploy, source: str = "embedded") -> Iterator[Ours]:
    """A policy deployed as jobs/deploy.py does, on a Ray cluster of this process's own."""
    served = open_served(source, name=settings.name)
    plan = deployment.plan_of(served, settings)
    deployment.merge(served)
    with standing():
        updating.check_proxy(plan)
        updating.check_room(plan, settings, room(settings.update), nodes())
        updating.start_serve(plan)
        updating.roll_out(plan, settings)
        (policy,) = plan.policies
        yield Ours(f"{plan.url}/v1", served, Path(policy.args["folder"]), policy.name)


@contextlib.contextmanager
def plain(settings: Deploy, folder: Path, port: int, log: Path) -> Iterator[Plain]:
    """vLLM's own OpenAI server with the same engine settings and environment.

    Its single worker runs inside the engine's process, as ours does: by default vLLM would give it a process of its own on a
    CPU, which is slower.
    """
    flags = ["--model", str(folder), "--served-model-name", "plain", "--host", "127.0.0.1", "--port", str(port)]
    for key, value in engine_settings(settings.policy, str(folder)).items():
        name = key.replace("_", "-")
        flags += [f"--{'' if value else 'no-'}{name}"] if isinstance(value, bool) else [f"--{name}", str(value)]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--disable-uvicorn-access-log", *flags]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment(settings.policy), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _answers(f"http://127.0.0.1:{port}/health", process, log)
        yield Plain(f"http://127.0.0.1:{port}/v1", process.pid)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"vLLM's server ended by itself, see {log}")
        with (
            contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError),
            urllib.request.urlopen(url, timeout=5) as answer,
        ):
            if answer.status == 200:
                return
        time.sleep(1)
    raise RuntimeError(f"vLLM's server did not answer within {START_S:g} s, see {log}")
