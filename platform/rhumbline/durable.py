"""Files that survive a kill: whole files replaced atomically, and append-only JSON lines. Below the store and metrics.

replace(path, b"...")                  # readers see the old file or the new one, never a half
append(path, {"loss": 0.7})            # one line; a line torn by a kill is skipped by read()
list(read(path))                       # [{'loss': 0.7}]
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

TEMPORARY = ".rhumbline-tmp"  # suffix of files that are not finished; whoever owns the folder may sweep them


def replace(path: Path, data: bytes) -> None:
    """Write `data` beside `path`, force it to the disk and rename it over `path`. A failure leaves `path` as it was."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def append(path: Path, document: Mapping[str, Any]) -> None:
    """Add one JSON line and force it to the disk. A failure (a full disk) leaves the file as long as it was."""
    line = to_json(document).replace("\n", " ").encode("utf-8", "backslashreplace") + b"\n"
    before = path.stat().st_size if path.exists() else 0
    try:
        with path.open("ab+") as file:
            if before > 0:
                file.seek(before - 1)
                if file.read(1) != b"\n":  # a kill tore the last line: fence it off
                    line = b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            os.truncate(path, before)
        raise


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The documents of a JSON-lines file in order. Torn lines are skipped; a missing file has no lines."""
    if not path.is_file():
        return
    for line in path.read_bytes().split(b"\n"):
        document = parse_json(line)
        if document is not None:
            yield document


def parse_json(data: bytes) -> dict[str, Any] | None:
    """The JSON object in `data`, or None where there is none: no proper prefix of an object is an object."""
    try:
        document = json.loads(data)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def to_json(document: Mapping[str, Any], indent: int | None = None) -> str:
    """JSON that every parser reads: numpy scalars and arrays as numbers, NaN and infinities as null, paths as text."""
    return json.dumps(_plain(document), indent=indent, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


def _sync_folder(folder: Path) -> None:
    # The rename itself is only safe once the folder is on the disk. Not every file system lets a folder be opened.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
