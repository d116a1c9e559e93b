"""What length alone predicts: the baselines beside every figure of a card.

    line = LengthOnly.fit(labels_N, lengths_N)                 # of ratings: a line on log(1 + tokens)
    line(lengths_N)                                            # (N,) predicted labels
    classes = LengthClasses.fit(winners_P, lengths_P2)         # of pairs with ties: multinomial logistic regression
    classes(lengths_P2)                                        # (P, 3) probabilities of a, b and tie

People prefer longer answers, so a scorer that only counts tokens already agrees with them. Where there is no training split,
`held_out_line` and `held_out_classes` predict each row from the other prompts. N answers, P pairs, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

Array = NDArray[np.float64]
FOLDS = 5


@dataclass(frozen=True, slots=True)
class LengthOnly:
    """A line on log(1 + tokens), fitted on the training split."""

    slope: float
    intercept: float

    @classmethod
    def fit(cls, labels_N: ArrayLike, lengths_N: ArrayLike) -> LengthOnly:
        """Rows without a label are left out; of no label at all every prediction is NaN."""
        labels, log_N = np.asarray(labels_N, dtype=np.float64), np.log1p(np.asarray(lengths_N, dtype=np.float64))
        has_N = ~np.isnan(labels)
        if not has_N.any():
            return cls(0.0, np.nan)
        if np.ptp(log_N[has_N]) == 0:
            return cls(0.0, float(labels[has_N].mean()))
        line = stats.linregress(log_N[has_N], labels[has_N])
        return cls(float(line.slope), float(line.intercept))

    def __call__(self, lengths_N: ArrayLike) -> Array:
        predicted_N: Array = self.slope * np.log1p(np.asarray(lengths_N, dtype=np.float64)) + self.intercept
        return predicted_N


@dataclass(frozen=True, slots=True, eq=False)
class LengthClasses:
    """P(a), P(b), P(tie) from d = log((1 + n_a) / (1 + n_b)): logits linear in d and |d|, fitted on both orders of a pair.

    Both orders, because a pair of chosen and rejected always has its winner first: a baseline that saw the place would
    know the answer. For the same reason a scorer that is averaged over orders cannot use it. Probabilities are smoothed
    as if every class had been seen once more, so that none is 0.
    """

    model: Any  # sklearn's; None: length told nothing apart, every pair gets the class shares
    scale: float  # root mean square of d
    shares_C: Array
    num_pairs: int

    @classmethod
    def fit(cls, winners_P: ArrayLike, lengths_P2: ArrayLike, num_classes: int = 3) -> LengthClasses:
        """`winners_P`: 0 for a, 1 for b, 2 for a tie; `num_classes` 2: there are no ties."""
        winners, d_P = np.asarray(winners_P, dtype=np.int64), _log_ratio(lengths_P2)
        scale = float(np.sqrt((d_P**2).mean())) if len(d_P) else 0.0
        both_Q = np.concatenate([winners, swapped(winners)])
        model = None
        if scale > 0 and len(np.unique(both_Q)) > 1:
            features_Q2 = np.concatenate([_features(d_P, scale), _features(-d_P, scale)])
            model = LogisticRegression(max_iter=1000).fit(features_Q2, both_Q)
        return cls(model, scale, class_prior(winners, num_classes), len(winners))

    def __call__(self, lengths_P2: ArrayLike) -> Array:
        """(P, C)"""
        d_P = _log_ratio(lengths_P2)
        out_PC = np.tile(self.shares_C, (len(d_P), 1))
        if self.model is not None and len(d_P):
            out_PC = np.zeros_like(out_PC)
            out_PC[:, self.model.classes_] = self.model.predict_proba(_features(d_P, self.scale))
            out_PC = (self.num_pairs * out_PC + 1) / (self.num_pairs + len(self.shares_C))
        return out_PC

    def logits(self) -> tuple[tuple[float, float, float], ...]:
        """(C,) of the classes: bias, factor of d, factor of |d|. Exchanging the answers exchanges a and b exactly; a class that
        was never seen counts as seen once.
        """
        weights_C3 = np.zeros((len(self.shares_C), 3))
        weights_C3[:, 0] = np.log(self.shares_C)
        if self.model is not None:
            coefficients_KF, biases_K = self.model.coef_ / self.scale, self.model.intercept_
            if len(self.model.classes_) == 2:  # one logit, of the second class against the first
                coefficients_KF = np.concatenate([-coefficients_KF, coefficients_KF]) / 2
                biases_K = np.concatenate([-biases_K, biases_K]) / 2
            biases_K = biases_K - np.logaddexp.reduce(biases_K)  # log probabilities at equal lengths, as shares are
            weights_C3[self.model.classes_] = np.concatenate([biases_K[:, None], coefficients_KF], axis=1)
        bias, _, either = (weights_C3[0] + weights_C3[1]) / 2
        toward = (weights_C3[0, 1] - weights_C3[1, 1]) / 2
        weights_C3[0], weights_C3[1] = (bias, toward, either), (bias, -toward, either)
        weights_C3[2:, 1] = 0.0
        return tuple((float(b), float(d), float(m)) for b, d, m in weights_C3)


def class_prior(winners_P: ArrayLike, num_classes: int = 3, *, both_orders: bool = True) -> Array:
    """(C,) shares of a, b and tie, each class counted once more than it was seen. `both_orders`: a and b share alike."""
    winners = np.asarray(winners_P, dtype=np.int64)
    counted = np.concatenate([winners, swapped(winners)]) if both_orders else winners
    counts_C = np.bincount(counted, minlength=num_classes) / (2 if both_orders else 1)
    prior_C: Array = (counts_C + 1) / (len(winners) + num_classes)
    return prior_C


def swapped(winners_P: ArrayLike) -> NDArray[np.int64]:
    """Winners of the same pairs with their sides exchanged."""
    winners = np.asarray(winners_P, dtype=np.int64)
    return np.where(winners == 2, 2, 1 - winners)


def folds(groups_N: ArrayLike) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(other rows, own rows) of up to five folds over groups; none where there is one group only."""
    groups = np.asarray(groups_N)
    num = min(FOLDS, len(np.unique(groups)))
    if num > 1:
        yield from GroupKFold(n_splits=num).split(groups, groups=groups)


