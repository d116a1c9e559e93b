"""Linear heads on fixed features, in closed form: ridge regression, one penalty per head, missing labels left out.

    scaling = Scaling.fit(features_ND, lengths_N, length_removed=1.0)
    fit = fit_head(scaling(features_ND, lengths_N), labels_N, groups_N, ALPHAS, folds=5)
    scaling(features_ND, lengths_N) @ fit.coefficients_D + fit.intercept

For each head w minimises sum_i (y_i - w.z_i - b)^2 + alpha |w|^2 over the rows i that have its label (ArmoRM's first
stage, here with an intercept, which is not penalised). A label that was not given is NaN and is never read as 0. N
rows, D features, A penalties.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold

from rhumbline.errors import DataError

Array = NDArray[np.float64]
ALPHAS = tuple(np.logspace(1, 6, 16).tolist())  # for standardised features: alpha competes with the number of rows


@dataclass(frozen=True, slots=True, eq=False)
class Scaling:
    """z = (x - mean - slope (log(1 + n) - log_length)) / std, per feature; n is the answer's length in tokens.

    With slope 0 (`length_removed` 0) this is plain standardisation. With `length_removed` 1 the slope is that of the
    least-squares line of each feature on log(1 + n), so every z, and hence every linear head, is uncorrelated with log
    length over the rows that it was fitted on: length itself can no longer buy a score. Values between take out that
    share of the line.
    """

    mean_D: Array
    std_D: Array
    slope_D: Array
    log_length: float  # mean of log(1 + n)

    @classmethod
    def fit(cls, features_ND: ArrayLike, lengths_N: ArrayLike, *, length_removed: float = 0.0) -> Scaling:
        x_ND, log_N = np.asarray(features_ND, dtype=np.float64), np.log1p(np.asarray(lengths_N, dtype=np.float64))
        mean_D, log_length = x_ND.mean(axis=0), float(log_N.mean())
        centred_N = log_N - log_length
        slope_D = np.zeros_like(mean_D)
        if np.ptp(log_N) > 0:  # the mean of equal numbers rounds, so centred_N need not be zero
            slope_D = length_removed * (centred_N @ (x_ND - mean_D)) / (centred_N @ centred_N)
        std_D = (x_ND - mean_D - centred_N[:, None] * slope_D).std(axis=0)
        # A feature that never varied says nothing; dividing by its rounding noise would make it shout.
        std_D = np.where(std_D > 1e-9 * (1 + np.abs(mean_D)), std_D, np.inf)
        return cls(mean_D, std_D, slope_D, log_length)

    def __call__(self, features_ND: ArrayLike, lengths_N: ArrayLike) -> Array:
        """(N, D) raw features and (N,) lengths in tokens -> (N, D) standardised."""
        log_N = np.log1p(np.asarray(lengths_N, dtype=np.float64)) - self.log_length
        x_ND = np.asarray(features_ND, dtype=np.float64)
        z_ND: Array = (x_ND - self.mean_D - log_N[:, None] * self.slope_D) / self.std_D
        return z_ND


@dataclass(frozen=True, slots=True, eq=False)
class HeadFit:
    """One fitted head, in the units of its labels."""

    coefficients_D: Array
    intercept: float
    alpha: float
    n: int  # rows that had the label
    mse_A: Array  # held-out mean squared error of every penalty tried
    held_out_N: Array  # each row predicted by the folds without its group, at `alpha`; NaN: no label


def fit_head(
    standardised_ND: ArrayLike,
    labels_N: ArrayLike,
    groups_N: ArrayLike,
    alphas: tuple[float, ...] = ALPHAS,
    folds: int = 5,
) -> HeadFit:
    """Fit one head; the penalty is the one with the least squared error on held-out groups.

    Rows of a group (all answers to one prompt) are never on both sides of a fold: answers to the same question share
    words, and a random fold would reward memory. Raises DataError for fewer labelled groups than folds and for labels
    that are all alike.
    """
    z_ND, y_N = np.asarray(standardised_ND, dtype=np.float64), np.asarray(labels_N, dtype=np.float64)
    has_N = ~np.isnan(y_N)
    z_MD, y_M, groups_M = z_ND[has_N], y_N[has_N], np.asarray(groups_N)[has_N]
    if len(np.unique(groups_M)) < folds:
        raise DataError(f"{len(np.unique(groups_M))} prompts have a label, {folds} folds need at least as many")
    if np.ptp(y_M) == 0:
        raise DataError(f"all {len(y_M)} labels are {y_M[0]:g}: there is nothing to fit")
    held_out_MA = np.empty((len(y_M), len(alphas)))
    for train, test in GroupKFold(n_splits=folds).split(z_MD, groups=groups_M):
        # sklearn drops the axis of a single penalty.
        held_out_MA[test] = _ridges(z_MD[train], y_M[train], alphas).predict(z_MD[test]).reshape(len(test), -1)
    mse_A = ((held_out_MA - y_M[:, None]) ** 2).mean(axis=0)
    best = int(mse_A.argmin())
    model = Ridge(alpha=alphas[best], solver="svd").fit(z_MD, y_M)
    held_out_N = np.full(len(y_N), np.nan)
    held_out_N[has_N] = held_out_MA[:, best]
    return HeadFit(np.asarray(model.coef_), float(model.intercept_), alphas[best], len(y_M), mse_A, held_out_N)


def _ridges(z_MD: Array, y_M: Array, alphas: tuple[float, ...]) -> Ridge:
    """Every penalty from one singular value decomposition: the same labels once per penalty, each with its own."""
    return Ridge(alpha=np.array(alphas), solver="svd").fit(z_MD, np.repeat(y_M[:, None], len(alphas), axis=1))
