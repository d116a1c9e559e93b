#!/usr/bin/env python
"""Group relative policy optimisation on weighted rewards (Shao et al., arXiv:2402.03300; RLOO, Dr. GRPO and GDPO by options).

ray job submit --runtime-env cluster/runtime_env.yaml -- python jobs/grpo.py --runs /mnt/rhumbline/runs
python jobs/grpo.py --recipe jobs/recipes/grpo/smol.yaml grpo.kl.coefficient=0.1     # any key of the recipe
python jobs/grpo.py --recipe jobs/recipes/grpo/smol.yaml --resume                    # goes on after the last step

t = 1..T   ask a batch of prompts under drawn directions, or a fixed one, sample, score
           reward = v . r; an answer's advantage is over the others to the same prompt under the same direction; clipped
           updates, with the KL to the reference in the loss
           weights back into the generators, proven by a probe
then       evaluate on held-out prompts, and write the report
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from actors.command import Figures, Report, command, unheard
from rhumbline.config import GrpoRecipe

if TYPE_CHECKING:
    from rhumbline.plan import Plan

HERE = Path(__file__).resolve().parent


def run(
    recipe: GrpoRecipe, plan: Plan, runs: Path, resume: bool, asked: str, on_evaluation: Report = unheard
) -> Figures:
    """The algorithm; returns what the last policy came to (`actors.summary.figures`), as `on_evaluation` of earlier ones."""
    from actors.online_job import OnlineJob

    with OnlineJob.begin(recipe, plan, runs, resume, asked, on_evaluation) as job:
        with job.learners(recipe.grpo) as online:
            for t in online.steps():
                online.sample(t)
                online.update(t)  # v . r against its group, clipped epochs
                online.publish(t)
                if online.kept(t):
                    job.evaluate(t)
        return job.report(online)


main = command(
    run,
    GrpoRecipe,
    HERE / "recipes" / "grpo" / "smol.yaml",
    "Train a policy by GRPO for one direction, or for all of a region.",
)

if __name__ == "__main__":
    typer.run(main)
