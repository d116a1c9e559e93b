"""How well a scorer judges pairs of answers: accuracy, log loss and calibration, beside what length alone gives.

    pair_accuracy(better_P, worse_P)                           # 0.71; equal scores count a half
    log_loss(probabilities_P3, winners_P)                      # 0.98 nats; ln 3 = 1.0986 is the uniform guess
    bins = reliability(confidence_P, correct_P)                # what it believed against how often it was right
    calibration_error(bins)                                    # 0.04
    measure_pairs(margins_P, winners_P, lengths_P2, prompts_P, num_resamples=1000, seed=0)
    measure_classes(probabilities_P3, winners_P, lengths_P2, prompts_P, num_resamples=1000, seed=0)

Winners are 0 for a, 1 for b, 2 for a tie, as people judged them. P pairs, C classes; intervals are over prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LogisticRegression

from rhumbline.cards.correlation import pair_spearman
from rhumbline.cards.length_only import LengthClasses, class_prior, folds, held_out_classes
from rhumbline.cards.resampling import Resamples, plain

Array = NDArray[np.float64]
Bin = Mapping[str, float]
CLASSES = ("a", "b", "tie")
TIE = 2
SMALLEST = 1e-12  # what a probability counts at least, so that one certain error does not make the loss infinite
BINS = 10


def credits(better_P: ArrayLike, worse_P: ArrayLike) -> Array:
    """(P,) 1 where the better answer has the higher score, a half where both have the same, else 0."""
    better, worse = np.asarray(better_P, dtype=np.float64), np.asarray(worse_P, dtype=np.float64)
    return np.where(better == worse, 0.5, (better > worse).astype(np.float64))


def pair_accuracy(better_P: ArrayLike, worse_P: ArrayLike) -> float | None:
    """Mean of `credits` over pairs; None of none."""
    return plain(credits(better_P, worse_P))


def log_losses(probabilities_NC: ArrayLike, classes_N: ArrayLike) -> Array:
    """(N,) -log of the probability that the true class was given, in nats; NaN where it is NaN."""
    probabilities, classes = np.asarray(probabilities_NC, dtype=np.float64), np.asarray(classes_N, dtype=np.int64)
    losses_N: Array = -np.log(np.maximum(probabilities[np.arange(len(classes)), classes], SMALLEST))
    return losses_N


def log_loss(probabilities_NC: ArrayLike, classes_N: ArrayLike) -> float | None:
    """Mean of `log_losses`; None of none."""
    return plain(log_losses(probabilities_NC, classes_N))


def reliability(
    predicted_N: ArrayLike, observed_N: ArrayLike, *, bins: int = BINS, low: float = 0.0, high: float = 1.0
) -> list[dict[str, float]]:
    """Rows by what was predicted, in `bins` of equal width over low..high: n, mean prediction, mean observation.

    Empty bins are left out; predictions beyond the ends belong to the outer bins. For a classifier: its confidence in the
    class that it chose, and whether it was right. For a regression: score and label.
    """
    predicted, observed = np.asarray(predicted_N, dtype=np.float64), np.asarray(observed_N, dtype=np.float64)
    width = (high - low) / bins
    share_N = (predicted - low) / (high - low)  # by `width` 0.3 would fall below 3 * 0.1
    place_N = np.clip((share_N * bins).astype(np.int64), 0, bins - 1)
    n_B, sum_B, seen_B = (np.bincount(place_N, weights, bins) for weights in (None, predicted, observed))
    return [
        {
            "low": low + width * b,
            "high": low + width * (b + 1),
            "n": int(n_B[b]),
            "predicted": float(sum_B[b] / n_B[b]),
            "observed": float(seen_B[b] / n_B[b]),
        }
        for b in np.flatnonzero(n_B).tolist()
    ]


def calibration_error(bins: Sequence[Bin]) -> float | None:
    """ECE = sum_b n_b / N |observed_b - predicted_b| (Guo et al. 2017, equation 3), in the units of the bins."""
    total = sum(one["n"] for one in bins)
    return sum(one["n"] * abs(one["observed"] - one["predicted"]) for one in bins) / total if total else None


def calibration(predicted_N: ArrayLike, observed_N: ArrayLike, draws: Resamples) -> dict[str, Any]:
    """{'ece': interval, 'bins': reliability} of probabilities, or of anything else on 0-1."""
    predicted, observed = np.asarray(predicted_N, dtype=np.float64), np.asarray(observed_N, dtype=np.float64)
    return {"ece": ece(predicted, observed, draws), "bins": reliability(predicted, observed)}


def ece(predicted_N: ArrayLike, observed_N: ArrayLike, draws: Resamples) -> dict[str, float | None]:
    """The interval of `calibration_error`; not defined where a prediction is not known."""
    predicted, observed = np.asarray(predicted_N, dtype=np.float64), np.asarray(observed_N, dtype=np.float64)
    if np.isnan(predicted).any():
        return {"value": None, "low": None, "high": None}
    return draws.interval(lambda i: calibration_error(reliability(predicted[i], observed[i])), basic=True)


def chosen(probabilities_NC: ArrayLike, classes_N: ArrayLike) -> tuple[Array, Array]:
    """(N,) the largest probability, and whether its class is the true one; a share where several are largest."""
    p_NC, classes = np.asarray(probabilities_NC, dtype=np.float64), np.asarray(classes_N, dtype=np.int64)
    largest_N = p_NC.max(axis=1)
    best_NC = p_NC == largest_N[:, None]
    right_N = best_NC[np.arange(len(classes)), classes] / np.maximum(best_NC.sum(axis=1), 1)
    return largest_N, np.where(np.isnan(largest_N), np.nan, right_N)


def measure_pairs(
    margins_P: ArrayLike,
    winners_P: ArrayLike,
    lengths_P2: ArrayLike,
    prompts_P: ArrayLike,
    *,
    length_only: LengthClasses | None = None,
    temperature: float | None = None,
    num_resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Figures of a scorer of single answers; `margins_P` is the score of a less that of b.

    Pairs that people called a tie are counted and left out. P(a) = sigmoid(margin / temperature): 1 for the logits of a
    Bradley-Terry model; None fits it to the pairs of other prompts, fold by fold, as scores on 0-100 need. `length_only`
    None: held out in the same way. `gain` is accuracy less that of 'the longer one', on the same pairs; `score_with_length`
    the rank correlation of the two differences within a pair.
    """
    winners = np.asarray(winners_P, dtype=np.int64)
    decided = winners != TIE
    toward_D = np.where(winners[decided] == 0, 1.0, -1.0)  # so that a margin above 0 is right
    margins_D = toward_D * np.asarray(margins_P, dtype=np.float64)[decided]
    lengths_D2 = np.asarray(lengths_P2, dtype=np.float64).reshape(-1, 2)[decided]
    prompts_D, longer_D = np.asarray(prompts_P)[decided], toward_D * (lengths_D2[:, 0] - lengths_D2[:, 1])
    draws = Resamples(prompts_D, num_resamples, seed)
    figures: dict[str, Any] = {"n": len(margins_D), "ties": int((~decided).sum()), "prompts": draws.num_prompts}
    if not len(margins_D):
        return figures
    scaled_D = margins_D / temperature if temperature is not None else _held_out_scale(margins_D, prompts_D)
    known_D = ~np.isnan(scaled_D)  # all, or with a single prompt none
    losses_D = np.where(known_D, np.logaddexp(0.0, -np.where(known_D, scaled_D, 0.0)), np.nan)
    right_D, by_length_D = credits(margins_D, np.zeros_like(margins_D)), credits(longer_D, np.zeros_like(longer_D))
    if length_only is None:
        guess_D2 = held_out_classes(winners[decided], lengths_D2, prompts_D, num_classes=2)
    else:
        guess_D2 = length_only(lengths_D2)[:, :2]
        guess_D2 = guess_D2 / guess_D2.sum(axis=1, keepdims=True)
    figures |= {
        "accuracy": draws.mean(right_D),
        "length_accuracy": draws.mean(by_length_D),
        "gain": draws.mean(right_D - by_length_D),
        "log_loss": draws.mean(losses_D),
        "length_log_loss": draws.mean(log_losses(guess_D2, winners[decided])),
        "uniform_log_loss": math.log(2),
        "score_with_length": draws.interval(lambda i: pair_spearman(margins_D[i], longer_D[i])),
        "length_ece": ece(*chosen(guess_D2, winners[decided]), draws),
    }
    if known_D.all():
        figures |= calibration(1 / (1 + np.exp(-np.abs(scaled_D))), right_D, draws)
    return figures


