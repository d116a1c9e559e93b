"""Supervised stages before they run: what each one learns, what is held out of it, and how many steps it has.

    stages = plan(recipe, tokenizer, context_of(policy))
    stages[0].name, len(stages[0].examples), stages[0].steps, stages[0].counts
    identities(recipe, stages)             # equal ones give equal weights

    held_out = HeldOut("sft/mine/pre_sft", token_budget=4096, threads=2)
    held_out.setup()
    held_out.nats(stages[1].held_out)      # [(nats, learned tokens), ...]

A conversation that is held out is so in every stage: none learns what another is measured by.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rhumbline import config
from rhumbline.config import SftRecipe
from rhumbline.data.dialogues import encode_example, hold_out, load_dialogues, without_marks
from rhumbline.errors import DataError
from rhumbline.learning import checkpoints
from rhumbline.learning.logprobs import token_logprobs
from rhumbline.learning.policy import load_policy, load_tokenizer, set_threads, weights_of
from rhumbline.queries import derive_seed
from rhumbline.records import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage of a recipe with its data."""

    name: str
    learner: config.Learner  # its warm-up in steps
    examples: tuple[Example, ...]  # that are trained on; every one fits learner.max_length and the policy's context
    held_out: tuple[Example, ...]
    counts: Mapping[
        str, Mapping[str, int]
    ]  # data set -> 'train', 'held out', or the reason for being left out -> samples
    learned_tokens: int  # of `examples`, in one epoch
    seed: int

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return -(-len(self.examples) * self.learner.epochs // self.learner.batch_size)


def plan(recipe: SftRecipe, tokenizer: PreTrainedTokenizerBase, context: int | None = None) -> list[Stage]:
    """Read the data of every stage. `context`: tokens that the policy can read; None: learner.max_length alone counts.

    Raises DataError, with the recipe's key, for data that cannot be read, a conversation that the chat template refuses, a
    stage without a sample to train on, and one without a sample to hold out where the recipe holds some out.
    """
    return [_stage(recipe, name, tokenizer, context) for name in recipe.stages]


def context_of(policy: Path) -> int | None:
    """How many tokens the policy in a folder can read, where its configuration says so."""
    known = json.loads((policy / "config.json").read_text(encoding="utf-8")).get("max_position_embeddings")
    return int(known) if known else None


def identities(recipe: SftRecipe, stages: Sequence[Stage]) -> list[str]:
    """A hash per stage of all that its weights and its figures depend on, the stages before it included."""
    out: list[str] = []
    initial = weights_of(recipe.policy.initial)  # not its name: a folder may hold other weights by now
    for stage in stages:
        settings = [
            recipe.policy.model_dump(mode="json", exclude={"initial"}) | {"weights": initial},
            out[-1] if out else "",
            stage.learner.model_dump(mode="json", exclude=checkpoints.FREE),
            stage.seed,
            recipe.bootstrap,
            len(stage.held_out),
        ]
        out.append(checkpoints.identity(settings, (repr(one) for one in (*stage.held_out, *stage.examples))))
    return out


def _stage(recipe: SftRecipe, name: str, tokenizer: PreTrainedTokenizerBase, context: int | None) -> Stage:
    settings = recipe.learner_of(name)
    longest = min(settings.max_length, context or settings.max_length)
    examples: list[Example] = []
    held_out: list[Example] = []
    counts: dict[str, dict[str, int]] = {}
    learned_tokens = 0
    for source, data in recipe.stages[name].data.items():
        key = f"stages.{name}.data.{source}"
        try:
            found = load_dialogues(
                data.path,
                source,
                data.split,
                data.limit,
                weight=data.weight,
                where=data.where,
                min_rating=data.min_rating,
                best_ranked=data.best_ranked,
                turns=data.turns,
            )
        except DataError as e:
            raise type(e)(
                f"{key}: {e}. Paths are relative to where the job is started; another file is named by {key}.path=FILE"
            ) from None
        short: dict[str, tuple[Example, int]] = {}
        for example in (without_marks(one, tokenizer) for one in found.examples):
            try:
                encoded = encode_example(example, tokenizer)
            except DataError as e:
                raise DataError(f"{key}: sample {example.id}: {e}") from None
            if len(encoded) <= longest:
                short[example.id] = (example, encoded.num_learned)
        kept, held = hold_out([example for example, _ in short.values()], recipe.held_out)
        examples += kept
        held_out += held
        learned_tokens += sum(short[example.id][1] for example in kept)
        too_long = len(found.examples) - len(short)
        counts[source] = {"train": len(kept), "held out": len(held), "too long": too_long, **found.skipped}
    if not examples:
        left_out = "; ".join(f"{source}: {_told(numbers)}" for source, numbers in counts.items())
        raise DataError(
            f"stages.{name}: nothing to train on. {left_out}. Too long is over {longest} tokens (learner.max_length"
            + (", the policy's context)" if longest != settings.max_length else ")")
        )
    if recipe.held_out > 0 and not held_out:
        raise DataError(
            f"stages.{name}: none of its {len(examples)} samples is of the {recipe.held_out:g} of conversations that are held "
            "out: give more data, a larger held_out, or held_out=0 to measure nothing"
        )
    seed = derive_seed(recipe.seed, name)
    steps = -(-len(examples) * settings.epochs // settings.batch_size)
    return Stage(
        name=name,
        learner=settings.for_steps(steps),
        examples=tuple(examples),
        held_out=tuple(held_out),
        counts=counts,
        learned_tokens=learned_tokens,
        seed=seed,
    )


def _told(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {what}" for what, number in numbers.items() if number)


class HeldOut:
    """What a policy makes of conversations that it was not trained on. Plain Python; `actors.stages` makes a Ray actor of it."""

    def __init__(
        self, model: str, *, token_budget: int, threads: int | None = None, trust_remote_code: bool = False
    ) -> None:
        self.model, self.token_budget, self.threads = model, token_budget, threads
        self.trust_remote_code = trust_remote_code

    def setup(self) -> None:
        """Load the weights; a failure reaches the driver with its reason."""
        set_threads(self.threads)
        self.tokenizer = load_tokenizer(self.model, self.trust_remote_code)
        # fp32 where that is cheap: a stage may change less than bf16 rounds.
        dtype = None if torch.cuda.is_available() else torch.float32
        self.policy = load_policy(self.model, dtype, self.trust_remote_code)

    def pid(self) -> int:
        return os.getpid()

    def nats(self, examples: Sequence[Example]) -> list[tuple[float, int]]:
        """Per example -log p of its learned tokens, in nats, and how many they are. Weights do not count."""
        encoded = [encode_example(example, self.tokenizer) for example in examples]
        rows = token_logprobs(self.policy, encoded, self.token_budget)
        return [(-float(row.double().sum()), len(row)) for row in rows]