def held_out_line(labels_N: ArrayLike, lengths_N: ArrayLike, groups_N: ArrayLike) -> Array:
    """(N,) each answer's label by the slope that the answers to other prompts have; NaN where that is impossible.

    The level is that of all labels. A level of the other prompts alone is low where a fold's own labels are high: over folds
    the baseline would rank them the wrong way round, and a scorer without any knowledge would seem to beat it.
    """
    labels, lengths = np.asarray(labels_N, dtype=np.float64), np.asarray(lengths_N, dtype=np.float64)
    out_N, has_N, log_N = np.full(len(labels), np.nan), ~np.isnan(labels), np.log1p(lengths)
    for others, own in folds(groups_N):
        line = LengthOnly.fit(labels[others], lengths[others])
        if not np.isnan(line.intercept):
            out_N[own] = labels[has_N].mean() + line.slope * (log_N[own] - log_N[has_N].mean())
    return out_N


def held_out_classes(winners_P: ArrayLike, lengths_P2: ArrayLike, groups_P: ArrayLike, num_classes: int = 3) -> Array:
    """(P, C) as `LengthClasses` predicts each pair from the pairs of other prompts; NaN where that is impossible."""
    winners, lengths = np.asarray(winners_P, dtype=np.int64), np.asarray(lengths_P2, dtype=np.float64)
    out_PC = np.full((len(winners), num_classes), np.nan)
    for others, own in folds(groups_P):
        out_PC[own] = LengthClasses.fit(winners[others], lengths[others], num_classes)(lengths[own])
    return out_PC


def _log_ratio(lengths_P2: ArrayLike) -> Array:
    log_P2 = np.log1p(np.asarray(lengths_P2, dtype=np.float64).reshape(-1, 2))
    ratio_P: Array = log_P2[:, 0] - log_P2[:, 1]
    return ratio_P


def _features(d_P: Array, scale: float) -> Array:
    return np.stack([d_P, np.abs(d_P)], axis=1) / scale
