"""Heads, the objectives that are linear maps of them, and their calibration. Between sources and `RewardModel`.

    heads = (Head(name="ultrafeedback-honesty", source="ultrafeedback", **SCALES["ultrafeedback"]), ...)
    objectives = Objectives.build(recipe.rewards.objectives, heads)
    objectives(scores_NH)                                             # (N, K), recipe order
    Calibration.fit(objectives.names, rewards_NK, lengths_N).to_dict()

A head is addressed by its name, never by its place: DPA's released reward model names its ten heads in one order and
lists six of them in another in its prompt, and a third party mislabelled them for it. N samples, H heads, K objectives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from rhumbline.config import Objective
from rhumbline.errors import ConfigError, did_you_mean
from rhumbline.scalarise import Standardiser

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """One scored quality of an answer: where its labels come from and how they become 0-100."""

    name: str  # unique over all sources of a reward model
    source: str  # the data set of its labels, or the rule
    raw_low: float  # the labels' own scale
    raw_high: float
    scale: float  # score = scale * raw + offset
    offset: float
    higher_is_better: bool = True  # as people mean the word: False for toxicity
    licence: str = ""  # of the labels

    def __post_init__(self) -> None:
        if not self.raw_low < self.raw_high or self.scale <= 0:
            raise ConfigError(
                f"head {self.name}: expected raw_low < raw_high and scale > 0, "
                f"got {self.raw_low}, {self.raw_high} and {self.scale}"
            )

    @property
    def ends(self) -> tuple[float, float]:
        """Scores of the lowest and the highest label: 10 and 90 where 0..4 is mapped by 20 r + 10."""
        return float(self.score(self.raw_low)), float(self.score(self.raw_high))

    def score(self, raw: ArrayLike) -> Array:
        """Labels on their own scale -> 0-100. NaN (no label) stays NaN."""
        return np.asarray(raw, dtype=np.float64) * self.scale + self.offset

    def raw(self, score: ArrayLike) -> Array:
        """The inverse of `score`."""
        return (np.asarray(score, dtype=np.float64) - self.offset) / self.scale

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def linear_map(raw_low: float, raw_high: float, low: float, high: float) -> dict[str, float]:
    """The numbers of a `Head` whose raw_low becomes `low` and raw_high `high`."""
    scale = (high - low) / (raw_high - raw_low)
    return {"raw_low": raw_low, "raw_high": raw_high, "scale": scale, "offset": low - scale * raw_low}


# Published maps of known rating scales onto 0-100, by the name that a recipe gives them.
SCALES: dict[str, dict[str, float]] = {
    # 20 r + 10: 0-4 -> 10, 30, 50, 70, 90, as DPA's released reward model has it.
    "helpsteer": linear_map(0, 4, 10, 90),
    # DPA's map for UltraFeedback is not published, and 20 r + 10 would take its 5 to 110: the same 10-90 instead.
    "ultrafeedback": linear_map(1, 5, 10, 90),
    "ultrafeedback-overall": linear_map(1, 10, 10, 90),
    "unit": linear_map(0, 1, 0, 100),
}


@dataclass(frozen=True, slots=True, eq=False)
class Objectives:
    """K named linear maps of H heads."""

    names: tuple[str, ...]  # (K,) recipe order
    signs: tuple[Literal[1, -1], ...]  # (K,)
    matrix_HK: Array

    @classmethod
    def build(cls, objectives: Mapping[str, Objective], heads: Sequence[Head], where: str = "rewards") -> Objectives:
        """Raises ConfigError for a head that no source gives, and for one that two sources give."""
        known = [head.name for head in heads]
        for name in known:
            if known.count(name) > 1:
                givers = " and ".join(head.source for head in heads if head.name == name)
                raise ConfigError(
                    f"{where}.sources: two heads are called {name!r} (of {givers}): "
                    "an objective could not tell them apart, rename or leave out one of them"
                )
        matrix_HK = np.zeros((len(known), len(objectives)))
        for k, (name, objective) in enumerate(objectives.items()):
            for head, coefficient in objective.heads.items():
                if head not in known:
                    raise ConfigError(
                        f"{where}.objectives.{name}.heads.{head} = {coefficient:g}: no source of {where}.sources gives "
                        f"the head {head!r}.{did_you_mean(head, known)} Known heads: {', '.join(known) or 'none'}"
                    )
                matrix_HK[known.index(head), k] = coefficient
            if not matrix_HK[:, k].any():
                raise ConfigError(f"{where}.objectives.{name}.heads: every coefficient is 0, so it rewards nothing")
        return cls(tuple(objectives), tuple(one.sign for one in objectives.values()), matrix_HK)

    def __call__(self, scores_NH: ArrayLike) -> Array:
        """Head scores (N, H) -> rewards (N, K)."""
        # One product and sum per objective, not `@`: a BLAS product may round equal rows differently.
        scores = np.asarray(scores_NH, dtype=np.float64)
        return np.stack([(scores * column_H).sum(axis=1) for column_H in self.matrix_HK.T], axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Statistics of each objective over a frozen set of answers, 0-100. All but `n` are (K,), in recipe order."""

    names: tuple[str, ...]
    n: int  # answers
    mean: tuple[float, ...]
    std: tuple[float, ...]  # denominator n
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    p10: tuple[float, ...]
    p50: tuple[float, ...]
    p90: tuple[float, ...]
    length_correlation: tuple[float | None, ...]  # Spearman with response tokens; None where either is constant

    @classmethod
    def fit(cls, names: Sequence[str], rewards_NK: ArrayLike, lengths_N: ArrayLike) -> Calibration:
        """From rewards (N, K) and response lengths in tokens (N,), N >= 2. Raises ConfigError where they do not fit."""
        rewards, lengths = np.asarray(rewards_NK, dtype=np.float64), np.asarray(lengths_N, dtype=np.float64)
        if rewards.ndim != 2 or rewards.shape[1] != len(names) or lengths.shape != rewards.shape[:1]:
            raise ConfigError(
                f"calibration needs rewards (N, {len(names)}) and lengths (N,), got {rewards.shape} and {lengths.shape}"
            )
        if len(rewards) < 2 or not np.isfinite(rewards).all():
            raise ConfigError(f"calibration needs at least two answers with finite rewards, got {len(rewards)} rows")
        p10, p50, p90 = np.quantile(rewards, [0.1, 0.5, 0.9], axis=0)
        return cls(
            names=tuple(names),
            n=len(rewards),
            mean=tuple(rewards.mean(axis=0).tolist()),
            std=tuple(np.where(np.ptp(rewards, axis=0) == 0, 0.0, rewards.std(axis=0)).tolist()),
            minimum=tuple(rewards.min(axis=0).tolist()),
            maximum=tuple(rewards.max(axis=0).tolist()),
            p10=tuple(p10.tolist()),
            p50=tuple(p50.tolist()),
            p90=tuple(p90.tolist()),
            length_correlation=tuple(spearman(column, lengths) for column in rewards.T),
        )

    def standardiser(self) -> Standardiser:
        """z = (r - mean) / std with these statistics. Raises ConfigError for an objective that never varied."""
        return Standardiser(self.mean, self.std, self.names)

    def to_dict(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Calibration:
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**plain)


def spearman(a: ArrayLike, b: ArrayLike) -> float | None:
    """Rank correlation, or None where one of the two is constant."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(stats.spearmanr(x, y).statistic)
