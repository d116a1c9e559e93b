#!/usr/bin/env python
"""Fit regression reward heads on a frozen language model, in closed form.

    ray job submit --working-dir . -- python jobs/reward.py --recipe jobs/recipes/rewards/oasst.yaml
    python jobs/reward.py --recipe jobs/recipes/rewards/oasst.yaml features.layer=18 --out rewards/mine

    labels      rated answers on 0-100; what was not rated stays missing
    features    hidden states of the frozen backbone over each answer, pooled
    fit         one ridge regression per head; its penalty by cross-validation over prompts
    card        how well each head predicts held-out ratings, beside what length alone predicts
    save        heads.safetensors, schema.json, card.json, card.md
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rhumbline.cli import user_errors
from rhumbline.rewards.recipe import RewardRecipe, dump, load

if TYPE_CHECKING:
    from rhumbline.rewards.features import Pair
    from rhumbline.rewards.labels import Answers

HERE = Path(__file__).resolve().parent


def main(
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value, laid over the recipe")] = None,
    recipe: Annotated[Path, typer.Option(help="a YAML file")] = HERE / "recipes" / "rewards" / "oasst.yaml",
    out: Annotated[Path | None, typer.Option(help="folder to write to; rewards/<name> by default")] = None,
    local: Annotated[bool, typer.Option("--local", help="in this process, without Ray")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would be done, and do nothing")] = False,
) -> None:
    """Fit regression reward heads on a frozen language model."""
    with user_errors():
        settings = load(recipe, overrides or [])
        target = out if out is not None else Path("rewards") / settings.name
        from rhumbline.rewards.labels import gather
        from rhumbline.rewards.regression import check_target

        check_target(target)
        answers = gather(settings)
        if dry_run:
            show(settings, answers, target)
            return
        command = " ".join(["python jobs/reward.py --recipe", _shown(recipe), *(overrides or [])])
        if local:
            run(settings, answers, extract_here(settings, answers.pairs), target, command)
            return
        from cluster.session import session

        with session() as have:
            run(settings, answers, extract_on(settings, answers.pairs, have), target, command)


def run(recipe: RewardRecipe, answers: Answers, shards: Iterator[Any], out: Path, command: str) -> None:
    """The algorithm. `shards` yields (features, lengths) in the order of the answers."""
    import numpy as np

    from rhumbline.learning.policy import resolve
    from rhumbline.rewards import card
    from rhumbline.rewards.features import Backbone, FeatureSpec, identity
    from rhumbline.rewards.invariance import PROBES
    from rhumbline.rewards.regression import RegressionHeads, RegressionRewards

    folder = resolve(recipe.backbone)
    features, lengths = zip(*shards, strict=True)
    features_ND, lengths_N = np.concatenate(features), np.concatenate(lengths)

    train_N, ridge = answers.train_N, recipe.ridge
    heads, fits = RegressionHeads.fit(
        recipe.heads(),
        features_ND[train_N],
        answers.labels_NH[train_N],
        lengths_N[train_N],
        answers.groups_N[train_N],
        backbone=recipe.backbone,
        fingerprint=identity(folder),
        features=recipe.spec(),
        length_removed=recipe.features.length_removed,
        alphas=tuple(np.geomspace(ridge.alpha_low, ridge.alpha_high, ridge.alphas).tolist()),
        folds=ridge.folds,
    )
    ...


if __name__ == "__main__":
    typer.run(main)
