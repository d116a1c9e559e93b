"""Facts about this machine and the cluster, asked from outside: no import of torch or Ray. `doctor.py` judges them.

    installed("torch")                     # '2.13.0+cpu'
    get_json("http://127.0.0.1:8265/api/version")["ray_version"]     # '2.60.0'

Ray is looked at through its package's version, the Dashboard's HTTP, and the program `ray` where there is only a GCS
address.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

TIMEOUT_S = 3.0
BF16 = frozenset({"avx512_bf16", "amx_bf16"})  # instruction sets that multiply in bf16


def installed(name: str) -> str | None:
    """Version of an installed package, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def output(command: list[str], timeout_s: float = 10) -> str | None:
    """What a program prints, or None where it is missing, fails or takes too long."""
    beside = Path(sys.executable).with_name(command[0])  # `ray` of this environment, activated or not
    program = str(beside) if beside.exists() else shutil.which(command[0])
    if program is None:
        return None
    try:
        done = subprocess.run([program, *command[1:]], capture_output=True, text=True, timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def cpu_flags() -> set[str]:
    """Instruction sets of an x86 processor; empty elsewhere."""
    info = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not info.exists():
        return set()
    return set(next((line for line in info.read_text().splitlines() if line.startswith("flags")), "").split())


def cpu_quota() -> float | None:
    """Cores that a container may use, or None for no limit."""
    limit = Path("/sys/fs/cgroup/cpu.max")  # cgroup v2: 'quota period' in microseconds, or 'max period'
    words = limit.read_text().split() if limit.is_file() else []
    return float(words[0]) / float(words[1]) if len(words) == 2 and words[0] != "max" else None


def memory() -> dict[str, int]:
    """/proc/meminfo in bytes; empty where there is none."""
    info = Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return {name: int(rest.split()[0]) * 1024 for name, rest in (line.split(":", 1) for line in lines) if rest.split()}


def get_json(url: str) -> dict[str, Any]:
    """A JSON object from the Dashboard, asked with Ray's token where there is one. Raises OSError or ValueError."""
    request = urllib.request.Request(url, headers=_token())
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a cluster is never behind the web proxy
    with opener.open(request, timeout=TIMEOUT_S) as response:
        document = json.loads(response.read())
    if not isinstance(document, dict):
        raise ValueError(f"{url} answers {type(document).__name__}, expected a JSON object")
    return document


def resources(address: str) -> str:
    """', 2 CPU, 1 GPU': the cluster's totals, or '' where this Dashboard words them differently."""
    try:
        usage = get_json(f"{address}/api/cluster_status")["data"]["clusterStatus"]["loadMetricsReport"]["usage"]
        totals = {name: usage[name][1] for name in ("CPU", "GPU") if name in usage}
    except (OSError, ValueError, LookupError, TypeError):
        return ""
    return "".join(f", {total:g} {name}" for name, total in totals.items())


def connect(host: str, port: int) -> None:
    """Open a TCP connection and close it. Raises OSError."""
    socket.create_connection((host, port), timeout=TIMEOUT_S).close()


def _token() -> dict[str, str]:
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        return {}
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray/auth_token")
    if not token and path.is_file():
        token = path.read_text(encoding="utf-8").strip()
    return {"Authorization": f"Bearer {token}"} if token else {}
