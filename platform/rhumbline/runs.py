"""What a run directory says about itself, for people: `rhumbline runs ls` and `runs show`. It only reads.

    for run in all_runs("runs"):
        print(run.name, run.state, run.stage)          # smol running iterations/t=1/rollouts
    print("\\n".join(describe(Path("runs/smol"))))

A run that says `running` and has not beaten for a minute is `stale`: its driver is gone, and `--resume` goes on there.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rhumbline import durable
from rhumbline.errors import RunError, did_you_mean
from rhumbline.lease import STALE_AFTER_S

_RECIPE = "recipe.resolved.yaml"  # every run has it, from its first second


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run directory at one moment."""

    name: str
    path: Path
    state: str  # running, done, failed, stopped; 'stale': says running, but its heartbeat has stopped
    stage: str
    progress: Mapping[str, float]
    heartbeat_age_s: float | None  # None: it never beat
    reason: str  # why it failed or stopped
    report: Path | None  # report/index.html where there is one


def curve(path: Path) -> list[dict[str, float]]:
    """Metrics of every step of online training so far, each once, in order; empty for other jobs."""
    steps = {}
    for mark in path.glob("iterations/t=*/learn.json"):
        told = _json(mark).get("metrics") or {}
        if told:
            steps[int(mark.parent.name.removeprefix("t="))] = told
    return [{"step": float(t), **steps[t]} for t in sorted(steps)]


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineSteps:
    """What `curve` gives, with what its recipe asked for."""

    name: str
    rows: list[dict[str, float]]
    answers: int  # of a step
    target: float | None  # of the KL, nats per answer


def online_steps(path: Path) -> OnlineSteps:
    """The steps of a run of jobs/ppo.py or jobs/grpo.py. Raises RunError for any other."""
    from rhumbline import config

    found, rows = read(path), curve(path)
    raw = yaml.safe_load((path / _RECIPE).read_text(encoding="utf-8"))
    kind = config.JOBS.get(str(raw.get("job")))
    if kind is None or not issubclass(kind, config.OnlineRecipe):
        raise RunError(f"{path} is a run of jobs/{raw.get('job', 'dpa')}.py: only online training has a curve of steps")
    if not rows:
        raise RunError(f"{path} has not finished a step yet (it is {found.state})")
    recipe = config.validate(raw, str(path / _RECIPE), kind=kind)
    assert isinstance(recipe, config.OnlineRecipe)
    target = recipe.update().kl.target
    return OnlineSteps(name=found.name, rows=rows, answers=recipe.answers_per_step, target=target)


def read(path: Path) -> Run:
    """The run in `path`. Raises RunError where there is none."""
    if not (path / _RECIPE).is_file():
        raise no_run(path)
    status = _json(path / "status.json")
    beat = status.get("heartbeat")
    age_s = None if beat is None else max(0.0, time.time() - float(beat))
    state = str(status.get("state", "unknown"))
    if state == "running" and (age_s is None or age_s >= STALE_AFTER_S):
        state = "stale"
    report = path / "report/index.html"
    return Run(
        name=path.name,
        path=path,
        state=state,
        stage=str(status.get("stage") or ""),
        progress=status.get("progress") or {},
        heartbeat_age_s=age_s,
        reason=str(status.get("reason") or ""),
        report=report if report.is_file() else None,
    )


def no_run(path: Path) -> RunError:
    """What to raise where `path` holds no run."""
    near = did_you_mean(path.name, _names(path.parent))
    return RunError(f"no run at {path} (it would hold {_RECIPE}).{near} `rhumbline runs ls` lists runs")


def all_runs(folder: str | Path) -> list[Run]:
    """Every run in a folder, the most recently alive first."""
    runs = [read(Path(folder) / name) for name in _names(Path(folder))]
    return sorted(runs, key=lambda run: run.heartbeat_age_s if run.heartbeat_age_s is not None else float("inf"))


def line(run: Run) -> str:
    """One line of `runs ls`."""
    where = run.stage + "".join(f" {key}={value:g}" for key, value in run.progress.items())
    return f"{run.name:<24}{run.state:<9}{_ago(run.heartbeat_age_s):<12}{where}".rstrip()


