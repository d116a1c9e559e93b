"""Regression heads on a frozen backbone: fitted in closed form, kept with their schema, checked when they load.

    heads, fits = RegressionHeads.fit(heads, features_ND, labels_NH, lengths_N, groups_N, ...)
    heads.save("rewards/mine")                            # heads.safetensors, schema.json
    rewards = RegressionRewards(heads, folder="path/of/backbone")
    rewards.setup()                                       # loads the backbone, checks that scores hold still
    rewards.score(pairs)                                  # (N, H) on 0-100

Heads, their order, source, raw range, map and sense are read from the schema and nowhere else. Scores are not clipped:
0-100 is the scale of the labels, and a cut would make equals of answers that are not. N answers, H heads, D features.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from rhumbline.durable import replace, to_json
from rhumbline.errors import ConfigError, DataError, ScoringError
from rhumbline.records import Message, Prompt
from rhumbline.rewards.features import Backbone, FeatureSpec, Pair, Side
from rhumbline.rewards.invariance import PROBES, check_invariance
from rhumbline.rewards.objectives import Head
from rhumbline.rewards.ridge import ALPHAS, HeadFit, Scaling, fit_head

Array = NDArray[np.float64]
EMBEDDED = "embedded"
WEIGHTS, SCHEMA = "heads.safetensors", "schema.json"
FORMAT = 1
PROBE_TOLERANCE = 0.5  # points of 100: arithmetic of another machine, not another model


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """What the numbers in heads.safetensors mean."""

    heads: tuple[Head, ...]  # (H,) in the order of the rows of `coefficients`
    backbone: str  # as `learning.policy.resolve` takes it: 'embedded', a hub name or a folder
    fingerprint: Mapping[str, Any]  # of the backbone's configuration
    features: FeatureSpec
    length_removed: float  # share of each feature's line on log length that was taken out, 0 to 1
    ridge: tuple[Mapping[str, Any], ...]  # (H,) alpha, n, folds, held_out_mse in units of 0-100
    probes: tuple[Mapping[str, Any], ...] = ()  # prompt, response, scores (H,): what the fitted backbone gave them
    weights_sha256: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "heads": [head.to_dict() for head in self.heads],
            "backbone": self.backbone,
            "fingerprint": dict(self.fingerprint),
            "features": self.features.to_dict(),
            "length_removed": self.length_removed,
            "ridge": [dict(one) for one in self.ridge],
            "probes": [dict(one) for one in self.probes],
            "weights_sha256": self.weights_sha256,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = SCHEMA) -> Schema:
        """Raises ConfigError for a schema of another format or with other keys."""
        wanted = {field.name for field in fields(cls)} | {"format"}
        if data.get("format") != FORMAT or set(data) != wanted:
            raise ConfigError(
                f"{where}: format {data.get('format')} with keys {sorted(data)}, expected format {FORMAT}"
            )
        try:
            return cls(
                heads=tuple(Head(**head) for head in data["heads"]),
                backbone=data["backbone"],
                fingerprint=data["fingerprint"],
                features=FeatureSpec(**{**data["features"], "pooling": tuple(data["features"]["pooling"])}),
                length_removed=float(data["length_removed"]),
                ridge=tuple(data["ridge"]),
                probes=tuple(data["probes"]),
                weights_sha256=data["weights_sha256"],
            )
        except (TypeError, KeyError, ValueError) as e:
            raise ConfigError(f"{where} cannot be read: {e}") from None


@dataclass(frozen=True, slots=True, eq=False)
class RegressionHeads:
    """H linear maps from features to 0-100, without their backbone."""

    schema: Schema
    scaling: Scaling
    coefficients_HD: Array
    intercepts_H: Array

    @classmethod
    def fit(
        cls,
        heads: Sequence[Head],
        features_ND: ArrayLike,
        labels_NH: ArrayLike,
        lengths_N: ArrayLike,
        groups_N: ArrayLike,
        *,
        backbone: str,
        fingerprint: Mapping[str, Any],
        features: FeatureSpec,
        length_removed: float = 0.0,
        alphas: tuple[float, ...] = ALPHAS,
        folds: int = 5,
    ) -> tuple[RegressionHeads, tuple[HeadFit, ...]]:
        """Fit every head on the rows that have its label (0-100; NaN: none); also gives what each fit found out.

        A missing label leaves its row out of its own head and touches no other. Raises DataError for a head that cannot
        be fitted, by name.
        """
        labels = np.asarray(labels_NH, dtype=np.float64)
        scaling = Scaling.fit(features_ND, lengths_N, length_removed=length_removed)
        z_ND = scaling(features_ND, lengths_N)
        fits = []
        for head, labels_N in zip(heads, labels.T, strict=True):
            try:
                fits.append(fit_head(z_ND, labels_N, groups_N, alphas, folds))
            except DataError as e:
                raise DataError(f"head {head.name}: {e}") from None
        schema = Schema(
            heads=tuple(heads),
            backbone=backbone,
            fingerprint=fingerprint,
            features=features,
            length_removed=length_removed,
            ridge=tuple(
                {"alpha": fit.alpha, "n": fit.n, "folds": folds, "held_out_mse": float(fit.mse_A.min())} for fit in fits
            ),
        )
        coefficients_HD = np.stack([fit.coefficients_D for fit in fits])
        return cls(schema, scaling, coefficients_HD, np.array([fit.intercept for fit in fits])), tuple(fits)

    def score(self, features_ND: ArrayLike, lengths_N: ArrayLike) -> Array:
        """(N, D) features and (N,) lengths -> (N, H) on 0-100."""
        z_ND = self.scaling(features_ND, lengths_N)
        # One sum per head, not `@`: a BLAS product of another shape rounds equal rows differently.
        return np.stack(
            [(z_ND * w_D).sum(axis=1) + b for w_D, b in zip(self.coefficients_HD, self.intercepts_H, strict=True)],
            axis=1,
        )

    def with_probes(self, scores_PH: ArrayLike, pairs: Sequence[Pair] = PROBES) -> RegressionHeads:
        """These heads with what their backbone gives to `pairs`, by which another backbone is told apart later."""
        probes = tuple(
            {"prompt": prompt.messages[-1].content, "response": response, "scores": [float(s) for s in scores_H]}
            for (prompt, response), scores_H in zip(pairs, np.asarray(scores_PH, dtype=np.float64), strict=True)
        )
        values = {field.name: getattr(self.schema, field.name) for field in fields(Schema)}
        return RegressionHeads(
            Schema(**{**values, "probes": probes}), self.scaling, self.coefficients_HD, self.intercepts_H
        )

    @property
    def id(self) -> str:
        """A hash of schema and weights: equal ids give equal scores."""
        schema = {**self.schema.to_dict(), "weights_sha256": hashlib.sha256(self._weights()).hexdigest()}
        return hashlib.sha256(to_json(schema).encode()).hexdigest()[:16]

    def save(self, folder: str | Path) -> Path:
        """Write heads.safetensors and schema.json, each atomically, the schema last."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        weights = self._weights()
        schema = {**self.schema.to_dict(), "weights_sha256": hashlib.sha256(weights).hexdigest()}
        replace(target / WEIGHTS, weights)
        replace(target / SCHEMA, (to_json(schema, indent=1) + "\n").encode())
        return target

    @classmethod
    def load(cls, folder: str | Path) -> RegressionHeads:
        """From a folder that `save` wrote; 'embedded' is the shipped one. Needs no backbone and no torch model.

        Raises ConfigError for a folder without heads, weights that are not the schema's, and shapes that do not fit.
        """
        path = embedded() if str(folder) == EMBEDDED else Path(folder).expanduser()
        try:
            raw, weights = json.loads((path / SCHEMA).read_text(encoding="utf-8")), (path / WEIGHTS).read_bytes()
        except FileNotFoundError as e:
            raise ConfigError(
                f"{path} holds no regression reward model: {Path(str(e.filename)).name} is missing. jobs/reward.py "
                f"makes one; '{EMBEDDED}' is the shipped one"
            ) from None
        except (OSError, ValueError) as e:
            raise ConfigError(f"{path / SCHEMA} cannot be read: {e}") from None
        schema = Schema.from_dict(raw, str(path / SCHEMA))
        found = hashlib.sha256(weights).hexdigest()
        if found != schema.weights_sha256:
            raise ConfigError(
                f"{path / WEIGHTS} has the hash {found[:12]}, its schema says {schema.weights_sha256[:12]}: the two "
                "files do not belong together, copy the folder again or fit it anew"
            )
        try:
            t = {name: value.astype(np.float64) for name, value in load_tensors(weights).items()}
            heads = cls(
                schema,
                Scaling(t["mean"], t["std"], t["slope"], float(t["log_length"][0])),
                t["coefficients"],
                t["intercepts"],
            )
        except (SafetensorError, KeyError) as e:
            raise ConfigError(f"{path / WEIGHTS} cannot be read: {e}") from None
        wanted = (len(schema.heads), len(t["mean"]))
        if heads.coefficients_HD.shape != wanted or len(heads.intercepts_H) != wanted[0]:
            raise ConfigError(
                f"{path / WEIGHTS}: coefficients {heads.coefficients_HD.shape}, the schema means {wanted}"
            )
        return heads

    def _weights(self) -> bytes:
        tensors = {
            "mean": self.scaling.mean_D,
            "std": self.scaling.std_D,
            "slope": self.scaling.slope_D,
            "log_length": np.array([self.scaling.log_length]),
            "coefficients": self.coefficients_HD,
            "intercepts": self.intercepts_H,
        }
        # float32 is what the features have; rounding on saving must not change the id, so it is the id's too.
        return bytes(save_tensors({name: np.ascontiguousarray(t, dtype=np.float32) for name, t in tensors.items()}))


