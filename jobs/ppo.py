#!/usr/bin/env python
"""Proximal policy optimisation on weighted rewards (Schulman et al., arXiv:1707.06347; RLHF as Ziegler et al., arXiv:1909.08593).

ray job submit --runtime-env cluster/runtime_env.yaml -- python jobs/ppo.py --runs /mnt/rhumbline/runs
python jobs/ppo.py --recipe jobs/recipes/ppo/smol.yaml ppo.kl.coefficient=0.1     # any key of the recipe
python jobs/ppo.py --recipe jobs/recipes/ppo/smol.yaml --resume                    # goes on after the last step

t = 1..T   ask a batch of prompts under drawn directions, or a fixed one, sample, score
           reward = v . r on the last token - beta KL on every token; advantages by GAE over a value head; clipped epochs of
           updates; beta follows the KL where its controller is adaptive
           weights back into the generators, proven by a probe
then       evaluate on held-out prompts, and write the report
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from actors.command import Figures, Report, command, unheard
from rhumbline.config import PpoRecipe

if TYPE_CHECKING:
    from rhumbline.plan import Plan

HERE = Path(__file__).resolve().parent


def run(
    recipe: PpoRecipe, plan: Plan, runs: Path, resume: bool, asked: str, on_evaluation: Report = unheard
) -> Figures:
    """The algorithm; returns what the last policy came to (`actors.summary.figures`), as `on_evaluation` of earlier ones."""
    from actors.online_job import OnlineJob

    with OnlineJob.begin(recipe, plan, runs, resume, asked, on_evaluation) as job:
        with job.learners(recipe.ppo) as online:
            for t in online.steps():
                online.sample(t)
                online.update(t)  # v . r - beta KL, GAE, clipped epochs
                online.publish(t)
                if online.kept(t):
                    job.evaluate(t)
        return job.report(online)


main = command(
    run,
    PpoRecipe,
    HERE / "recipes" / "ppo" / "smol.yaml",
    "Train a policy by PPO for one direction, or for all of a region.",
)

if __name__ == "__main__":
    typer.run(main)
