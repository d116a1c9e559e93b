"""One shape for every kind of data: turns, the answers to them, and the ratings of each answer.

    for sample in samples(rows("ratings.jsonl.gz"), "ratings.jsonl.gz"):
        sample.messages, sample.responses, sample.ratings

`prompts`, `ratings` and `inspect` all read files through here, so that they agree on what a file says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from rhumbline.data.arena import Winner, rounds, says_winner, winner_of
from rhumbline.data.detect import Detected, Kind, detect
from rhumbline.data.turns import answer, transcript, turns, until_last_user
from rhumbline.errors import DataError
from rhumbline.records import Message

LOOK = 200  # rows that decide the kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What one row (of UltraFeedback: one row; of OASST: one message) says."""

    where: str  # 'file: row 7', to begin an error with
    messages: tuple[Message, ...]  # the turns to answer; empty where the row has no prompt
    responses: tuple[
        str | None, ...
    ]  # none, one, chosen and rejected, or one per completion; None: the cell is missing
    ratings: tuple[Mapping[str, float], ...]  # one per response for rated kinds, else empty; a missing rating is absent
    prompt_id: str | None  # the row's own name for its prompt
    reference: str | None
    source: str | None
    split: str | None
    winner: Winner | None  # of two answers, where the file says it in the usual place; else None
    siblings: str | None  # shared by the answers that were ranked among each other
    rank: float | None  # place among the siblings, 0 is the best


def samples(all_rows: Iterable[Mapping[str, Any]], origin: str) -> tuple[Detected, Iterator[Sample]]:
    """The kind of some rows, and a lazy iterator of what they say. `origin` names them in errors. Raises DataError."""
    stream = iter(all_rows)
    first = list(islice(stream, LOOK))
    found = detect(first, origin, look=LOOK)
    numbered = enumerate(chain(first, stream), start=1)
    if found.kind is Kind.TREE:
        return found, _tree([dict(row) for _, row in numbered], origin)
    return found, (sample_of(row, found, f"{origin}: row {number}") for number, row in numbered)


def sample_of(row: Mapping[str, Any], found: Detected, where: str) -> Sample:
    """What one row says, for every kind but message trees. Raises DataError that begins with `where`."""

    def cell(part: str) -> Any:
        return row.get(found.columns[part]) if part in found.columns else None

    messages, responses = _READERS[found.kind](cell, where)
    # Where a row is one prompt its id is the prompt's; elsewhere several rows share a prompt and only prompt_id names
    # it.
    named = cell("prompt_id")
    if named is None and found.kind in (Kind.PROMPT, Kind.MESSAGES):
        named = cell("id")
    reference, source, split = cell("reference"), cell("source"), cell("split")
    return Sample(
        where=where,
        messages=messages,
        responses=responses,
        ratings=_ratings(row, found, where),
        prompt_id=None if named is None else str(named),
        reference=reference if isinstance(reference, str) else None,
        source=None if source is None else str(source),
        split=None if split is None else str(split),
        winner=winner_of(row, None, where) if found.kind is Kind.TIES and _told(found) else None,
        siblings=_siblings(cell("parent_id"), messages),
        rank=_rank(cell("rank")),
    )


# --- turns and answers ------------------------------------------------------------------------------------------------

_Cell = Callable[[str], Any]
_Read = tuple[tuple[Message, ...], tuple[str | None, ...]]


def _asked(cell: _Cell, where: str) -> tuple[Message, ...]:
    """Turns to answer where the answer has its own column: `messages` if the user speaks last in it, else `prompt`."""
    given = turns(cell("messages"), where)
    if given and given[-1].role == "user":
        return given
    said = turns(cell("prompt"), where)
    more = cell("input")  # Alpaca's second half of an instruction
    if said and more is not None and str(more).strip():
        return (*said[:-1], Message(role=said[-1].role, content=f"{said[-1].content}\n\n{more}"))
    return said


