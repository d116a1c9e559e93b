"""A search over recipes on Ray Tune: every trial is a run of a job, in a placement group of its own.

    search(sweep, Path("runs"), HERE, resume=False, asked=text, have=have)      # runs/<sweep>/report/index.md

Tune chooses what to try and when; what a trial is, `actors.trial` says. Trials record what came of them, so the report needs no
state of Tune's, and a search that is begun anew in the same folder computes nothing twice.

    driver:  load, check room and inputs -> Tuner.fit -> settle the records -> report
    trial:   point -> recipe -> run(recipe, plan, trials, resume=True) -> record -> tune.report

What Tune does, read in Ray 2.60:
- The trial's own actor gets an empty bundle, and with it placement_group_capture_child_tasks: whatever actor it makes goes into
  its group (air/execution/resources/placement_group.py, actor.py), in any bundle with room for it. So a small actor may take a
  large one's bundle, and the large one then waits for ever: `cluster.slots` gives each actor its own bundle. An actor that is
  larger than every bundle is a ValueError at once, not a wait.
- Ray Train makes a placement group of its own for its workers (its worker_group.py), outside the trial's. `room` keeps
  the two apart, and both have to fit.
- A trial that returns without a report ends the whole search where it was restored: the last line of a trial is a report.
- Tuner.restore without an experiment_state file starts a search of one sample in silence: then we start anew.
- tuner.pkl is a pickle: `resume` reads one from the sweep's folder, which is as trusted as the code.
- Tuner.restore brings back trials and searcher, of a scheduler what it was before the first trial: `actors.asha` keeps its own.
"""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from ray import tune

from actors.asha import Asha
from actors.command import Figures
from actors.dry_run import check
from actors.preferences import Preferences
from actors.soups import check_mixtures
from actors.trial import (
    check_records,
    job_module,
    job_of,
    records,
    run_trial,
    settle,
    told_on_the_way,
    trial_name,
)
from cluster import placement
from cluster.session import nodes
from cluster.slots import slots
from rhumbline import config, durable, lease
from rhumbline.config import Run, SweepRecipe
from rhumbline.config.sweep import Point
from rhumbline.errors import ConfigError, ResourceError, RhumblineError, RunError, TrainingError
from rhumbline.evaluation.search import fault
from rhumbline.evaluation.search_report import Held, Steps, write_report
from rhumbline.plan import Plan, Want, wanted
from rhumbline.runs import evaluations, online_steps
from rhumbline.store import FREE_KEYS, lasting

STATE = "tune"  # Tune's folder within a sweep's
# Settings of tune.TuneConfig that a sweep has a key of its own for.
_OWN = {
    "search_alg": "search.algorithm",
    "scheduler": "scheduler",
    "num_samples": "search.trials",
    "metric": "metrics",
    "mode": "metrics",
    "max_concurrent_trials": "max_concurrent",
}
_LEARNT = {"name", "learner", "ppo", "grpo", "loss"}  # keys of a recipe that say nothing of what a trial reads
_SWEEP, _BASE = "sweep.resolved.yaml", "base.resolved.yaml"  # not recipe.resolved.yaml: a sweep is no run


