"""The metrics file: one flat JSON line per step that any parser reads, whatever a kill or a tracker does."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rhumbline.metrics import MetricsLog, reward_metrics, summary


class Memory:
    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, Any], int]] = []

    def log(self, data: dict[str, Any], step: int) -> None:
        self.seen.append((data, step))


class Broken:
    def log(self, data: dict[str, Any], step: int) -> None:
        raise ConnectionError("no route")


def strict(line: str) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    document: dict[str, Any] = json.loads(line, parse_constant=refuse)
    return document


def test_a_step_is_one_flat_line(tmp_path: Path) -> None:
    memory = Memory()
    log = MetricsLog(tmp_path / "metrics.jsonl", [memory])
    log.log(3, {"learn/loss": np.float32(0.5), "learn/grad_norm": math.nan, "learn/lr": None, "learn/steps": 7})
    log.log(4, {"generate/tokens_per_s": -math.inf})
    first, second = (strict(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first.pop("time") > 1.7e9
    assert first == {"step": 3, "learn/loss": 0.5, "learn/grad_norm": None, "learn/lr": None, "learn/steps": 7.0}
    assert second["generate/tokens_per_s"] is None
    assert memory.seen == [({"learn/loss": 0.5, "learn/steps": 7.0}, 3), ({}, 4)]


@pytest.mark.parametrize("name", ["loss", "/loss", "learn/", "learn loss/x", ""])
def test_names_are_stage_and_quantity(tmp_path: Path, name: str) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="expected stage/quantity"):
        log.log(0, {name: 1.0})
    assert not log.path.exists()


def test_a_trackers_outage_costs_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    memory = Memory()
    log = MetricsLog(tmp_path / "metrics.jsonl", [Broken(), memory])
    for step in range(3):
        log.log(step, {"learn/loss": 1.0})
    assert [step for _, step in memory.seen] == [0, 1, 2]
    assert len(log.read()) == 3
    assert caplog.text.count("no route") == 1


def test_a_line_torn_by_a_kill_spoils_no_other(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.log(0, {"learn/loss": 1.0})
    with log.path.open("a") as file:
        file.write('{"step": 1, "learn/lo')
    assert [line["step"] for line in log.read()] == [0]
    log.log(2, {"learn/loss": 0.5})
    assert [line["step"] for line in log.read()] == [0, 2]


def test_summary_by_hand() -> None:
    # 0..10: mean 5, variance 10 with denominator n, percentiles by linear interpolation.
    assert summary(range(11)) == pytest.approx({"mean": 5, "std": math.sqrt(10), "p10": 1, "p50": 5, "p90": 9})
    assert all(math.isnan(value) for value in summary([]).values())


def test_reward_metrics_name_every_objective() -> None:
    metrics = reward_metrics(["helpfulness", "verbosity"], [[60, 10], [80, 30]], "score")
    assert metrics["score/helpfulness_mean"] == 70
    assert metrics["score/verbosity_std"] == 10
    assert len(metrics) == 10
    assert (
        list(reward_metrics(["verbosity", "helpfulness"], [[10, 60], [30, 80]], "score").items())[5:]
        == list(metrics.items())[:5]
    )
    assert math.isnan(reward_metrics(["a", "b"], np.empty((0, 2)), "score")["score/a_mean"])
