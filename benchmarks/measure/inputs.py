"""What the benchmarks work on: the smol recipe with its first queries, and stand-ins for answers.

plan = smol()
queries = first_queries(plan, 32)                      # as iteration t=1 asks them, one per prompt
texts = answers(plan, tokenizer, num=32, seed=0)       # 20 to 90 tokens each
texts = stretches(plan, tokenizer, [8, 300], seed=0)   # of these many tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rhumbline import config, recipes
from rhumbline.errors import ConfigError
from rhumbline.plan import Plan
from rhumbline.records import Query

SHORTEST, LONGEST = 20, 90  # tokens of an answer: about what SmolLM2-135M gives to one sentence, and to no limit


def smol() -> Plan:
    """jobs/recipes/smol.yaml, whose settings are what is measured."""
    return Plan.make(config.load(recipes.find("smol")))


def first_queries(plan: Plan, num: int) -> list[Query]:
    """One query for each of the first `num` prompts of t=1, directions and words included."""
    queries = plan.first_queries(num)
    if len(queries) < num:
        raise ConfigError(f"asked for {num} prompts, the first half of the smol recipe has {len(queries)}")
    return queries


def answers(plan: Plan, tokenizer: Any, num: int, seed: int) -> list[str]:
    """`stretches` of uniform length."""
    lengths = np.random.default_rng(seed).integers(SHORTEST, LONGEST + 1, size=num)
    return stretches(plan, tokenizer, lengths.tolist(), seed)


def stretches(plan: Plan, tokenizer: Any, lengths: Sequence[int], seed: int) -> list[str]:
    """Distinct stretches of real text of these many tokens, cut from the embedded prompts laid end to end."""
    prompts = [prompt.messages[-1].content for prompt in plan.splits.train]
    rng = np.random.default_rng(seed)
    ids = tokenizer(" ".join(prompts[i] for i in rng.permutation(len(prompts))), add_special_tokens=False)["input_ids"]
    texts: dict[str, None] = {}
    for length in lengths:
        text = ""
        while not text or text in texts:
            start = int(rng.integers(0, len(ids) - length))
            text = str(tokenizer.decode(ids[start : start + length], skip_special_tokens=True)).strip()
        texts[text] = None
    return list(texts)
