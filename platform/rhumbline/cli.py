"""`rhumbline` on the command line. A command imports what it needs when it runs, so `--help` needs no torch and no Ray.

    rhumbline doctor                       what this machine has, and what stands in the way
    rhumbline recipes ls | show | check    recipes, their values, their faults
    rhumbline data inspect PATH            what a data file is taken for
    rhumbline data explore PATH            who won the comparisons of a file, and what length did
    rhumbline rewards score FILE           answers of a file through a reward model, line by line
    rhumbline rewards card MODEL           how well a reward model says what people said of a file's answers
    rhumbline rewards debias MODEL         what length alone says of a score, to be taken off it
    rhumbline runs ls | show NAME          what runs have done so far
    rhumbline runs curves NAME ...         how online training went, several runs in one figure

Training itself is a job: `ray job submit ... -- jobs/dpa.py --recipe ...`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rhumbline import __version__
from rhumbline.cli_rewards import Limit, Split, Where, Winner, comparing, rewards_app
from rhumbline.errors import EXIT_STOPPED, EXIT_USER_ERROR, RhumblineError, UserError

if TYPE_CHECKING:
    from rhumbline import config
    from rhumbline.config.users import UsersRecipe
    from rhumbline.fitting.recipe import RewardRecipe

app = typer.Typer(
    help="Align one language model to many people at once: preference directions in reward space, on Ray.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
recipes_app = typer.Typer(help="Recipes: list, show, check.", no_args_is_help=True, rich_markup_mode=None)
data_app = typer.Typer(help="Data files: what is in them.", no_args_is_help=True, rich_markup_mode=None)
runs_app = typer.Typer(help="Run directories: list, show.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(recipes_app, name="recipes")
app.add_typer(data_app, name="data")
app.add_typer(rewards_app, name="rewards")
app.add_typer(runs_app, name="runs")

Recipe = Annotated[str, typer.Argument(help="A path, or the name of a shipped recipe such as smol.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key.sub=value, laid over the recipe.")]
RunsFolder = Annotated[
    Path, typer.Option("--runs", help="The folder of runs.", envvar="RHUMBLINE_RUNS", show_default="runs")
]


@contextmanager
def user_errors() -> Iterator[None]:
    """A UserError becomes one message on stderr and exit code 2, any other stop that Rhumbline means one and exit code 1: a
    loss that is no number, a full disk.

    What nobody foresaw keeps its traceback. Jobs use it too.
    """
    try:
        yield
    except (UserError, ConnectionError) as e:
        # Plain: no Ray cluster answers where the job was told to look. A kind of it, such as a reset, came later.
        if isinstance(e, ConnectionError) and type(e) is not ConnectionError:
            raise
        print(f"error: {e}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except RhumblineError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(EXIT_STOPPED)


def main(args: list[str] | None = None) -> None:
    """Entry point of `rhumbline`."""
    with user_errors():
        app(args=args)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Versions, devices, capacity, Ray; every problem with its remedy. Exit code 1 where a run could not work."""
    from rhumbline.doctor import examine

    findings = examine()
    problems = [f for f in findings if f.level == "problem"]
    if as_json:
        typer.echo(json.dumps({"ok": not problems, "findings": [asdict(f) for f in findings]}, indent=1))
    else:
        for finding in findings:
            typer.echo(finding.line())
        typer.echo(f"\n{len(problems)} problems" if problems else "\nno problems")
    raise typer.Exit(1 if problems else 0)


@recipes_app.command("ls")
def recipes_ls() -> None:
    """The recipes here (jobs/recipes) and those of the checkout."""
    from rhumbline.recipes import available

    for entry in available():
        typer.echo(f"{entry.name:<30}{entry.title}")


def _load(
    path: Path, overrides: list[str] | None
) -> config.Run | RewardRecipe | config.SftRecipe | config.SweepRecipe | UsersRecipe:
    """A recipe of any job."""
    from rhumbline import config, recipes

    raw = config.read(path, overrides or [])
    if recipes.of_rewards(raw):
        from rhumbline.fitting import recipe as rewards

        return rewards.load(path, overrides or [])
    if raw.get("job") == "sft":
        return config.load_sft(path, overrides or [])
    if raw.get("job") == "sweep":
        return config.load_sweep(path, overrides or [])
    if raw.get("job") == "users":
        from rhumbline.config import users

        return users.load_users(path, overrides or [])
    return config.load(path, overrides or [], kind=config.JOBS.get(str(raw.get("job")), config.Recipe))


@recipes_app.command("show")
def recipes_show(
    recipe: Recipe,
    overrides: Overrides = None,
    resolved: Annotated[bool, typer.Option("--resolved", help="Every key, defaults included.")] = False,
) -> None:
    """A recipe as it is written; resolved, with --resolved or overrides."""
    from rhumbline import config, recipes

    path = recipes.find(recipe)
    if resolved or overrides:
        typer.echo(config.dump(_load(path, overrides)), nl=False)
    else:
        typer.echo(path.read_text(encoding="utf-8"), nl=False)


