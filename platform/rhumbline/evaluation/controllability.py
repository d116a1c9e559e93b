"""Does the policy go where it is asked to? Requested directions against achieved mean rewards.

D directions, K objectives. Achieved arrays may carry leading axes (..., D, K), one per bootstrap resample; results
keep them. Rewards are in the units in which v . r is maximised: standardise them first where the recipe does
(selection and regret must speak of the same scalar).

    regret([[1, 0], [0, 1]], [[3.0, 1.0], [2.0, 4.0]])     # [0, 0]: each direction's prompt is its best
    spearman([-45, -30, 0], [20.0, 25.0, 60.0])            # 1.0
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

FloatArray = npt.NDArray[np.float64]


def regret(directions_DK: npt.ArrayLike, rewards_DK: npt.ArrayLike) -> FloatArray:
    """Own-direction regret rho_i = max_j v_i . R_j - v_i . R_i >= 0, (..., D).

    R_j is the mean reward achieved when asked with v_j. 0 means that the prompt with v_i is the best prompt for v_i:
    the sharpest test that the words mean what they say.
    """
    v, r = np.asarray(directions_DK, dtype=np.float64), np.asarray(rewards_DK, dtype=np.float64)
    value_ji = r @ v.T
    return np.asarray(value_ji.max(axis=-2) - np.diagonal(value_ji, axis1=-2, axis2=-1))


def spearman(requested_D: npt.ArrayLike, achieved_D: npt.ArrayLike) -> FloatArray:
    """Rank correlation over the last axis, ties at their mean rank; (...,). NaN where either side is constant."""
    a = rankdata(np.asarray(requested_D, dtype=np.float64))
    b = rankdata(np.asarray(achieved_D, dtype=np.float64), axis=-1)
    a, b = a - a.mean(), b - b.mean(axis=-1, keepdims=True)
    return _divide((a * b).sum(axis=-1), np.sqrt((a * a).sum() * (b * b).sum(axis=-1)))


def kendall(requested_D: npt.ArrayLike, achieved_D: npt.ArrayLike) -> FloatArray:
    """Kendall's tau-b over the last axis, (...,). NaN where either side is constant."""
    a, b = np.asarray(requested_D, dtype=np.float64), np.asarray(achieved_D, dtype=np.float64)
    i, j = np.triu_indices(a.shape[-1], k=1)
    sign_a, sign_b = np.sign(a[i] - a[j]), np.sign(b[..., i] - b[..., j])
    return _divide((sign_a * sign_b).sum(axis=-1), np.sqrt((sign_a**2).sum() * (sign_b**2).sum(axis=-1)))


def angular_error_deg(directions_DK: npt.ArrayLike, rewards_DK: npt.ArrayLike) -> FloatArray:
    """Mean angle between where a direction asks to go and where the policy went, in degrees, (...,).

    Requested: v - mean(v). Achieved: R(v) - mean(R). Both are whitened, each objective divided by its standard
    deviation over the directions, so that neither units nor the width of the cone count. Angles are averaged with the
    length of the request as weight: a direction in the middle asks for no departure. 0 is perfect, 90 no relation
    (also where the achieved point does not depend on the direction at all), 180 the opposite. NaN with fewer than two
    different directions.
    """
    asked, got = _whitened(directions_DK), _whitened(rewards_DK)
    weight_D = np.linalg.norm(asked, axis=-1)
    length = weight_D * np.linalg.norm(got, axis=-1)
    still = length <= 1e-12  # not `moved = length > ...`: a NaN must stay a NaN
    cosine = np.where(still, 0.0, (asked * got).sum(axis=-1) / np.where(still, 1.0, length))
    angle = np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))
    return _divide((angle * weight_D).sum(axis=-1), weight_D.sum(axis=-1))


def monotonicity_violations(requested_D: npt.ArrayLike, achieved_D: npt.ArrayLike) -> int:
    """How many neighbours in the order of the request go the wrong way: more was asked, less was got.

    Equal requests are averaged first, as neither comes before the other.
    """
    requested, achieved = np.asarray(requested_D, dtype=np.float64), np.asarray(achieved_D, dtype=np.float64)
    _, index = np.unique(requested, return_inverse=True)
    mean = np.bincount(index, weights=achieved) / np.bincount(index)
    return int(np.sum(np.diff(mean) < 0))


def calibration_slope(requested_D: npt.ArrayLike, achieved_D: npt.ArrayLike) -> FloatArray:
    """Slope of the least-squares line dR_k / dv_k over the last axis, (...,): objective units per unit of weight."""
    v, r = np.asarray(requested_D, dtype=np.float64), np.asarray(achieved_D, dtype=np.float64)
    centred = v - v.mean()
    return _divide((centred * (r - r.mean(axis=-1, keepdims=True))).sum(axis=-1), (centred**2).sum())


def word_overlap(first: str, second: str) -> float:
    """Jaccard overlap of two responses' sets of words, case folded: 0 none shared, 1 the same words."""
    a, b = (set(re.findall(r"\w+", text.casefold())) for text in (first, second))
    return len(a & b) / len(a | b) if a | b else 1.0


def _whitened(values_DK: npt.ArrayLike) -> FloatArray:
    values = np.asarray(values_DK, dtype=np.float64)
    centred = values - values.mean(axis=-2, keepdims=True)
    std = centred.std(axis=-2, keepdims=True)
    return np.where(std <= 1e-9, 0.0, centred / np.where(std <= 1e-9, 1.0, std))


def _divide(numerator: npt.ArrayLike, denominator: npt.ArrayLike) -> FloatArray:
    top = np.asarray(numerator, dtype=np.float64)
    bottom = np.broadcast_to(np.asarray(denominator, dtype=np.float64), top.shape)
    out: FloatArray = np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 1e-12)
    return out
