"""From features and labels to heads with a card: what `jobs/reward.py` does after the backbone has run.

    heads, fits = fit(recipe, answers, features_ND, lengths_N, identity(folder))
    card = describe(recipe, answers, heads, fits, features_ND, lengths_N, command="python jobs/reward.py ...")

N answers, H heads, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rhumbline.cards.correlation import measure
from rhumbline.cards.length_only import LengthOnly
from rhumbline.cards.sections import rated
from rhumbline.fitting.labels import Answers
from rhumbline.fitting.recipe import RewardRecipe
from rhumbline.rewards.features import FeatureSpec
from rhumbline.rewards.objectives import Calibration
from rhumbline.rewards.regression import RegressionHeads
from rhumbline.rewards.ridge import HeadFit

Features = NDArray[np.float32]
Lengths = NDArray[np.int64]


def spec_of(recipe: RewardRecipe) -> FeatureSpec:
    """What the recipe reads off the backbone."""
    wanted = recipe.features
    return FeatureSpec(
        layer=wanted.layer,
        pooling=tuple(wanted.pooling),
        max_tokens=wanted.max_tokens,
        max_response_tokens=wanted.max_response_tokens,
    )


def fit(
    recipe: RewardRecipe,
    answers: Answers,
    features_ND: Features,
    lengths_N: Lengths,
    fingerprint: Mapping[str, Any],
) -> tuple[RegressionHeads, tuple[HeadFit, ...]]:
    """Every head of the recipe on the training rows. Raises DataError for a head with too few labels."""
    train_N, ridge = answers.train_N, recipe.ridge
    return RegressionHeads.fit(
        recipe.heads(),
        features_ND[train_N],
        answers.labels_NH[train_N],
        lengths_N[train_N],
        answers.groups_N[train_N],
        backbone=recipe.backbone,
        fingerprint=fingerprint,
        features=spec_of(recipe),
        length_removed=recipe.features.length_removed,
        alphas=tuple(np.geomspace(ridge.alpha_low, ridge.alpha_high, ridge.alphas).tolist()),
        folds=ridge.folds,
    )


def describe(
    recipe: RewardRecipe,
    answers: Answers,
    heads: RegressionHeads,
    fits: Sequence[HeadFit],
    features_ND: Features,
    lengths_N: Lengths,
    command: str,
) -> dict[str, Any]:
    """The card, as data: `card.write` makes files of it."""
    train_N, test_N = answers.train_N, ~answers.train_N
    scores_NH = heads.score(features_ND, lengths_N)
    names = [head.name for head in heads.schema.heads]
    told: dict[str, Any] = {}
    by_length_NH = np.empty_like(scores_NH)
    for h, (head, fitted) in enumerate(zip(heads.schema.heads, fits, strict=True)):
        labels_N = answers.labels_NH[:, h]
        by_length_NH[:, h] = LengthOnly.fit(labels_N[train_N], lengths_N[train_N])(lengths_N)
        figures = {
            split: measure(
                scores_M,
                labels_N[rows_N],
                lengths_N[rows_N],
                answers.groups_N[rows_N],
                by_length_NH[rows_N, h],
                num_resamples=recipe.bootstrap,
                seed=recipe.seed,
            )
            for split, rows_N, scores_M in (
                ("test", test_N, scores_NH[test_N, h]),
                ("held_out", train_N, fitted.held_out_N),
            )
        }
        told[head.name] = {"alpha": fitted.alpha, "n": fitted.n, "licence": head.licence, **figures}
    sections = rated(
        names,
        scores_NH[test_N],
        answers.labels_NH[test_N],
        lengths_N[test_N],
        answers.groups_N[test_N],
        answers.sources_N[test_N],
        length_only_NH=by_length_NH[test_N],
        ends={head.name: head.ends for head in heads.schema.heads},
        num_resamples=recipe.bootstrap,
        seed=recipe.seed,
    )
    return {
        "name": recipe.name,
        "id": heads.id,
        "command": command,
        "backbone": recipe.backbone,
        "fingerprint": dict(heads.schema.fingerprint),
        "features": heads.schema.features.to_dict(),
        "length_removed": heads.schema.length_removed,
        "data": {name: {"licence": one.licence, **answers.counts(name)} for name, one in recipe.ratings.items()},
        "heads": told,
        **{key: section for key, section in sections.items() if key != "ratings"},  # `heads` says it by split
        "calibration": Calibration.fit(names, scores_NH[train_N], lengths_N[train_N]).to_dict(),
        "notes": recipe.notes,
        "recipe": recipe.model_dump(mode="json"),
    }
