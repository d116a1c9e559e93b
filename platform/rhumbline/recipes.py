"""Where recipes lie and what they are called: `jobs/recipes` of the folder one stands in, then of the checkout itself.

    [r.name for r in available()]          # ['dpa-mistral-7b', 'quickstart', 'smol', 'rewards/hh', ...]
    find("smol")                           # PosixPath('jobs/recipes/smol.yaml')
    config.load(find("smol"), ["seed=1"])
    config.load(find("grpo/smol"), kind=config.GrpoRecipe)
    fitting.recipe.load(find("rewards/hh"))

For `rhumbline recipes` and whoever else takes a recipe by name: those that load one take a path.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rhumbline.errors import ConfigError, did_you_mean

FOLDER = Path("jobs/recipes")
# Folders in it, by the job that their recipes are for. Those of jobs/dpa.py lie in FOLDER itself.
JOBS = {
    "rewards": "reward",
    "sft": "sft",
    "dpo": "dpo",
    "ppo": "ppo",
    "grpo": "grpo",
    "soups": "soups",
    "sweeps": "sweep",
    "users": "users",
}
_CHECKOUT = Path(__file__).resolve().parents[2]  # platform/rhumbline/recipes.py of an editable installation


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One recipe file on this machine."""

    name: str  # the file's stem; FOLDER/STEM where it lies in one of `JOBS`
    path: Path
    title: str  # the first sentence of the comment that opens the file; empty where there is none


def folders() -> tuple[Path, ...]:
    """The folders that are searched, in order; those that exist, each once."""
    found: dict[Path, Path] = {}
    for folder in (FOLDER, _CHECKOUT / FOLDER):
        if folder.is_dir():
            found.setdefault(folder.resolve(), folder)
    return tuple(found.values())


def available() -> list[Entry]:
    """Every recipe in `folders()`, by name; the earlier folder wins where two have the same name."""
    entries: dict[str, Entry] = {}
    for folder in folders():
        for path in sorted([*folder.glob("*.yaml"), *(file for job in JOBS for file in folder.glob(f"{job}/*.yaml"))]):
            name = path.relative_to(folder).with_suffix("").as_posix()
            entries.setdefault(name, Entry(name=name, path=path, title=_title(path)))
    return sorted(entries.values(), key=lambda entry: ("/" in entry.name, entry.name))


def find(name: str) -> Path:
    """The file of a recipe given by path (`my/recipe.yaml`) or by name (`smol`, `rewards/hh`). Raises ConfigError."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    entries = {entry.name: entry.path for entry in available()}
    stem = path.as_posix().removesuffix(".yaml")
    if stem in entries:
        return entries[stem]
    known = (
        f"Known: {', '.join(entries)}" if entries else f"No folder {FOLDER} here: stand in a checkout, or give a path"
    )
    raise ConfigError(f"recipe not found: {name}.{did_you_mean(stem, entries)} {known}")


def of_rewards(raw: Mapping[str, Any]) -> bool:
    """Is what `config.read` gives a recipe of jobs/reward.py? It names a kind, ratings or comparisons, which a run's does not."""
    return bool({"kind", "ratings", "comparisons"} & raw.keys())


def _title(path: Path) -> str:
    """The first sentence of the comment that opens the file, at most 110 characters of it."""
    words: list[str] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# yaml-language-server"):
            words += line.lstrip("#").split()
    sentence = re.split(r"\.(?:\s(?=[A-Z])|$)", " ".join(words))[0]
    return textwrap.shorten(sentence, 110, placeholder=" ...")
