"""Labels of the absolute reward model: several ratings as one number in 0..1, and what to do about their uneven spread.

    labels_N = aggregate({"quality": quality_N, "helpfulness": helpfulness_N, ...}, weighting("w3"))
    chosen_M = resample(labels_N, oversample=2, undersample_to=8000, seed=0)       # row numbers, the low end twice
    weights_M = loss_weights(labels_N[chosen_M], strength=0.75)
    paraphrase(low_answers, paraphraser, similarity).rows                          # more answers of the low end

Most answers are of middling quality, so a model fitted on all of them calls everything middling. The four remedies are
those of Combined Reward Signals (the thesis, section 5.3.1): over-sampling of labels up to `low`, under-sampling of those
between `low` and `high` in equal bins, paraphrases of bad answers, and a weight on the loss of the low end. Labels that are
NaN were not given: they are never sampled and weigh nothing. N answers, M rows that are trained on.

The reference code differs in three ways, on purpose here: it drops answers whose weighted sum is negative, which are the
very worst ones; it fails where a bin holds fewer answers than its share; and its weighted sums do not reach 0 and 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rhumbline.errors import ConfigError, DataError, did_you_mean
from rhumbline.records import Prompt

Array = NDArray[np.float64]
T = TypeVar("T")

LOW, HIGH = 0.4, 0.9  # the ends of the label's range: up to LOW, and from HIGH on
BINS = 5  # of the middle
_ROUNDING = 1e-9
WEIGHTINGS: Mapping[str, Mapping[str, float]] = {
    "w2": {"quality": 0.4, "helpfulness": 0.25, "creativity": 0.15, "humor": 0.05, "violence": -0.05, "toxicity": -0.1},
    "w3": {"quality": 0.4, "helpfulness": 0.35, "creativity": 0.15, "humor": 0.0, "violence": 0.0, "toxicity": -0.1},
    "quality": {"quality": 1.0},
}


def weighting(name: str) -> Mapping[str, float]:
    """One of WEIGHTINGS. Raises ConfigError for a name that is none."""
    if name not in WEIGHTINGS:
        near = did_you_mean(name, WEIGHTINGS)
        raise ConfigError(f"absolute.weights: unknown weighting {name!r}.{near} Known: {', '.join(WEIGHTINGS)}")
    return WEIGHTINGS[name]


def aggregate(ratings: Mapping[str, ArrayLike], weights: Mapping[str, float]) -> Array:
    """(N,) sum_{w > 0} w r + sum_{w < 0} |w| (1 - r), of ratings in 0..1, (N,) each: labels in 0..1.

    That is the weighted sum of the thesis plus the constant sum_{w < 0} |w|, which brings its range to exactly 0..1. NaN
    where a rating that has a weight is missing: a sum over the rest would be on another scale. Weights of 0 need no
    rating. Raises ConfigError for absolute weights that do not add up to 1 and a rating that is not there, DataError for
    ratings outside 0..1.
    """
    total = sum(abs(weight) for weight in weights.values())
    if abs(total - 1) > 1e-6:
        raise ConfigError(f"absolute.weights: the weights without their signs add up to {total:g}, expected 1")
    label_N: Array = np.zeros(())
    for name, weight in weights.items():
        if weight == 0:
            continue  # 0 times a missing rating would be missing
        if name not in ratings:
            raise ConfigError(
                f"absolute.weights: there is no rating {name!r}.{did_you_mean(name, ratings)} Known: {', '.join(ratings)}"
            )
        r_N = np.asarray(ratings[name], dtype=np.float64)
        outside = r_N[(r_N < -_ROUNDING) | (r_N > 1 + _ROUNDING)]
        if outside.size:
            raise DataError(f"a rating of {name} is {outside.flat[0]:g}, expected 0 to 1: set its scale")
        label_N = label_N + abs(weight) * (r_N if weight > 0 else 1 - r_N)
    return label_N.clip(0, 1)


# --- uneven labels ----------------------------------------------------------------------------------------------------


def resample(
    labels_N: ArrayLike,
    *,
    low: float = LOW,
    high: float = HIGH,
    oversample: int = 1,
    undersample_to: int | None = None,
    bins: int = BINS,
    seed: int = 0,
) -> NDArray[np.int64]:
    """(M,) the rows to train on, in rising order; a row of the low end occurs `oversample` times.

    Of the middle, low < label < high, `undersample_to` rows stay, the same number of each of `bins` equally wide bins; a
    bin that holds fewer gives all of them, and the others make up for it.
    """
    y_N = np.asarray(labels_N, dtype=np.float64)
    low_end = np.repeat(np.flatnonzero(y_N <= low), oversample)
    middle = np.flatnonzero((y_N > low) & (y_N < high))
    if undersample_to is not None:
        place = ((y_N[middle] - low) / (high - low) * bins).astype(np.int64).clip(0, bins - 1)
        members = [middle[place == one] for one in range(bins)]
        shares = _shares([len(one) for one in members], undersample_to)
        rng = np.random.default_rng(seed)
        drawn = [rng.permutation(one)[:share] for one, share in zip(members, shares, strict=True)]
        middle = np.concatenate(drawn)
    return np.sort(np.concatenate([low_end, middle, np.flatnonzero(y_N >= high)])).astype(np.int64)


def _shares(sizes: Sequence[int], total: int) -> list[int]:
    """How many to take of each: as even as the sizes allow, `total` together, or everything where there is less."""
    out = [0] * len(sizes)
    left = total
    for rank, i in enumerate(sorted(range(len(sizes)), key=lambda i: (sizes[i], i))):
        # From the smallest on: what it cannot give is shared by those after it. The last ones take what division leaves.
        out[i] = min(sizes[i], left // (len(sizes) - rank))
        left -= out[i]
    return out


def loss_weights(labels_M: ArrayLike, *, low: float = LOW, strength: float) -> Array:
    """(M,) weight of each row's loss: max(1, strength * N / N_low) for labels up to `low`, 1 for the others.

    N / N_low is the weight at which the low end counts as much as all rows together; the thesis takes it at 0.5 and
    0.75. Strength 0 weighs all alike, and so does data of which the low end is no minority.
    """
    y_M = np.asarray(labels_M, dtype=np.float64)
    low_M = y_M <= low
    count = int(np.isfinite(y_M).sum())
    weight = max(1.0, strength * count / low_M.sum()) if low_M.any() else 1.0
    return np.where(np.isnan(y_M), 0.0, np.where(low_M, weight, 1.0))


# --- paraphrases ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """An answer and its label."""

    prompt: Prompt
    response: str
    label: float  # 0..1
    source: str = ""  # its data set


@dataclass(frozen=True, slots=True, kw_only=True)
class Paraphrased:
    """What paraphrasing added; the original answers are not among it."""

    rows: tuple[Labelled, ...]
    skipped: Mapping[str, int]  # reason -> answers without a paraphrase: 'empty', 'unchanged'


Paraphraser = Callable[[Sequence[tuple[Prompt, str]]], Sequence[str]]  # any generator: one text per answer
Similarity = Callable[[Sequence[str], Sequence[str]], Sequence[float]]  # of sentences, e.g. the cosine of embeddings


def paraphrase(
    answers: Sequence[Labelled], paraphraser: Paraphraser, similarity: Similarity, *, lower_by: float = 1.0
) -> Paraphrased:
    """Each answer in other words, with the label max(0, label - lower_by (1 - similarity)).

    The less a paraphrase says what the original said, the less of its label it keeps (the thesis, algorithm 1; what
    factor it used it does not say, and 1 agrees with its table 4). Similarities are clipped to 0..1. A paraphrase that is
    blank or says the same words is left out and counted. Raises DataError where a callable gives another number of
    results than it was given answers, or a similarity that is no number.
    """
    texts = _as_many("paraphraser", paraphraser([(one.prompt, one.response) for one in answers]), len(answers))
    skipped: Counter[str] = Counter()
    kept: list[tuple[Labelled, str]] = []
    for one, text in zip(answers, texts, strict=True):
        if not text.strip():
            skipped["empty"] += 1
        elif text.strip() == one.response.strip():
            skipped["unchanged"] += 1
        else:
            kept.append((one, text))
    given = similarity([one.response for one, _ in kept], [text for _, text in kept]) if kept else []
    alike_M = np.asarray(_as_many("similarity", given, len(kept)), dtype=np.float64)
    if not np.isfinite(alike_M).all():
        raise DataError("similarity: gave a value that is no number, expected 0 to 1")
    labels = [
        max(0.0, one.label - lower_by * (1 - alike))
        for (one, _), alike in zip(kept, alike_M.clip(0, 1).tolist(), strict=True)
    ]
    rows = [replace(one, response=text, label=label) for (one, text), label in zip(kept, labels, strict=True)]
    return Paraphrased(rows=tuple(rows), skipped=dict(skipped))


def _as_many(name: str, results: Sequence[T], count: int) -> Sequence[T]:
    if len(results) != count:
        raise DataError(f"{name}: gave {len(results)} results for {count} answers, expected one each")
    return results
