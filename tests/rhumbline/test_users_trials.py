"""The quiz on simulated crowds: what a trial counts, that comparisons are paired, and (slow) the targets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rhumbline.directions import Cone
from rhumbline.users.pool import Matching, matched
from rhumbline.users.trials import Setting, Trial, at_stop, curves_figure, paired, pools, summary, take

SMALL = Setting(objectives=2, persons=24, questions=4, pool=20, particles=256)


def test_a_trial_starts_at_the_axis_and_comes_nearer() -> None:
    trial = take(SMALL)
    assert trial.error_deg_TU.shape == trial.half_angle_deg_TU.shape == trial.inside_TU.shape == (5, 24)
    assert np.median(trial.error_deg_TU[4]) < 0.5 * np.median(trial.error_deg_TU[0])
    assert (trial.half_angle_deg_TU[4] < trial.half_angle_deg_TU[0]).all()
    assert take(SMALL).error_deg_TU.tolist() == trial.error_deg_TU.tolist()
    assert take(replace(SMALL, seed=1)).error_deg_TU.tolist() != trial.error_deg_TU.tolist()


def test_pools_are_matched_and_the_same_for_every_way_to_choose() -> None:
    d_UNK = pools(SMALL)
    assert d_UNK.shape == (24, 20, 2)
    for d_NK in d_UNK:
        assert (matched(d_NK, np.ones((20, 2)), SMALL.cone, None, Matching()) == 0).all()
    assert pools(replace(SMALL, method="random", manner="noisy")).tolist() == d_UNK.tolist()
    loose = pools(replace(SMALL, matching=False))
    assert not all((matched(d_NK, np.ones((20, 2)), SMALL.cone, None, Matching()) == 0).all() for d_NK in loose)


def made(error_TU: list[list[float]], half_TU: list[list[float]]) -> Trial:
    error, half = np.array(error_TU), np.array(half_TU)
    setting = replace(SMALL, persons=error.shape[1], questions=len(error) - 1)
    return Trial(setting=setting, error_deg_TU=error, half_angle_deg_TU=half, inside_TU=(error <= half).astype(float))


def test_figures_by_hand() -> None:
    trial = made([[20, 30, 40], [5, 10, 30]], [[40, 40, 40], [14, 16, 20]])
    rows = summary(trial, bootstrap=50)
    assert [row["asked"] for row in rows] == [0, 1]
    assert [row["error"] for row in rows] == [30, 10]
    assert [row["coverage"] for row in rows] == pytest.approx([1, 2 / 3])
    assert rows[1]["error_low"] <= 10 <= rows[1]["error_high"]
    assert rows[1]["half_angle"] == 16


def test_a_quiz_stops_below_15_degrees_or_at_its_limit() -> None:
    half = [[40.0, 40.0, 40.0], [14.9, 30.0, 15.0], [10.0, 14.0, 15.0], *[[10.0, 20.0, 15.0]] * 6]
    trial = made([[t + 0.0, t + 10.0, t + 20.0] for t in range(9)], half)
    assert trial.stops.tolist() == [1, 2, 6]  # the last one is not certain after max(6, 3K)
    stopped = at_stop(trial, bootstrap=50)
    assert stopped["mean_questions"] == 3
    assert stopped["error"] == 12  # of 1, 12 and 26


def test_differences_are_paired() -> None:
    one, other = made([[0, 0, 0], [1, 2, 3]], [[9] * 3] * 2), made([[0, 0, 0], [2, 4, 3.5]], [[9] * 3] * 2)
    row = paired(one, other, 1, bootstrap=200)
    assert row["mean_difference_deg"] == pytest.approx(-3.5 / 3)
    assert row["median_difference_deg"] == -1
    assert row["mean_difference_deg_low"] <= row["mean_difference_deg"] <= row["mean_difference_deg_high"] < 0
    assert row["nearer_share"] == 1
    with pytest.raises(AssertionError, match="not the same people"):
        paired(one, replace(other, setting=replace(other.setting, seed=4)), 1)


def test_the_model_is_told_what_the_setting_says() -> None:
    assert Setting(objectives=2).model.ties is False
    assert Setting(objectives=2, manner="with_ties").model.ties is True
    assert Setting(objectives=2, ties=True).model.ties is True
    known = Setting(objectives=2, manner="noisy", beta_known=True).model
    assert (known.beta, known.beta_spread, known.lapse, known.nu) == (1.5, 0.0, 0.05, 0.5)
    assert Setting(objectives=4).limit == 12
    assert Setting(objectives=3).cone == Cone(("objective 1", "objective 2", "objective 3"), (1.0, 1.0, 1.0), 45.0)


def test_the_figure_has_a_panel_per_number_of_objectives() -> None:
    rows = [
        row
        for K in (2, 3)
        for method in ("bald", "random")
        for row in summary(
            take(Setting(objectives=K, method=method, persons=6, questions=2, particles=64)), bootstrap=20
        )
    ]
    figure = curves_figure(rows)
    assert [axes.get_title() for axes in figure.axes] == ["K = 2", "K = 3"]
    assert [len(axes.lines) for axes in figure.axes] == [3, 3]  # two methods and the quiz's limit
    top = max(row["error_high"] for row in rows)
    assert all(axes.get_ylim()[0] == 0 and axes.get_ylim()[1] >= top for axes in figure.axes)  # nothing is cut off


@pytest.mark.slow
@pytest.mark.parametrize(("objectives", "asked", "below_deg"), [(2, 6, 6.0), (3, 9, 12.0)])
def test_consistent_people_are_found_within_the_targets(objectives: int, asked: int, below_deg: float) -> None:
    bald, random = (take(Setting(objectives=objectives, method=method, persons=200)) for method in ("bald", "random"))
    assert np.median(bald.error_deg_TU[asked]) < below_deg
    assert paired(bald, random, asked)["mean_difference_deg_high"] < 0


@pytest.mark.slow
@pytest.mark.parametrize("manner", ["consistent", "with_ties"])
def test_the_wedge_holds_the_truth_as_often_as_it_says(manner: str) -> None:
    trial = take(Setting(objectives=2, manner=manner, persons=500, seed=1))
    assert 0.85 <= trial.inside_TU[6].mean() <= 0.95
    assert 0.85 <= at_stop(trial)["coverage"] <= 0.95
