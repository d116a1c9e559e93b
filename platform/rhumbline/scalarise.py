"""Scalarisations: reward vectors become one number per sample here and nowhere else, at the last moment.

    standardise = Standardiser.fit(calibration_NK, names)
    linear(standardise(rewards_NK), direction_K)                # (N,): v . z, what selection maximises

N samples, K objectives in recipe order. Adding one: a function (rewards_NK, direction_K) -> (N,), larger is better, and
its line in `SCALARISATIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rhumbline.errors import ConfigError, DirectionError

Array = NDArray[np.float64]
Scalarisation = Callable[[Array, Array], Array]


def linear(rewards_NK: ArrayLike, direction_K: ArrayLike) -> Array:
    """v . r for every sample, (N,): R(x, v, y) of the DPA paper, section 3. Finds the convex part of a front only."""
    r_NK, v_K = _checked(rewards_NK, direction_K)
    # Not `@`: a BLAS product may round equal rows differently, and ties must stay ties.
    value_N: Array = (r_NK * v_K).sum(axis=1)
    return value_N


def chebyshev(
    rewards_NK: ArrayLike, direction_K: ArrayLike, utopia_K: ArrayLike | None = None, rho: float = 0.05
) -> Array:
    """Augmented Chebyshev, (N,), larger is better: -(max_k g_k + rho sum_k g_k), g_k = |v_k| (u_k - sign(v_k) r_k).

    It reaches the concave parts of a front, which no weighted sum does (Steuer and Choo, Math. Programming 26, 1983).
    `utopia_K` is the best value of each objective in the wanted sense, sign(v_k) r_k; None takes the best among the
    samples given, so that values compare within this call only.
    """
    r_NK, v_K = _checked(rewards_NK, direction_K)
    wanted_NK = np.sign(v_K) * r_NK
    if utopia_K is None:
        u_K = wanted_NK.max(axis=0) if len(wanted_NK) else np.zeros_like(v_K)
    else:
        u_K = np.asarray(utopia_K, dtype=np.float64)
        if u_K.shape != v_K.shape:
            raise DirectionError(f"utopia has shape {u_K.shape}, expected one value per objective, {v_K.shape}")
    gap_NK = np.abs(v_K) * (u_K - wanted_NK)
    value_N: Array = -(gap_NK.max(axis=1) + rho * gap_NK.sum(axis=1))
    return value_N


SCALARISATIONS: dict[str, Scalarisation] = {"linear": linear, "chebyshev": chebyshev}


@dataclass(frozen=True, slots=True)
class Standardiser:
    """z = (r - mean) / std per objective, with statistics frozen on a calibration set: an angle then has equal leverage
    on every objective, whatever their scales.
    """

    mean_K: tuple[float, ...]
    std_K: tuple[float, ...]
    names: tuple[str, ...] = ()  # for messages

    def __post_init__(self) -> None:
        if len(self.mean_K) != len(self.std_K) or not self.mean_K:
            raise ConfigError(f"calibration has {len(self.mean_K)} means and {len(self.std_K)} standard deviations")
        for k, (mean, std) in enumerate(zip(self.mean_K, self.std_K, strict=True)):
            name = self.names[k] if k < len(self.names) else f"number {k}"
            if not (np.isfinite(mean) and np.isfinite(std)):
                raise ConfigError(f"objective {name}: calibration mean {mean} and std {std} must be finite numbers")
            if std <= 0:
                raise ConfigError(
                    f"objective {name} has standard deviation {std:g} over the calibration samples: it cannot tell one "
                    f"response from another (see rewards.objectives, or set rewards.standardise to false)"
                )

    def __call__(self, rewards_NK: ArrayLike) -> Array:
        """(N, K) on the objectives' own scales -> (N, K) in standard deviations."""
        r_NK = np.asarray(rewards_NK, dtype=np.float64)
        if r_NK.ndim != 2 or r_NK.shape[1] != len(self.mean_K):
            raise DirectionError(f"rewards have shape {r_NK.shape}, the calibration has {len(self.mean_K)} objectives")
        z_NK: Array = (r_NK - np.asarray(self.mean_K)) / np.asarray(self.std_K)
        return z_NK

    @classmethod
    def identity(cls, K: int) -> Standardiser:
        """Leaves rewards as they are."""
        return cls((0.0,) * K, (1.0,) * K)

    @classmethod
    def fit(cls, rewards_NK: ArrayLike, names: Sequence[str] = ()) -> Standardiser:
        """Mean and standard deviation (denominator N) of the rows. Raises ConfigError for a constant column."""
        r_NK = np.asarray(rewards_NK, dtype=np.float64)
        if r_NK.ndim != 2 or len(r_NK) == 0:
            raise ConfigError(f"calibration needs reward vectors of shape (N, K), N > 0, got {r_NK.shape}")
        mean_K, std_K = r_NK.mean(axis=0), r_NK.std(axis=0)
        # The mean of equal numbers rounds, so a constant column may show a spread of some ulps.
        std_K = np.where(np.ptp(r_NK, axis=0) == 0, 0.0, std_K)
        return cls(tuple(mean_K.tolist()), tuple(std_K.tolist()), tuple(names))

    def to_dict(self) -> dict[str, Any]:
        return {"mean": list(self.mean_K), "std": list(self.std_K), "names": list(self.names)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Standardiser:
        return cls(tuple(data["mean"]), tuple(data["std"]), tuple(data.get("names", ())))


def _checked(rewards_NK: ArrayLike, direction_K: ArrayLike) -> tuple[Array, Array]:
    r_NK, v_K = np.asarray(rewards_NK, dtype=np.float64), np.asarray(direction_K, dtype=np.float64)
    if r_NK.ndim != 2 or v_K.shape != (r_NK.shape[1],):
        raise DirectionError(f"rewards {r_NK.shape} and direction {v_K.shape} do not fit: expected (N, K) and (K,)")
    return r_NK, v_K
