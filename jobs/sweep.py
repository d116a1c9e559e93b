#!/usr/bin/env python
"""A search over a recipe's keys: KL coefficients, weights of rewards, learning rates, or anything else by its dotted name.

ray job submit --runtime-env cluster/runtime_env.yaml -- python jobs/sweep.py --runs /mnt/rhumbline/runs
python jobs/sweep.py --recipe jobs/recipes/sweeps/kl-and-lr.yaml search.algorithm=random search.trials=4
python jobs/sweep.py --recipe jobs/recipes/sweeps/kl-and-lr.yaml search.algorithm=random search.trials=4 --resume

points     a grid or random points, or those that Optuna chooses by what came back (TPE, NSGA-II)
trials     each one a run of the job that its recipe is of, with its actors in a placement group of its own
then       a table, the Pareto front of the figures with its configurations, parallel coordinates, the best recipe
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from actors.command import laid_over
from rhumbline import config
from rhumbline.cli import user_errors
from rhumbline.config import SweepRecipe

HERE = Path(__file__).resolve().parent


def main(
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value, laid over the search's recipe")] = None,
    recipe: Annotated[Path, typer.Option(help="a YAML file")] = HERE / "recipes" / "sweeps" / "kl-and-lr.yaml",
    name: Annotated[str | None, typer.Option(help="of the search; the recipe's by default")] = None,
    runs: Annotated[Path, typer.Option(help="where runs lie", envvar="RHUMBLINE_RUNS")] = Path("runs"),
    resume: Annotated[bool, typer.Option("--resume", help="go on with an unfinished search")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would be tried, and do nothing")] = False,
) -> None:
    """Search over the keys of a recipe, and hand back the best."""
    with user_errors():
        sweep = config.load_sweep(recipe, laid_over(overrides, name))
        from rhumbline import plan

        config.try_space(sweep, lambda trial: plan.check(trial, dry_run=dry_run), str(recipe))
        from actors.search import search
        from cluster.session import session

        with session() as have:
            if dry_run:
                show(sweep, have)
                return
            text = recipe.read_text(encoding="utf-8")
            command = shlex.join(["python", "jobs/sweep.py", *sys.argv[1:]])
            page = search(sweep, runs, HERE, resume=resume, asked=text, have=have, command=command)
            print(f"report: {page}")


def show(sweep: SweepRecipe, have: Mapping[str, float]) -> None:
    """Print the resolved search, its points and what the trials that run side by side hold of the cluster."""
    from actors.search import rows_of
    from actors.trial import trial_name
    from cluster import placement

    print(config.dump(sweep))
    for number, point in enumerate(sweep.points()):
        overrides = sweep.trial_overrides(point)
        print(f"{number:>4}  {trial_name(overrides)}  {' '.join(overrides)}")
    if sweep.adaptive:
        print(f"{sweep.search.trials} trials, their points chosen by {sweep.search.algorithm} from")
        for key, dimension in sweep.space.items():
            print(f"  {key}: {dimension.model_dump(exclude_none=True)}")
    rows = rows_of(sweep.base(), sweep.max_concurrent)
    print(f"\n{sweep.max_concurrent} trials at a time of {sweep.recipe}")
    print("\n".join(placement.table(rows, have)))
    for line in placement.lacking(have, placement.totals(rows)):
        print(f"NOT ENOUGH  {line}")


if __name__ == "__main__":
    typer.run(main)
