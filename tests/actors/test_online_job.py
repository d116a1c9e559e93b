"""What a job of online training says of its evaluations, without actors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from actors import online_job
from actors.online_job import OnlineJob


def test_the_last_evaluation_is_said_by_the_job_s_end_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler that heard of it before would stop a run that has only its report to write."""
    evaluated: list[int] = []
    told: list[Any] = []

    def evaluate(t: int, _calibration: Any) -> int:
        evaluated.append(t)
        return t

    monkeypatch.setattr(online_job, "figures", lambda _recipe, _calibration, t: {"reward": float(t)})
    some: Any = SimpleNamespace
    job = OnlineJob(
        recipe=some(steps=4),
        plan=some(),
        store=some(),
        crew=some(evaluate=evaluate),
        first=some(calibration=None),
        on_evaluation=told.append,
    )
    for t in (2, 4):
        job.evaluate(t)
    assert evaluated == [2, 4]
    assert told == [{"reward": 2.0}]
