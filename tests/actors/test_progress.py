"""Progress lines and the metrics behind the dashboard."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest

from actors import progress as module
from actors.progress import COUNTERS, GAUGES, Progress, clock

ROOT = Path(__file__).parents[2]


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test sets: seconds in its only element."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_lines_off_a_terminal(at: list[float]) -> None:
    stream = io.StringIO()
    with Progress("t=1 generate", 40, run="smol", unit="samples", stream=stream, every_s=5.0) as progress:
        for _ in range(4):
            at[0] += 2.0
            progress.advance(5, tokens=400)
        assert progress.left_s == 8.0  # 20 of 40 in 8 s
        at[0] += 2.0
        progress.advance(20, tokens=1600, failed=1, note="last")
    assert stream.getvalue().splitlines() == [
        "t=1 generate: 40 samples",
        # one line as soon as 5 s have passed since the last one
        "t=1 generate  15/40 samples  38%  2.5/s  200 tok/s  left 0:10",
        "t=1 generate  40/40 samples  100%  4/s  320 tok/s  1 failed  took 0:10  last",
    ]


def test_what_an_earlier_driver_did_is_no_part_of_the_rate(at: list[float]) -> None:
    stream = io.StringIO()
    with Progress("score", 10, run="smol", done=6, stream=stream) as progress:
        at[0] += 4.0
        progress.advance(2)
        assert progress.rate == 0.5
        assert progress.left_s == 4.0
    assert progress.seconds == 4.0
    assert stream.getvalue().splitlines()[0] == "score: 4 shards, 6 done before"
    at[0] += 1000.0
    assert progress.seconds == 4.0  # it has ended


def test_a_stage_without_items_is_no_error(at: list[float]) -> None:
    stream = io.StringIO()
    with Progress("score", 0, run="smol", stream=stream):
        pass
    assert stream.getvalue().splitlines()[-1].startswith("score  0/0 shards  -")


def test_clock() -> None:
    assert [clock(s) for s in (0, 52.4, 725, 3723)] == ["0:00", "0:52", "12:05", "1:02:03"]


def test_the_dashboard_shows_metrics_that_exist() -> None:
    dashboard = json.loads((ROOT / "cluster" / "dashboards" / "rhumbline.json").read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    shown = {name for query in queries for name in re.findall(r"ray_(rhumbline_\w+)", query)}
    exported = set(GAUGES) | {f"{name}_total" for name in COUNTERS}  # Ray adds _total to counters
    assert shown == exported
    labels = {label for query in queries for label in re.findall(r"by \(([^)]*)\)", query)}
    known = {"run"} | {label for _, more in (*GAUGES.values(), *COUNTERS.values()) for label in more}
    assert {name.strip() for group in labels for name in group.split(",")} <= known


@pytest.mark.usefixtures("cluster")
def test_figures_are_ray_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, float, dict[str, str]]] = []
    real = module._metric

    def spy(name: str) -> object:
        metric = real(name)  # made by Ray, so a wrong label or name raises here

        class Spy:
            def set(self, value: float, tags: dict[str, str]) -> None:
                metric.set(value, tags=tags)
                seen.append((name, value, tags))

            def inc(self, value: float, tags: dict[str, str]) -> None:
                metric.inc(value, tags=tags)
                seen.append((name, value, tags))

        return Spy()

    monkeypatch.setattr(module, "_metric", spy)
    with Progress("generate", 4, run="smol", stream=io.StringIO()) as progress:
        progress.advance(3, tokens=120, failed=2)
    module.objective_means("smol", "generate", {"helpfulness": 61.5})
    module.learner_metrics("smol", {"loss": 0.5})
    stage = {"run": "smol", "stage": "generate"}
    assert ("rhumbline_stage_done", 3.0, stage) in seen
    assert ("rhumbline_stage_total", 4.0, stage) in seen
    assert ("rhumbline_tokens", 120.0, stage) in seen
    assert ("rhumbline_failed_units", 2.0, stage) in seen
    assert ("rhumbline_objective_mean", 61.5, {**stage, "objective": "helpfulness"}) in seen
    assert ("rhumbline_learn", 0.5, {"run": "smol", "metric": "loss"}) in seen
    assert {name for name, _, _ in seen} == set(GAUGES) | set(COUNTERS)
