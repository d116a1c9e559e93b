"""The command line of a job with a run directory: which options there are, and what is looked at before its algorithm runs.

    main = command(run, PpoRecipe, HERE / "recipes" / "ppo" / "smol.yaml", "Train a policy by PPO.")
    typer.run(main)                        # reads the recipe, plans, finds the cluster, checks its room, then run(...)

What is heavy is imported when it is needed, Ray once the recipe is known to be sound: `--help` and a faulty recipe answer at
once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from rhumbline import config
from rhumbline.cli import user_errors

R = TypeVar("R", bound=config.Run)
Figures = dict[str, float]  # what a run came to: `actors.summary.figures`
Report = Callable[[Figures], None]  # hears of a run's evaluations while it goes on


def command(run: Callable[..., object], kind: type[R], default: Path, about: str) -> Callable[..., None]:
    """What `typer.run` takes: it calls `run(recipe, plan, runs, resume, asked=...)` with a recipe of `kind`, and exits with 2
    for a fault of the user's.

    default: the recipe where none is given. about: what the job does, for its help.
    """

    def main(
        overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value, laid over the recipe")] = None,
        recipe: Annotated[Path, typer.Option(help="a YAML file")] = default,
        name: Annotated[str | None, typer.Option(help="of the run; the recipe's by default")] = None,
        runs: Annotated[Path, typer.Option(help="where runs lie", envvar="RHUMBLINE_RUNS")] = Path("runs"),
        resume: Annotated[bool, typer.Option("--resume", help="go on with an unfinished run")] = False,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would be done, and do nothing")] = False,
    ) -> None:
        with user_errors():
            settings = config.load(recipe, laid_over(overrides, name), kind=kind)
            from rhumbline.plan import Plan

            plan = Plan.make(settings, dry_run=dry_run)
            from actors.dry_run import check, show
            from cluster.session import session

            with session() as have:
                if dry_run:
                    show(plan, have)
                    return
                check(plan, have)
                run(settings, plan, runs, resume, asked=recipe.read_text(encoding="utf-8"))

    main.__doc__ = about
    return main


def unheard(_figures: Figures) -> None:
    """The `Report` of a run that nobody listens to."""


def laid_over(overrides: Sequence[str] | None, name: str | None) -> list[str]:
    """The overrides of a command line, `--name` the last of them."""
    return [*(overrides or []), *([f"name={name}"] if name else [])]
