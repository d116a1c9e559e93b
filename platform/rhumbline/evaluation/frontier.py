"""Fronts: the strict Pareto set, hypervolume and the distances between fronts. Pure functions over arrays.

Every function here maximises every column: multiply rewards by the objectives' signs first. N points, K objectives, Z
points of a reference front. The arithmetic is moocore's; it minimises by default, so `maximise=True` is passed
everywhere.

    points_NK = maximised([[70.0, 40.0], [75.0, 50.0]], signs_K=[1, -1])    # helpfulness up, verbosity down
    hypervolume(points_NK, reference_K=[60.0, -60.0])                       # 250.0
"""

from __future__ import annotations

import moocore
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def maximised(values: npt.ArrayLike, signs_K: npt.ArrayLike) -> FloatArray:
    """Values (..., K) in objective units as coordinates that are all better when larger, and back. Signs are +-1."""
    signs = np.asarray(signs_K, dtype=np.float64)
    assert np.all(np.abs(signs) == 1), f"signs are +1 or -1, got {signs.tolist()}"
    return np.asarray(values, dtype=np.float64) * signs


def reference_point(minimum_K: npt.ArrayLike, range_K: npt.ArrayLike) -> FloatArray:
    """Minimum of the calibration split minus 10% of its range, (K,), in maximised coordinates.

    It is frozen before a policy is evaluated, and printed; two hypervolumes under different ones cannot be compared.
    Where an objective is minimised, its minimum here is minus its largest calibration score.
    """
    return np.asarray(minimum_K, dtype=np.float64) - 0.1 * np.asarray(range_K, dtype=np.float64)


def pareto_set(points_NK: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """(N,) True where no point dominates: a dominates b iff a_k >= b_k for all k and a_k > b_k for one.

    Strict, without tolerance (RiC's plots keep points dominated by less than 1% of the range). Duplicates share their
    fate.
    """
    return np.asarray(moocore.is_nondominated(_points(points_NK), maximise=True, keep_weakly=True), dtype=np.bool_)


def hypervolume(points_NK: npt.ArrayLike, reference_K: npt.ArrayLike) -> float:
    """Volume of the union of the boxes [reference, point] over the points above the reference in every objective.

    A point at or below the reference in any objective adds nothing, and takes nothing from the others
    (dynamic-reward-weighting returns 0 for {(1, 1), (2, -1)} over (0, 0); the volume is 1). Units: product of the K
    units.
    """
    points = _points(points_NK)
    reference = np.asarray(reference_K, dtype=np.float64)
    inside = points[np.all(points > reference, axis=1)]
    return float(moocore.hypervolume(inside, ref=reference, maximise=True)) if len(inside) else 0.0


def nondominated_union(*sets_NK: npt.ArrayLike) -> FloatArray:
    """The front (Z, K) of all compared sets together, without duplicates: the reference of IGD+ and epsilon."""
    union = np.unique(np.vstack([_points(points) for points in sets_NK]), axis=0)
    return union[pareto_set(union)]


def igd_plus(points_NK: npt.ArrayLike, front_ZK: npt.ArrayLike) -> float:
    """IGD+ = 1/Z sum_z min_a |max(z - a, 0)|_2 (Ishibuchi et al. 2015).

    0: no point of the front is better than the set in any objective.
    """
    return float(moocore.igd_plus(_points(points_NK), ref=_points(front_ZK), maximise=True))


def epsilon_indicator(points_NK: npt.ArrayLike, front_ZK: npt.ArrayLike) -> float:
    """Additive epsilon = max_z min_a max_k (z_k - a_k): the shift that lets the set weakly dominate the front."""
    return float(moocore.epsilon_additive(_points(points_NK), ref=_points(front_ZK), maximise=True))


def coverage(a_NK: npt.ArrayLike, b_MK: npt.ArrayLike) -> float:
    """C(A, B): the share of B that some point of A weakly dominates (Zitzler). Not symmetric."""
    a, b = _points(a_NK), _points(b_MK)
    return float(np.mean(np.any(np.all(a[:, None, :] >= b[None, :, :], axis=2), axis=0)))


def _points(points_NK: npt.ArrayLike) -> FloatArray:
    points = np.ascontiguousarray(points_NK, dtype=np.float64)
    assert points.ndim == 2, f"expected points of shape (N, K), got {points.shape}"
    assert np.all(np.isfinite(points)), "points must be finite: drop directions without a score first"
    return points
