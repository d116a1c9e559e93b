"""Two answers to one prompt and which of them is better: what preference models and comparers learn.

    found = load_comparisons("pandalm.jsonl.gz", split="train")
    found.rows[0].a, found.rows[0].b, found.rows[0].winner       # winner: 'a', 'b' or 'tie'
    found.skipped                                                # {'empty side': 24}
    load_comparisons("two_objectives.jsonl.gz", head="harmless", winner="human_winner", where={"human_objective": "harmless"})

Read are `chosen` with `rejected` (a is the chosen one), `response_a` with `response_b` and a winner, and answers with a
`rank` among the answers to their prompt (OASST): every two that are ranked differently. What cannot be learned from is
left out and counted by its reason: `no prompt` that ends with the user's turn, `no winner`, `missing side` (among them
battles of several rounds, whose two sides have histories of their own), `empty side`, `equal sides`, `no strength`, and
`scores against the winner`. Of ranked answers: those with `no rank`, prompts with `one answer` that has a rank, and pairs of
`equal ranks`.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, combinations, islice
from pathlib import Path
from typing import Any

from rhumbline.data.arena import Winner, says_winner, winner_of
from rhumbline.data.detect import Detected, Kind, detect
from rhumbline.data.load import Row, rows
from rhumbline.data.prompts import is_asked, prompt_of
from rhumbline.data.samples import LOOK, Sample, sample_of, samples
from rhumbline.errors import DataError, did_you_mean
from rhumbline.records import Prompt

logger = logging.getLogger(__name__)

_MODELS = (("model_a", "model_b"), ("chosen_model", "rejected_model"))
_USERS = ("user_id", "user", "annotator", "judge")
_SWAPPED: Mapping[Winner, Winner] = {"a": "b", "b": "a", "tie": "tie"}
_SHOWN = 12  # values of a column that a message lists


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two answers to a prompt, and what somebody judged."""

    prompt: Prompt  # comparisons of answers to the same turns share its id
    a: str
    b: str
    winner: Winner
    strength: float | None = None  # how much better the winner is, 0 or more, on the data set's own scale
    models: tuple[str | None, str | None] = (None, None)  # who wrote a and b
    profile: Mapping[str, str] = field(default_factory=dict)  # what is known about the one who judged
    user: str | None = None  # a name for the one who judged
    source: str = ""  # the row's `source`, else the file's name
    split: str | None = None  # the row's `split`
    head: str = "preference"  # what the answers were judged by

    def swapped(self) -> Comparison:
        """The same judgement with the answers in the other order."""
        return replace(self, a=self.b, b=self.a, winner=_SWAPPED[self.winner], models=(self.models[1], self.models[0]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparisons:
    """What a file holds, and what of it was left out."""

    rows: tuple[Comparison, ...]
    skipped: Mapping[str, int]  # reason -> rows


def load_comparisons(
    path: str | Path,
    split: str | None = None,
    limit: int | None = None,
    *,
    head: str = "preference",
    winner: str | None = None,
    strength: str | None = None,
    profile: str | None = None,
    where: Mapping[str, Any] | None = None,
) -> Comparisons:
    """The comparisons of a file, in file order, at most `limit`.

    winner: the column that says a, b or tie; by default `winner`, or Chatbot Arena's three columns of zeros and a one.
    strength: a column of numbers, 0 or more; or the stem of two, whose difference it is: `score` for `score_chosen` and
        `score_rejected`, or for `score_a` and `score_b`.
    profile: a column of mappings, or of texts, about the one who judged.
    where: {column: value, or a list of values}; other rows are passed over and not counted.
    Raises DataError for a file of another kind, a column that is not there, a winner in other words, and
    where nothing is left.
    """
    origin = str(path)
    stream = rows(path, split)
    first = list(islice(stream, LOOK))
    found = detect(first, origin, look=LOOK)
    filters = Filter({} if where is None else where, {*found.columns.values(), *found.unused}, origin)
    numbered = enumerate(chain(first, stream), start=1)
    judged: Iterator[Comparison | str]
    if found.kind in (Kind.PAIR, Kind.TIES):
        _check_columns(found, origin, winner=winner, profile=profile)
        read = _Strength.of(strength, found, origin)
        judged = (
            _comparison(row, sample_of(row, found, f"{origin}: row {number}"), found, head, winner, read, profile)
            for number, row in numbered
            if filters(row)
        )
    else:
        named = {"winner": winner, "strength": strength, "profile": profile}
        judged = _ranked_rows((row for _, row in numbered if filters(row)), origin, head, named)
    kept: list[Comparison] = []
    skipped: Counter[str] = Counter()
    for one in judged:
        if limit is not None and len(kept) >= limit:
            break
        if isinstance(one, str):
            skipped[one] += 1
        else:
            kept.append(replace(one, source=one.source or Path(path).name))
    if not kept:
        filters.refuse_if_none()
        told = ", ".join(f"{reason} {count}" for reason, count in skipped.items())
        raise DataError(f"{origin}: no comparison in it can be used; left out: {told or 'nothing, for there was none'}")
    if skipped:
        logger.info("%s: %d comparisons, left out: %s", path, len(kept), dict(skipped))
    return Comparisons(rows=tuple(kept), skipped=dict(skipped))


def ranked(
    prompt: Prompt,
    responses: Sequence[str],
    ranks: Sequence[float],
    *,
    head: str = "preference",
    source: str = "",
    split: str | None = None,
) -> list[Comparison]:
    """Every two of K ranked answers whose ranks differ: at most K (K - 1) / 2. The lower rank is the better one.

    Answers keep their order, so `a` is not always the winner; the strength is the difference of the ranks.
    """
    out = []
    for (a, rank_a), (b, rank_b) in combinations(zip(responses, ranks, strict=True), 2):
        if rank_a != rank_b:
            won: Winner = "a" if rank_a < rank_b else "b"
            gap = abs(rank_a - rank_b)
            out.append(
                Comparison(prompt=prompt, a=a, b=b, winner=won, strength=gap, source=source, split=split, head=head)
            )
    return out


# --- one row ----------------------------------------------------------------------------------------------------------


def _comparison(
    row: Row,
    sample: Sample,
    found: Detected,
    head: str,
    winner: str | None,
    strength: _Strength,
    profile: str | None,
) -> Comparison | str:
    """What a row says, or why it says nothing."""
    a, b = sample.responses
    if not is_asked(sample.messages):
        return "no prompt"
    won: Winner | None = "a" if found.kind is Kind.PAIR else winner_of(row, winner, sample.where)
    if won is None:
        return "no winner"
    unusable = _unusable(a, b)
    if unusable is not None:
        return unusable
    assert a is not None
    assert b is not None
    much = strength(row, won, sample.where)
    if isinstance(much, str):
        return much
    models = next(((row.get(x), row.get(y)) for x, y in _MODELS if x in row or y in row), (None, None))
    user = next((row[name] for name in _USERS if row.get(name) is not None), None)
    return Comparison(
        prompt=prompt_of(sample.messages, sample.where, sample.prompt_id, sample.reference),
        a=a,
        b=b,
        winner=won,
        strength=much,
        models=(_text(models[0]), _text(models[1])),
        profile={} if profile is None else _profile(row.get(profile), profile, sample.where),
        user=_text(user),
        source=sample.source or "",
        split=sample.split,
        head=head,
    )


def _unusable(a: str | None, b: str | None) -> str | None:
    """Why two answers cannot be compared; None: they can."""
    if a is None or b is None:
        return "missing side"
    if not a.strip() or not b.strip():
        return "empty side"
    return "equal sides" if a.strip() == b.strip() else None


def _profile(cell: Any, column: str, where: str) -> dict[str, str]:
    """A mapping as it is, a text under its column's name; what is not known is absent."""
    if cell is None:
        return {}
    if isinstance(cell, str):
        return {column: cell} if cell.strip() else {}
    if not isinstance(cell, Mapping):
        raise DataError(f"{where}: {column} is {type(cell).__name__}, expected a mapping or a text (profile)")
    return {str(name): str(value) for name, value in cell.items() if value is not None and str(value).strip()}


def _text(cell: Any) -> str | None:
    return None if cell is None else str(cell)


# --- columns that the caller names ------------------------------------------------------------------------------------


def _check_columns(found: Detected, origin: str, *, winner: str | None, profile: str | None) -> None:
    known = {*found.columns.values(), *found.unused}
    for option, column in (("winner", winner), ("profile", profile)):
        if column is not None and column not in known:
            raise DataError(_no_column(origin, option, column, known))
    if found.kind is Kind.PAIR and winner is not None:
        raise DataError(f"{origin}: has `chosen` and `rejected`, so the winner is said: leave out winner ({winner!r})")
    if found.kind is Kind.TIES and winner is None and not says_winner(known):
        near = sorted(column for column in known if "winner" in column)
        raise DataError(
            f"{origin}: has response_a and response_b and no column `winner`: name the column that says a, b or tie "
            f"(winner). {'These look like it' if near else 'Columns'}: {', '.join(near or sorted(known))}"
        )


@dataclass(frozen=True, slots=True)
class _Strength:
    """How much better the winner is: a column, the difference of two, or nothing."""

    better: Mapping[Winner, tuple[str, str]]  # winner -> the columns of the winner's and the loser's score
    column: str | None

    @classmethod
    def of(cls, name: str | None, found: Detected, origin: str) -> _Strength:
        known = {*found.columns.values(), *found.unused}
        first, second = ("chosen", "rejected") if found.kind is Kind.PAIR else ("a", "b")
        a, b = f"{name}_{first}", f"{name}_{second}"
        if name is None or name in known:
            return cls({}, name)
        if not {a, b} <= known:
            raise DataError(_no_column(origin, "strength", name, known) + f", and none are {a} and {b}")
        return cls({"a": (a, b), "b": (b, a)}, None)

    def __call__(self, row: Row, winner: Winner, where: str) -> float | str | None:
        """The number; None where it is not asked for; why the row cannot be used."""
        if self.column is not None:
            given = _number(row.get(self.column), self.column, where)
            if given is not None and given < 0:
                raise DataError(f"{where}: {self.column} is {given:g}, expected 0 or more: the winner says which side")
            return "no strength" if given is None else given
        if not self.better:
            return None
        if winner == "tie":
            return 0.0
        won, lost = (_number(row.get(column), column, where) for column in self.better[winner])
        if won is None or lost is None:
            return "no strength"
        return won - lost if won >= lost else "scores against the winner"


def _number(cell: Any, column: str, where: str) -> float | None:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    if isinstance(cell, bool) or not isinstance(cell, (int, float)) or math.isinf(cell):
        raise DataError(f"{where}: {column} is {cell!r}, expected a number (strength)")
    return float(cell)


class Filter:
    """Which rows are wanted; it remembers what it saw, to say what there was instead."""

    def __init__(self, where: Mapping[str, Any], known: Iterable[str], origin: str) -> None:
        self.wanted = {column: list(v) if isinstance(v, list | tuple) else [v] for column, v in where.items()}
        self.origin, self.passed = origin, 0
        self.seen: dict[str, set[str]] = {column: set() for column in self.wanted}
        for column in self.wanted:
            if column not in set(known):
                raise DataError(_no_column(origin, "where", column, known))

    def __call__(self, row: Row) -> bool:
        for column, values in self.wanted.items():
            if row.get(column) not in values:
                if len(self.seen[column]) < _SHOWN:
                    self.seen[column].add(str(row.get(column)))
                return False
        self.passed += 1
        return True

    def refuse_if_none(self) -> None:
        if self.passed or not self.wanted:
            return
        said = " and ".join(f"{column} is {' or '.join(map(repr, v))}" for column, v in self.wanted.items())
        column = next((c for c in self.wanted if self.seen[c]), next(iter(self.wanted)))
        near = did_you_mean(str(self.wanted[column][0]) if self.wanted[column] else "", self.seen[column])
        raise DataError(
            f"{self.origin}: no row left where {said} (where).{near} "
            f"Found in {column}: {', '.join(sorted(self.seen[column]))}"
        )


def _no_column(origin: str, option: str, column: str, known: Iterable[str]) -> str:
    known = sorted(known)
    return f"{origin}: no column {column!r} ({option}).{did_you_mean(column, known)} Columns: {', '.join(known)}"


# --- ranked answers ---------------------------------------------------------------------------------------------------


def _ranked_rows(
    wanted: Iterable[Row], origin: str, head: str, named: Mapping[str, str | None]
) -> Iterator[Comparison | str]:
    """Comparisons of answers that have a rank among their siblings; groups in the order of their first answer."""
    rest = iter(wanted)
    first = next(rest, None)
    if first is None:
        return
    groups: dict[str, list[Sample]] = {}
    left_out: list[str] = []
    found, stream = samples(chain([first], rest), origin)
    for sample in stream:
        if len(sample.responses) != 1:
            continue  # a question in a tree
        if sample.rank is None or sample.siblings is None:
            left_out.append("no rank")
        elif not is_asked(sample.messages):
            left_out.append("no prompt")
        else:
            groups.setdefault(sample.siblings, []).append(sample)
    if not groups:
        raise DataError(
            f"{origin}: holds {found.kind}, expected {Kind.PAIR}, {Kind.TIES}, or answers with a `rank`. "
            "`rhumbline data inspect` shows which column was taken for what"
        )
    needless = [option for option, column in named.items() if column is not None]
    if needless:
        raise DataError(f"{origin}: is read by its ranks, which say who won and by how much: leave out {needless[0]}")
    yield from left_out
    for group in groups.values():
        if len(group) == 1:
            yield "one answer"
        yield from _pairs(group, head)


def _pairs(group: Sequence[Sample], head: str) -> Iterator[Comparison | str]:
    first = group[0]
    prompt = prompt_of(first.messages, first.where, first.prompt_id, first.reference)
    places = [float("nan") if sample.rank is None else sample.rank for sample in group]
    texts = [sample.responses[0] for sample in group]
    for i, j in combinations(range(len(group)), 2):
        a, b = texts[i], texts[j]
        unusable = _unusable(a, b) or ("equal ranks" if places[i] == places[j] else None)
        if unusable is not None:
            yield unusable
        elif a is not None and b is not None:
            yield from ranked(
                prompt, (a, b), (places[i], places[j]), head=head, source=first.source or "", split=first.split
            )
