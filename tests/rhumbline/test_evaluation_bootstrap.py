"""The resampler against a loop over prompts and against scipy."""

import numpy as np
import pytest
import scipy.stats

from rhumbline.evaluation.bootstrap import (
    Interval,
    covariance,
    prompt_counts,
    prompt_means,
    ratio_of_means,
    resampled_means,
)
from rhumbline.evaluation.evaluate import hypervolumes
from rhumbline.evaluation.frontier import hypervolume

RNG = np.random.default_rng(3)
REWARDS_DPK = RNG.normal(50, 10, size=(3, 12, 2))


def test_counts_are_draws_with_replacement_and_repeat_with_the_seed() -> None:
    counts = prompt_counts(12, 50, seed=1)
    assert counts.shape == (50, 12)
    assert np.all(counts.sum(axis=1) == 12)
    assert np.array_equal(counts, prompt_counts(12, 50, seed=1))
    assert not np.array_equal(counts, prompt_counts(12, 50, seed=2))


def test_resampled_means_equal_a_loop_over_drawn_prompts() -> None:
    counts = prompt_counts(12, 20, seed=0)
    loop = [REWARDS_DPK[:, np.repeat(np.arange(12), row.astype(int))].mean(axis=1) for row in counts]
    assert resampled_means(REWARDS_DPK, counts) == pytest.approx(np.stack(loop))
    assert resampled_means(REWARDS_DPK[..., 0], counts) == pytest.approx(np.stack(loop)[..., 0])


def test_directions_are_paired() -> None:
    """A constant difference between two directions stays constant in every resample."""
    shifted = np.stack([REWARDS_DPK[0], REWARDS_DPK[0] + 5.0])
    means = resampled_means(shifted, prompt_counts(12, 100, seed=0))
    assert np.ptp(means[:, 0, 0]) > 1.0
    assert means[:, 1] - means[:, 0] == pytest.approx(np.full((100, 2), 5.0))


def test_missing_answers_are_left_out_of_their_own_mean() -> None:
    values = np.array([[1.0, np.nan, 3.0], [1.0, 2.0, 3.0]])
    assert prompt_means(values) == pytest.approx([2.0, 2.0])
    only_the_missing = np.array([[0.0, 3.0, 0.0]])
    means = resampled_means(values, only_the_missing)
    assert np.isnan(means[0, 0])
    assert means[0, 1] == 2.0


def test_interval_of_a_mean_agrees_with_scipy() -> None:
    values = RNG.normal(50, 10, size=200)
    ours = Interval.of(values.mean(), resampled_means(values[None], prompt_counts(200, 4000, seed=0))[:, 0])
    draws = scipy.stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=0)
    theirs = draws.confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.15)
    assert ours.high == pytest.approx(theirs.high, abs=0.15)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """200 data sets of 40 prompts with mean 0: 95% intervals hold 0 in 95% of them, within three standard errors."""
    counts = prompt_counts(40, 400, seed=5)
    data = np.random.default_rng(9).normal(size=(200, 40))
    means = resampled_means(data, counts)
    held = [(i := Interval.of(row.mean(), means[:, d])).low <= 0 <= i.high for d, row in enumerate(data)]
    assert 0.89 <= np.mean(held) <= 0.985


def test_percentiles_by_hand() -> None:
    interval = Interval.of(20.0, np.arange(41.0))  # 0..40: 2.5% lies at 1, 97.5% at 39
    assert (interval.low, interval.high) == pytest.approx((1.0, 39.0))


def test_a_basic_interval_by_hand() -> None:
    # The percentiles 1 and 39 of a statistic of 15, reflected at it: 30 - 39 and 30 - 1.
    interval = Interval.basic(15.0, np.arange(41.0))
    assert (interval.low, interval.high) == pytest.approx((-9.0, 29.0))
    assert Interval.basic(15.0, np.arange(41.0), at_least=0.0).low == 0.0
    assert Interval.basic(0.5, np.arange(41.0)).high == pytest.approx(0.5)  # widened: the estimate is in its interval
    assert Interval.basic(2.0, [float("nan")]).to_json() == {"value": 2.0, "low": None, "high": None}


def test_a_volume_and_its_gain_are_covered_by_basic_intervals_where_percentiles_fail() -> None:
    """100 data sets of 30 prompts: five directions on a quarter circle around (5, 5), and one policy that is a point."""
    rng, reference, counts = np.random.default_rng(4), np.zeros(2), prompt_counts(30, 200, seed=1)
    angle_D = np.linspace(0, np.pi / 2, 5)
    front_DK = 5 + 2 * np.stack([np.cos(angle_D), np.sin(angle_D)], axis=1)
    point_1K = front_DK[2:3]
    true, true_gain = (
        hypervolume(front_DK, reference),
        hypervolume(front_DK, reference) - hypervolume(point_1K, reference),
    )
    held = np.zeros(4)
    for _ in range(100):
        own_1PK = rng.normal(0, 2, (1, 30, 2))
        rewards = [means[:, None] + own_1PK + rng.normal(0, 4, (len(means), 30, 2)) for means in (front_DK, point_1K)]
        volume, before = (hypervolume(prompt_means(r), reference) for r in rewards)
        volume_B, before_B = (hypervolumes(resampled_means(r, counts), reference) for r in rewards)
        pairs = ((volume, volume_B, true), (volume - before, volume_B - before_B, true_gain))
        for at, (value, value_B, truth) in enumerate(pairs):
            for kind, interval in enumerate((Interval.of(value, value_B), Interval.basic(value, value_B))):
                held[2 * at + kind] += interval.low <= truth <= interval.high
    percentile, basic, percentile_gain, basic_gain = held / 100
    assert percentile < 0.75
    assert basic > max(0.85, percentile)  # 95% intervals; 100 data sets say it within 3 points or so
    assert basic_gain > max(0.85, percentile_gain)


def test_interval_holds_a_biased_estimate_and_leaves_out_undefined_resamples() -> None:
    interval = Interval.of(0.0, [0.5, float("nan"), 1.0])
    assert (interval.value, interval.low) == (0.0, 0.0)
    assert interval.high == pytest.approx(0.9875)


def test_undefined_intervals_are_null_in_json() -> None:
    assert Interval.of(float("nan"), [1.0]).to_json() == {"value": None, "low": None, "high": None}
    assert Interval.of(2.0, [float("nan")]).to_json() == {"value": 2.0, "low": None, "high": None}


def test_ratio_of_mean_lengths() -> None:
    # proportional lengths: the ratio is .5 in every resample, however long the drawn prompts' answers are
    long = np.array([10.0, 200.0, 30.0, 64.0])
    ratio = ratio_of_means(long / 2, long, prompt_counts(4, 200, seed=0))
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((0.5, 0.5, 0.5))
    # the ratio of means, not the mean of ratios: (10 + 90) / (100 + 100)
    assert ratio_of_means([10.0, 90.0], [100.0, 100.0], prompt_counts(2, 50, seed=0)).value == pytest.approx(0.5)
    assert np.isnan(ratio_of_means([1.0, 1.0], [0.0, 0.0], prompt_counts(2, 50, seed=0)).value)


def test_covariance_of_a_mean_shrinks_with_the_prompts() -> None:
    values = RNG.multivariate_normal([0, 0], [[4.0, 1.0], [1.0, 2.0]], size=400)
    means = resampled_means(values[None], prompt_counts(400, 4000, seed=0))[:, 0]
    assert covariance(means) == pytest.approx(np.cov(values, rowvar=False, bias=True) / 400, abs=1e-3)