@recipes_app.command("check")
def recipes_check(recipe: Recipe, overrides: Overrides = None) -> None:
    """Load a recipe, build its rewards, and say its directions in its codec; of one of jobs/reward.py, its heads; of a search
    or a soup, the recipes that they run too. Exit code 2 with every fault by its path.
    """
    from rhumbline import config, plan, recipes
    from rhumbline.config.users import UsersRecipe

    path = recipes.find(recipe)
    loaded = _load(path, overrides)
    if isinstance(loaded, config.SftRecipe):
        typer.echo(f"OK  {path}: {loaded.name}, stages {', '.join(loaded.stages)}")
        return
    if isinstance(loaded, config.SweepRecipe):
        config.try_space(loaded, lambda trial: plan.check(trial, dry_run=True), str(path))
        typer.echo(f"OK  {path}: {loaded.name}, over {', '.join(loaded.space)}, trials of {loaded.recipe}")
        _tell_elsewhere(plan.elsewhere(loaded.base()))
        return
    if isinstance(loaded, UsersRecipe):
        typer.echo(f"OK  {path}: {loaded.name}, {loaded.people.kind}")
        return
    if not isinstance(loaded, config.Run):
        from rhumbline.fitting.absolute_labels import weighting

        if isinstance(loaded.absolute.weights, str):
            weighting(loaded.absolute.weights)
        typer.echo(f"OK  {path}: {loaded.name}, {loaded.kind}, heads {', '.join(head.name for head in loaded.heads())}")
        return
    cone, codec = plan.check(loaded, dry_run=True)
    typer.echo(f"OK  {path}: {loaded.name}, objectives {', '.join(cone.names)}, codec {codec.name}")
    _tell_elsewhere(plan.elsewhere(loaded))


def _tell_elsewhere(missing: list[str]) -> None:
    if missing:
        typer.echo(f"not on this machine, and needed where the job runs: {', '.join(missing)}")


@data_app.command("inspect")
def data_inspect(
    path: Annotated[str, typer.Argument(help="JSONL(.gz), Parquet, a hub name, or 'embedded'.")],
    split: Annotated[str | None, typer.Option(help="A split of the file or of the hub data set.")] = None,
    tokenizer: Annotated[
        str, typer.Option(help="A folder or hub name; 'embedded', or 'none' to count no tokens.")
    ] = "embedded",
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Longer samples, prompt and answer, count as too long.")
    ] = 2048,
) -> None:
    """Detected type, column mapping, three rendered rows; how many are duplicates, empty or too long."""
    from rhumbline.data.inspect import inspect

    loaded = None
    if tokenizer != "none":
        from rhumbline.learning.policy import load_tokenizer

        loaded = load_tokenizer(tokenizer)
    for text in inspect(path, loaded, max_tokens=max_tokens, split=split).lines():
        typer.echo(text)


@data_app.command("explore")
def data_explore(
    path: Annotated[str, typer.Argument(help="Comparisons: JSONL(.gz), Parquet or a hub name.")],
    out: Annotated[Path, typer.Option(help="The folder to write to.")],
    split: Split = None,
    limit: Limit = None,
    winner: Winner = None,
    where: Where = None,
) -> None:
    """Battles and win rates per model and pair, ties, and what length did, as CSV and PNG."""
    from rhumbline.cards.exploration import write
    from rhumbline.data.comparisons import load_comparisons

    found = load_comparisons(path, split, limit, **comparing(winner, where))
    for written in write(out, found.rows):
        typer.echo(str(written))
    typer.echo(f"{len(found.rows)} comparisons" + "".join(f", {n} left out: {why}" for why, n in found.skipped.items()))


@runs_app.command("ls")
def runs_ls(runs: RunsFolder = Path("runs")) -> None:
    """Every run: its state, when it last gave a sign of life, and where it stands."""
    from rhumbline.runs import all_runs, line

    found = all_runs(runs)
    for run in found:
        typer.echo(line(run))
    if not found:
        typer.echo(f"no runs in {runs}", err=True)


@runs_app.command("show")
def runs_show(
    name: Annotated[str, typer.Argument(help="The name of a run, or its path.")], runs: RunsFolder = Path("runs")
) -> None:
    """State, finished work, results per iteration, and where the report is."""
    from rhumbline.runs import describe

    path = Path(name) if os.sep in name else runs / name
    for text in describe(path):
        typer.echo(text)


@runs_app.command("curves")
def runs_curves(
    names: Annotated[list[str], typer.Argument(help="Names or paths of runs of jobs/ppo.py and jobs/grpo.py.")],
    out: Annotated[Path, typer.Option(help="The figure; its numbers go beside it as CSV.")] = Path("build/curves.png"),
    runs: RunsFolder = Path("runs"),
) -> None:
    """Runs of online training in one figure: reward, KL and more over their steps, and how far the reward rose."""
    from rhumbline import durable
    from rhumbline.cards.figures import csv_of, png
    from rhumbline.evaluation.curves import compared, rise
    from rhumbline.runs import online_steps

    told = [online_steps(Path(name) if os.sep in name else runs / name) for name in names]
    plot = compared({one.name: one.rows for one in told}, {one.name: one.target for one in told if one.target})
    out.parent.mkdir(parents=True, exist_ok=True)
    durable.replace(out, png(plot.figure))
    durable.replace(out.with_suffix(".csv"), csv_of(plot.rows))
    for one in told:
        rose = rise(one.rows, one.answers)
        target = f", target {one.target:g}" if one.target else ""
        typer.echo(
            f"{one.name}: reward {rose.first:.3f} in the first steps, {rose.last:.3f} in the last of {len(one.rows)}: "
            f"{rose.errors:+.1f} standard errors; KL {rose.kl:.2f} nats per answer{target}"
        )
    typer.echo(f"figure: {out}")


if __name__ == "__main__":
    main()
