"""Runs of jobs/dpa.py as a person starts them: a subprocess, a tiny policy, a Ray cluster of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

from tests.fakes import tiny_policy

ROOT = Path(__file__).parents[2]


def recipe(folder: Path, **changes: object) -> Path:
    """A complete recipe in `folder` around a policy of two layers; both objectives are rules, so it needs no backbone."""
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
        "learner": {"num_cpus": 1, "lr": 1.0e-3, "epochs": 1, "batch_size": 8, "lora": {"r": 2, "alpha": 4}},
        "evaluation": {
            "angles_deg": [0, -45],
            "samples": 1,
            "sampling": {"temperature": 0.7, "max_tokens": 16},
            "bootstrap": 50,
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**content, **changes}))
    return path


def command(path: Path, runs: Path, *arguments: str) -> list[str]:
    return [sys.executable, "jobs/dpa.py", "--recipe", str(path), "--runs", str(runs), *arguments]


def environment() -> dict[str, str]:
    own = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return {**own, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}


def run(path: Path, runs: Path, *arguments: str, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    """Start jobs/dpa.py, wait, give output and exit code."""
    return start(*command(path, runs, *arguments)[1:], timeout=timeout)


def start(*arguments: str, timeout: float = 280) -> subprocess.CompletedProcess[str]:
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


def kill_when(path: Path, runs: Path, there: Path, signum: int = signal.SIGKILL, timeout: float = 240) -> None:
    """Start a run and send its driver a signal as soon as a file is there."""
    log = runs.with_suffix(".log").open("w")
    process = subprocess.Popen(
        command(path, runs), cwd=ROOT, env=environment(), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    deadline = time.monotonic() + timeout
    while not there.exists():
        assert process.poll() is None, f"the run ended by itself:\n{Path(log.name).read_text()}"
        assert time.monotonic() < deadline, f"{there} never came:\n{Path(log.name).read_text()}"
        time.sleep(0.02)
    process.send_signal(signum)
    process.wait(60)
    log.close()
