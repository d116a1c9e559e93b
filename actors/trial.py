"""One trial of a search: a point becomes a recipe, a job runs it, and a record beside the run's folder says what came of it.

    figures = run_trial(sweep, point, folder, jobs, on_evaluation)      # {'reward': 1.2, 'kl': 3.0, ...}
    records(sweep, folder)                                              # every trial of the search, as plain data

    <sweep>/trials/t-0123456789/         the run's own directory: it goes on from there
    <sweep>/trials/t-0123456789.json     point, overrides, inputs, state (running, done, failed, stopped), reason, figures, and
                                         `told`: those on the way

The name is a hash of the overrides, so a point that was finished is read back and one that was begun is resumed, whoever asks.
A searcher may ask for a point again while its trial is under way: the second waits for the first, and takes what it came to.
What was finished with other inputs (prompts, reward model, policy: by their hashes) is not read back: the search stops.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from actors.command import Figures, Report
from actors.dry_run import check
from cluster.session import resources
from rhumbline import config, durable, lease
from rhumbline.config import Run, SweepRecipe
from rhumbline.config.sweep import Point
from rhumbline.errors import ConfigError, RunError
from rhumbline.plan import Plan

TRIALS = "trials"
CLAIMS = ".claims"  # within TRIALS: which process is at which trial
LOOK_EVERY_S = 1.0  # at a trial of the same point that is under way


def trial_name(overrides: Sequence[str]) -> str:
    """The folder of a trial: the same for the same overrides, whoever asks and when."""
    return "t-" + hashlib.sha256("\n".join(overrides).encode()).hexdigest()[:10]


def run_trial(
    sweep: SweepRecipe,
    point: Point,
    folder: Path,
    jobs: Path,
    on_evaluation: Report,
    prepare: Callable[[Run], Plan] | None = None,
) -> Figures:
    """One trial, or what it came to before. The record says done or failed when this returns or raises.

    Where another process is at the same point, it is waited for: what it finished is read back, what it left is gone on with.
    Raises ConfigError where it was finished with other inputs, and leaves its record as it is.
    """
    overrides = sweep.trial_overrides(point)
    name = trial_name(overrides)
    path = folder / TRIALS / f"{name}.json"
    with _alone(folder / TRIALS / CLAIMS / name):
        before = read_record(path)
        if before.get("state") == "done":
            _same_inputs(before, (prepare or Plan.make)(sweep.trial(point, name)), path)
            for figures in before.get("told", []):  # so that a scheduler counts as many as if the trial ran now
                on_evaluation(_numbers(figures))
            return _numbers(before["figures"])
        record = {"point": point, "overrides": overrides, "figures": {}, "reason": "", "folder": name}
        record |= {"began": before.get("began", time.time())}
        return _run(sweep, record, folder, jobs, on_evaluation, prepare or _prepared)


def _run(
    sweep: SweepRecipe,
    record: dict[str, Any],
    folder: Path,
    jobs: Path,
    on_evaluation: Report,
    prepare: Callable[[Run], Plan],
) -> Figures:
    """The trial of a record, which says on the way and at the end what comes of it."""
    name, overrides = record["folder"], record["overrides"]
    path = folder / TRIALS / f"{name}.json"

    def note(state: str, **fields: Any) -> None:
        record.update(fields, state=state)
        durable.replace(path, durable.to_json(record, indent=1).encode())

    told: list[Figures] = []

    def evaluated(figures: Figures) -> None:
        told.append(figures)
        note("running", figures=figures, told=told)
        on_evaluation(figures)

    note("running")
    try:
        recipe = sweep.trial(record["point"], name)
        job = job_module(jobs, job_of(recipe))
        plan = prepare(recipe)
        note("running", inputs=plan.inputs())
        _wait_for(folder / TRIALS / name)
        asked = "".join(f"# {line}\n" for line in overrides) + Path(sweep.recipe).read_text(encoding="utf-8")
        more = {"on_evaluation": evaluated} if told_on_the_way(job) else {}
        began = time.monotonic()
        out = job.run(recipe, plan, folder / TRIALS, True, asked=asked, **more)
    except Exception as e:  # whatever ends a trial goes into its record, and on
        note("failed", reason=f"{type(e).__name__}: {e}")
        raise
    figures = {str(key): float(value) for key, value in out.items()} if isinstance(out, Mapping) else {}
    note("done", figures=figures, seconds=time.monotonic() - began)
    return figures


def _numbers(figures: Mapping[str, Any]) -> Figures:
    return {key: float("nan") if value is None else float(value) for key, value in figures.items()}


def check_records(sweep: SweepRecipe, folder: Path) -> None:
    """Raises ConfigError where a finished trial had other inputs than it would have now: its figures are not comparable."""
    for path in sorted((folder / TRIALS).glob("t-*.json")):
        record = read_record(path)
        if record.get("state") == "done" and record.get("inputs"):
            _same_inputs(record, Plan.make(sweep.trial(record["point"], path.stem)), path)


def _same_inputs(record: Mapping[str, Any], plan: Plan, path: Path) -> None:
    known, now = record.get("inputs") or {}, plan.inputs()
    other = [name for name, value in now.items() if known.get(name, value) != value]
    if other:
        raise ConfigError(
            f"{path} was finished with {' and '.join(f'other {name}' for name in other)}: its figures cannot stand beside what "
            "is new. Put them back, or choose another --name for the search"
        )


def job_module(jobs: Path, name: str) -> ModuleType:
    """jobs/<name>.py as a module: by its path, because jobs are scripts and no package."""
    path = jobs / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"there is no job at {path}: the recipe's key job is {name!r}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "run", None)):
        raise ConfigError(f"{path} has no run(recipe, plan, runs, resume, asked): it cannot be a trial")
    return module


def job_of(recipe: Run) -> str:
    return next(name for name, kind in config.JOBS.items() if kind is type(recipe))


def told_on_the_way(job: ModuleType) -> bool:
    return "on_evaluation" in inspect.signature(job.run).parameters


def _prepared(recipe: Run) -> Plan:
    """What a job does before it runs."""
    plan = Plan.make(recipe)
    check(plan, resources())
    return plan


@contextmanager
def _alone(claim: Path) -> Iterator[None]:
    """Own a trial, its run and its record both, once whoever is at the same point is through with it."""
    claim.mkdir(parents=True, exist_ok=True)
    while True:
        _wait_for(claim)
        try:
            owner = lease.take(claim)
        except RunError:  # a third was faster
            continue
        break
    owner.start()
    try:
        yield
    finally:
        owner.release("done")


def _wait_for(folder: Path) -> None:
    """Until nobody owns it. A driver that was killed on another host, whose process cannot be asked, counts as dead when it has
    been silent for a minute.
    """
    while lease.is_live(lease.read_status(folder)):
        time.sleep(LOOK_EVERY_S)


# --- records ----------------------------------------------------------------------------------------------------------


def read_record(path: Path) -> dict[str, Any]:
    """A trial's record; empty where it never began."""
    return (durable.parse_json(path.read_bytes()) if path.is_file() else None) or {}


