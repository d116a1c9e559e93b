"""Answers of a policy that obeys its direction by construction, for the tests of evaluation and report."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rhumbline.evaluation.evaluate import PolicyEvaluation
from rhumbline.records import Completion, Message, Prompt, Query, Scored

SIGNS = {"helpfulness": 1, "verbosity": -1}
REFERENCE = {"helpfulness": 20.0, "verbosity": 95.0}
ANGLES = (-45.0, -30.0, -15.0, 0.0)


def arc(angles_deg: Sequence[float] = ANGLES) -> list[tuple[float, ...]]:
    return [(math.cos(math.radians(a)), math.sin(math.radians(a))) for a in angles_deg]


def answer(
    prompt_id: str,
    direction: tuple[float, ...] | None,
    rewards: Sequence[float],
    *,
    length: int = 10,
    index: int = 0,
    sample: int = 0,
    text: str = "An answer.",
    prompt: str = "A question?",
    finished: bool = True,
) -> Scored:
    asked = Prompt(id=prompt_id, messages=(Message(role="user", content=prompt),))
    query = Query(
        prompt=asked,
        iteration=1,
        direction=direction,
        direction_index=index,
        style="",
        messages=asked.messages,
        seed=0,
    )
    completion = Completion(
        query=query,
        sample_index=sample,
        text=text,
        token_ids=tuple(range(length)),
        logprob=-1.0,
        finish_reason="stop" if finished else "length",
        policy_version="t=1",
    )
    return Scored(completion=completion, rewards=tuple(float(r) for r in rewards))


def obedient(
    strength: float = 1.0,
    *,
    quality: float = 50.0,
    angles_deg: Sequence[float] | None = ANGLES,
    num_prompts: int = 20,
    samples: int = 2,
    seed: int = 0,
) -> list[Scored]:
    """Verbosity and length grow with the angle by `strength`; None for `angles_deg` asks without a direction."""
    rng = np.random.default_rng(seed)
    directions: list[tuple[float, ...] | None] = [None] if angles_deg is None else list(arc(angles_deg))
    out = []
    for p in range(num_prompts):
        own = rng.normal(0, 3)
        for index, direction in enumerate(directions):
            towards = 0.0 if direction is None else direction[1] / math.sin(math.radians(45)) + 0.5
            for sample in range(samples):
                length = max(3, round(50 * math.exp(0.6 * strength * towards) + own + rng.normal(0, 4)))
                rewards = (quality + 3 * strength * towards + own + rng.normal(0, 3), length)
                words = " ".join(f"word{rng.integers(30)}" for _ in range(8))
                out.append(
                    answer(f"p{p:02d}", direction, rewards, length=length, index=index, sample=sample, text=words)
                )
    return out


def evaluation(t: int | None, scored: list[Scored], *, with_kl: bool = True, bootstrap: int = 200) -> PolicyEvaluation:
    label = "initial policy" if t is None else f"t={t}"
    kl = {s.completion.id: 5.0 + (t or 0) for s in scored} if with_kl and t is not None else None
    return PolicyEvaluation.from_scored(
        scored,
        t=t,
        label=label,
        signs=SIGNS,
        reference_point=REFERENCE,
        scale={"helpfulness": 5.0, "verbosity": 20.0},
        kl=kl,
        bootstrap=bootstrap,
    )
