#!/usr/bin/env python
"""Answers per second of the shipped reward model: a batch as a run scores it against one answer at a time.

    .venv/bin/python benchmarks/score.py

Ours      `RewardModel.score` of the smol recipe's rewards on all answers at once: answers to one prompt share its
          computation, batches go by length, longest first, up to a budget of padded tokens.
The rival the same model with the same lower half of the backbone, called once for every answer.

Nothing comes from the cache: every run begins with an empty one. Both must give the same scores, which is checked. Answers
are stretches of real text of 20 to 90 tokens; the work does not depend on what they say.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.measure.inputs import answers, first_queries, smol
from benchmarks.measure.ratio import WARM_UP, Side, Work, compare, timed
from rhumbline.cli import user_errors
from rhumbline.learning.policy import load_tokenizer, set_threads
from rhumbline.rewards.features import Pair
from rhumbline.rewards.model import Array, RewardModel

MOVED = 0.01  # points of 100 that scores may differ by, as `rewards.invariance` has it
WARM_UP_ANSWERS = 4


def main(
    pairs: Annotated[int, typer.Option(min=1, help="runs of each side")] = 5,
    prompts: Annotated[int, typer.Option(min=1, help="prompts that are answered")] = 6,
    per_prompt: Annotated[int, typer.Option(min=1, help="answers to each; the recipe has 5 directions x 2")] = 10,
    threads: Annotated[int, typer.Option(min=1, help="of torch, for both")] = 2,
    seed: Annotated[int, typer.Option(help="of the answers")] = 0,
    out: Annotated[Path | None, typer.Option(help="CSV of every run; default build/benchmarks/score.csv")] = None,
) -> None:
    """Measure scoring."""
    with user_errors():
        plan = smol()
        set_threads(threads)
        loaded = RewardModel.build(plan.recipe.rewards, policy="embedded")
        loaded.setup()
        texts = iter(answers(plan, load_tokenizer("embedded"), prompts * per_prompt, seed))
        batch: list[Pair] = [
            (query.prompt, next(texts)) for query in first_queries(plan, prompts) for _ in range(per_prompt)
        ]
        scores: dict[str, Array] = {}

        def run(side: str, pair: int) -> Work:
            model = RewardModel(loaded.sources, loaded.objectives)  # an empty cache
            chosen = batch[:WARM_UP_ANSWERS] if pair == WARM_UP else batch

            def score() -> int:
                if side == "batched":
                    scores[side] = model.score(chosen)
                else:
                    scores[side] = np.concatenate([model.score([one]) for one in chosen])
                return len(chosen)

            return timed(score)

        print(f"{len(batch)} answers to {prompts} prompts; {threads} threads")
        ours = Side("batched", lambda pair: run("batched", pair))
        rival = Side("one at a time", lambda pair: run("one at a time", pair))
        ratio = compare("score", "answers/s", ours=ours, rival=rival, pairs=pairs, out=out)
        moved = float(np.abs(scores["batched"] - scores["one at a time"]).max())
        assert moved <= MOVED, f"the two sides score differently, by up to {moved:.3g} points: they do not do the same"
        print(f"score/largest_difference {moved:.2g} points")
        print(ratio)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    typer.run(main)
