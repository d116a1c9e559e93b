"""What a person's answers say about their direction: particles on the trained cone, weighted by a choice model.

    person = Particles(cone, np.random.default_rng(0))
    person.update([[0.9, 1.2]], [A])              # answer a's rewards less b's, standardised; the person took a
    person.mean()[0], person.half_angle_deg()[0]

The model, of one comparison with difference d (K,) of standardised rewards, x = beta (w . d):

    p(a), p(b), p(tie)  proportional to  exp(x/2), exp(-x/2), nu                     (Davidson 1970)
    p' = (1 - lapse) p + lapse / C                                                   (C answers are on offer)

Without ties on offer nu = 0, and p(a) = sigmoid(x). The direction w is uniform on the cone before the first answer. How
sharply a person chooses, beta, and how readily they call a tie, nu, are not known either: every particle carries its own
pair, log-normal before the first answer, so that the credible region is as wide as not knowing them makes it. The lapse
rate is fixed: a handful of answers says nothing about it.

When the effective sample size falls below half, particles are resampled and moved by random-walk Metropolis steps under
the whole posterior. A step on the sphere is w' = (w + s e) / |w + s e| with normal e, whose density depends on w . w'
alone, so it is symmetric; a step out of the cone is refused.

Everything has a leading axis U of persons: a quiz is one, a study hundreds at once. U persons, M particles, N candidate
questions, Q questions asked, K objectives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rhumbline.directions import Cone
from rhumbline.errors import ConfigError, DirectionError

Array = NDArray[np.float64]
A, B, TIE = 0, 1, 2  # answers
SWEEPS = 6  # Metropolis steps after a resampling
LEVEL = 0.9  # of the credible region
CACHED = 65_536  # numbers of an array that is worked on at once


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceModel:
    """How a direction becomes an answer, and what is assumed of a person before the first one."""

    beta: float = 3.0  # median; per standard deviation of reward along the direction
    beta_spread: float = 0.4  # standard deviation of log beta, so 95% lie in 1.4 to 6.6; 0: beta is known
    lapse: float = 0.01  # share of answers given without looking
    ties: bool = True  # whether "about the same" is on offer
    nu: float = 0.5  # median; 0.5: a fifth of equal pairs are called equal, nu / (2 + nu)
    nu_spread: float = 0.7  # standard deviation of log nu; 0: nu is known

    def __post_init__(self) -> None:
        for name in ("beta", "nu"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigError(f"{name} must be a finite number above 0, got {getattr(self, name)}")
        for name in ("beta_spread", "nu_spread"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ConfigError(f"{name} must be a finite number, 0 or above, got {getattr(self, name)}")
        if not 0 <= self.lapse < 1:
            raise ConfigError(f"lapse must lie in [0, 1), got {self.lapse}")

    @property
    def answers(self) -> int:
        """C, how many answers are on offer."""
        return 3 if self.ties else 2


def choice_probabilities(x: ArrayLike, nu: ArrayLike, lapse: float, ties: bool) -> tuple[Array, Array, Array]:
    """p'(a), p'(b), p'(tie) of the module's model, each in the common shape of `x` = beta (w . d) and `nu`.

    Without ties the last is 0 and `nu` is not read. Exact for any finite x: only exp(-|x| / 2) is taken.
    """
    x_ = np.asarray(x, dtype=np.float64)
    half = np.exp(np.abs(x_) * -0.5)
    tie = np.asarray(nu, dtype=np.float64) * half if ties else np.zeros(())
    square = half * half
    keep_of_total = (1 - lapse) / (1 + square + tie)
    floor = lapse / (3 if ties else 2)
    larger, smaller = keep_of_total + floor, square * keep_of_total + floor
    first = x_ >= 0
    p_a, p_b = np.where(first, larger, smaller), np.where(first, smaller, larger)
    return p_a, p_b, tie * keep_of_total + floor if ties else np.zeros_like(p_a)


class Particles:
    """Posteriors over U persons' directions. All state is arrays; equal seeds and answers give equal particles."""

    def __init__(
        self,
        cone: Cone,
        rng: np.random.Generator,
        *,
        persons: int = 1,
        particles: int = 2048,
        model: ChoiceModel | None = None,
    ) -> None:
        self.cone, self.rng, self.model = cone, rng, model or ChoiceModel()
        K, U, M = len(cone.names), persons, particles
        if particles < 16:
            raise ConfigError(f"particles must be at least 16, got {particles}")
        self.w_UMK = cone.sample(rng, U * M).reshape(U, M, K)
        self.log_beta_UM = math.log(self.model.beta) + self.model.beta_spread * rng.standard_normal((U, M))
        self.log_nu_UM = math.log(self.model.nu) + self.model.nu_spread * rng.standard_normal((U, M))
        self.log_weight_UM = np.full((U, M), -math.log(M))
        self.d_UQK = np.zeros((U, 0, K))
        self.answers_UQ = np.zeros((U, 0), dtype=np.int64)
        self.acceptance = math.nan  # of the Metropolis steps of the last update that resampled

    @property
    def asked(self) -> int:
        """Answers so far."""
        return self.answers_UQ.shape[1]

    def update(self, d_UK: ArrayLike, answers_U: ArrayLike) -> None:
        """Take in one answer per person: differences (U, K) of standardised rewards, a less b, and A, B or TIE (U,).

        Raises DirectionError for other shapes or values that are no finite numbers, ConfigError for an answer not on offer.
        """
        d, answers = np.asarray(d_UK, dtype=np.float64), np.asarray(answers_U, dtype=np.int64)
        U, _, K = self.w_UMK.shape
        if d.shape != (U, K) or answers.shape != (U,):
            raise DirectionError(f"answers {answers.shape} to differences {d.shape}: expected ({U},) and ({U}, {K})")
        if not np.isfinite(d).all():
            raise DirectionError(f"differences of rewards must be finite numbers, got {d.tolist()}")
        if not np.isin(answers, range(self.model.answers)).all():
            raise ConfigError(f"answers must lie in 0..{self.model.answers - 1}, got {sorted(set(answers.tolist()))}")
        self.d_UQK = np.concatenate([self.d_UQK, d[:, None]], axis=1)
        self.answers_UQ = np.concatenate([self.answers_UQ, answers[:, None]], axis=1)
        everyone = np.arange(U)
        self.log_weight_UM += self._log_likelihood(
            everyone, self.w_UMK, self.log_beta_UM, self.log_nu_UM, self.asked - 1
        )
        self.log_weight_UM -= _log_sum(self.log_weight_UM)
        poor = np.flatnonzero(self.effective_sizes() < self.w_UMK.shape[1] / 2)
        if len(poor):
            self._resample(poor)
            taken = [self._move(rows) * len(rows) for rows in in_chunks(poor, self.w_UMK.shape[1] * self.asked)]
            self.acceptance = sum(taken) / len(poor)

    def weights(self) -> Array:
        """Normalised weights (U, M)."""
        out: Array = np.exp(self.log_weight_UM)
        return out

    def effective_sizes(self) -> Array:
        """1 / sum of squared weights, (U,): how many equally weighted particles these are worth."""
        out: Array = 1 / np.square(self.weights()).sum(axis=1)
        return out

    def mean(self) -> Array:
        """The normalised mean direction of each person, (U, K), in the cone; the axis where the mean has no direction."""
        axis_K = np.asarray(self.cone.axis)
        mean_UK = np.einsum("um,umk->uk", self.weights(), self.w_UMK)
        length_U1 = np.linalg.norm(mean_UK, axis=1, keepdims=True)
        unit_UK = np.where(length_U1 > 1e-9, mean_UK / np.maximum(length_U1, 1e-9), axis_K)
        if self.cone.half_angle_deg <= 90:  # a convex cone holds its means
            return unit_UK
        return np.array([self.cone.project(unit_K)[0] for unit_K in unit_UK])

    def half_angle_deg(self, level: float = LEVEL) -> Array:
        """(U,) degrees around the mean direction within which the person's direction lies with probability `level`."""
        return weighted_quantile(self._angles_from(self.mean()), self.weights(), level)

    def mass_within(self, direction_UK: ArrayLike) -> Array:
        """(U,) posterior probability of being nearer to the mean than `direction_UK` is: uniform on [0, 1] over persons whose
        answers follow the model, `direction_UK` being their true directions. What calibration looks at.
        """
        mean_UK = self.mean()
        off_U = angles_deg(mean_UK, np.asarray(direction_UK, dtype=np.float64))
        inside_UM = self._angles_from(mean_UK) < off_U[:, None]
        out: Array = (self.weights() * inside_UM).sum(axis=1)
        return out

    def thinned(self, count: int) -> tuple[Array, Array, Array]:
        """`count` equally weighted particles of each person: w (U, count, K), beta (U, count) and nu (U, count)."""
        picked_UM = _systematic(self.weights(), count, np.full(len(self.w_UMK), 0.5))
        rows = np.arange(len(self.w_UMK))[:, None]
        return (
            self.w_UMK[rows, picked_UM],
            np.exp(self.log_beta_UM[rows, picked_UM]),
            np.exp(self.log_nu_UM[rows, picked_UM]),
        )

    # --- inside -------------------------------------------------------------------------------------------------------

    def _angles_from(self, direction_UK: Array) -> Array:
        return angles_deg(self.w_UMK, direction_UK[:, None, :])

    def _log_likelihood(
        self, rows: NDArray[np.int64], w_UMK: Array, log_beta_UM: Array, log_nu_UM: Array, since: int = 0
    ) -> Array:
        """Log-probability of the answers from number `since` on, (len(rows), M)."""
        d_UQK, answers_UQ = self.d_UQK[rows, since:], self.answers_UQ[rows, since:]
        x_UQM = np.exp(log_beta_UM)[:, None, :] * (d_UQK @ w_UMK.transpose(0, 2, 1))
        nu_UQM = np.exp(log_nu_UM)[:, None, :]
        p_a, p_b, p_tie = choice_probabilities(x_UQM, nu_UQM, self.model.lapse, self.model.ties)
        given = answers_UQ[:, :, None]
        p_UQM = np.where(given == A, p_a, np.where(given == B, p_b, p_tie))
        out: Array = np.log(np.maximum(p_UQM, 1e-300)).sum(axis=1)
        return out

    def _log_posterior(self, rows: NDArray[np.int64], w_UMK: Array, log_beta_UM: Array, log_nu_UM: Array) -> Array:
        """Up to a constant; the direction's prior is flat within the cone, and the move stays there."""
        out_UM = self._log_likelihood(rows, w_UMK, log_beta_UM, log_nu_UM)
        for value_UM, median, spread in (
            (log_beta_UM, self.model.beta, self.model.beta_spread),
            (log_nu_UM, self.model.nu, self.model.nu_spread),
        ):
            if spread > 0:
                out_UM = out_UM - 0.5 * np.square((value_UM - math.log(median)) / spread)
        return out_UM

    def _resample(self, rows: NDArray[np.int64]) -> None:
        M = self.w_UMK.shape[1]
        picked_UM = _systematic(np.exp(self.log_weight_UM[rows]), M, self.rng.random(len(rows)))
        at = rows[:, None]
        self.w_UMK[rows] = self.w_UMK[at, picked_UM]
        self.log_beta_UM[rows] = self.log_beta_UM[at, picked_UM]
        self.log_nu_UM[rows] = self.log_nu_UM[at, picked_UM]
        self.log_weight_UM[rows] = -math.log(M)

    def _move(self, rows: NDArray[np.int64]) -> float:
        """Share of the steps that were taken."""
        w, log_beta, log_nu = self.w_UMK[rows], self.log_beta_UM[rows], self.log_nu_UM[rows]
        U, M, K = w.shape
        axis_K, edge = np.asarray(self.cone.axis), math.cos(math.radians(self.cone.half_angle_deg)) - 1e-12
        mean_UK = w.mean(axis=1)
        # Root mean square distance to the mean, per dimension of the sphere: steps as wide as the posterior.
        spread_U = np.sqrt(np.square(w - mean_UK[:, None]).sum(axis=2).mean(axis=1) / (K - 1)) + 1e-6
        current_UM = self._log_posterior(rows, w, log_beta, log_nu)
        accepted = 0
        for sweep in range(SWEEPS):
            size = 1.5 / math.sqrt(K) * (1.0 if sweep % 2 == 0 else 0.4)  # wide steps reach, narrow ones are taken
            new_w = w + (size * spread_U)[:, None, None] * self.rng.standard_normal((U, M, K))
            new_w /= np.linalg.norm(new_w, axis=2, keepdims=True)
            new_beta = log_beta + size * self.model.beta_spread * self.rng.standard_normal((U, M))
            new_nu = log_nu + size * self.model.nu_spread * self.rng.standard_normal((U, M))
            new_UM = self._log_posterior(rows, new_w, new_beta, new_nu)
            taken = (np.log(self.rng.random((U, M))) < new_UM - current_UM) & (new_w @ axis_K >= edge)
            w = np.where(taken[:, :, None], new_w, w)
            log_beta, log_nu = np.where(taken, new_beta, log_beta), np.where(taken, new_nu, log_nu)
            current_UM = np.where(taken, new_UM, current_UM)
            accepted += int(taken.sum())
        self.w_UMK[rows], self.log_beta_UM[rows], self.log_nu_UM[rows] = w, log_beta, log_nu
        return float(accepted / (SWEEPS * U * M))


