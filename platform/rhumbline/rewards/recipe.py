"""The recipe of `jobs/reward.py`: which ratings, which backbone, which features. Imports neither torch nor Ray.

recipe = load("jobs/recipes/rewards/oasst.yaml", ["ratings.oasst1.path=/data/oasst1.jsonl.gz"])
recipe.heads()                             # Heads in recipe order
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from rhumbline import config
from rhumbline.config import Section
from rhumbline.errors import ConfigError, did_you_mean
from rhumbline.rewards.objectives import SCALES, Head, linear_map


class Scale(Section):
    """A linear map of a rating scale onto 0-100: raw_low becomes `low`, raw_high becomes `high`."""

    raw_low: float
    raw_high: float
    low: float = 0.0
    high: float = 100.0


class HeadLabels(Section):
    """One head: which rating it learns, and on which scale that rating is."""

    label: str | None = None  # the rating's name in the data; None: the head's own name
    scale: str | Scale = "unit"  # a key of rewards.objectives.SCALES, or a map of one's own
    higher_is_better: bool = True


class Ratings(Section):
    """One data set of rated answers. Its heads are fitted on it alone: elsewhere their labels are missing."""

    path: str  # JSONL(.gz), Parquet or a hub name; relative to where the job is started
    train: str | None = "train"  # the split to fit on
    test: str | None = "test"  # the split to report on; None: every tenth prompt of `train`, by hash
    limit: int | None = Field(None, gt=0)  # answers per split
    licence: str
    heads: dict[str, HeadLabels] = Field(min_length=1)  # head name -> labels; names are unique over all data sets


class Features(Section):
    """What is read off the backbone; see rewards.features.FeatureSpec."""

    layer: int = Field(gt=0)
    pooling: list[Literal["mean", "last", "end"]] = Field(default=["mean"], min_length=1)
    max_tokens: int = Field(384, gt=1)
    max_response_tokens: int = Field(256, gt=0)
    length_removed: float = Field(0.0, ge=0, le=1)  # share of what log length predicts of a feature that is taken out


class Ridge(Section):
    alpha_low: float = Field(10.0, gt=0)
    alpha_high: float = Field(1e6, gt=0)
    alphas: int = Field(16, gt=0)  # evenly spaced in the logarithm
    folds: int = Field(5, ge=2)


class Extraction(Section):
    """The actors that run the backbone."""

    replicas: int = Field(1, gt=0)
    num_cpus: float = Field(1.0, ge=0)
    num_gpus: float = Field(0.0, ge=0)
    threads: int | None = Field(None, gt=0)
    token_budget: int = Field(4096, gt=0)
    shard: int = Field(64, gt=0)  # answers per unit of work
    deadline_s: float = Field(1800.0, gt=0)  # one shard


class RewardRecipe(Section):
    name: str = Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]*$")
    seed: int = 0  # of the bootstrap
    backbone: str = "embedded"  # as policy.initial: 'embedded', a hub name or a folder
    trust_remote_code: bool = False  # of the backbone
    ratings: dict[str, Ratings] = Field(min_length=1)  # data set name -> ratings
    features: Features
    ridge: Ridge = Ridge()
    extraction: Extraction = Extraction()
    bootstrap: int = Field(1000, gt=0)
    notes: str = ""  # for the card: what the heads are good for, and what they are not

    @model_validator(mode="after")
    def _consistent(self) -> RewardRecipe:
        seen: dict[str, str] = {}
        for source, ratings in self.ratings.items():
            for name, labels in ratings.heads.items():
                path = f"ratings.{source}.heads.{name}"
                if name in seen:
                    raise ValueError(f"{path}: the head {name!r} is already one of ratings.{seen[name]}")
                seen[name] = source
                if isinstance(labels.scale, str) and labels.scale not in SCALES:
                    near = did_you_mean(labels.scale, SCALES)
                    raise ValueError(f"{path}.scale: unknown scale {labels.scale!r}.{near} Known: {', '.join(SCALES)}")
        if self.features.max_response_tokens >= self.features.max_tokens:
            raise ValueError("features.max_response_tokens must be below features.max_tokens: a prompt needs room")
        if self.ridge.alpha_low > self.ridge.alpha_high:
            raise ValueError("ridge.alpha_low must not be above ridge.alpha_high")
        return self

    def heads(self) -> tuple[Head, ...]:
        """(H,) in recipe order. Raises ConfigError for a scale whose ends are the wrong way round."""
        heads = []
        for source, ratings in self.ratings.items():
            for name, labels in ratings.heads.items():
                if isinstance(labels.scale, str):
                    numbers = SCALES[labels.scale]
                else:
                    s = labels.scale
                    if not (s.raw_low < s.raw_high and s.low < s.high):
                        raise ConfigError(
                            f"ratings.{source}.heads.{name}.scale: expected raw_low < raw_high and low < high"
                        )
                    numbers = linear_map(s.raw_low, s.raw_high, s.low, s.high)
                heads.append(
                    Head(
                        name=name,
                        source=source,
                        higher_is_better=labels.higher_is_better,
                        licence=ratings.licence,
                        **numbers,
                    )
                )
        return tuple(heads)


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> RewardRecipe:
    """Read a recipe and lay `key.sub=value` overrides over it, as `config.load` does. Raises ConfigError."""
    return config.build(RewardRecipe, config.read(path, overrides, example="features.layer=12"), str(path))
