"""Rows of a data file or a hub data set, as plain dicts. The first step of every stage that reads data.

    for row in rows("ratings.jsonl.gz", split="train"):
        row["prompt"]

Read: JSON Lines and JSON (each also as .gz), Parquet, a hub name such as `nvidia/HelpSteer2`, and `embedded`, the
prompts that the package ships. A local file never touches the network.
"""

from __future__ import annotations

import gzip
import importlib.resources
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from rhumbline.errors import DataError, HubError, did_you_mean

EMBEDDED = "embedded"
FORMATS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
_HUB_TIMEOUT_S = 10.0

Row = dict[str, Any]


def rows(path_or_name: str | Path, split: str | None = None) -> Iterator[Row]:
    """The rows of a file or a hub data set, in order, lazily.

    `split` keeps the rows of a file whose column `split` says so; of a hub data set it names the split to load, which
    may be left out where there is one split only, or one called 'train'. Raises DataError: at once for a file that is
    missing, a folder or of an unknown format and for a hub name that cannot be loaded; while iterating for an empty
    file, an unreadable line (`file:line`) and a split that no row has.
    """
    if str(path_or_name) == EMBEDDED:
        return _of_split(_json_lines(_embedded()), split, EMBEDDED)
    path = Path(path_or_name).expanduser()
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.name.endswith(FORMATS))
        raise DataError(f"{path} is a folder, expected a file. Data files in it: {', '.join(inside) or 'none'}")
    if path.exists():
        return _of_split(_local(path), split, str(path))
    if _may_be_hub_name(str(path_or_name)):
        return _hub(str(path_or_name), split)
    near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else [])
    where = "" if path.parent.is_dir() else f" (there is no folder {path.parent})"
    raise DataError(f"data file not found: {path}{where}.{near}")


def _embedded() -> Path:
    return Path(str(importlib.resources.files("rhumbline.data").joinpath("embedded/prompts.jsonl")))


def _local(path: Path) -> Iterator[Row]:
    name = path.name.lower()
    if not name.endswith(FORMATS):
        raise DataError(f"{path}: unknown format, expected one of {', '.join(FORMATS)}")
    if name.endswith(".parquet"):
        return _parquet(path)
    if name.endswith((".jsonl", ".jsonl.gz")):
        return _json_lines(path)
    return _json(path)


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if path.name.lower().endswith(".gz") else path.open("rb")


def _json_lines(path: Path) -> Iterator[Row]:
    number = 0
    try:
        with _open(path) as file:
            # Bytes are split at \n only: U+2028 and friends inside a text are not line ends.
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                row = _parse(line, f"{path}:{number}")
                if not isinstance(row, dict):
                    raise DataError(f"{path}:{number}: expected an object {{...}}, found {type(row).__name__}")
                yield row
    except (OSError, EOFError, zlib.error) as e:  # gzip.BadGzipFile is an OSError
        raise DataError(f"{path}: cannot be read after line {number}: {e}") from None


def _parse(raw: bytes, where: str) -> Any:
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as e:
        raise DataError(f"{where}: not UTF-8: {e.reason} at byte {e.start}") from None
    except json.JSONDecodeError as e:
        raise DataError(f"{where}: not JSON: {e.msg} at column {e.colno}: {_shorten(e.doc)}") from None