def _prompt(cell: _Cell, where: str) -> _Read:
    """A prompt alone; `messages` beside it is all of it, a dialogue that it opens, or a history that it continues."""
    prompt, given = cell("prompt"), turns(cell("messages"), where)
    if not given:
        return until_last_user(turns(prompt, where)), ()
    inside = not isinstance(prompt, str) or bool(transcript(prompt)) or not prompt.strip()
    inside = inside or any(m.role == "user" and m.content.strip() == str(prompt).strip() for m in given)
    if inside or given[-1].role == "user":
        return until_last_user(given), ()
    return (*given, Message(role="user", content=str(prompt))), ()


def _messages(cell: _Cell, where: str) -> _Read:
    """A dialogue: where the assistant has the last word, that is the answer."""
    given = turns(cell("messages"), where)
    if given and given[-1].role == "assistant":
        return given[:-1], (given[-1].content,)
    return given, ()


def _response(cell: _Cell, where: str) -> _Read:
    given = cell("response")
    if given is None and cell("messages") is not None:
        return _messages(cell, where)
    asked = _asked(cell, where)
    if isinstance(given, list) and len(given) > 1:  # a completion of several turns: all but the last are context
        asked = (*asked, *turns(given[:-1], where))
    return asked, (answer(given, where),)


def _pair(cell: _Cell, where: str) -> _Read:
    asked = _asked(cell, where)
    if not asked:  # an implicit prompt: both sides hold the whole conversation
        chosen = cell("chosen")
        full = transcript(chosen) if isinstance(chosen, str) else turns(chosen, where)
        asked = full[:-1] if full and full[-1].role == "assistant" else ()
    return asked, (answer(cell("chosen"), where), answer(cell("rejected"), where))


def _two(cell: _Cell, where: str) -> _Read:
    said = [rounds(cell(part)) for part in ("prompt", "response_a", "response_b")]
    if any(one is None for one in said):
        return _asked(cell, where), (answer(cell("response_a"), where), answer(cell("response_b"), where))
    # Of several rounds the two sides have histories of their own, so there is no one prompt that both answer.
    prompt, *both = [one[0] if one else None for one in said]
    single = all(one is not None and len(one) == 1 for one in said)
    return turns(prompt, where), tuple(answer(one, where) if single else None for one in both)


def _nested(cell: _Cell, where: str) -> _Read:
    return _asked(cell, where), tuple(answer(c.get("response"), where) for c in cell("completions") or ())


_READERS: Mapping[Kind, Callable[[_Cell, str], _Read]] = {
    Kind.PROMPT: _prompt,
    Kind.MESSAGES: _messages,
    Kind.COMPLETION: _response,
    Kind.LABEL: _response,
    Kind.RATINGS: _response,
    Kind.SCORES: _response,
    Kind.WIDE: _response,
    Kind.PAIR: _pair,
    Kind.TIES: _two,
    Kind.NESTED: _nested,
}


# --- winners and ranks ------------------------------------------------------------------------------------------------


def _told(found: Detected) -> bool:
    """Whether a part is the winner: a column `winner` of something else than words is none."""
    return says_winner(found.columns.values())


def _siblings(parent_id: Any, messages: tuple[Message, ...]) -> str | None:
    """The message that they answer, by its id; without ids, by what it says."""
    if parent_id is not None:
        return str(parent_id)
    return "\x1e".join(f"{m.role}\x1f{m.content}" for m in messages) if messages else None


def _rank(cell: Any) -> float | None:
    """None where nobody ranked, and for a column that goes by this name and holds no numbers."""
    number = isinstance(cell, (int, float)) and not isinstance(cell, bool) and math.isfinite(cell)
    return float(cell) if number else None


# --- ratings ----------------------------------------------------------------------------------------------------------


def _ratings(row: Mapping[str, Any], found: Detected, where: str) -> tuple[Mapping[str, float], ...]:
    if found.kind is Kind.WIDE:
        return (_numbers({name: row.get(name) for name in found.ratings}, where),)
    if found.kind in (Kind.RATINGS, Kind.SCORES):
        return (_numbers(row.get(found.columns["ratings" if found.kind is Kind.RATINGS else "scores"]), where),)
    if found.kind is Kind.NESTED:
        return tuple(_annotations(c, where) for c in row.get(found.columns["completions"]) or ())
    return ()


