"""Prompts with several answers to each, of mixed lengths: made here, or read from a file.

    asked = made(plan, tokenizer, prompts=4, per_prompt=10, longest=(512, 256), seed=0)
    asked = read("ranked_pairs.jsonl.gz", None, prompts=50, per_prompt=4, seed=0)
    prompt, answers = asked[0]                             # answers are distinct

What is made is cut from real text, and its lengths are even in the logarithm: people's are about that. Of OASST's ranked
answers 5%, 25%, 50%, 75% and 95% have up to 15, 60, 145, 285 and 515 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.measure.inputs import stretches
from rhumbline.data.prompts import prompt_of
from rhumbline.errors import ConfigError
from rhumbline.plan import Plan
from rhumbline.records import Message, Prompt
from rhumbline.rewards.score_file import answers as answers_of

Asked = tuple[Prompt, tuple[str, ...]]  # a prompt and its answers
SHORTEST_PROMPT, SHORTEST_ANSWER = 8, 16  # tokens


def made(plan: Plan, tokenizer: Any, prompts: int, per_prompt: int, longest: tuple[int, int], seed: int) -> list[Asked]:
    """Stretches of the embedded prompts, up to `longest` tokens of a prompt and of an answer."""
    rng = np.random.default_rng(seed)
    asked, answered = longest
    lengths = mixed(SHORTEST_PROMPT, asked, prompts, rng) + mixed(SHORTEST_ANSWER, answered, prompts * per_prompt, rng)
    texts = stretches(plan, tokenizer, lengths, seed)
    questions, said = texts[:prompts], iter(texts[prompts:])
    return [
        (prompt_of((Message(role="user", content=text),), "made"), tuple(next(said) for _ in range(per_prompt)))
        for text in questions
    ]


def mixed(low: int, high: int, num: int, rng: np.random.Generator) -> list[int]:
    """`num` lengths from low to high, evenly spaced in the logarithm, in random order: few of them cover it too."""
    places = (rng.permutation(num) + 0.5) / num
    return [round(length) for length in low * (high / low) ** places]


def read(path: str, split: str | None, prompts: int, per_prompt: int, seed: int, at_least: int = 1) -> list[Asked]:
    """`prompts` of the file's prompts by lot, each with its first `per_prompt` distinct answers, `at_least` so many.

    Raises ConfigError for a file with fewer such prompts, DataError for one that cannot be read.
    """
    found: dict[tuple[Message, ...], tuple[Prompt, dict[str, str]]] = {}
    for one in answers_of(path, split):
        said = found.setdefault(one.prompt.messages, (one.prompt, {}))[1]
        if one.response.strip():
            said.setdefault(one.response.strip(), one.response)
    usable = [(prompt, tuple(said.values())[:per_prompt]) for prompt, said in found.values() if len(said) >= at_least]
    if len(usable) < prompts:
        raise ConfigError(
            f"{path} has {len(usable)} prompts with {at_least} or more different answers, {prompts} were asked for: lower "
            "--prompts"
        )
    return [usable[i] for i in np.random.default_rng(seed).permutation(len(usable))[:prompts]]


def described(asked: Sequence[Asked]) -> str:
    """For people."""
    return f"{sum(len(said) for _, said in asked)} answers to {len(asked)} prompts"
