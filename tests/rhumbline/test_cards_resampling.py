"""Intervals over prompts: by sums or by rows they are the same, and a prompt is one observation."""

from __future__ import annotations

import numpy as np
import pytest

from rhumbline.cards.resampling import Resamples


def test_means_by_sums_are_means_by_rows() -> None:
    rng = np.random.default_rng(0)
    values, prompts = rng.normal(size=40), rng.integers(8, size=40)
    draws = Resamples(prompts, 300, seed=3)
    assert draws.mean(values) == pytest.approx(draws.interval(lambda i: float(values[i].mean())))


def test_rows_without_a_value_leave_the_denominator() -> None:
    draws = Resamples(["p", "q", "r"], 50, seed=0)
    assert draws.mean([1.0, np.nan, 3.0])["value"] == 2
    assert draws.mean([np.nan] * 3) == {"value": None, "low": None, "high": None}


def test_a_prompt_is_one_observation() -> None:
    values, prompts = np.random.default_rng(1).normal(size=12), np.arange(12)
    few = Resamples(prompts, 400, seed=1).mean(values)
    assert Resamples(np.repeat(prompts, 40), 400, seed=1).mean(np.repeat(values, 40)) == pytest.approx(few)


def test_a_basic_interval_takes_off_what_noise_adds() -> None:
    """|mean| of pure noise: resampling raises it, and the reflected interval reaches down to 0."""
    noise = np.random.default_rng(2).normal(size=50)
    draws = Resamples(np.arange(50), 500, seed=0)
    usual = draws.interval(lambda i: abs(float(noise[i].mean())))
    basic = draws.interval(lambda i: abs(float(noise[i].mean())), basic=True)
    assert basic["low"] == 0
    assert basic["low"] <= basic["value"] <= basic["high"] < usual["high"]


def test_of_nothing_nothing_is_defined() -> None:
    draws = Resamples([], 10, seed=0)
    assert (draws.num_prompts, draws.mean([])["value"]) == (0, None)


def test_one_prompt_gives_no_interval() -> None:
    """Every draw of a single prompt is that prompt: an interval without width would look like certainty."""
    draws = Resamples(["p"] * 5, 50, seed=0)
    wanted = {"value": 0.6, "low": None, "high": None}
    assert draws.mean([1, 0, 1, 1, 0]) == wanted
    assert draws.interval(lambda i: 0.6 * len(i) / 5) == wanted
