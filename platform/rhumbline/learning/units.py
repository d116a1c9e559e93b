"""Pairs and judged answers as tokens: what `learning.preferences` trains on. A unit is never split over micro-batches.

    units, dropped = encode_samples(pairs, tokenizer, max_length=2048, loss=config.PreferenceLoss(kind="dpo"))
    units[0].sides                         # (chosen, rejected)
    dropped.too_long

K objectives. What cannot be learned from is dropped and counted, never cut.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from rhumbline import config
from rhumbline.data.chat import Encoded, encode
from rhumbline.errors import ConfigError, DataError
from rhumbline.losses import UNPAIRED_LOSSES
from rhumbline.queries import derive_seed
from rhumbline.records import Judged, Pair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class PairUnit:
    """Two answers to a prompt, the first better than the second."""

    id: str
    sides: tuple[Encoded, ...]  # chosen, rejected
    weight: float
    gaps: tuple[float, ...] = ()  # (K,) modpo: rewards of the chosen answer less those of the other
    direction: tuple[float, ...] = ()  # (K,) modpo: how much each objective counts


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedUnit:
    """One answer that is known to be desirable or not."""

    id: str
    sides: tuple[Encoded, ...]  # the answer
    weight: float
    desirable: bool
    mismatched: tuple[Encoded, ...] = ()  # kto: its prompt with an answer to another one


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """Samples that were left out."""

    too_long: int = 0  # either side longer than learner.max_length
    empty: int = 0  # either side without a token to learn
    equal: int = 0  # both sides the same


Units = Sequence[PairUnit] | Sequence[JudgedUnit]


def encode_samples(
    samples: Sequence[Pair] | Sequence[Judged],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    loss: config.PreferenceLoss,
    objectives: Sequence[str] = (),
    seed: int = 0,
) -> tuple[Units, Dropped]:
    """Samples as `loss` wants them. objectives: (K,) names for modpo. seed: of kto's answers to other prompts.

    Raises DataError for samples that the loss cannot learn from, and where nothing is left; ConfigError where modpo does not know
    whose pairs they are.
    """
    wanted = Judged if loss.kind in UNPAIRED_LOSSES else Pair
    if not all(isinstance(sample, wanted) for sample in samples):
        raise DataError(f"the loss {loss.kind} learns from records of {wanted.__name__}, got others (loss.kind)")
    units: Units
    if loss.kind in UNPAIRED_LOSSES:
        judged, mismatched_seed = cast("Sequence[Judged]", samples), seed if loss.kind == "kto" else None
        units, dropped = encode_judged(judged, tokenizer, max_length, mismatched_seed=mismatched_seed)
    else:
        pairs, joint = cast("Sequence[Pair]", samples), loss.kind == "jpo"
        units, dropped = encode_pairs(pairs, tokenizer, max_length, joint=joint)
        if loss.kind == "modpo":
            check_modpo(units, loss.learned, objectives)
    if not units:
        what = "judged answers" if wanted is Judged else "pairs"
        raise DataError(
            f"nothing to learn from: of {len(samples)} {what} {dropped.too_long} are longer than {max_length} tokens "
            f"(learner.max_length), {dropped.empty} have no token to learn and {dropped.equal} have two equal answers. Raise "
            f"learner.max_length, or give other {what}"
        )
    return units, dropped


def encode_pairs(
    pairs: Sequence[Pair],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    joint: bool = False,
) -> tuple[list[PairUnit], Dropped]:
    """Pairs as tokens. `joint`: the prompt's tokens are learned too, all but the first (jpo).

    Raises DataError for a weight that is none, and for answers to two prompts where these are not learned.
    """
    units, too_long, empty, equal = [], 0, 0, 0
    for pair in pairs:
        _check_weight(pair)
        there = pair.messages if pair.rejected_messages is None else pair.rejected_messages
        if there != pair.messages and not joint:
            raise DataError(
                f"pair {pair.id}: its answers are to two prompts, of which only jpo learns (loss.kind): the others compare "
                "answers to one prompt"
            )
        chosen = encode(pair.messages, pair.chosen, tokenizer, pair.chosen_complete)
        rejected = encode(there, pair.rejected, tokenizer, pair.rejected_complete)
        if chosen.num_learned == 0 or rejected.num_learned == 0:
            empty += 1
        elif (there == pair.messages and pair.chosen == pair.rejected) or chosen == rejected:
            equal += 1
        elif max(len(chosen), len(rejected)) > max_length:
            too_long += 1
        else:
            sides = (_joint(chosen), _joint(rejected)) if joint else (chosen, rejected)
            direction = pair.direction or ()
            units.append(PairUnit(id=pair.id, sides=sides, weight=pair.weight, gaps=pair.gaps, direction=direction))
    return units, Dropped(too_long=too_long, empty=empty, equal=equal)


def encode_judged(
    judged: Sequence[Judged], tokenizer: PreTrainedTokenizerBase, max_length: int, *, mismatched_seed: int | None = None
) -> tuple[list[JudgedUnit], Dropped]:
    """Judged answers as tokens. `mismatched_seed`: each prompt is also given an answer to another one (kto).

    Which one is drawn once for the whole training, so the reference has to read it once; a sample for which every other answer
    would be too long is dropped as too long. Raises DataError for a weight that is none, and where kto has a single prompt.
    """
    kept: list[tuple[Judged, Encoded]] = []
    too_long, empty = 0, 0
    for sample in judged:
        _check_weight(sample)
        answer = encode(sample.messages, sample.response, tokenizer, sample.complete)
        if answer.num_learned == 0:
            empty += 1
        elif len(answer) > max_length:
            too_long += 1
        else:
            kept.append((sample, answer))
    others: list[tuple[Encoded, ...]] = [()] * len(kept)
    if mismatched_seed is not None and kept:
        found = _mismatched([s.prompt_id for s, _ in kept], [a for _, a in kept], max_length, mismatched_seed)
        others = [() if other is None else (other,) for other in found]
        too_long += sum(other is None for other in found)
        kept, others = [k for k, o in zip(kept, others, strict=True) if o], [o for o in others if o]
    units = [
        JudgedUnit(id=s.id, sides=(a,), weight=s.weight, desirable=s.desirable, mismatched=other)
        for (s, a), other in zip(kept, others, strict=True)
    ]
    return units, Dropped(too_long=too_long, empty=empty)


def check_modpo(units: Sequence[PairUnit], learned: str | None, objectives: Sequence[str]) -> None:
    """Raises DataError where a pair does not say what MODPO's margin needs, ConfigError for another objective's name."""
    if learned is None or learned not in objectives:
        raise ConfigError(
            f"loss.learned is {learned}, but modpo learns the pairs of one objective: {', '.join(objectives)}"
        )
    k, count = list(objectives).index(learned), len(objectives)
    for unit in units:
        if len(unit.gaps) != count or len(unit.direction) != count:
            raise DataError(
                f"pair {unit.id}: modpo needs a reward gap and a weight of each of {count} objectives, got "
                f"{len(unit.gaps)} gaps and {len(unit.direction)} weights: make pairs of scored samples, for a direction"
            )
        if not all(math.isfinite(gap) for i, gap in enumerate(unit.gaps) if i != k):
            raise DataError(f"pair {unit.id}: a reward gap is no number: {unit.gaps}")
        if not (all(map(math.isfinite, unit.direction)) and unit.direction[k] != 0):
            raise DataError(
                f"pair {unit.id}: its direction {unit.direction} gives {learned}, whose pairs modpo learns (loss.learned), the "
                f"weight {unit.direction[k]:g}, expected another than 0: narrow the region (directions), or learn another "
                "objective"
            )


def _check_weight(sample: Pair | Judged) -> None:
    if not (math.isfinite(sample.weight) and sample.weight >= 0):
        raise DataError(f"sample {sample.id}: weight is {sample.weight}, expected a number from 0")


def _joint(one: Encoded) -> Encoded:
    return Encoded(token_ids=one.token_ids, loss_mask=(False,) + (True,) * (len(one) - 1))


def _mismatched(
    prompt_ids: Sequence[str], answers: Sequence[Encoded], max_length: int, seed: int
) -> list[Encoded | None]:
    """Each prompt with the answer that comes next in a seeded permutation, of those to other prompts that are short enough."""
    if len(set(prompt_ids)) < 2:
        raise DataError(
            f"kto compares with answers to other prompts, and all {len(prompt_ids)} samples are of the prompt "
            f"{prompt_ids[0]!r}: give two prompts at least, or use loss.kind bco"
        )
    order = np.random.default_rng(derive_seed(seed, "mismatched")).permutation(len(answers)).tolist()
    out: list[Encoded | None] = [None] * len(answers)
    for place, i in enumerate(order):
        asked = answers[i].prompt_length
        for j in (order[(place + ahead) % len(order)] for ahead in range(1, len(order))):
            if prompt_ids[j] != prompt_ids[i] and asked + answers[j].num_learned <= max_length:
                said = answers[j].token_ids[answers[j].prompt_length :]
                out[i] = Encoded(
                    token_ids=(*answers[i].token_ids[:asked], *said), loss_mask=(False,) * asked + (True,) * len(said)
                )
                break
    return out
