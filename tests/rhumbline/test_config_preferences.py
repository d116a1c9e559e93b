"""Recipes of preference optimisation: what cannot work is refused, by its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rhumbline import config
from rhumbline.errors import ConfigError
from rhumbline.losses import PAIRED_LOSSES, UNPAIRED_LOSSES, check_loss, options
from rhumbline.plan import check

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
        ({"loss": {"kind": "modpo", "learned": "brevity"}, "rewards": {"standardise": False}}, "rewards.standardise"),
        ({"samples": 1, "directions": {"per_prompt": 1}}, "a prompt with one answer has nothing to compare it with"),
        (
            {"initial": {"strategy": "steerlm", "labelled": "rated.jsonl"}},
            "initial.strategy steerlm asks for target values, and pairs of samples say directions",
        ),
        ({"policy": {"restart_from": "t0"}}, "policy.restart_from is t0, and jobs/dpo.py has no choice"),
        ({"loss": {"kind": "jpo"}}, "directions.law uniform draws others for each"),
        ({**PEOPLE, "loss": {"kind": "jpo"}}, "of which jpo is dpo"),
        (
            {"learner": {"lora": {"dropout": 0.1}}},
            "learner.lora.dropout is 0.1: preferences are learned without dropout",
        ),
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


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        ({"kind": "ipo", "label_smoothing": 0.1}, r"loss\.label_smoothing is 0\.1, and ipo \(loss\.kind\) takes none"),
        ({"kind": "kto", "label_smoothing": 0.1}, r"it is for dpo, jpo, modpo\. Leave it out"),
        ({"kind": "dpo", "desirable_weight": 2}, r"loss\.desirable_weight is 2, and dpo .*: it is for kto, bco\."),
        ({"kind": "modpo", "undesirable_weight": 2, "learned": "brevity"}, r"loss\.undesirable_weight is 2, and modpo"),
    ],
)
def test_an_option_that_a_loss_has_no_parameter_for_is_refused(loss: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check(recipe(loss=loss))


def test_an_option_reaches_the_losses_that_have_a_parameter_for_it() -> None:
    assert options(config.PreferenceLoss(kind="dpo")) == {"beta": 0.1, "label_smoothing": 0.0}
    assert options(config.PreferenceLoss(kind="modpo", label_smoothing=0.2)) == {"beta": 0.1, "label_smoothing": 0.2}
    assert options(config.PreferenceLoss(kind="ipo", beta=0.5)) == {"beta": 0.5}
    assert options(config.PreferenceLoss(kind="bco")) == {"beta": 0.1}  # None: the function's own
    assert options(config.PreferenceLoss(kind="kto", desirable_weight=2)) == {"beta": 0.1, "desirable_weight": 2.0}


def test_what_is_added_says_itself_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PAIRED_LOSSES, "plain", lambda *rows, weights_P=None: None)
    monkeypatch.setitem(PAIRED_LOSSES, "all", lambda *rows, weights_P=None, **options: None)
    assert options(config.PreferenceLoss(kind="plain")) == {}
    check_loss(config.PreferenceLoss(kind="plain"))
    with pytest.raises(
        ConfigError, match=r"loss\.beta is 0\.5, and plain .*: it is for dpo, ipo, jpo, modpo, all, kto, bco\."
    ):
        check_loss(config.PreferenceLoss(kind="plain", beta=0.5))
    everything = config.PreferenceLoss(kind="all", label_smoothing=0.1, desirable_weight=3)
    check_loss(everything)
    assert options(everything) == {"beta": 0.1, "label_smoothing": 0.1, "desirable_weight": 3.0}


def test_what_pushes_answers_apart_learns_more_slowly_than_what_imitates() -> None:
    raw = recipe().model_dump(include={"rewards"})
    for kind in (config.DpoRecipe, config.PpoRecipe, config.GrpoRecipe):
        job = kind.model_fields["job"].default
        for given in ({}, {"batch_size": 8}):  # a section that says something keeps the other defaults
            made = config.validate({"job": job, "learner": given, **raw}, "small.yaml", kind=kind)
            assert (made.learner.lr, made.learner.epochs) == (1e-6, 1)
            assert config.validate(made.model_dump(), "small.yaml", kind=kind) == made
    assert (config.Learner().lr, config.Learner().epochs) == (1e-5, 2)
