"""Conversations to learn: data of any kind that has answers, as training samples.

    found = load_dialogues("oasst1.jsonl.gz", "oasst", split="train", min_rating={"quality": 0.5})
    found.examples[0].response, found.examples[0].every_turn
    found.skipped                                                # {'rated too low': 212, 'empty answer': 1}
    kept, held_out = hold_out(found.examples, share=0.05)
    encode_example(kept[0], tokenizer).loss_mask                 # every turn of the assistant, or the last alone

What cannot be learned from is left out and counted by its reason: `no answer`, `no prompt` that ends with the user's turn,
`empty answer`, `not rated`, `rated too low`, `no rank`, `ranked lower`, `labelled undesirable`, of compared answers `no winner`
and `tie`, and `duplicate`. What stands behind the assistant's last turn is cut off. Of pairs the better answer is learned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rhumbline.data.chat import Encoded, encode, encode_dialogue, sanitise
from rhumbline.data.comparisons import Filter
from rhumbline.data.detect import RATED, Detected, Kind, detect
from rhumbline.data.load import Row, rows
from rhumbline.data.prompts import is_asked, turn_id
from rhumbline.data.samples import LOOK, Sample, sample_of, samples
from rhumbline.data.turns import turns as turns_of
from rhumbline.errors import DataError, did_you_mean
from rhumbline.records import Example, Message, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Answer = tuple[tuple[Message, ...], str]  # the turns before it, and what the assistant said then
DIALOGUES = frozenset({Kind.MESSAGES, Kind.PROMPT})  # files whose answers stand among the turns


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialogues:
    """What a file holds, and what of it was left out."""

    examples: tuple[Example, ...]
    skipped: Mapping[str, int]  # reason -> answers


def load_dialogues(
    path: str | Path,
    name: str,
    split: str | None = None,
    limit: int | None = None,
    *,
    weight: float = 1.0,
    where: Mapping[str, Any] | None = None,
    min_rating: Mapping[str, float] | None = None,
    best_ranked: bool = False,
    turns: Literal["every", "last"] | None = None,
) -> Dialogues:
    """The answers of a file, in file order, at most `limit`. `name` begins the ids of its examples.

    where: {column: value, or a list of values}; other rows are passed over and not counted.
    min_rating: {rating: the least one}; answers that are rated lower, or not at all, are left out.
    best_ranked: keep the answers whose rank among those to their prompt is 0.
    turns: which turns of the assistant carry the loss; None: every one where answers stand among the turns, elsewhere the
        answer of the row.
    Raises DataError for a column or a rating that is not there, and where nothing is left.
    """
    origin, wanted = str(path), {} if min_rating is None else dict(min_rating)
    stream = rows(path, split)
    first = list(islice(stream, LOOK))
    found = detect(first, origin, look=LOOK)
    if wanted and found.kind not in RATED:
        raise DataError(f"{origin}: holds {found.kind}, which has no ratings: leave out min_rating")
    if best_ranked and found.kind is not Kind.TREE and "rank" not in found.columns:
        raise DataError(f"{origin}: has no column rank: leave out best_ranked")
    filters = Filter({} if where is None else where, {*found.columns.values(), *found.unused}, origin)
    every = turns == "every" or (turns is None and found.kind in DIALOGUES)
    kept: dict[Answer, Example] = {}
    skipped: Counter[str] = Counter()
    names: set[str] = set()
    for sample, row in _read(chain(first, stream), found, filters, origin):
        if limit is not None and len(kept) >= limit:
            break
        names.update(*sample.ratings)
        for answer in _answers(sample, row, found, wanted, best_ranked):
            if limit is not None and len(kept) >= limit:
                break
            reason = answer if isinstance(answer, str) else _unusable(answer, every)
            if isinstance(answer, str) or reason is not None:
                skipped[str(reason)] += 1
            elif answer in kept:
                skipped["duplicate"] += 1
            else:
                messages, response = answer
                kept[answer] = Example(
                    id=f"{name}/{len(kept)}", messages=messages, response=response, weight=weight, every_turn=every
                )
    for rating in wanted:
        if rating not in names:
            known = ", ".join(sorted(names)) or "none"
            raise DataError(
                f"{origin}: no answer has the rating {rating!r}.{did_you_mean(rating, names)} Found: {known}"
            )
    if not kept:
        filters.refuse_if_none()
        told = ", ".join(f"{reason} {count}" for reason, count in skipped.items())
        raise DataError(
            f"{origin}: no answer in it can be learned from; left out: {told or 'nothing, for there was none'}"
        )
    return Dialogues(examples=tuple(kept.values()), skipped=dict(skipped))


def hold_out(examples: Sequence[Example], share: float) -> tuple[list[Example], list[Example]]:
    """What is trained on, and the `share` of conversations that is not: the same ones in every data set and stage.

    By a hash of the first user turn (`data.prompts.turn_id`): whatever opens alike is on one side.
    """
    sides: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
        sides[int(conversation(example), 16) < share * 16**16].append(example)
    return sides


def conversation(example: Example) -> str:
    """A name that samples share which open with the same turn."""
    return turn_id(Prompt(id=example.id, messages=example.messages))


def encode_example(example: Example, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    """An example as tokens: the loss on every turn of the assistant where it says so, else on the response."""
    if not example.every_turn:
        return encode(example.messages, example.response, tokenizer, example.complete)
    last = Message(role="assistant", content=example.response)
    return encode_dialogue((*example.messages, last), tokenizer, example.complete)


def without_marks(example: Example, tokenizer: PreTrainedTokenizerBase) -> Example:
    """The example with its system turns sanitised. `encode` takes a system turn's first paragraph for a codec's and leaves it
    as it is; in a file people wrote it.
    """
    if all(m.role != "system" for m in example.messages):
        return example
    clean = [replace(m, content=sanitise(m.content, tokenizer)) if m.role == "system" else m for m in example.messages]
    return replace(example, messages=tuple(clean))


# --- one row ----------------------------------------------------------------------------------------------------------


def _read(all_rows: Iterable[Row], found: Detected, filters: Filter, origin: str) -> Iterator[tuple[Sample, Row]]:
    if found.kind is not Kind.TREE:
        for number, row in enumerate(all_rows, start=1):
            if filters(row):
                yield sample_of(row, found, f"{origin}: row {number}"), row
        return
    if filters.wanted:
        raise DataError(f"{origin}: is a message tree, whose rows need each other: leave out where")
    _, stream = samples(all_rows, origin)
    for sample in stream:
        if sample.responses:  # the others are questions
            yield sample, {}


def _answers(
    sample: Sample, row: Row, found: Detected, wanted: Mapping[str, float], best_ranked: bool
) -> Iterator[Answer | str]:
    """What a row has to learn, or why it has nothing."""
    if best_ranked and sample.rank != 0:
        yield "no rank" if sample.rank is None else "ranked lower"
    elif found.kind in DIALOGUES:
        yield _last_answer(row, found, sample.where)
    elif found.kind is Kind.TIES:
        won = sample.winner
        chosen = None if won in (None, "tie") else sample.responses[0 if won == "a" else 1]
        yield "no winner" if won is None else "tie" if won == "tie" else _given(sample, chosen)
    elif found.kind is Kind.PAIR:
        yield _given(sample, sample.responses[0])
    elif found.kind is Kind.LABEL and not row.get(found.columns["label"]):
        yield "labelled undesirable"
    elif found.kind in RATED and wanted:
        for response, ratings in zip(sample.responses, sample.ratings, strict=True):
            if not wanted.keys() <= ratings.keys():
                yield "not rated"
            elif any(ratings[rating] < least for rating, least in wanted.items()):
                yield "rated too low"
            else:
                yield _given(sample, response)
    else:
        for response in sample.responses:
            yield _given(sample, response)


def _given(sample: Sample, response: str | None) -> Answer | str:
    return "no answer" if response is None else (sample.messages, response)


def _last_answer(row: Row, found: Detected, where: str) -> Answer | str:
    """The dialogue of a row up to the assistant's last turn. A prompt of several turns is one too."""
    for part in ("messages", "prompt"):
        said = turns_of(row.get(found.columns.get(part, "")), where)
        last = max((i for i, m in enumerate(said) if m.role == "assistant"), default=None)
        if last is not None:
            return said[:last], said[last].content
    return "no answer"


def _unusable(answer: Answer, every: bool) -> str | None:
    """Why an answer cannot be learned; None: it can."""
    messages, response = answer
    said = [m.content for m in messages if m.role == "assistant"] if every else []
    if not is_asked(messages) or next(m for m in messages if m.role != "system").role != "user":
        return "no prompt"
    return None if all(text.strip() for text in (*said, response)) else "empty answer"