def measure_classes(
    probabilities_PC: ArrayLike,
    winners_P: ArrayLike,
    lengths_P2: ArrayLike,
    prompts_P: ArrayLike,
    *,
    length_only: LengthClasses | None = None,
    train_winners: ArrayLike | None = None,
    one_order_PC: ArrayLike | None = None,
    num_resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Figures of a comparer, which gives probabilities of a, b and tie; of one without ties, on the pairs without any.

    Log losses in nats: its own, of the length-only regression (`length_only`; None: held out over prompts), of the class
    prior (of `train_winners`; None: of these pairs themselves) with and without the place of an answer being known, and of
    the uniform guess. `gain` is the length-only loss less its own, on the same pairs. `one_order_PC`: what the comparer
    said to a before b alone; then `swap_gain` is its log loss less that of the average. `accuracy` and `length_only_accuracy`
    (of the length-only regression) are over all classes; `decided_accuracy`, and `length_accuracy` of 'the longer one', over
    the pairs in which people preferred one answer.
    """
    p_PC, winners = np.asarray(probabilities_PC, dtype=np.float64), np.asarray(winners_P, dtype=np.int64)
    num_classes = p_PC.shape[1]
    told_P = winners < num_classes
    p_PC, winners, prompts = p_PC[told_P], winners[told_P], np.asarray(prompts_P)[told_P]
    lengths = np.asarray(lengths_P2, dtype=np.float64).reshape(-1, 2)[told_P]
    draws = Resamples(prompts, num_resamples, seed)
    counts = {name: int((winners == c).sum()) for c, name in enumerate(CLASSES[:num_classes])}
    figures: dict[str, Any] = {"n": len(winners), "prompts": draws.num_prompts, "winners": counts}
    if not len(winners):
        return figures
    confidence_P, right_P = chosen(p_PC, winners)
    toward_P = np.where(winners == TIE, np.nan, np.where(winners == 0, 1.0, -1.0))
    margins_P, differences_P = p_PC[:, 0] - p_PC[:, 1], lengths[:, 0] - lengths[:, 1]
    guess_PC = (
        length_only(lengths) if length_only is not None else held_out_classes(winners, lengths, prompts, num_classes)
    )
    losses_P, by_length_P = log_losses(p_PC, winners), log_losses(guess_PC, winners)
    guessed_P, guessed_right_P = chosen(guess_PC, winners)
    seen = winners if train_winners is None else np.asarray(train_winners, dtype=np.int64)
    seen = seen[seen < num_classes]
    prior_C, placed_C = (class_prior(seen, num_classes, both_orders=both) for both in (True, False))
    ordered = min(counts["a"], counts["b"]) == 0  # chosen before rejected: the place is the answer, and no baseline
    one_order_P = None if one_order_PC is None else log_losses(np.asarray(one_order_PC)[told_P], winners)
    return figures | {
        "accuracy": draws.mean(right_P),
        "length_only_accuracy": draws.mean(guessed_right_P),
        "decided_accuracy": draws.mean(_credits_of(toward_P * margins_P)),
        "length_accuracy": draws.mean(_credits_of(toward_P * differences_P)),
        "log_loss": draws.mean(losses_P),
        "length_log_loss": draws.mean(by_length_P),
        "gain": draws.mean(by_length_P - losses_P),
        "prior_log_loss": draws.mean(-np.log(prior_C)[winners]),
        "placed_prior_log_loss": None if ordered else draws.mean(-np.log(placed_C)[winners]),
        "uniform_log_loss": math.log(num_classes),
        "one_order_log_loss": None if one_order_P is None else draws.mean(one_order_P),
        "swap_gain": None if one_order_P is None else draws.mean(one_order_P - losses_P),
        "score_with_length": draws.interval(lambda i: pair_spearman(margins_P[i], differences_P[i])),
        "length_ece": ece(guessed_P, guessed_right_P, draws),
        **calibration(confidence_P, right_P, draws),
    }


def _credits_of(margins_P: Array) -> Array:
    """`credits` of margins against 0; NaN stays NaN."""
    return np.where(np.isnan(margins_P), np.nan, credits(margins_P, np.zeros_like(margins_P)))


def _held_out_scale(margins_P: Array, groups_P: ArrayLike) -> Array:
    """Margins times the slope that the pairs of other prompts give a logistic regression through 0; NaN: there are none.

    A slope below 0 becomes 0: a scorer that prefers the worse answer is not to be read backwards.
    """
    out_P = np.full(len(margins_P), np.nan)
    for others, own in folds(groups_P):
        scale = float(np.sqrt((margins_P[others] ** 2).mean()))
        if scale == 0:
            out_P[own] = 0.0
            continue
        x_Q = np.concatenate([margins_P[others], -margins_P[others]]) / scale
        y_Q = np.repeat([1, 0], len(others))
        slope = float(LogisticRegression(fit_intercept=False, max_iter=1000).fit(x_Q[:, None], y_Q).coef_[0, 0])
        out_P[own] = max(slope, 0.0) * margins_P[own] / scale
    return out_P
