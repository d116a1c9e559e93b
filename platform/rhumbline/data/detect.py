"""What kind of data rows are, by their columns: TRL's names and the shapes of well-known rating sets.

    found = detect([{"prompt": "Why?", "response": "So.", "ratings": {"helpfulness": 0.7}}])
    found.kind                             # Kind.RATINGS
    found.columns                          # {'prompt': 'prompt', 'response': 'response', 'ratings': 'ratings'}

No registry and no settings: a file that is understood is used, a file that is not is refused with what it has and
what is read. `prompt` may everywhere be a text, a transcript with `\\n\\nHuman:` marks or a list of messages; an
answer may be a text or a list of messages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from itertools import islice
from typing import Any

from rhumbline.data.arena import ONE_HOT
from rhumbline.errors import DataError

HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")


class Kind(StrEnum):
    """What a row is. The value is how `rhumbline data inspect` calls it."""

    MESSAGES = "messages"
    PROMPT = "prompt"
    COMPLETION = "prompt+completion"
    PAIR = "prompt/chosen/rejected"
    TIES = "prompt/response_a/response_b/winner"
    LABEL = "prompt/completion/label"
    RATINGS = "prompt/response/ratings"
    SCORES = "prompt/completion/scores"
    WIDE = "prompt/response and one column per rating (HelpSteer)"
    NESTED = "instruction/completions/annotations (UltraFeedback)"
    TREE = "message tree (OASST)"


RATED = frozenset({Kind.RATINGS, Kind.SCORES, Kind.WIDE, Kind.NESTED, Kind.TREE})


@dataclass(frozen=True, slots=True)
class Detected:
    """The kind of some rows, and which column plays which part."""

    kind: Kind
    columns: Mapping[str, str]  # part -> column, e.g. {'prompt': 'instruction', 'response': 'output'}
    ratings: tuple[str, ...]  # Kind.WIDE: the columns that are ratings; else none
    unused: tuple[str, ...]  # columns that play no part


# Names by which a part goes, most telling first.
_PROMPT = ("prompt", "instruction", "question", "query")
_MESSAGES = ("messages", "conversations", "conversation")
_RESPONSE = ("response", "completion")
# Parts that any kind may have; they never decide what a row is.
_OPTIONAL = (
    ("id", "id"),
    ("prompt_id", "prompt_id"),
    ("reference", "reference"),
    ("source", "source"),
    ("split", "split"),
    ("rank", "rank"),
    ("parent_id", "parent_id"),
    ("model_a", "model_a"),
    ("model_b", "model_b"),
)


def detect(rows: Iterable[Mapping[str, Any]], where: str = "data", look: int = 200) -> Detected:
    """The kind of `rows`, from the first `look` of them (a column may be missing in some). Raises DataError."""
    columns = _columns(islice(rows, look))
    if not columns:
        raise DataError(f"{where}: no rows with columns, expected at least one")
    kind, parts = _kind(columns)
    if kind is None:
        raise DataError(_refusal(list(columns), where))
    for part, name in _OPTIONAL:
        if name in columns and part not in parts:
            parts[part] = name
    wide = tuple(c for c in HELPSTEER if _named(columns, (c,), _number)) if kind is Kind.WIDE else ()
    taken = {*parts.values(), *wide}
    return Detected(kind=kind, columns=parts, ratings=wide, unused=tuple(c for c in columns if c not in taken))


def _columns(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, [])
            if value is not None:
                columns[name].append(value)
    return columns


def _kind(columns: dict[str, list[Any]]) -> tuple[Kind | None, dict[str, str]]:
    """The first shape that fits, the richest first: a rated file is also a file of prompts, not the other way round."""
    prompt = _named(columns, _PROMPT, lambda v: isinstance(v, (str, list)))
    messages = _named(columns, _MESSAGES, lambda v: isinstance(v, list))
    response = _named(columns, _RESPONSE, lambda v: isinstance(v, (str, list)))
    asked = prompt | messages
    if {"message_id", "parent_id", "role", "text"} <= columns.keys():
        tree = {"message_id": "message_id", "parent_id": "parent_id", "role": "role", "text": "text"}
        return Kind.TREE, tree | _named(columns, ("labels",), lambda v: isinstance(v, Mapping))
    nested = _named(columns, ("completions",), _annotated)
    if prompt and nested:
        return Kind.NESTED, _part(asked, "prompt", "messages") | nested
    ratings = _named(columns, ("ratings",), lambda v: isinstance(v, Mapping))
    if ratings and (response or messages) and asked:
        return Kind.RATINGS, asked | response | ratings
    scores = _named(columns, ("scores",), lambda v: isinstance(v, Mapping))
    if scores and response and asked:
        return Kind.SCORES, asked | response | scores
    wide = [c for c in HELPSTEER if _named(columns, (c,), _number)]
    if wide and response and asked:
        return Kind.WIDE, asked | response
    pair = _named(columns, ("chosen",), _said) | _named(columns, ("rejected",), _said)
    if len(pair) == 2:
        return Kind.PAIR, asked | pair
    two = _named(columns, ("response_a",), _said) | _named(columns, ("response_b",), _said)
    if len(two) == 2 and asked:
        winner = _named(columns, ("winner",), lambda v: isinstance(v, str))
        return Kind.TIES, asked | two | (winner or {name: name for name in ONE_HOT if name in columns})
    label = _named(columns, ("label",), lambda v: v in (0, 1, False, True) and not isinstance(v, float))
    if label and response and asked:
        return Kind.LABEL, asked | response | label
    if prompt == {"prompt": "instruction"} and not response:  # Alpaca: instruction, input, output
        response = _named(columns, ("output",), lambda v: isinstance(v, str), part="response")
        asked |= _named(columns, ("input",), lambda v: isinstance(v, str)) if response else {}
    if response and asked:
        return Kind.COMPLETION, asked | response
    if prompt:
        return Kind.PROMPT, asked
    return (Kind.MESSAGES, messages) if messages else (None, {})


def _named(
    columns: Mapping[str, Sequence[Any]], names: tuple[str, ...], fits: Callable[[Any], bool], part: str | None = None
) -> dict[str, str]:
    """{part: column} for the first of `names` that is a column whose values all fit, else {}."""
    for name in names:
        values = columns.get(name, ())
        if values and all(fits(v) for v in values):
            return {part if part is not None else names[0]: name}
    return {}


def _part(parts: Mapping[str, str], *names: str) -> dict[str, str]:
    return {name: parts[name] for name in names if name in parts}


def _said(value: Any) -> bool:
    return isinstance(value, (str, list))


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _annotated(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(v, Mapping) and "annotations" in v and "response" in v for v in value
    )


def _refusal(columns: list[str], where: str) -> str:
    known = ["prompt", "messages", "response", "completion", "chosen", "rejected", "response_a", "response_b"]
    known += ["ratings", "scores"]
    close = [
        (c, near[0]) for c in columns if c not in known and (near := get_close_matches(c, known, n=1, cutoff=0.75))
    ]
    hint = f" Is {close[0][0]!r} meant to be {close[0][1]!r}?" if close else ""
    return (
        f"{where}: the columns {', '.join(columns)} are no kind of data that is read here.{hint} "
        "Expected prompt (or messages), with response, chosen and rejected, response_a and response_b, ratings or scores "
        "where there are any"
    )