def _numbers(cell: Any, where: str) -> dict[str, float]:
    """{name: number}; null and NaN are missing, hence absent. A rating of 0 is a rating."""
    if cell is None:
        return {}
    if not isinstance(cell, Mapping):
        raise DataError(f"{where}: expected ratings as {{name: number}}, found {type(cell).__name__}")
    out: dict[str, float] = {}
    for name, value in cell.items():
        if value is None or (isinstance(value, float) and math.isnan(value)):
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isinf(value):
            raise DataError(f"{where}: rating {name!r} is {value!r}, expected a number (leave out what was not rated)")
        out[str(name)] = float(value)
    return out


def _annotations(completion: Mapping[str, Any], where: str) -> dict[str, float]:
    """UltraFeedback: {aspect: {"Rating": "4", ...}}, where its annotators write 'N/A' for what they did not rate; and, beside
    the aspects, `overall_score`, which in the published data is known to be wrong for some rows.
    """
    out: dict[str, float] = {}
    notes = completion.get("annotations") or {}
    overall = {"overall_score": completion.get("overall_score")} if notes else {}
    for aspect, note in {**overall, **notes}.items():
        value = note.get("Rating") if isinstance(note, Mapping) else note
        if value is None or str(value).strip().upper() in ("N/A", "NA", ""):
            continue
        try:
            out[str(aspect)] = float(value)
        except (TypeError, ValueError):
            raise DataError(f"{where}: {aspect} has Rating {value!r}, expected a number or 'N/A'") from None
    return out


# --- OASST ------------------------------------------------------------------------------------------------------------


def _tree(rows: list[Mapping[str, Any]], origin: str) -> Iterator[Sample]:
    """One sample per assistant message, its prompt being the path from the root; deleted messages are passed over.

    A user's message without an answer is a prompt without responses. Labels are kept on their own scale, 0 to 1, all
    of them.
    """
    by_id = {row["message_id"]: row for row in rows}
    answered = {row["parent_id"] for row in rows if not row.get("deleted")}
    for number, row in enumerate(rows, start=1):
        where = f"{origin}: row {number}"
        spoken = turns([{"role": row.get("role"), "content": row.get("text")}], where)[0]
        if row.get("deleted") or (spoken.role == "user" and row["message_id"] in answered):
            continue
        told = spoken.role == "assistant"
        split = row.get("split")
        yield Sample(
            where=where,
            messages=_path(row["parent_id"] if told else row["message_id"], by_id, where),
            responses=(spoken.content,) if told else (),
            ratings=(_labels(row.get("labels"), where),) if told else (),
            prompt_id=None,
            reference=None,
            source=None,
            split=None if split is None else str(split),
            winner=None,
            siblings=None if row["parent_id"] is None else str(row["parent_id"]),
            rank=_rank(row.get("rank")) if told else None,
        )


def _path(message_id: Any, by_id: Mapping[Any, Mapping[str, Any]], where: str) -> tuple[Message, ...]:
    path: list[Message] = []
    seen: set[Any] = set()
    while message_id is not None:
        if message_id not in by_id or message_id in seen:
            raise DataError(f"{where}: parent {message_id!r} is not in the file, or the parents go round in a circle")
        seen.add(message_id)
        row = by_id[message_id]
        path += turns([{"role": row.get("role"), "content": row.get("text")}], where)
        message_id = row["parent_id"]
    return tuple(reversed(path))


def _labels(cell: Any, where: str) -> dict[str, float]:
    """Labels as the hub has them ({name: [...], value: [...]}) or as the export has them ({name: {value, count}})."""
    cell = cell or {}
    if isinstance(cell.get("name"), list) and isinstance(cell.get("value"), list):
        return _numbers(dict(zip(cell["name"], cell["value"], strict=True)), where)
    return _numbers({k: v.get("value") if isinstance(v, Mapping) else v for k, v in cell.items()}, where)
