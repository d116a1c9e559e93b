"""What a search over recipes found: which trials count, the Pareto front with its configurations, the best, a table.

    trials = [{"number": 0, "state": "done", "point": {"ppo.kl.coefficient": 0.02}, "figures": {"reward": 1.2, "kl": 3.0}, ...}]
    metrics = {"reward": "max", "kl": "min"}
    front(trials, metrics)                       # [0]: numbers of the trials that no other dominates
    best(trials, metrics)                        # (trials[0], "of the front, the one nearest to ...")

A trial is plain data: number, point (dotted key -> value), overrides, figures, state (done, failed, stopped, running), reason and
folder. It counts where it is done and has every metric as a finite number; what does not count is shown with its reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rhumbline import durable
from rhumbline.errors import did_you_mean
from rhumbline.evaluation.frontier import FloatArray, maximised, pareto_set

JSON = Mapping[str, Any]
Metrics = Mapping[str, str]  # figure -> max | min


# --- which trials count, and which are best ---------------------------------------------------------------------------


def fault(trial: JSON, metrics: Metrics) -> str:
    """Why a trial does not count; empty where it does."""
    if trial["state"] != "done":
        reason = str(trial.get("reason") or "")
        return f"{trial['state']}: {reason}" if reason else str(trial["state"])
    figures = trial["figures"]
    for name in metrics:
        if name not in figures:
            near = did_you_mean(name, figures)
            return f"reports no figure {name!r} (metrics).{near} It reports {', '.join(figures) or 'nothing'}"
        if figures[name] is None or not math.isfinite(figures[name]):
            return f"{name} is {figures[name]}, expected a finite number"
    return ""


def counted(trials: Sequence[JSON], metrics: Metrics) -> list[JSON]:
    return [trial for trial in trials if not fault(trial, metrics)]


def front(trials: Sequence[JSON], metrics: Metrics) -> list[int]:
    """Numbers of the trials that no other dominates over all metrics: strict, without tolerance."""
    good = counted(trials, metrics)
    if not good:
        return []
    return [trial["number"] for trial, on in zip(good, pareto_set(_points(good, metrics)), strict=True) if on]


def best(trials: Sequence[JSON], metrics: Metrics) -> tuple[JSON | None, str]:
    """The trial to go on with, and the rule that chose it. None where no trial counts.

    One metric: the best by it. Several: of the front, the trial nearest to the best value of every metric, each scaled to
    0..1 over the front; the first metric decides between equals. (1, 0), (0.8, 0.8), (0, 1) give the middle one.
    """
    good = counted(trials, metrics)
    if not good:
        return None, "no trial counts"
    names = list(metrics)
    if len(names) == 1:
        way = "highest" if metrics[names[0]] == "max" else "lowest"
        rule = f"the {way} {names[0]}"
        chosen = max(good, key=lambda trial: float(_points([trial], metrics)[0, 0]))
        return chosen, rule
    rule = (
        f"of the front, the one nearest to the best {' and '.join(names)} at once, each scaled to 0..1 over the front; "
        f"{names[0]} decides between equals"
    )
    on = [trial for trial in good if trial["number"] in set(front(trials, metrics))]
    points_NM = _points(on, metrics)
    span_M = np.ptp(points_NM, axis=0)
    scaled_NM = (points_NM - points_NM.min(axis=0)) / np.where(span_M > 0, span_M, 1.0)
    distance_N = np.linalg.norm(np.where(span_M > 0, 1.0, 0.0) - scaled_NM, axis=1)
    order = sorted(range(len(on)), key=lambda i: (round(float(distance_N[i]), 9), -points_NM[i, 0], on[i]["number"]))
    return on[order[0]], rule


def _points(trials: Sequence[JSON], metrics: Metrics) -> FloatArray:
    """(N, M) with every metric better when larger."""
    values = [[float(trial["figures"][name]) for name in metrics] for trial in trials]
    return maximised(values, [1 if way == "max" else -1 for way in metrics.values()])


# --- tables -----------------------------------------------------------------------------------------------------------


def table(trials: Sequence[JSON], metrics: Metrics) -> list[dict[str, Any]]:
    """One row per trial in the order of their numbers: what was set, what came out, and why it does not count."""
    on, figures = set(front(trials, metrics)), reported(trials, metrics)
    return [
        {"number": trial["number"], "state": trial["state"], "front": trial["number"] in on}
        | {key: shown(value) for key, value in trial["point"].items()}
        | {name: trial["figures"].get(name) for name in figures}
        | {"not counted": fault(trial, metrics), "overrides": " ".join(trial["overrides"]), "folder": trial["folder"]}
        for trial in sorted(trials, key=lambda trial: int(trial["number"]))
    ]


def reported(trials: Sequence[JSON], metrics: Metrics) -> list[str]:
    """Every figure that some trial has: the metrics first, then those that it came to besides."""
    return list(dict.fromkeys([*metrics, *(name for trial in trials for name in trial["figures"])]))


def configuration(trial: JSON, headings: Mapping[str, str]) -> str:
    """`preference 0.25, ppo.kl.coefficient 0.02`: what to write beside a point. Headings are short names of keys."""
    return ", ".join(f"{headings.get(key, key)} {shown(value)}" for key, value in trial["point"].items())


def shown(value: Any) -> str | int | float | bool | None:
    """A value of a point or a figure as tables and figures have it."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    return value if value is None or isinstance(value, str | int | bool) else durable.to_json({"": value})[5:-1]
