"""Prompts for a run, and the splits that keep training, its two halves and evaluation apart.

    prompts = load_prompts("prompts.jsonl", limit=500)
    splits = split_by_hash(prompts, evaluation=64, seed=0)
    splits.half(1)                         # D1 for odd iterations, D2 for even ones (DPA, section 3)

A prompt's place is decided by what it asks, never by where it stands in the file: shuffled or re-exported data split
the same way, and a question that opens several conversations is on one side only.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from rhumbline.data.detect import Kind
from rhumbline.data.load import rows
from rhumbline.data.samples import samples
from rhumbline.errors import DataError
from rhumbline.records import Message, Prompt

logger = logging.getLogger(__name__)

COMPARED = (Kind.PAIR, Kind.TIES)


def load_prompts(path: str | Path, split: str | None = None, limit: int | None = None) -> list[Prompt]:
    """The distinct prompts of a data file of any kind, in file order, at most `limit`.

    The id is the row's own (`prompt_id`, or `id` where a row is one prompt), else a hash of the turns. A prompt whose
    turns were seen before is dropped; how many is logged and counted by `data inspect`. Raises DataError for a row
    without a prompt (with its number), and for an id that two different prompts claim. In files of compared answers, where
    the prompt is read out of dialogues, such a row is left out and logged, as `load_comparisons` does.
    """
    found: dict[tuple[Message, ...], Prompt] = {}
    owners: dict[str, str] = {}
    dropped = unasked = 0
    detected, stream = samples(rows(path, split), str(path))
    for sample in stream:
        if limit is not None and len(found) >= limit:
            break
        if detected.kind in COMPARED and not is_asked(sample.messages):
            unasked += 1
            continue
        prompt = prompt_of(sample.messages, sample.where, sample.prompt_id, sample.reference)
        if prompt.messages in found:
            dropped += 1
            continue
        if prompt.id in owners:
            raise DataError(
                f"{sample.where}: the id {prompt.id!r} is already taken by another prompt ({owners[prompt.id]})"
            )
        found[prompt.messages] = prompt
        owners[prompt.id] = sample.where
    if dropped:
        logger.info("%s: %d prompts, %d duplicates dropped", path, len(found), dropped)
    if unasked:
        if not found:
            raise DataError(f"{path}: none of its {unasked} rows has a prompt that ends with the user's turn")
        told = "%s: %d prompts, %d rows left out whose prompt does not end with the user's turn"
        logger.info(told, path, len(found), unasked)
    return list(found.values())


def is_asked(messages: Sequence[Message]) -> bool:
    """Is there something to answer: do the turns end with the user's words?"""
    return bool(messages) and messages[-1].role == "user" and bool(messages[-1].content.strip())


def prompt_of(
    messages: tuple[Message, ...], where: str, prompt_id: str | None = None, reference: str | None = None
) -> Prompt:
    """A Prompt out of turns; `where` begins the message of a DataError."""
    if not messages or not messages[-1].content.strip():
        raise DataError(f"{where} has no prompt: expected a text or messages that end with the user's turn")
    if messages[-1].role != "user":
        raise DataError(f"{where}: the last turn of its prompt is the {messages[-1].role}'s, expected the user's")
    return Prompt(
        id=prompt_id if prompt_id is not None else prompt_id_of(messages), messages=messages, reference=reference
    )


def prompt_id_of(messages: Sequence[Message]) -> str:
    """A name for a prompt that has none: 16 hexadecimal digits of a hash of its turns."""
    text = "\x1e".join(f"{m.role}\x1f{m.content}" for m in messages)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """Disjoint prompts. No first user turn is in two of them."""

    d1: tuple[Prompt, ...]
    d2: tuple[Prompt, ...]
    evaluation: tuple[Prompt, ...]
    left_out: tuple[Prompt, ...]  # share their first turn with an evaluation prompt: neither trained on nor evaluated

    @property
    def train(self) -> tuple[Prompt, ...]:
        """Both halves."""
        return self.d1 + self.d2

    def half(self, iteration: int) -> tuple[Prompt, ...]:
        """The half that iteration t = 1, 2, ... samples from: D1 for odd t, D2 for even t."""
        return self.d1 if iteration % 2 == 1 else self.d2