def in_chunks(rows: NDArray[np.int64], numbers_each: int) -> list[NDArray[np.int64]]:
    """`rows` in runs whose arrays of `numbers_each` numbers a row stay in the processor's cache, and small."""
    count = max(1, min(len(rows), len(rows) * numbers_each // CACHED))
    return [chunk for chunk in np.array_split(rows, count) if len(chunk)]


def angles_deg(a: ArrayLike, b: ArrayLike) -> Array:
    """Degrees between unit vectors along the last axis; accurate for small angles too (Kahan)."""
    a_, b_ = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    out: Array = np.degrees(2 * np.arctan2(np.linalg.norm(a_ - b_, axis=-1), np.linalg.norm(a_ + b_, axis=-1)))
    return out


def weighted_quantile(values_UM: Array, weights_UM: Array, level: float) -> Array:
    """(U,) the smallest value of each row with at least `level` of the row's weight at or below it."""
    order_UM = np.argsort(values_UM, axis=1)
    below_UM = np.cumsum(np.take_along_axis(weights_UM, order_UM, axis=1), axis=1)
    at_U = np.minimum((below_UM < level * below_UM[:, -1:] - 1e-12).sum(axis=1), values_UM.shape[1] - 1)
    found_U1 = np.take_along_axis(order_UM, at_U[:, None], axis=1)
    out: Array = np.take_along_axis(values_UM, found_U1, axis=1)[:, 0]
    return out


def _log_sum(values_UM: Array) -> Array:
    top_U1 = values_UM.max(axis=1, keepdims=True)
    out: Array = top_U1 + np.log(np.exp(values_UM - top_U1).sum(axis=1, keepdims=True))
    return out


def _systematic(weights_UM: Array, count: int, offsets_U: Array) -> NDArray[np.int64]:
    """Systematic resampling of each row: (U, count) indexes, each taken within one of its expected number of times."""
    U, M = weights_UM.shape
    edges_UM = np.cumsum(weights_UM, axis=1)
    edges_UM /= edges_UM[:, -1:]
    marks = (np.arange(count) + offsets_U[:, None]) / count  # in (0, 1)
    rows = np.arange(U)[:, None]  # row u lives in [u, u + 1): one search serves all
    found = np.searchsorted((edges_UM + rows).ravel(), (marks + rows).ravel(), side="right").reshape(U, count)
    out: NDArray[np.int64] = np.clip(found - rows * M, 0, M - 1)
    return out
