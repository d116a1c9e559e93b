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
from typing import Annotated

import typer

from rhumbline import config
from rhumbline.cli import user_errors
from rhumbline.config import SoupRecipe
from rhumbline.plan import Plan

HERE = Path(__file__).resolve().parent


def main(
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value, laid over the recipe")] = None,
    recipe: Annotated[Path, typer.Option(help="a YAML file")] = HERE / "recipes" / "soups" / "smol.yaml",
    name: Annotated[str | None, typer.Option(help="of the run; the recipe's by default")] = None,
    runs: Annotated[Path, typer.Option(help="where runs lie", envvar="RHUMBLINE_RUNS")] = Path("runs"),
    resume: Annotated[bool, typer.Option("--resume", help="go on with an unfinished run")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would be done, and do nothing")] = False,
) -> None:
    """Mix policies of single objectives for every direction, and evaluate the mixtures."""
    with user_errors():
        asked = [*(overrides or []), *([f"name={name}"] if name else [])]
        settings = config.load(recipe, asked, kind=SoupRecipe)
        plan = Plan.make(settings, dry_run=dry_run)
        from actors.dry_run import check, show
        from cluster.session import session

        with session() as have:
            if dry_run:
                show(plan, have)
                return
            check(plan, have)
            run(settings, plan, runs, resume, asked=recipe.read_text(encoding="utf-8"))


def run(recipe: SoupRecipe, plan: Plan, runs: Path, resume: bool, asked: str) -> dict[str, float]:
    """The algorithm; returns what the mixtures came to (`actors.summary.figures`)."""
    from actors.crew import Crew
    from actors.first import first_policy
    from actors.soups import check_mixtures, children, hashes, objective_policies, taste, told
    from actors.summary import figures, write
    from rhumbline.store import RunStore

    check_mixtures(recipe, plan)
    missing = children(recipe)
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
            notes = [*first.notes, *told(policies, plan.grid())]
            print(f"report: {write(recipe, plan, store, crew, initial, [soup], notes)}")
            return figures(recipe, first.calibration, soup)


if __name__ == "__main__":
    typer.run(main)
