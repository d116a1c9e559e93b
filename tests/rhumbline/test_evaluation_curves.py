"""The figure of online training: what was measured is shown, what was not is left out."""

from __future__ import annotations

import math

from rhumbline.evaluation.curves import learning


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