def _json(path: Path) -> Iterator[Row]:
    """A list of objects; or an object with one list of objects in it; or, as often on the hub, JSON Lines after all."""
    try:
        with _open(path) as file:
            raw = file.read()
    except (OSError, EOFError, zlib.error) as e:
        raise DataError(f"{path}: cannot be read: {e}") from None
    if not raw.strip():
        return
    try:
        whole = json.loads(raw.decode("utf-8-sig"))
    except json.JSONDecodeError as e:
        if e.msg == "Extra data":
            yield from _json_lines(path)
            return
        raise DataError(f"{path}:{e.lineno}: not JSON: {e.msg} at column {e.colno}") from None
    except UnicodeDecodeError as e:
        raise DataError(f"{path}: not UTF-8: {e.reason} at byte {e.start}") from None
    if isinstance(whole, dict):
        lists = [v for v in whole.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
        # A file of one row may hold lists too (messages, completions): only a lone list is a wrapper.
        whole = lists[0] if len(lists) == 1 and len(whole) == 1 and "messages" not in whole else [whole]
    if not isinstance(whole, list):
        raise DataError(f"{path}: expected a list of objects, found {type(whole).__name__}")
    for number, row in enumerate(whole, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{path}: element {number}: expected an object {{...}}, found {type(row).__name__}")
        yield row


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from cast(list[Row], batch.to_pylist())
    except (pa.ArrowException, OSError) as e:
        raise DataError(f"{path}: cannot be read as Parquet: {e}") from None


def _of_split(all_rows: Iterator[Row], split: str | None, where: str) -> Iterator[Row]:
    """Rows of one split; refuses a file without rows, and a split without rows."""
    seen: set[str] = set()
    total = kept = 0
    for row in all_rows:
        total += 1
        if split is not None:
            seen.add(str(row.get("split")))
            if row.get("split") != split:
                continue
        kept += 1
        yield row
    if total == 0:
        raise DataError(f"{where}: empty, expected at least one row")
    if kept == 0 and split is not None:
        found = ", ".join(sorted(seen)) if seen != {"None"} else "the rows have no column 'split'"
        raise DataError(f"{where}: no row of split {split!r}.{did_you_mean(split, seen)} Found: {found}")


def _may_be_hub_name(name: str) -> bool:
    """`owner/name`, or a bare name without a file's ending; never an explicit path."""
    parts = name.split("/")
    explicit = (
        name.startswith((".", "/", "~")) or "\\" in name or name.lower().endswith((*FORMATS, ".gz", ".csv", ".txt"))
    )
    # `data/x` where a folder `data` lies here is a path with a typing error, not an owner on the hub.
    return not explicit and len(parts) <= 2 and all(parts) and not (len(parts) == 2 and Path(parts[0]).is_dir())


def _hub(name: str, split: str | None) -> Iterator[Row]:
    import datasets
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    offline = datasets.config.HF_HUB_OFFLINE
    reason = "offline mode is on (HF_HUB_OFFLINE)"
    if not offline:
        try:
            # One short request first: load_dataset itself would retry for half a minute before it says that nobody is
            # there.
            huggingface_hub.HfApi().dataset_info(name, timeout=_HUB_TIMEOUT_S)
        except HFValidationError as e:
            raise DataError(f"data file not found: {name}, and it is no hub name either: {e}") from None
        except RepositoryNotFoundError as e:  # gated ones included
            raise DataError(
                f"{name}: no such file here, and the hub refuses the data set of this name "
                f"({type(e).__name__}): check the name, or log in where it is gated"
            ) from None
        except Exception as e:  # what a network throws depends on the HTTP library; all of it means 'not reached'
            offline, reason = True, str(e)
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = offline  # then only the cache is asked
    try:
        loaded = datasets.load_dataset(name)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as e:
        if offline:
            raise HubError(
                f"{name}: no such file here, and the hub cannot be reached and its cache does not hold it: {reason}. "
                "Give a local JSONL(.gz), JSON or Parquet file, or go online once"
            ) from None
        raise DataError(f"{name}: the hub data set cannot be loaded: {e}") from None
    finally:
        datasets.config.HF_HUB_OFFLINE = before
    return _hub_split(cast(Mapping[str, Any], loaded), name, split)


def _hub_split(splits: Mapping[str, Any], name: str, split: str | None) -> Iterator[Row]:
    known = list(splits)
    chosen = split if split is not None else "train" if "train" in known else known[0] if len(known) == 1 else None
    if chosen is None:
        raise DataError(f"{name}: has the splits {', '.join(known)}: say which one (prompts.split)")
    if chosen not in known:
        raise DataError(f"{name}: no split {chosen!r}.{did_you_mean(chosen, known)} Known: {', '.join(known)}")
    return _of_split((dict(row) for row in splits[chosen]), None, f"{name} ({chosen})")


def _shorten(text: str, limit: int = 60) -> str:
    text = text.strip()
    return repr(text if len(text) <= limit else text[:limit] + "...")