def evaluations(path: Path) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """JSON of `PolicyEvaluation`: of the initial policy, None where it was not asked, and of every evaluated one by its t."""
    files = sorted((path / "evaluation").glob("t=*.json"), key=lambda file: _in_order(file.name))
    return _json(path / "evaluation/initial.json") or None, [
        _json(file) for file in files if file.suffixes == [".json"]
    ]


def describe(path: Path) -> Iterator[str]:
    """The lines of `runs show`: state, what is finished, results per iteration, where the report is."""
    run = read(path)
    yield f"{run.name}  {run.path}"
    yield f"state       {run.state}{run.reason and f': {run.reason}'}"
    if run.state in ("stale", "failed", "stopped"):
        yield "            finished shards are safe: the same command with --resume goes on from them"
    if run.stage:
        yield f"stage       {run.stage}" + "".join(f" {key}={value:g}" for key, value in run.progress.items())
    yield f"heartbeat   {_ago(run.heartbeat_age_s)}"
    versions = _json(path / "env.json").get("versions") or {}
    yield f"versions    {', '.join(f'{name} {version}' for name, version in versions.items()) or 'not recorded'}"
    yield from _work(path)
    yield from _results(path)
    yield f"report      {run.report or 'not written yet'}"


def _work(path: Path) -> Iterator[str]:
    shards: Counter[str] = Counter()
    rows: Counter[str] = Counter()
    latest = {(entry.get("stage"), entry.get("index")): entry for entry in durable.read(path / "ledger.jsonl")}
    for entry in latest.values():
        shards[str(entry.get("stage"))] += 1
        rows[str(entry.get("stage"))] += int(entry.get("rows", 0))
    for stage in sorted(shards, key=_in_order):
        yield f"done        {stage}: {shards[stage]} shards, {rows[stage]:,} rows"
    checkpoints = sorted((found.name for found in (path / "checkpoints").glob("t=*")), key=_in_order)
    if checkpoints:
        yield f"checkpoints {', '.join(checkpoints)}"


def _results(path: Path) -> Iterator[str]:
    summary = _json(path / "report/summary.json")
    iterations = summary.get("iterations") or evaluations(path)[1]
    for result in iterations:
        if result.get("t") is None:
            continue
        parts = [f"{len(result.get('directions') or [])} directions"]
        parts += _interval("hypervolume", result.get("hypervolume"))
        parts += _interval("length ratio", result.get("length_ratio"))
        parts += _interval("win rate", result.get("win_rate"))
        for objective, value in (result.get("spearman") or {}).items():
            parts += _interval(f"Spearman {objective}", value)
        yield f"t={result['t']!s:<10}{'; '.join(parts)}"
    reference = summary.get("reference_point")
    if reference:
        yield f"            reference point {', '.join(f'{name} {value:g}' for name, value in reference.items())}"


def _interval(name: str, value: Any) -> list[str]:
    """['hypervolume 1234 [1200, 1300]'], or nothing where it is not defined."""
    if not isinstance(value, Mapping) or value.get("value") is None:
        return []
    text = f"{name} {value['value']:.4g}"
    known = value.get("low") is not None and value.get("high") is not None
    return [f"{text} [{value['low']:.4g}, {value['high']:.4g}]" if known else text]


def _in_order(name: str) -> list[str | int]:
    """A sorting key under which t=2 comes before t=10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", name)]


def _names(folder: Path) -> list[str]:
    return sorted(found.parent.name for found in folder.glob(f"*/{_RECIPE}"))


def _json(path: Path) -> dict[str, Any]:
    return (durable.parse_json(path.read_bytes()) if path.is_file() else None) or {}


def _ago(age_s: float | None) -> str:
    if age_s is None:
        return "never"
    for unit, seconds in (("d", 86400), ("h", 3600), ("min", 60)):
        if age_s >= 2 * seconds:
            return f"{age_s / seconds:.0f} {unit} ago"
    return f"{age_s:.0f} s ago"
