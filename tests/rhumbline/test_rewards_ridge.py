"""Ridge heads against hand and sklearn, with missing labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.linear_model import Ridge

from rhumbline.errors import DataError
from rhumbline.rewards.ridge import Scaling, fit_head

RNG = np.random.default_rng(3)
Z = RNG.normal(size=(60, 5))
Y = Z @ [2.0, 0, 0, -1, 0] + RNG.normal(size=60)
GROUPS = np.repeat(np.arange(20), 3)


def test_one_feature_by_hand() -> None:
    # Centred z = -1, 0, 1 and y = -2, 0, 2: w = z.y / (z.z + alpha) = 4 / (2 + 2) = 1; b = mean(y) - w mean(z) = 5.
    fit = fit_head([[-1.0], [0.0], [1.0]], [3.0, 5.0, 7.0], [0, 1, 2], alphas=(2.0,), folds=3)
    assert fit.coefficients_D == pytest.approx([1.0])
    assert fit.intercept == pytest.approx(5.0)
    # Without row 1 (z = -1, 1 and y = 3, 7): w = 4 / (2 + 2) = 1, b = 5, so it is predicted as 5.
    assert fit.held_out_N[1] == pytest.approx(5.0)


def test_equals_sklearn_on_the_rows_that_have_the_label() -> None:
    labels = Y.copy()
    labels[[0, 7, 8, 31]] = np.nan
    fit = fit_head(Z, labels, GROUPS, alphas=(0.1, 3.0, 100.0))
    has = ~np.isnan(labels)
    wanted = Ridge(alpha=fit.alpha).fit(Z[has], labels[has])
    assert fit.n == 56
    assert fit.coefficients_D == pytest.approx(wanted.coef_)
    assert fit.intercept == pytest.approx(wanted.intercept_)


def test_a_missing_label_is_not_a_zero() -> None:
    some = np.where(np.arange(60) % 2 == 0, Y + 50, np.nan)
    zeros = np.where(np.arange(60) % 2 == 0, Y + 50, 0.0)
    groups = np.arange(60)
    fit = fit_head(Z, some, groups)
    assert fit.intercept == pytest.approx(50, abs=1.5)  # a zero for every second row would give about 25
    assert fit_head(Z, zeros, groups).intercept == pytest.approx(25, abs=3)
    assert np.isnan(fit.held_out_N[1::2]).all()
    assert np.isfinite(fit.held_out_N[::2]).all()


def test_the_penalty_is_the_one_with_the_least_held_out_error() -> None:
    fit = fit_head(Z, Y, GROUPS, alphas=(1e-3, 1.0, 1e6))
    assert fit.alpha == (1e-3, 1.0, 1e6)[int(fit.mse_A.argmin())]
    assert fit.alpha < 1e6
    noise = np.random.default_rng(0).normal(size=60)
    assert fit_head(Z, noise, GROUPS, alphas=(1e-3, 1e6)).alpha == 1e6


def test_folds_keep_groups_together() -> None:
    """Rows of a group are copies: with a fold that splits groups, the held-out error would be near 0."""
    rng = np.random.default_rng(1)
    z, y = np.repeat(rng.normal(size=(15, 30)), 4, axis=0), np.repeat(rng.normal(size=15), 4)
    groups = np.repeat(np.arange(15), 4)
    assert fit_head(z, y, groups, alphas=(1e-3,)).mse_A[0] > 0.3
    assert fit_head(z, y, np.tile(np.arange(4), 15), alphas=(1e-3,), folds=4).mse_A[0] < 1e-3


def test_too_few_groups_and_constant_labels_are_refused() -> None:
    with pytest.raises(DataError, match="4 prompts have a label, 5 folds"):
        fit_head(Z[:12], Y[:12], GROUPS[:12])
    with pytest.raises(DataError, match="nothing to fit"):
        fit_head(Z, np.ones(60), GROUPS)


# --- scaling ----------------------------------------------------------------------------------------------------------


def test_scaling_by_hand() -> None:
    scaling = Scaling.fit([[1.0], [3.0]], [4, 9])
    assert scaling([[1.0], [3.0], [5.0]], [4, 9, 1]).ravel().tolist() == [
        -1,
        1,
        3,
    ]  # mean 2, std 1, whatever the length


def test_a_constant_feature_says_nothing() -> None:
    scaling = Scaling.fit([[0.1, 1.0], [0.1, 3.0], [0.1, 4.0]], [1, 2, 3])
    assert scaling([[0.2, 1.0]], [1])[0, 0] == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_with_length_removed_every_linear_head_is_uncorrelated_with_log_length(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 300, size=50)
    x = rng.normal(size=(50, 4)) + np.log1p(lengths)[:, None] * rng.normal(size=4) * 3
    scores = Scaling.fit(x, lengths, length_removed=1.0)(x, lengths) @ rng.normal(size=4)
    assert abs(stats.pearsonr(scores, np.log1p(lengths)).statistic) < 1e-6


def test_half_of_the_length_leaves_half_of_the_slope() -> None:
    lengths = np.arange(1, 40)
    x = 5 + 2 * np.log1p(lengths)[:, None]
    assert Scaling.fit(x, lengths, length_removed=0.5).slope_D == pytest.approx([1.0])
    assert Scaling.fit(x, lengths).slope_D == pytest.approx([0.0])
    assert Scaling.fit(x, np.full(39, 7), length_removed=1.0).slope_D == pytest.approx([0.0])  # one length: no line
