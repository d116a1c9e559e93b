"""Recipes of preference optimisation: what cannot work is refused, by its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rhumbline import config
from rhumbline.errors import ConfigError
from rhumbline.losses import PAIRED_LOSSES, UNPAIRED_LOSSES, check_loss

FOLDER = Path(__file__).parents[2] / "jobs" / "recipes" / "dpo"
RECIPES = sorted(FOLDER.glob("*.yaml"))
PEOPLE = {"pairs": {"a": {"path": "x"}}}


def recipe(**changes: Any) -> config.DpoRecipe:
    raw: dict[str, Any] = {
        "job": "dpo",
        "rewards": {
            "sources": [{"kind": "rules", "heads": {"length": {"rule": "verbosity"}, "words": {"rule": "verbosity"}}}],
            "objectives": {"helpfulness": {"heads": {"words": 1.0}}, "brevity": {"heads": {"length": -1.0}}},
        },
    }
    return config.validate(config.merge(raw, changes), "small.yaml", kind=config.DpoRecipe)


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_every_shipped_recipe_loads_and_its_loss_is_known(path: Path) -> None:
    check_loss(config.load(path, kind=config.DpoRecipe).loss)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({**PEOPLE, "gap": 0.5}, "gap is 0.5, and pairs that people judged have no rewards"),
        ({"loss": {"kind": "dpo", "learned": "brevity"}}, "loss.learned is for modpo"),
        ({"loss": {"kind": "ipo", "desirable_weight": 2}}, "loss.desirable_weight is for kto and bco"),
        ({"loss": {"kind": "modpo", "undesirable_weight": 2}}, "loss.undesirable_weight is for kto and bco"),
        ({"loss": {"kind": "modpo", "learned": "brevity"}, "rewards": {"standardise": False}}, "rewards.standardise"),
        ({"samples": 1, "directions": {"per_prompt": 1}}, "a prompt with one answer has nothing to compare it with"),
        ({"policy": {"restart_from": "t0"}}, "policy.restart_from is t0, and jobs/dpo.py has no choice"),
        ({"loss": {"kind": "jpo"}}, "directions.law uniform draws others for each"),
        ({**PEOPLE, "loss": {"kind": "jpo"}}, "of which jpo is dpo"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        recipe(**changes)
    assert says in str(error.value)


def test_what_looks_alike_and_can_work_is_taken() -> None:
    recipe(samples=1, directions={"per_prompt": 2})
    recipe(samples=1, directions={"per_prompt": 1}, **PEOPLE)
    recipe(loss={"kind": "jpo"}, directions={"law": "grid"})
    recipe(loss={"kind": "jpo"}, directions={"fixed": {"brevity": 1.0}})
    assert recipe(loss={"kind": "kto"}).loss.desirable_weight is None
    assert recipe(loss={"kind": "kto", "desirable_weight": 2}).loss.desirable_weight == 2


def test_an_unknown_loss_is_named_with_those_that_there_are() -> None:
    for kind in (*PAIRED_LOSSES, *UNPAIRED_LOSSES):
        check_loss(config.PreferenceLoss(kind=kind))
    with pytest.raises(ConfigError, match=r"unknown loss 'dpoo' \(loss\.kind\)\. Did you mean 'dpo'\?"):
        check_loss(config.PreferenceLoss(kind="dpoo"))