class RegressionRewards:
    """A reward source: heads and the backbone that they were fitted on."""

    def __init__(
        self,
        heads: RegressionHeads,
        folder: str | Path | None = None,
        token_budget: int = 4096,
        trust_remote_code: bool = False,
    ) -> None:
        """`folder` of the backbone; None: the schema's. Nothing heavy happens before `setup`."""
        self.regression, self.folder, self.token_budget = heads, folder, token_budget
        self.trust_remote_code = trust_remote_code
        self.backbone: Backbone | None = None

    @property
    def heads(self) -> tuple[Head, ...]:
        return self.regression.schema.heads

    @property
    def id(self) -> str:
        return self.regression.id

    def setup(self, backbone: Backbone | None = None) -> None:
        """Load the backbone and check it. Raises ConfigError for another backbone than the fitted one, ScoringError
        where scores move with batch size or padding side.
        """
        from rhumbline.learning.policy import resolve

        schema = self.regression.schema
        if backbone is None:
            name = self.folder if self.folder is not None else schema.backbone
            backbone = Backbone.load(resolve(name), schema.features, trust_remote_code=self.trust_remote_code)
        if dict(backbone.fingerprint) != dict(schema.fingerprint):
            raise ConfigError(
                f"the heads were fitted on {schema.backbone} ({_shown(schema.fingerprint)}), the backbone given is "
                f"another one ({_shown(backbone.fingerprint)}): rewards.sources[].backbone"
            )
        self.backbone = backbone
        check_invariance(self._score)
        self._check_probes()

    def score(self, pairs: Sequence[Pair]) -> Array:
        """(N, H) on 0-100, in the order of `pairs`."""
        return self._score(pairs, self.token_budget, "right")

    def _score(self, pairs: Sequence[Pair], token_budget: int, side: Side) -> Array:
        if self.backbone is None:
            raise ScoringError("the reward model's backbone is not loaded: call setup() first")
        return self.regression.score(*self.backbone.features(pairs, token_budget, side))

    def _check_probes(self) -> None:
        """The same architecture may hold other weights (the base model, a fine-tuned one): its scores give it away."""
        probes = self.regression.schema.probes
        if not probes:
            return
        pairs = [
            (Prompt(id=str(i), messages=(Message(role="user", content=probe["prompt"]),)), str(probe["response"]))
            for i, probe in enumerate(probes)
        ]
        moved = float(np.abs(self.score(pairs) - np.array([probe["scores"] for probe in probes])).max())
        if not moved <= PROBE_TOLERANCE:
            raise ConfigError(
                "the backbone given is not the one that the heads were fitted on "
                f"({self.regression.schema.backbone}): known answers score up to {moved:.2g} points "
                f"off, allowed is {PROBE_TOLERANCE}. Name the fitted one in rewards.sources[].backbone, or fit the heads "
                "on this one with jobs/reward.py"
            )


def check_target(folder: str | Path) -> None:
    """Raises ConfigError where `save` would write among files that are none of its own; older heads are replaced."""
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path} is a file, expected a folder for the heads (--out)")
    if path.is_dir() and any(path.iterdir()) and not (path / SCHEMA).exists():
        raise ConfigError(f"{path} holds other files and no {SCHEMA}: give an empty or a new folder (--out)")


def embedded() -> Path:
    """The folder of the shipped heads."""
    return Path(str(importlib.resources.files("rhumbline.rewards").joinpath("embedded")))


def _shown(fingerprint: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in fingerprint.items())
