#!/usr/bin/env python
"""Rewarded soups: one policy per objective, their weights interpolated by the direction (Rame et al., arXiv:2306.04488).

ray job submit --runtime-env cluster/runtime_env.yaml -- python jobs/soups.py --runs /mnt/rhumbline/runs
python jobs/soups.py --recipe jobs/recipes/soups/smol.yaml --resume

for each objective    train a policy for it alone, by the recipe that `train` names, where `policies` names none
for each direction    theta = theta_0 + sum_k w_k (theta_k - theta_0), w_k = |v_k| / sum |v|; sample held-out prompts
then                  evaluate the mixtures as one policy, with the same report as jobs/dpa.py
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from actors.command import command
from rhumbline.config import SoupRecipe

if TYPE_CHECKING:
    from rhumbline.plan import Plan

HERE = Path(__file__).resolve().parent


def run(recipe: SoupRecipe, plan: Plan, runs: Path, resume: bool, asked: str) -> dict[str, float]:
    """The algorithm; returns what the mixtures came to (`actors.summary.figures`)."""
    from actors.crew import Crew
    from actors.first import first_policy
    from actors.soups import check_mixtures, children, hashes, objective_policies, taste, told
    from actors.summary import figures, write
    from rhumbline.store import RunStore

    check_mixtures(recipe, plan)
    missing = children(recipe, plan)
    inputs = {**plan.inputs(), **hashes(recipe)}
    with RunStore.create(runs, recipe, resume, asked=asked, inputs=inputs) as store:
        policies = objective_policies(
            recipe, missing, runs, HERE
        )  # runs of their own, before this one takes the cluster
        with Crew(recipe, store, plan) as crew:
            if recipe.evaluation.initial_policy:
                crew.held_out(None)  # the initial policy answers before other weights are loaded; aggregated below
            first = first_policy(recipe, plan, store, crew)
            soup = crew.judge("soup", taste(crew, plan, store, policies), first.calibration, t=0)
            initial = crew.evaluate(None, first.calibration) if recipe.evaluation.initial_policy else None
            notes = [*first.notes, *told(policies, plan.grid(), store)]
            print(f"report: {write(recipe, plan, store, crew, initial, [soup], notes)}")
            return figures(recipe, first.calibration, soup)


main = command(
    run,
    SoupRecipe,
    HERE / "recipes" / "soups" / "smol.yaml",
    "Mix policies of single objectives for every direction, and evaluate the mixtures.",
)

if __name__ == "__main__":
    typer.run(main)
