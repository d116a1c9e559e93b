"""Training samples made from what was selected: the direction in the system prompt, the response under the loss.

examples = from_selected(kept.selected, codec)
examples = with_replay(examples, first_examples, fraction=0.15, seed=7)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from rhumbline.codecs import Codec, SteerLM, conversation, in_front
from rhumbline.data.comparisons import Comparison
from rhumbline.profiles import told
from rhumbline.queries import derive_seed
from rhumbline.records import Example, Judged, Message, Pair, Prompt, Scored, Selected
from rhumbline.selection import Extremes


def from_selected(selected: Iterable[Selected], codec: Codec, *, distil: bool = False) -> list[Example]:
    """One example per kept completion. A response that was cut at max_tokens does not teach its end.

    distil: for t=0's samples, which the initial policy gave when asked in a style's words. It is the frozen teacher of the
    response's distribution, asked in the same words; the student is asked by the direction alone (context distillation,
    arXiv:2209.15189).
    """
    examples = []
    for index, kept in enumerate(selected):
        completion = kept.scored.completion
        query, prompt = completion.query, completion.query.prompt
        examples.append(
            Example(
                id=f"t{query.iteration}/{completion.id}#{index}",
                messages=conversation(codec, kept.direction, prompt.messages),
                response=completion.text,
                complete=completion.finish_reason == "stop",
                direction=kept.direction,
                teacher=query.messages if distil and query.style else None,
            )
        )
    return examples


def from_ratings(rows: Iterable[tuple[Prompt, str, Sequence[float]]], codec: SteerLM) -> list[Example]:
    """SteerLM: a labelled response under the values that it really has, (prompt, response, (K,) objectives on 0-100)."""
    examples = []
    for index, (prompt, response, values_K) in enumerate(rows):
        examples.append(
            Example(
                id=f"t0/{prompt.id}#{index}",
                messages=in_front(codec.render_targets(tuple(values_K)), prompt.messages),
                response=response,
            )
        )
    return examples


def pairs_from(ranked: Iterable[Extremes], codec: Codec | None, *, gap: float = 0.0) -> list[Pair]:
    """Best against worst for each direction, which is said in the prompt of both; what lies closer than `gap` is no pair.

    codec: None where no prompt says a direction.
    """
    pairs = []
    for index, one in enumerate(ranked):
        if one.gap <= 0 or one.gap < gap:
            continue
        pairs.append(_pair(one.best, one.worst, codec, one.direction, index, gaps=one.gaps))
    return pairs


def joint_pairs_from(ranked: Sequence[Extremes], codec: Codec | None, *, gap: float = 0.0) -> list[Pair]:
    """The best answer to one prompt against the worst one to another, where it is worth more: what JPO learns from.

    The other prompt is the next one in order that is ranked for the same direction, after the last the first again. Values of
    answers to different prompts are compared as they are, so they need rewards on one scale for all prompts, which ours have.
    """
    alike: dict[tuple[float, ...], list[Extremes]] = {}
    for one in ranked:
        alike.setdefault(one.direction, []).append(one)
    pairs: list[Pair] = []
    for group in alike.values():
        for place, one in enumerate(group):
            ahead = (*group[place + 1 :], *group[:place])
            prompt_id = one.best.completion.query.prompt.id
            other = next((two for two in ahead if two.worst.completion.query.prompt.id != prompt_id), None)
            if other is None or one.best_value <= other.worst_value or one.best_value - other.worst_value < gap:
                continue
            asked = _asked(other.worst, codec, one.direction)
            pairs.append(_pair(one.best, other.worst, codec, one.direction, len(pairs), rejected_messages=asked))
    return pairs


def judged_from(ranked: Iterable[Extremes], codec: Codec | None, *, gap: float = 0.0) -> list[Judged]:
    """What selection keeps as desirable and what it discards as undesirable, for each direction: food for KTO and BCO.

    Answers that are worth as much as the best one, or less than `gap` below it, are neither.
    """
    judged = []
    for index, one in enumerate(ranked):
        if one.gap <= 0 or one.gap < gap:
            continue
        far = [two for two, value in zip(one.others, one.other_values, strict=True) if one.best_value - value >= gap]
        for answer in (one.best, *far):
            completion = answer.completion
            judged.append(
                Judged(
                    id=f"t{completion.query.iteration}/{completion.id}#{index}",
                    prompt_id=completion.query.prompt.id,
                    messages=_asked(answer, codec, one.direction),
                    response=completion.text,
                    desirable=answer is one.best,
                    complete=completion.finish_reason == "stop",
                    direction=one.direction,
                )
            )
    return judged


def pairs_of_people(comparisons: Iterable[Comparison]) -> list[Pair]:
    """What people judged; ties say nothing here. A profile of the one who judged stands in the prompt of both sides:
    the policy learns to answer whom it is told about.
    """
    return [
        Pair(id=name, messages=told(one.profile, one.prompt.messages), chosen=better, rejected=worse)
        for name, one, better, worse in _decided(comparisons)
    ]


def judged_of_people(comparisons: Iterable[Comparison]) -> list[Judged]:
    """Both answers of each pair: the winner desirable, the other not. Ties say nothing here."""
    judged = []
    for name, one, better, worse in _decided(comparisons):
        for text, side in ((better, "chosen"), (worse, "rejected")):
            judged.append(
                Judged(
                    id=f"{name}/{side}",
                    prompt_id=one.prompt.id,
                    messages=told(one.profile, one.prompt.messages),
                    response=text,
                    desirable=side == "chosen",
                )
            )
    return judged


def with_replay(examples: Sequence[Example], earlier: Sequence[Example], fraction: float, seed: int) -> list[Example]:
    """`examples` and as many `earlier` ones as make up `fraction` of the whole, drawn without replacement, in random order.

    The paper replays about 15% of the data that the t=0 policy was trained on, against forgetting (section 3.1).
    """
    wanted = math.ceil(len(examples) * fraction / (1 - fraction))
    rng = np.random.default_rng(derive_seed(seed, "replay"))
    picked = rng.permutation(len(earlier))[: min(wanted, len(earlier))]
    mixed = [*examples, *(earlier[int(i)] for i in picked)]
    return [mixed[int(i)] for i in rng.permutation(len(mixed))]


def _pair(
    best: Scored,
    worst: Scored,
    codec: Codec | None,
    direction: tuple[float, ...],
    number: int,
    *,
    gaps: tuple[float, ...] = (),
    rejected_messages: tuple[Message, ...] | None = None,
) -> Pair:
    """Two scored answers as a pair; an answer that was cut at max_tokens does not teach its end."""
    chosen, rejected = best.completion, worst.completion
    return Pair(
        id=f"t{chosen.query.iteration}/{chosen.id}>{rejected.id}#{number}",
        messages=_asked(best, codec, direction),
        chosen=chosen.text,
        rejected=rejected.text,
        chosen_complete=chosen.finish_reason == "stop",
        rejected_complete=rejected.finish_reason == "stop",
        gaps=gaps,
        direction=direction,
        rejected_messages=rejected_messages,
    )


def _decided(comparisons: Iterable[Comparison]) -> Iterator[tuple[str, Comparison, str, str]]:
    """(name, comparison, better answer, worse answer) of those with a winner."""
    for index, one in enumerate(comparisons):
        if one.winner != "tie":
            better, worse = (one.a, one.b) if one.winner == "a" else (one.b, one.a)
            yield f"{one.source}/{one.prompt.id}#{index}", one, better, worse


def _asked(answer: Scored, codec: Codec | None, direction: Sequence[float]) -> tuple[Message, ...]:
    """The prompt of an answer under a direction; as it is where none is said."""
    messages = answer.completion.query.prompt.messages
    return messages if codec is None else conversation(codec, direction, messages)
