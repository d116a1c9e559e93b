"""A file of answers through a reward model: one line per answer, written as it goes. `rhumbline rewards score` is this.

    score_file(model, "answers.jsonl.gz", Path("scores.csv"))
    # row,answer,prompt_id,helpfulness,verbosity
    # 1,0,3f2c9a,61.27,14.92

`row` counts the rows that were read from 1, `answer` the answers of a row from 0: chosen and rejected are 0 and 1. What is
there already is kept, and scoring goes on behind it; its last line is scored again to see that model and file are the same.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from rhumbline.data.load import rows
from rhumbline.data.prompts import prompt_of
from rhumbline.data.samples import samples
from rhumbline.durable import to_json
from rhumbline.errors import ConfigError, DataError
from rhumbline.records import Prompt
from rhumbline.rewards.model import RewardModel

CHUNK = 256  # answers that are scored and then written at once: what a kill costs
TOLERANCE = 0.5  # points of 100 that another machine's arithmetic may move the last line by
PLACES = ("row", "answer", "prompt_id")


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of a file, and where it stands in it."""

    row: int
    answer: int
    prompt: Prompt
    response: str


def answers(path: str | Path, split: str | None = None, limit: int | None = None) -> Iterator[Answer]:
    """Every answer of every kind of file with answers, in file order, lazily. Raises DataError for one without any."""
    _, stream = samples(rows(path, split), str(path))
    given = 0
    for number, sample in enumerate(stream, start=1):
        for place, response in enumerate(sample.responses):
            if limit is not None and given >= limit:
                return
            if response is None:
                raise DataError(f"{sample.where}: answer {place} is missing, there is nothing to score")
            prompt = prompt_of(sample.messages, sample.where, sample.prompt_id, sample.reference)
            yield Answer(number, place, prompt, response)
            given += 1
    if not given:
        raise DataError(f"{path}: holds prompts and no answers, there is nothing to score")


def score_file(
    model: RewardModel,
    path: str | Path,
    out: Path,
    *,
    split: str | None = None,
    limit: int | None = None,
    report: Callable[[int], None] = lambda _: None,
) -> int:
    """Score the answers of `path` into `out`, JSON Lines or, where its name ends so, CSV; gives how many `out` holds.

    `report` is told the number after each chunk. Raises DataError where `out` is another file's or model's work.
    """
    taken = sorted(set(PLACES) & set(model.names))
    if taken:
        raise ConfigError(f"an objective is called {taken[0]!r}, which is the name of a column of scores: rename it")
    columns = (*PLACES, *model.names)
    form: _Form = _Csv(columns) if out.suffix == ".csv" else _JsonLines(columns)
    stream = answers(path, split, limit)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("ab+") as file:
        done, last, end = _kept(file, form, out)
        if last is not None:
            _check(model, list(islice(stream, done)), done, last, out)
        file.truncate(end)  # after the checks: what is refused stays as it was
        if end == 0:
            file.write(form.header)
        while chunk := list(islice(stream, CHUNK)):
            file.write(b"".join(form.line(row) for row in _scored(model, chunk)))
            file.flush()
            os.fsync(file.fileno())
            done += len(chunk)
            report(done)
    return done


def _scored(model: RewardModel, chunk: Sequence[Answer]) -> list[dict[str, Any]]:
    scores_NK = model.score([(one.prompt, one.response) for one in chunk])
    return [
        {"row": one.row, "answer": one.answer, "prompt_id": _on_a_line(one.prompt.id)}
        | dict(zip(model.names, scores_K.tolist(), strict=True))
        for one, scores_K in zip(chunk, scores_NK, strict=True)
    ]


def _on_a_line(name: str) -> str:
    """A prompt's id as every file can hold it: JSON lets in halves of characters, which UTF-8 has no bytes for."""
    return " ".join(name.split()).encode("utf-8", "replace").decode()


def _kept(file: io.BufferedRandom, form: _Form, out: Path) -> tuple[int, dict[str, Any] | None, int]:
    """(lines of scores, the last one, bytes up to its end); a line torn by a kill is not among them."""
    file.seek(0)
    count = end = 0
    last = b""
    for number, line in enumerate(file):
        if not line.endswith(b"\n"):
            if number == 0 and line[: len(form.start)] != form.start[: len(line)]:
                raise DataError(f"{out}: begins with {line[:60]!r}, expected {form.start!r}: {_REMEDY}")
            break
        if number == 0 and form.header:
            if line != form.header:
                raise DataError(f"{out}: begins with {line[:60]!r}, expected {form.header!r}: {_REMEDY}")
        else:
            count, last = count + 1, line
        end += len(line)
    if not count:
        return 0, None, end
    try:
        return count, form.read(last), end
    except (ValueError, KeyError):
        raise DataError(f"{out}: its last line is no line of scores: {last[:60]!r}: {_REMEDY}") from None


def _check(model: RewardModel, read: Sequence[Answer], done: int, last: dict[str, Any], out: Path) -> None:
    """Whether the last line of `out` is what this model says of the answer that stands there. Raises DataError."""
    if len(read) < done:
        raise DataError(f"{out}: has {done} scored answers, the data has {len(read)}: {_REMEDY}")
    (again,) = _scored(model, read[-1:])
    for name, value in again.items():
        said = last[name]
        same = abs(said - value) <= TOLERANCE if name in model.names else said == value
        if not same:
            raise DataError(f"{out}: its last line has {name} {said}, this model and data give {value}: {_REMEDY}")


_REMEDY = "it is not the beginning of this work. Give another --out, or remove the file"


class _Form(Protocol):
    header: bytes
    start: bytes  # what every file of this form begins with

    def line(self, row: dict[str, Any]) -> bytes: ...

    def read(self, line: bytes) -> dict[str, Any]:
        """The inverse of `line`; ValueError or KeyError for a line that it did not write."""
        ...


class _JsonLines:
    header = b""
    start = b'{"row": '

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = tuple(columns)

    def line(self, row: dict[str, Any]) -> bytes:
        return to_json(row).encode() + b"\n"

    def read(self, line: bytes) -> dict[str, Any]:
        found = json.loads(line)
        if not isinstance(found, dict) or tuple(found) != self.columns:
            raise ValueError(line)
        return {name: found[name] if name in PLACES else float(found[name]) for name in self.columns}


class _Csv:
    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = tuple(columns)
        self.header = self.start = self._line(self.columns)

    def line(self, row: dict[str, Any]) -> bytes:
        return self._line([row[name] for name in self.columns])

    def read(self, line: bytes) -> dict[str, Any]:
        (cells,) = csv.reader([line.decode()])
        found = dict(zip(self.columns, cells, strict=True))
        whole = {name: int(found[name]) for name in ("row", "answer")}
        scores = {name: float(found[name]) for name in self.columns[len(PLACES) :]}
        return {**whole, "prompt_id": found["prompt_id"], **scores}

    @staticmethod
    def _line(cells: Sequence[Any]) -> bytes:
        out = io.StringIO(newline="")
        csv.writer(out, lineterminator="\n").writerow(cells)
        return out.getvalue().encode()
