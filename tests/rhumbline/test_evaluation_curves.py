"""The figure of online training: what was measured is shown, what was not is left out."""

from __future__ import annotations

import math

import pytest

from rhumbline.evaluation.curves import compared, learning, rise


def test_panels_are_those_that_some_step_measured() -> None:
    rows = [
        {"step": 1.0, "learn/score_mean": 0.1, "learn/kl": 0.0},
        {"step": 2.0, "learn/score_mean": math.nan, "learn/kl": 1.5},
    ]
    plot = learning(rows, target=2.0)
    assert [axes.get_title() for axes in plot.figure.axes] == ["reward, v · r", "KL, nats per answer"]
    score, kl = plot.figure.axes
    assert score.lines[0].get_xydata().tolist() == [[1.0, 0.1]]  # what is no number is not drawn
    assert kl.lines[1].get_ydata() == [2.0, 2.0]  # the target
    assert "ended at 1.5 nats per answer, the target is 2" in plot.caption
    assert [row["step"] for row in plot.rows] == [1.0, 2.0]


def test_no_steps_are_no_error() -> None:
    assert learning([]).rows == []


def test_runs_share_their_panels_and_are_told_apart() -> None:
    ours, free = ([{"step": 1.0, "learn/kl": kl}, {"step": 2.0, "learn/kl": 2 * kl}] for kl in (1.0, 3.0))
    plot = compared({"ppo": ours, "free": free}, {"ppo": 2.5})
    (axes,) = plot.figure.axes
    assert [line.get_label() for line in axes.lines[:1]] == ["ppo"]
    assert {tuple(map(float, line.get_ydata())) for line in axes.lines} == {(1.0, 2.0), (3.0, 6.0), (2.5, 2.5)}
    assert [row["run"] for row in plot.rows] == ["ppo", "ppo", "free", "free"]
    assert "ppo 2, free 6" in plot.caption


def test_a_seventh_run_has_a_line_of_its_own() -> None:
    runs = {f"run {i}": [{"step": 1.0, "learn/kl": float(i)}, {"step": 2.0, "learn/kl": float(i)}] for i in range(13)}
    (axes,) = compared(runs, {}).figure.axes
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 13


def test_a_rise_is_told_in_standard_errors_over_answers() -> None:
    rows = [{"step": step, "learn/score_mean": mean, "learn/score_std": 1.0} for step, mean in ((1.0, 0.0), (2.0, 1.0))]
    rose = rise(rows, answers=50)
    assert (rose.first, rose.last, rose.error) == (0.0, 1.0, pytest.approx(0.2))
    assert rose.errors == pytest.approx(5.0)
    assert math.isnan(rose.kl)
    assert math.isnan(rise(rows[:1], answers=50).errors)  # one step shows no rise
