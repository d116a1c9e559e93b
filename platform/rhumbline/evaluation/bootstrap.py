"""Intervals by resampling prompts. Every statistic of an evaluation is computed on the same resampled prompts.

Answers to one prompt resemble each other, so prompts, not answers, are drawn; and one draw serves all directions and
all iterations, so differences and ratios are paired. A resample is a row of counts, hence a resampled mean is one
matrix product. B resamples, P prompts, D directions, K objectives.

A hypervolume is at heart a maximum over directions: noise in their means pushes the front outwards on average, so the
estimate x lies above the truth, and a resample, noise upon noise, above x by about as much. Percentiles keep both biases.
The basic interval reflects them at x, [2 x - q97.5, 2 x - q2.5] (Davison and Hinkley 1997, section 5.2): the bias that
resampling shows is taken off instead of added. Other statistics keep percentiles.

    counts_BP = prompt_counts(num_prompts=64, num_resamples=1000, seed=0)
    means_BDK = resampled_means(rewards_DPK, counts_BP)                    # (1000, D, K)
    Interval.of(point, statistic_B)                                        # value, low, high
    Interval.basic(volume, volumes_B, at_least=0.0)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate and its 95% interval. NaN where it is not defined."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, resampled_B: npt.ArrayLike, level: float = 0.95) -> Interval:
        """Percentile interval, e.g. 2.5 to 97.5. Undefined resamples are left out.

        Where that would leave the estimate outside its own interval, the interval is widened to hold it.
        """
        low, high = _quantiles(value, resampled_B, level)
        return cls(value=float(value), low=float(np.minimum(low, value)), high=float(np.maximum(high, value)))

    @classmethod
    def basic(
        cls, value: float, resampled_B: npt.ArrayLike, level: float = 0.95, *, at_least: float = -math.inf
    ) -> Interval:
        """Basic interval: the percentiles reflected at the estimate, for statistics that resampling biases.

        at_least: what the statistic cannot fall below. Widened as `of` is.
        """
        low, high = _quantiles(value, resampled_B, level)
        low, high = np.maximum([2 * value - high, 2 * value - low], at_least)
        return cls(value=float(value), low=float(np.minimum(low, value)), high=float(np.maximum(high, value)))

    def to_json(self) -> dict[str, float | None]:
        """Plain data; what is not defined becomes null, because JSON has no NaN."""
        return {"value": finite(self.value), "low": finite(self.low), "high": finite(self.high)}


def _quantiles(value: float, resampled_B: npt.ArrayLike, level: float) -> tuple[float, float]:
    """Both ends of the middle `level` of the defined resamples; NaN where the estimate or all resamples are not defined."""
    resampled = np.asarray(resampled_B, dtype=np.float64)
    resampled = resampled[np.isfinite(resampled)]
    if not np.isfinite(value) or not len(resampled):
        return math.nan, math.nan
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def finite(value: float) -> float | None:
    """The number, or None where it is NaN or infinite."""
    return float(value) if np.isfinite(value) else None


def prompt_counts(num_prompts: int, num_resamples: int, seed: int) -> FloatArray:
    """(B, P) how often each prompt is drawn; rows sum to P. Equal arguments give equal draws, so runs pair up."""
    rng = np.random.default_rng(seed)
    shares = np.full(num_prompts, 1 / num_prompts)
    return np.asarray(rng.multinomial(num_prompts, shares, size=num_resamples), dtype=np.float64)


def prompt_means(values_DP: npt.ArrayLike) -> FloatArray:
    """Mean over prompts (axis 1) of (D, P) or (D, P, K), each prompt weighing the same. NaN cells are left out."""
    values = np.asarray(values_DP, dtype=np.float64)
    means: FloatArray = resampled_means(values, np.ones((1, values.shape[1])))[0]
    return means


def resampled_means(values_DP: npt.ArrayLike, counts_BP: FloatArray) -> FloatArray:
    """Means over each resample's prompts: (D, P) to (B, D), (D, P, K) to (B, D, K).

    A NaN cell is an answer that is missing; it is left out of its own mean alone. NaN where nothing is left.
    """
    values = np.asarray(values_DP, dtype=np.float64)
    present = np.isfinite(values)
    total = np.tensordot(counts_BP, np.where(present, values, 0.0), axes=(1, 1))
    weight = np.tensordot(counts_BP, present.astype(np.float64), axes=(1, 1))
    out: FloatArray = np.divide(total, weight, out=np.full(total.shape, np.nan), where=weight > 0)
    return out


def ratio_of_means(numerator_P: npt.ArrayLike, denominator_P: npt.ArrayLike, counts_BP: FloatArray) -> Interval:
    """Ratio of two means over the same prompts, e.g. of response lengths at the two ends of the arc. Paired."""
    pair_DP = np.stack([np.asarray(numerator_P, dtype=np.float64), np.asarray(denominator_P, dtype=np.float64)])
    value = prompt_means(pair_DP)
    resampled = resampled_means(pair_DP, counts_BP)
    return Interval.of(float(_ratio(value)), _ratio(resampled))


def covariance(means_BK: npt.ArrayLike) -> FloatArray:
    """(K, K) covariance of a resampled mean vector: the interval ellipse of a point on the front."""
    means = np.asarray(means_BK, dtype=np.float64)
    means = means[np.all(np.isfinite(means), axis=1)]
    centred = means - means.mean(axis=0)
    return np.asarray(centred.T @ centred / len(means))


def _ratio(pairs: FloatArray) -> FloatArray:
    numerator, denominator = pairs[..., 0], pairs[..., 1]
    out: FloatArray = np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator != 0)
    return out
