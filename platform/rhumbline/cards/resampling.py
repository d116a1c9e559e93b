"""95% intervals by resampling prompts, for figures of reward models: answers to one prompt resemble each other.

    draws = Resamples(prompts_N, num_resamples=1000, seed=0)
    draws.mean(correct_N)                                  # {'value': 0.71, 'low': 0.68, 'high': 0.74}
    draws.interval(lambda i: spearman(scores_N[i], labels_N[i]))

One set of draws serves every figure of a card, so figures and their differences are paired. N rows, G prompts, B resamples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Interval = dict[str, float | None]  # value, low, high; null is 'not defined'


class Resamples:
    """B draws of G prompts with replacement; a prompt brings all of its rows."""

    def __init__(self, prompts_N: ArrayLike, num_resamples: int, seed: int) -> None:
        names, self._prompt_N = np.unique(np.asarray(prompts_N), return_inverse=True)
        self.num_prompts = len(names)
        self._order_N = np.argsort(self._prompt_N, kind="stable")  # rows prompt by prompt
        self._sizes_G = np.bincount(self._prompt_N, minlength=self.num_prompts)
        self._starts_G = np.cumsum(self._sizes_G) - self._sizes_G
        rng = np.random.default_rng(seed)
        drawn = range(num_resamples if self.num_prompts else 0)
        self._draws = [rng.integers(self.num_prompts, size=self.num_prompts).astype(np.int32) for _ in drawn]

    def interval(self, figure: Callable[[NDArray[np.int64]], float | None], *, basic: bool = False) -> Interval:
        """A figure of all rows, and the middle 95% of what it is on resampled rows. `figure` takes row indices.

        Resamples on which it is not defined are left out; a single prompt gives no interval. `basic` reflects the percentiles
        at the value and cuts them at 0 (Davison and Hinkley 1997, section 5.2): for a figure that noise can only raise, such
        as a calibration error.
        """
        value = figure(np.arange(len(self._prompt_N)))
        resampled = [figure(self._rows(draw)) for draw in self._several]
        return _interval(value, [one for one in resampled if one is not None], basic)

    def mean(self, values_N: ArrayLike) -> Interval:
        """`interval` of the mean over rows, from sums per prompt. NaN rows are left out of the mean and of its denominator."""
        values = np.asarray(values_N, dtype=np.float64)
        has_N = ~np.isnan(values)
        if not has_N.any():
            return {"value": None, "low": None, "high": None}
        sums_G = np.bincount(self._prompt_N, np.where(has_N, values, 0.0), self.num_prompts)
        counts_G = np.bincount(self._prompt_N, has_N, self.num_prompts)
        totals = [(float(sums_G[draw].sum()), float(counts_G[draw].sum())) for draw in self._several]
        return _interval(float(values[has_N].mean()), [total / n for total, n in totals if n > 0], False)

    @property
    def _several(self) -> list[NDArray[np.int32]]:
        """The draws; none of a single prompt, which is the same in every draw and would seem certain."""
        return self._draws if self.num_prompts > 1 else []

    def _rows(self, draw_G: NDArray[np.int32]) -> NDArray[np.int64]:
        """The rows of each drawn prompt, one prompt after the other."""
        sizes_G = self._sizes_G[draw_G]
        ends_G = np.cumsum(sizes_G)
        shift_R = np.repeat(self._starts_G[draw_G] - (ends_G - sizes_G), sizes_G)
        rows_R: NDArray[np.int64] = self._order_N[shift_R + np.arange(len(shift_R))]
        return rows_R


def plain(values_N: Any) -> float | None:
    """The mean of some numbers, or None of none."""
    values = np.asarray(values_N, dtype=np.float64)
    return float(values.mean()) if len(values) else None


def _interval(value: float | None, resampled: list[float], basic: bool) -> Interval:
    if value is None or not resampled:
        return {"value": value, "low": None, "high": None}
    low, high = (float(end) for end in np.quantile(resampled, [0.025, 0.975]))
    if basic:
        low, high = max(0.0, min(2 * value - high, value)), max(2 * value - low, value)
    return {"value": value, "low": low, "high": high}