def records(sweep: SweepRecipe, folder: Path) -> list[dict[str, Any]]:
    """Every trial by number: the order of the points where they are known, else the order in which they began."""
    never = {"figures": {}, "state": "waiting", "reason": "", "folder": ""}
    if sweep.adaptive:
        found = [read_record(path) for path in (folder / TRIALS).glob("t-*.json")]
        found = sorted((record for record in found if record), key=lambda record: float(record["began"]))
    else:
        found = []
        for point in sweep.points():
            overrides = sweep.trial_overrides(point)
            record = read_record(folder / TRIALS / f"{trial_name(overrides)}.json")
            found.append(never | {"point": point, "overrides": overrides} | record)
    return [
        record | {"number": number, "folder": f"{TRIALS}/{record['folder']}" if record["folder"] else ""}
        for number, record in enumerate(found)
    ]


def settle(folder: Path, errors: Mapping[str, str], *, by_scheduler: bool) -> None:
    """Once Tune has ended: what still says running was stopped by the scheduler, or lost with its process (`errors` by name)."""
    for path in sorted((folder / TRIALS).glob("t-*.json")):
        record = read_record(path)
        if record.get("state") != "running":
            continue
        error = errors.get(path.stem)
        if error is None and by_scheduler:
            record |= {"state": "stopped", "reason": "early, by the scheduler"}
        else:
            lines = [line.strip() for line in (error or "").splitlines() if line.strip()]
            record |= {"state": "failed", "reason": " ".join(["its process ended", *lines[-1:]])}
        durable.replace(path, durable.to_json(record, indent=1).encode())