def search(
    sweep: SweepRecipe,
    runs: Path,
    jobs: Path,
    *,
    resume: bool,
    asked: str,
    have: Mapping[str, float],
    command: str = "",
) -> Path:
    """Run every trial that is not finished, and write the report; returns its page.

    Raises UserError before anything starts, and TrainingError where no trial came to an end with the figures asked for.
    """
    job = job_module(jobs, job_of(sweep.base()))
    if sweep.scheduler == "asha" and not told_on_the_way(job):
        raise ConfigError(
            f"scheduler asha stops trials by figures on the way, and jobs/{job.__name__}.py reports none before its end: "
            "scheduler: none"
        )
    check_room(sweep, have)
    check_inputs(sweep, have)
    folder = (lasting(runs) / sweep.name).resolve()
    chosen = _tune_config(sweep, folder)  # also whether Optuna is there
    same = _same(folder, sweep, resume)
    check_records(sweep, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with lease.held(folder):
        written = {"sweep.yaml": asked, _BASE: config.dump(sweep.base()), _SWEEP: config.dump(sweep)}
        for file, text in written.items():
            durable.replace(folder / file, text.encode())
        tuner = _tuner(sweep, _trainable(sweep, folder, jobs.resolve()), folder, chosen, restore=resume and same)
        try:
            results = tuner.fit()
        except Exception as e:  # of Tune's own kinds: some of them hide a fault of the recipe
            _explain(sweep, folder, e)
            raise
        errors = {
            _name_of(sweep, one.config): str(one.error) for one in results if one.error is not None and one.config
        }
        settle(folder, errors, by_scheduler=sweep.scheduler != "none")
        page = report(sweep, folder, command)
        if faults := _all_failed(sweep, folder):
            raise TrainingError(f"no trial of the search counts, the first because: {faults[0]}. All of them: {page}")
        return page


def report(sweep: SweepRecipe, folder: Path, command: str) -> Path:
    """report/ of a sweep's folder, out of the records of its trials. Raises ConfigError where none could be read."""
    return write_report(
        folder / "report",
        name=sweep.name,
        trials=records(sweep, folder),
        metrics=sweep.metrics,
        headings=sweep.headings(),
        recipe_of=lambda trial: config.dump(sweep.trial(trial["point"], f"{sweep.name}-best")),
        steps_of=lambda trial: _steps(folder / trial["folder"]),
        held_of=lambda trial: _held_out(folder / trial["folder"]),
        command=command,
    )


def _steps(folder: Path) -> Steps | None:
    """A trial's curve; None where its job has none."""
    try:
        told = online_steps(folder)
    except RunError:
        return None
    return Steps(told.rows, told.target)


def _held_out(folder: Path) -> Held | None:
    """What a trial's last policy was evaluated to; None where nothing was."""
    initial, policies = evaluations(folder)
    return Held(policies[-1], initial) if policies else None


# --- room -------------------------------------------------------------------------------------------------------------


def room(recipe: Run) -> tuple[list[Want], list[Want]]:
    """What a trial holds in its placement group, and what Ray Train asks for beside it.

    The learners of online training are actors, which go into the group. Those of the other jobs, and of an online job's t=0
    where it learns, are Ray Train's.
    """
    everyone = wanted(recipe)
    online = isinstance(recipe, config.OnlineRecipe)
    trained = not online or recipe.initial.strategy in ("relabel", "steerlm")
    inside = [want for want in everyone if online or want.role != "learner"]
    return inside, [want for want in everyone if trained and want.role == "learner"]


def bundles(recipe: Run) -> list[dict[str, float]]:
    """The trial's placement group: an empty bundle for the trial itself, which takes no CPU, then one per actor.

    An actor that asks for neither CPU nor GPU needs no bundle; Ray has no group of nothing at all.
    """
    held = [bundle for _, bundle in _held(recipe)]
    return [{}, *held] if held else [{"CPU": 0.01}]


def bundle_numbers(recipe: Run) -> dict[str, list[int]]:
    """For every role the numbers of its actors' bundles in the group. Tune leaves the trial's empty one out of it."""
    numbers: dict[str, list[int]] = {}
    for number, (role, _) in enumerate(_held(recipe)):
        numbers.setdefault(role, []).append(number)
    return numbers


def _held(recipe: Run) -> list[tuple[str, dict[str, float]]]:
    each = [
        (want.role, {"CPU": want.num_cpus, "GPU": want.num_gpus}) for want in room(recipe)[0] for _ in range(want.count)
    ]
    return [(role, bundle) for role, bundle in each if any(bundle.values())]


def check_room(sweep: SweepRecipe, have: Mapping[str, float]) -> None:
    """Raises ResourceError where `max_concurrent` trials do not fit the cluster side by side: they would wait for each other."""
    machines = nodes()
    for recipe in _shapes(sweep):
        rows = rows_of(recipe, sweep.max_concurrent)
        missing = [*placement.lacking(have, placement.totals(rows)), *placement.too_large(machines, rows)]
        if missing:
            table = "\n".join(placement.table(rows, have))
            raise ResourceError(
                f"the cluster lacks what {sweep.max_concurrent} trials at a time ask for: {'; '.join(missing)}\n{table}\n"
                "Lower max_concurrent, or num_cpus, num_gpus and replicas of the trials' recipe, or add nodes"
            )


def rows_of(recipe: Run, trials: int) -> list[placement.Row]:
    """Roles, counts and resources of so many trials side by side."""
    inside, beside = room(recipe)
    rows = [(want.role, trials * want.count, want.num_cpus, want.num_gpus) for want in inside]
    return rows + [(f"{want.role} (Ray Train)", trials * want.count, want.num_cpus, want.num_gpus) for want in beside]


def _shapes(sweep: SweepRecipe) -> list[Run]:
    """One recipe for each demand on the cluster that the points make."""
    found: dict[str, Run] = {}
    for point in sweep.points() or [*sweep.probes(), sweep.largest()]:
        recipe = sweep.trial(point, "probe")
        found.setdefault(repr(rows_of(recipe, 1)), recipe)
    return list(found.values())


# --- inputs -----------------------------------------------------------------------------------------------------------


def check_inputs(sweep: SweepRecipe, have: Mapping[str, float]) -> None:
    """Look for what the trials read, each distinct need once: prompts, rewards, policies. Raises ConfigError, with the point."""
    seen = set[str]()

    def look(trial: Run) -> None:
        needs = repr(trial.model_dump(exclude=_LEARNT))
        if needs not in seen:
            seen.add(needs)
            plan = Plan.make(trial)
            check(plan, have)
            if isinstance(trial, config.SoupRecipe):
                check_mixtures(trial, plan)
            if isinstance(trial, config.DpoRecipe):
                Preferences(trial).check(plan)

    config.try_space(sweep, look, sweep.name)


# --- Tune -------------------------------------------------------------------------------------------------------------


def _trainable(sweep: SweepRecipe, folder: Path, jobs: Path) -> Any:
    """What Tune calls with a point, and the placement group that it gives each."""
    here = Path.cwd()
    sizes = [{kind: node.get(kind, 0.0) for kind in placement.KINDS} for node in nodes()]

    def trial(settings: dict[str, Any]) -> None:
        if here.is_dir():
            os.chdir(here)  # paths of a recipe start where the job was started; a worker starts where Ray was
        point = point_of(sweep, settings)
        with slots(bundle_numbers(sweep.trial(point, "probe"))):
            figures = run_trial(sweep, point, folder, jobs, lambda told: tune.report({**told, "finished": 0}))
        if sweep.adaptive or sweep.scheduler != "none":
            _comparable(figures, sweep)
        tune.report({**figures, "finished": 1})

    def group(settings: dict[str, Any]) -> Any:
        held = bundles(sweep.trial(point_of(sweep, settings), "probe"))
        total = {kind: sum(bundle.get(kind, 0.0) for bundle in held) for kind in placement.KINDS}
        fits = any(not placement.lacking(size, total) for size in sizes)
        return tune.PlacementGroupFactory(held, strategy="STRICT_PACK" if fits else "PACK")

    return tune.with_resources(trial, group)


def _comparable(figures: Figures, sweep: SweepRecipe) -> None:
    """A searcher takes NaN for no answer, and a scheduler for the best one: such a trial has failed."""
    wrong = fault({"state": "done", "figures": figures}, sweep.metrics)
    if wrong and set(sweep.metrics) <= figures.keys():  # a missing one ends the search: `_explain`
        raise TrainingError(f"the trial cannot be compared: {wrong}")


def point_of(sweep: SweepRecipe, settings: Mapping[str, Any]) -> Point:
    """What Tune calls a trial's config, as a point: the number of a known one, else a value or its place in the list."""
    if not sweep.adaptive:
        return sweep.points()[int(settings["number"])]
    return {
        key: dimension.values[int(settings[key])] if dimension.values is not None else settings[key]
        for key, dimension in sweep.space.items()
    }


def _name_of(sweep: SweepRecipe, settings: Mapping[str, Any]) -> str:
    return trial_name(sweep.trial_overrides(point_of(sweep, settings)))


def _space(sweep: SweepRecipe) -> dict[str, Any]:
    if not sweep.adaptive:
        return {"number": tune.grid_search(list(range(len(sweep.points()))))}
    space = {}
    for key, dimension in sweep.space.items():
        if dimension.values is not None:
            space[key] = tune.choice(list(range(len(dimension.values))))
        elif dimension.int is not None:
            space[key] = tune.randint(dimension.int[0], dimension.int[1] + 1)  # without its upper end
        elif dimension.uniform is not None:
            space[key] = tune.uniform(*dimension.uniform)
        else:
            assert dimension.loguniform is not None
            space[key] = tune.loguniform(*dimension.loguniform)
    return space


def _searcher(sweep: SweepRecipe) -> Any:
    """Optuna's, with one metric or several; None where the points are known."""
    if not sweep.adaptive:
        return None
    try:
        optuna: Any = importlib.import_module("optuna")
    except ModuleNotFoundError:
        raise ConfigError(
            f"search.algorithm {sweep.search.algorithm} needs the package optuna, which is not installed: run `pip install "
            "optuna`, or take grid or random"
        ) from None
    from ray.tune.search.optuna import OptunaSearch

    given = {"seed": sweep.search.seed} | sweep.tune.sampler
    if sweep.search.algorithm == "nsga2":
        # Its default of 50 would make every trial of a short search a random one of the first generation.
        given = {"population_size": min(50, max(4, sweep.search.trials // 4))} | given
    sampler = {"tpe": optuna.samplers.TPESampler, "nsga2": optuna.samplers.NSGAIISampler}[sweep.search.algorithm]
    names, modes = list(sweep.metrics), [str(mode) for mode in sweep.metrics.values()]
    made = _taken("sampler", sampler, **given)
    if len(names) == 1:
        return OptunaSearch(metric=names[0], mode=modes[0], sampler=made)
    return OptunaSearch(metric=names, mode=modes, sampler=made)


def _tune_config(sweep: SweepRecipe, folder: Path) -> Any:
    """Searcher, scheduler and what else Tune is told. Raises ConfigError for settings that they do not take."""
    for key in sweep.tune.config.keys() & _OWN:
        raise ConfigError(f"tune.config.{key}: the search says that elsewhere ({_OWN[key]}); leave it out")
    scheduler = None
    if sweep.scheduler == "asha":
        ((metric, mode),) = sweep.metrics.items()
        # One evaluation is one unit of its time; a trial's last one comes with its end. One that is due more is not stopped at
        # max_t: it would be without a result.
        given = {"stop_last_trials": False} | sweep.tune.scheduler
        scheduler = _taken("scheduler", Asha, folder / STATE / "asha.pkl", metric=metric, mode=mode, **given)
    settings = {"max_concurrent_trials": sweep.max_concurrent} | sweep.tune.config
    return _taken(
        "config",
        tune.TuneConfig,
        search_alg=_searcher(sweep),
        scheduler=scheduler,
        num_samples=sweep.search.trials if sweep.adaptive else 1,
        **settings,
    )


def _taken(key: str, make: Any, *args: Any, **settings: Any) -> Any:
    try:
        return make(*args, **settings)
    except (TypeError, ValueError, AssertionError) as e:
        raise ConfigError(
            f"tune.{key}: {make.__name__} does not take these settings: {e}. They are passed on as they are; its documentation "
            "has those that it takes"
        ) from None


def _tuner(sweep: SweepRecipe, trainable: Any, folder: Path, chosen: Any, *, restore: bool) -> Any:
    # Tune would take Ctrl-C for itself, end as if all were well, and start trials in a folder of its own.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    state, space = folder / STATE, _space(sweep)
    if restore and tune.Tuner.can_restore(str(state)) and any(state.glob("experiment_state-*.json")):
        return tune.Tuner.restore(
            str(state), trainable=trainable, param_space=space, resume_unfinished=True, resume_errored=True
        )
    shutil.rmtree(state, ignore_errors=True)
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=chosen,
        run_config=tune.RunConfig(name=STATE, storage_path=str(folder), verbose=1),
    )


def _all_failed(sweep: SweepRecipe, folder: Path) -> list[str]:
    """Why no trial counts; empty where one does."""
    faults = [fault(trial, sweep.metrics) for trial in records(sweep, folder)]
    return faults if all(faults) else []


def _explain(sweep: SweepRecipe, folder: Path, error: Exception) -> None:
    """Tune ends the whole search at a report that lacks a metric: say which, and which there are. Else nothing."""
    for trial in records(sweep, folder):
        wrong = fault(trial, sweep.metrics)
        if trial["state"] == "done" and "reports no figure" in wrong:
            raise ConfigError(
                f"trial {trial['folder']} {wrong}. What it did is kept: {trial['folder']}.json"
            ) from error


# --- the sweep's folder -----------------------------------------------------------------------------------------------


def _same(folder: Path, sweep: SweepRecipe, resume: bool) -> bool:
    """Whether Tune's own state in a sweep's folder still fits. Raises RunError for the folder of something else."""
    base = sweep.base()
    changes: list[str] = []
    if (folder / _SWEEP).is_file():
        if not resume:
            raise RunError(
                f"{folder} holds a search already: add --resume to go on with it, or --name OTHER for a new one"
            )
        try:
            old = SweepRecipe.model_validate(yaml.safe_load((folder / _SWEEP).read_text(encoding="utf-8")))
            old_base = config.validate(
                yaml.safe_load((folder / _BASE).read_text(encoding="utf-8")), str(folder / _BASE), kind=type(base)
            )
        except (OSError, ValueError, RhumblineError, yaml.YAMLError) as e:
            raise RunError(f"{folder} was made by another version of Rhumbline; it cannot be resumed: {e}") from e
        changes = [change for change in config.differences(old, sweep) if not change.startswith("recipe:")]
        # Of points that are known before the start, the figures and the number at a time change none.
        known = not sweep.adaptive and sweep.scheduler == "none"
        free = ("metrics", "max_concurrent", "tune.") if known else ()
        frozen = [change for change in changes if not (free and change.startswith(free))]
        frozen += [
            f"{sweep.recipe}: {change}"
            for change in config.differences(old_base, base)
            if change.partition(":")[0] not in FREE_KEYS
        ]
        if frozen:
            listed = "\n  ".join(frozen)
            raise RunError(f"{folder} is another search, it cannot be resumed:\n  {listed}\nChoose another --name.")
    elif folder.is_dir() and any(entry.name not in (lease.GUARD, lease.STATUS) for entry in folder.iterdir()):
        raise RunError(f"{folder} is not a search (it lacks {_SWEEP}): choose another --name")
    return not changes
