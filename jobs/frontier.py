#!/usr/bin/env python
"""The front of any checkpoint: held-out prompts over a grid of directions, scored by the recipe's rewards, with a report.

    python jobs/frontier.py runs/smol/checkpoints/t=2 --recipe jobs/recipes/smol.yaml
    python jobs/frontier.py runs/smol/checkpoints/t=2/adapter evaluation.samples=4 --name smol-again

The checkpoint is a folder that holds steering.json: full weights, or an adapter of the recipe's initial policy. Its objectives,
codec and reward model must be the recipe's; the calibration, and with it the reference point, is the checkpoint's own.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from rhumbline import config
from rhumbline.cli import user_errors
from rhumbline.config import Recipe
from rhumbline.plan import Plan

HERE = Path(__file__).resolve().parent


def main(
    checkpoint: Annotated[Path, typer.Argument(help="a folder with steering.json")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value, laid over the recipe")] = None,
    recipe: Annotated[Path, typer.Option(help="a YAML file")] = HERE / "recipes" / "dpa.yaml",
    name: Annotated[str | None, typer.Option(help="of the run; frontier-<checkpoint> by default")] = None,
    runs: Annotated[Path, typer.Option(help="where runs lie", envvar="RHUMBLINE_RUNS")] = Path("runs"),
    resume: Annotated[bool, typer.Option("--resume", help="go on with an unfinished run")] = False,
) -> None:
    """Evaluate one checkpoint over the directions that it was trained for."""
    with user_errors():
        folder = checkpoint.resolve()
        judged = ["iterations=0", "initial.strategy=adapter", f"initial.adapter={json.dumps(str(folder))}"]
        settings = config.load(recipe, [*(overrides or []), f"name={name or named_after(folder)}", *judged])
        plan = Plan.make(settings)
        from actors.dry_run import check
        from cluster.session import session

        with session() as have:
            check(plan, have)
            run(settings, plan, runs, resume, asked=recipe.read_text(encoding="utf-8"))


def named_after(folder: Path) -> str:
    """`frontier-smol-t2` for runs/smol/checkpoints/t=2, `frontier-smol-t2-adapter` for the adapter in it."""
    parts = list(folder.parts)
    at = len(parts) - 1 - parts[::-1].index("checkpoints") if "checkpoints" in parts else None
    told = parts[-2:] if at is None else [parts[at - 1], *parts[at + 1 :]]
    return "-".join(["frontier", *(re.sub(r"[^A-Za-z0-9._-]", "", part) for part in told)])


def run(recipe: Recipe, plan: Plan, runs: Path, resume: bool, asked: str) -> None:
    """Ask, score, report."""
    from actors.crew import Crew
    from actors.first import first_policy
    from actors.summary import write
    from rhumbline.store import RunStore

    inputs = plan.inputs()
    with RunStore.create(runs, recipe, resume, asked=asked, inputs=inputs) as store, Crew(recipe, store, plan) as crew:
        if recipe.evaluation.initial_policy:
            crew.held_out(None)  # before other weights are loaded; aggregated below
        first = first_policy(recipe, plan, store, crew)
        policies = [crew.evaluate(0, first.calibration)]
        initial = crew.evaluate(None, first.calibration) if recipe.evaluation.initial_policy else None
        print(f"report: {write(recipe, plan, store, crew, initial, policies, first.notes)}")


if __name__ == "__main__":
    typer.run(main)
