"""Runs of jobs as a person starts them: a subprocess, a tiny policy, a Ray cluster of its own. By default of jobs/dpa.py."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import yaml

from tests.fakes import tiny_policy

ROOT = Path(__file__).parents[2]
WAIT_S = 240.0  # for what comes within a minute on a machine that has nothing else to do
_MARK = "RHUMBLINE_TEST_JOB"


def recipe(folder: Path, **changes: object) -> Path:
    """A complete recipe in `folder` around a policy of two layers; both objectives are rules, so it needs no backbone.

    A change to None takes the key out: recipes of other jobs lack some.
    """
    if not (folder / "policy").is_dir():
        tiny_policy(folder / "policy")
    content: dict[str, object] = {
        "name": "tiny",
        "seed": 3,
        "iterations": 1,
        "samples": 2,
        "shard_prompts": 3,
        "prompts": {"path": "embedded", "limit": 26, "evaluation": 4, "max_prompt_tokens": 400},
        "rewards": {
            "sources": [
                {"kind": "rules", "heads": {"verbosity": {"rule": "verbosity"}, "variety": {"rule": "repetition"}}}
            ],
            "objectives": {
                "helpfulness": {"heads": {"variety": -1.0, "verbosity": 0.1}, "sign": 1},
                "verbosity": {"heads": {"verbosity": 1.0}, "sign": -1},
            },
        },
        "directions": {"angle_deg": [-45, 0], "per_prompt": 2, "codec": "dpa-float1"},
        "policy": {"initial": str(folder / "policy"), "restart_from": "t0"},
        "sampling": {"max_tokens": 16},
        "generator": {"backend": "transformers", "num_cpus": 0.5, "deadline_s": 120},
        "scorer": {"num_cpus": 0.25},
        "initial": {"directions_per_prompt": 2, "styles": {"plain": {"samples": 3}, "short": {"words": "Be short."}}},
        "learner": {"num_cpus": 1, "lr": 1.0e-3, "epochs": 1, "batch_size": 4, "lora": {"r": 2, "alpha": 4}},
        "evaluation": {
            "angles_deg": [0, -45],
            "samples": 1,
            "sampling": {"temperature": 0.7, "max_tokens": 16},
            "bootstrap": 50,
        },
    }
    path = folder / "recipe.yaml"
    written = {key: value for key, value in {**content, **changes}.items() if value is not None}
    path.write_text(yaml.safe_dump(written, sort_keys=False))
    return path


def command(path: Path, runs: Path, *arguments: str, job: str = "dpa") -> list[str]:
    return [sys.executable, f"jobs/{job}.py", "--recipe", str(path), "--runs", str(runs), *arguments]


def environment() -> dict[str, str]:
    own = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return {**own, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}


def run(
    path: Path, runs: Path, *arguments: str, job: str = "dpa", timeout: float = WAIT_S
) -> subprocess.CompletedProcess[str]:
    """Start a job, wait, give output and exit code."""
    return start(*command(path, runs, *arguments, job=job)[1:], timeout=timeout)


def start(*arguments: str, timeout: float = WAIT_S) -> subprocess.CompletedProcess[str]:
    """Start a job, wait, give output and exit code."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


class Driver:
    """A job that is under way, and every process that it started: all of them inherit a mark in their environment."""

    def __init__(self, arguments: Sequence[str], log: Path, **extra: str) -> None:
        self.mark, self.log = uuid.uuid4().hex, log
        with log.open("w") as file:
            # A session of its own is a process group of its own: what a terminal sends Ctrl-C to. Whoever runs the tests in
            # the background leaves SIGINT ignored, which would be inherited.
            self.process = subprocess.Popen(
                ["env", "--default-signal=INT", *arguments],
                cwd=ROOT,
                env={**environment(), **extra, _MARK: self.mark},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for pid in (*self.processes(), self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(60)

    def processes(self, title: str = "") -> list[int]:
        """Living processes of this job's own, newest last; `title`: only those whose title begins like that."""
        mark, found = f"{_MARK}={self.mark}".encode(), []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has just ended, or is another user's
                alive = (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
                ours = mark in (entry / "environ").read_bytes().split(b"\0")
                if alive and ours and (entry / "cmdline").read_bytes().startswith(title.encode()):
                    found.append(int(entry.name))
        return sorted(found)

    def until(self, condition: Callable[[], object], what: str, timeout: float = WAIT_S) -> None:
        """Wait for something that must come while the job is under way."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, f"the job ended by itself before {what}:\n{self.said()}"
            assert time.monotonic() < deadline, f"{what} never came:\n{self.said()}"
            time.sleep(0.02)

    def kill(self, title: str) -> int:
        """SIGKILL the newest process of that title, as soon as there is one."""
        self.until(lambda: self.processes(title), f"a process {title}")
        victim = self.processes(title)[-1]
        os.kill(victim, signal.SIGKILL)
        return victim

    def end(self, signum: int | None = None, timeout: float = WAIT_S) -> int:
        """Send the driver a signal (SIGINT: its whole group, as a terminal does), wait; the exit code."""
        if signum == signal.SIGINT:
            os.killpg(self.process.pid, signum)
        elif signum is not None:
            self.process.send_signal(signum)
        return self.process.wait(timeout)

    def left_behind(self, timeout: float = 180) -> list[str]:
        """Titles of the job's processes that are still there after a while; empty as soon as there are none.

        Agents of a Ray node whose driver was killed try to reach its dead control store for a minute before they end.
        """
        deadline = time.monotonic() + timeout
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return [f"{pid} {Path(f'/proc/{pid}/cmdline').read_bytes()[:100]!r}" for pid in left]

    def said(self) -> str:
        return self.log.read_text(errors="replace")


def drive(path: Path, runs: Path, *arguments: str, job: str = "dpa") -> Driver:
    """Start a job and come back at once."""
    return Driver(command(path, runs, *arguments, job=job), runs.with_suffix(".log"))
