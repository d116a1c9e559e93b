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

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from rhumbline import config
from rhumbline.cli import user_errors
from rhumbline.config import PpoRecipe
from rhumbline.plan import Plan

HERE = Path(__file__).resolve().parent


def main(
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value, laid over the recipe")] = None,
    recipe: Annotated[Path, typer.Option(help="a YAML file")] = HERE / "recipes" / "ppo" / "smol.yaml",
    name: Annotated[str | None, typer.Option(help="of the run; the recipe's by default")] = None,
    runs: Annotated[Path, typer.Option(help="where runs lie", envvar="RHUMBLINE_RUNS")] = Path("runs"),
    resume: Annotated[bool, typer.Option("--resume", help="go on with an unfinished run")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would be done, and do nothing")] = False,
) -> None:
    """Train a policy by PPO for one direction, or for all of a region."""
    with user_errors():
        asked = [*(overrides or []), *([f"name={name}"] if name else [])]
        settings = config.load(recipe, asked, kind=PpoRecipe)
        plan = Plan.make(settings, dry_run=dry_run)
        from actors.dry_run import check, show
        from cluster.session import session

        with session() as have:
            if dry_run:
                show(plan, have)
                return
            check(plan, have)
            run(settings, plan, runs, resume, asked=recipe.read_text(encoding="utf-8"))


def run(
    recipe: PpoRecipe,
    plan: Plan,
    runs: Path,
    resume: bool,
    asked: str,
    on_evaluation: Callable[[dict[str, float]], None] = lambda _figures: None,
) -> dict[str, float]:
    """The algorithm; returns what the last policy came to (`actors.summary.figures`), as `on_evaluation` hears of each."""
    from actors.crew import Crew
    from actors.first import first_policy
    from actors.online import Online
    from actors.summary import figures, write
    from rhumbline.store import RunStore

    inputs = plan.inputs()
    with RunStore.create(runs, recipe, resume, asked=asked, inputs=inputs) as store, Crew(recipe, store, plan) as crew:
        if recipe.evaluation.initial_policy:
            crew.held_out(None)  # the initial policy answers before other weights are loaded; aggregated below
        first = first_policy(recipe, plan, store, crew)
        with Online(recipe, recipe.ppo, plan, store, crew, first) as online:
            for t in online.steps():
                online.sample(t)
                online.update(t)
                online.publish(t)
                if online.kept(t):
                    on_evaluation(figures(recipe, first.calibration, crew.evaluate(t, first.calibration)))
            kept = [t for t in range(1, recipe.steps + 1) if online.kept(t)]
        before = [] if first.version is None else [crew.evaluate(first.version, first.calibration)]
        policies = [*before, *(crew.evaluate(t, first.calibration) for t in kept)]
        initial = crew.evaluate(None, first.calibration) if recipe.evaluation.initial_policy else None
        print(f"report: {write(recipe, plan, store, crew, initial, policies, first.notes, online.curve())}")
        return figures(recipe, first.calibration, policies[-1])


if __name__ == "__main__":
    typer.run(main)