def split_by_hash(
    prompts: Sequence[Prompt], evaluation: int, seed: int, trained_on: Collection[str] = frozenset()
) -> Splits:
    """`evaluation` prompts held out and two halves of the rest, by a hash of the first user turn.

    Prompts with the same first turn (lower-cased, letters and digits, first 120 characters) are one group. Groups are
    ordered by sha256(seed, turn). The first `evaluation` groups give one prompt each, so that evaluation prompts are
    independent; their siblings are left out. The rest is cut in two where the halves are closest in size. Adding
    prompts moves few others. Groups whose `turn_id` is in `trained_on` (what a policy to start from has seen) are never
    held out. Raises DataError where there are fewer than `evaluation` + 2 groups, or too few that are unseen.
    """
    if evaluation < 0:
        raise DataError(f"cannot hold out {evaluation} prompts (prompts.evaluation), expected 0 or more")
    groups: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault(_hash(seed, first_turn(prompt)), []).append(prompt)
    if len(groups) < evaluation + 2:
        raise DataError(
            f"{len(prompts)} prompts with {len(groups)} distinct first turns are too few to hold out {evaluation} and "
            f"train on two halves: give at least {evaluation + 2}, or lower prompts.evaluation"
        )
    # Within a group too the order must not be the file's.
    ordered = [
        sorted(groups[key], key=lambda p: (_hash(seed, prompt_id_of(p.messages)), p.id)) for key in sorted(groups)
    ]
    unseen = [group for group in ordered if turn_id(group[0]) not in trained_on]
    if len(unseen) < evaluation:
        raise DataError(
            f"the policy to start from was trained on {len(ordered) - len(unseen)} of {len(ordered)} prompts, so {evaluation} "
            f"cannot be held out (prompts.evaluation): lower it, or give prompts that the policy has not seen"
        )
    held = unseen[:evaluation]
    taken = {id(group) for group in held}
    rest = [group for group in ordered if id(group) not in taken]
    sizes = [0]
    for group in rest:
        sizes.append(sizes[-1] + len(group))
    cut = min(range(1, len(rest)), key=lambda i: abs(2 * sizes[i] - sizes[-1]))
    return Splits(
        d1=tuple(p for group in rest[:cut] for p in group),
        d2=tuple(p for group in rest[cut:] for p in group),
        evaluation=tuple(group[0] for group in held),
        left_out=tuple(p for group in held for p in group[1:]),
    )


def first_turn(prompt: Prompt) -> str:
    """What a prompt opens with, in the form that splits go by: `"Why, is it?"` -> `"whyisit"`.

    A turn without a letter or a digit stands for itself.
    """
    opening = next((m.content for m in prompt.messages if m.role == "user"), prompt.messages[0].content)
    return "".join(c for c in opening.lower() if c.isalnum())[:120] or opening.strip()


def turn_id(prompt: Prompt) -> str:
    """A prompt's group in splits, whatever the seed: 16 hexadecimal digits of a hash of `first_turn`."""
    return hashlib.sha256(first_turn(prompt).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def conversation_id(prompt: Prompt) -> str:
    """A name for what the user said first, to the letter: continuations of a conversation share it.

    Rated and compared answers are grouped by it. Unlike `turn_id` it does not cut the turn: pasted texts that open alike are
    conversations of their own.
    """
    return prompt_id_of([next(m for m in prompt.messages if m.role == "user")])


def _hash(seed: int, text: str) -> str:
    return hashlib.sha256(f"{seed}\x1f{text}".encode("utf-8", "surrogatepass")).hexdigest()
