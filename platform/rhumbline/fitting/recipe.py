"""The recipe of `jobs/reward.py`: which kind of reward model, on which data, from which backbone. Imports neither torch nor Ray.

    recipe = load("jobs/recipes/rewards/oasst.yaml", ["ratings.oasst1.path=/data/oasst1.jsonl.gz"])
    recipe.heads()                             # Heads in recipe order

    kind         learns                                              from
    ridge        a linear head per rating, in closed form            ratings, features, ridge
    regression   a network with an output per rating                 ratings, network, learner, loss
    preference   a network with a score per head (Bradley-Terry)     comparisons, network, learner, loss
    absolute     a network with one score in 0..1                    ratings, absolute, network, learner
    comparer     a network that reads two answers: a, b or a tie     comparisons, network, learner, loss, folds

A conditional model is a `preference` or a `comparer` whose comparisons name a `profile`. What a kind does not read is an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from rhumbline import config
from rhumbline.config import Learner, Section
from rhumbline.errors import ConfigError, did_you_mean
from rhumbline.faults import explain
from rhumbline.rewards.objectives import SCALES, Head, linear_map

Kind = Literal["ridge", "regression", "preference", "absolute", "comparer"]
Value = str | bool | int | float

# --- data -------------------------------------------------------------------------------------------------------------


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


class ComparisonData(Section):
    """One data set of compared answers: prompt, chosen, rejected, or prompt, response_a, response_b and a winner."""

    path: str  # JSONL(.gz), Parquet or a hub name; relative to where the job is started
    train: str | None = "train"
    test: str | None = "test"  # None: every tenth conversation of `train`, by hash
    limit: int | None = Field(None, gt=0)  # comparisons per split
    licence: str
    head: str = Field("preference", min_length=1)  # what the answers were judged by; data sets may share a head
    winner: str | None = None  # the column of winners; None: as data.comparisons finds it
    strength: str | None = None  # the column of how much better the winner is, or the stem of two scores' columns
    profile: str | None = None  # the column of what is known about the judge: it is written into the prompt
    where: dict[str, Value | list[Value]] = Field(default={})  # column -> value or values: other rows are passed over


# --- what is trained --------------------------------------------------------------------------------------------------


class Features(Section):
    """What is read off the backbone; see rewards.features.FeatureSpec."""

    layer: int = Field(0, ge=0)  # `ridge` needs one, from 1
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


class Network(Section):
    """What a network reads and which of its weights move; learner.lora says how. See rewards.network."""

    pooling: Literal["end", "mean"] = "end"  # the end token after the answer, or the mean over the answer
    max_tokens: int = Field(512, gt=1)  # of prompt and answer, or of prompt and both answers
    max_response_tokens: int = Field(384, gt=0)  # of one answer; a comparer spreads max_tokens instead
    length_expert: bool = False  # comparer: a regression on lengths comes first, the network learns what it leaves
    freeze: bool = False  # train the head alone
    lm_weight: float = Field(0.0, ge=0)  # regression: of the language-modelling loss on the answers (DPA)


class Paraphrases(Section):
    """More answers of the low end, by any generator; a label is lowered by what was lost. See fitting.paraphrases."""

    # JSONL(.gz), Parquet or a hub name: columns `response`, `paraphrase` and, where it is known, `similarity` in 0..1.
    path: str
    # A sentence encoder, 'minilm', a hub name or a folder: says the similarity that a row does not state.
    encoder: str | None = None
    per_answer: int = Field(1, gt=0)  # at most; drawn where the file has more
    lower_by: float = Field(1.0, ge=0)  # the label becomes label - lower_by (1 - similarity), and no less than 0


class Absolute(Section):
    """Labels in 0..1 out of several ratings, and how their uneven spread is met. See fitting.absolute_labels."""

    head: str = Field("absolute", min_length=1)  # the score's name
    weights: str | dict[str, float] | None = None  # a named weighting, or head of `ratings` -> weight
    label: str | None = None  # one head of `ratings` instead
    form: Literal["mse_with_penalty", "sigmoid_mse", "sigmoid_bce"] = "sigmoid_bce"
    low: float = Field(0.4, ge=0, le=1)  # labels up to here are the low end
    high: float = Field(0.9, ge=0, le=1)  # labels from here on are the high end
    paraphrase: Paraphrases | None = None  # of the low end of what is trained on, before any is drawn more often
    oversample: int = Field(1, gt=0)  # how many times the low end is drawn
    undersample_to: int | None = Field(None, gt=0)  # answers of the middle that are kept, the same of each bin
    loss_weight_strength: float = Field(0.0, ge=0)  # share of N / N_low by which the low end weighs more; 0: not at all


class RegressionLoss(Section):
    """The masked squared error of standardised labels: its only option is network.lm_weight."""


class PreferenceLoss(Section):
    """See losses.preference. Each option needs what the comparisons have: 'strength' a column of strengths."""

    margin: float | Literal["strength"] = 0.0
    scale_by_strength: bool = False
    centring: float = Field(0.0, ge=0)
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    per: Literal["pair", "prompt"] = "pair"  # what weighs the same: every pair, or every prompt whatever its pairs


class AbsoluteLoss(Section):
    """Everything about it is in `absolute`."""


class ComparerLoss(Section):
    """See losses.comparison."""

    ties: bool = True  # False: two classes, and comparisons that end in a tie are left out
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    # Orders of the answers that are trained on: one, and the other one the next epoch; both at once; as the data has it.
    swap: Literal["alternate", "both", "none"] = "alternate"


class EarlyStopping(Section):
    """Stop when the validation figure has not improved for `patience` looks; the best weights are what is kept."""

    every: int = Field(gt=0)  # optimiser steps
    patience: int = Field(3, gt=0)
    metric: Literal["loss", "spearman", "accuracy", "log_loss"] | None = None  # None: the kind's first in METRICS


LOSSES: dict[str, type[Section]] = {
    "regression": RegressionLoss,
    "preference": PreferenceLoss,
    "absolute": AbsoluteLoss,
    "comparer": ComparerLoss,
}
METRICS: dict[str, tuple[str, ...]] = {
    "regression": ("loss", "spearman"),
    "preference": ("accuracy", "log_loss"),
    "absolute": ("loss", "spearman"),
    "comparer": ("log_loss", "accuracy"),
}
# What each kind reads besides what all do. A value other than the default under any other key would be ignored: an error.
_TRAINED = {"network", "learner", "loss", "early_stopping", "validation"}
READS: dict[str, set[str]] = {
    "ridge": {"ratings", "features", "ridge", "extraction"},
    "regression": {"ratings", *_TRAINED},
    "preference": {"comparisons", *_TRAINED},
    "absolute": {"ratings", "absolute", *_TRAINED},
    "comparer": {"comparisons", "folds", *_TRAINED},
}


class RewardRecipe(Section):
    name: str = Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]*$")
    kind: Kind = "ridge"
    seed: int = 0  # of training, of sampling of data, and of the bootstrap
    backbone: str = "embedded"  # as policy.initial: 'embedded', a hub name or a folder
    trust_remote_code: bool = False  # of the backbone
    ratings: dict[str, Ratings] = Field(default={})  # data set name -> ratings
    comparisons: dict[str, ComparisonData] = Field(default={})  # data set name -> comparisons
    features: Features = Features()
    ridge: Ridge = Ridge()
    extraction: Extraction = Extraction()
    absolute: Absolute = Absolute()
    network: Network = Network()
    loss: RegressionLoss | PreferenceLoss | AbsoluteLoss | ComparerLoss | None = None
    learner: Learner = Learner()
    validation: float = Field(0.1, ge=0, lt=1)  # share of training conversations to stop early and to calibrate by
    early_stopping: EarlyStopping | None = None
    folds: int = Field(0, ge=0)  # comparer: of a cross-validation over all training rows; 0: none
    bootstrap: int = Field(1000, gt=0)
    notes: str = ""  # for the card: what the heads are good for, and what they are not

    @model_validator(mode="before")
    @classmethod
    def _loss_of_the_kind(cls, raw: Any) -> Any:
        """`loss` as the section of the kind, so that its faults are named by their path."""
        if not isinstance(raw, dict):
            return raw
        schema, given = LOSSES.get(str(raw.get("kind", "ridge"))), raw.get("loss")
        if schema is None or isinstance(given, Section):
            return raw
        try:
            return raw | {"loss": schema.model_validate({} if given is None else given)}
        except ValidationError as e:
            raise ValueError("; ".join(explain(fault, schema, "loss.") for fault in e.errors())) from None

    @model_validator(mode="after")
    def _consistent(self) -> RewardRecipe:
        self._check_keys()
        self._check_heads()
        if self.features.max_response_tokens >= self.features.max_tokens:
            raise ValueError("features.max_response_tokens must be below features.max_tokens: a prompt needs room")
        if self.ridge.alpha_low > self.ridge.alpha_high:
            raise ValueError("ridge.alpha_low must not be above ridge.alpha_high")
        if self.kind == "ridge":
            if self.features.layer == 0:
                raise ValueError("features.layer is required and missing")
            return self
        if self.kind != "comparer" and self.network.max_response_tokens >= self.network.max_tokens:
            raise ValueError("network.max_response_tokens must be below network.max_tokens: a prompt needs room")
        if self.network.lm_weight > 0 and (self.kind != "regression" or self.network.freeze):
            raise ValueError(
                "network.lm_weight needs the kind regression, and network.freeze false: a frozen backbone learns no language"
            )
        if self.network.length_expert and self.kind != "comparer":
            raise ValueError("network.length_expert needs the kind comparer: it compares two answers")
        if self.network.freeze and self.learner.lora is not None:
            raise ValueError("network.freeze trains the head alone: give learner.lora as null, or freeze: false")
        if self.kind == "comparer" and len(heads := {data.head for data in self.comparisons.values()}) > 1:
            raise ValueError(
                f"comparisons: a comparer has one head, the data sets name {', '.join(sorted(heads))}: give all the same"
            )
        if self.folds == 1:
            raise ValueError("folds: one fold leaves nothing to train on, give 2 or more, or 0 for no cross-validation")
        if self.early_stopping is not None:
            metric, known = self.early_stopping.metric, METRICS[self.kind]
            if metric is not None and metric not in known:
                raise ValueError(f"early_stopping.metric: {metric} is no figure of {self.kind}: {', '.join(known)}")
            if self.validation == 0:
                raise ValueError("early_stopping needs validation above 0: else it watches what is trained on")
        return self

    def _check_keys(self) -> None:
        """What the kind reads is there, and nothing else is."""
        reads = READS[self.kind]
        for key in sorted(set().union(*READS.values()) - reads):
            if getattr(self, key) != type(self).model_fields[key].default:
                readers = ", ".join(kind for kind, keys in READS.items() if key in keys)
                raise ValueError(f"{key} is not read by the kind {self.kind} (it is by {readers}): take it out")
        for key in ("ratings", "comparisons"):
            if key in reads and not getattr(self, key):
                raise ValueError(f"{key} is required and missing")
        if self.kind != "ridge" and self.learner.max_length != Learner().max_length:
            raise ValueError("learner.max_length is not read by reward models: network.max_tokens cuts what is longer")

    def _check_heads(self) -> None:
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
        if self.kind == "absolute":
            wanted = self.absolute
            if (wanted.weights is None) == (wanted.label is None):
                raise ValueError("absolute: give either weights (a name, or a weight per head) or label (one head)")
            asked = [wanted.label] if wanted.label is not None else []
            asked += list(wanted.weights) if isinstance(wanted.weights, dict) else []
            for name in asked:
                if name not in seen:
                    raise ValueError(
                        f"absolute: no data set of `ratings` has the head {name!r}.{did_you_mean(str(name), seen)} "
                        f"Known: {', '.join(seen)}"
                    )
            if not wanted.low < wanted.high:
                raise ValueError("absolute.low must be below absolute.high: the middle lies between them")

    def heads(self) -> tuple[Head, ...]:
        """(H,) in recipe order: what the model scores. Raises ConfigError for a scale whose ends are the wrong way round.

        Absolute and preference scores and the comparer's chance of winning have no labels of their own on 0-100: their
        raw scale is the probability.
        """
        chance = linear_map(0, 1, 0, 100)
        if self.comparisons:
            sources: dict[str, list[str]] = {}
            for source, data in self.comparisons.items():
                sources.setdefault(data.head, []).append(source)
            licences = {s: data.licence for s, data in self.comparisons.items()}
            return tuple(
                Head(
                    name=h,
                    source=", ".join(of),
                    higher_is_better=True,
                    licence=", ".join(sorted({licences[s] for s in of})),
                    **chance,
                )
                for h, of in sources.items()
            )
        if self.kind == "absolute":
            licences = {data.licence: "" for data in self.ratings.values()}
            # A weighting turns what is bad round by its sign; one label stays as it is.
            raw = {name: one.higher_is_better for data in self.ratings.values() for name, one in data.heads.items()}
            return (
                Head(
                    name=self.absolute.head,
                    source=", ".join(self.ratings),
                    higher_is_better=self.absolute.label is None or raw[self.absolute.label],
                    licence=", ".join(licences),
                    **chance,
                ),
            )
        return self.rated_heads()

    def rated_heads(self) -> tuple[Head, ...]:
        """One per head of `ratings`, in recipe order: how their labels become 0-100."""
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

    def outputs(self) -> tuple[str, ...]:
        """The names of a network's outputs, in order."""
        if self.kind != "comparer":
            return tuple(head.name for head in self.heads())
        assert isinstance(self.loss, ComparerLoss)
        return ("a", "b", "tie") if self.loss.ties else ("a", "b")


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> RewardRecipe:
    """Read a recipe and lay `key.sub=value` overrides over it, as `config.load` does. Raises ConfigError."""
    return config.build(RewardRecipe, config.read(path, overrides, example="features.layer=12"), str(path))
