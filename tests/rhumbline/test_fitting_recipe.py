"""Recipes of every kind: the shipped ones load, and what a kind does not read is an error that names its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from rhumbline import config
from rhumbline.errors import ConfigError
from rhumbline.fitting.recipe import LOSSES, METRICS, READS, RewardRecipe, load

FOLDER = Path(__file__).parents[2] / "jobs" / "recipes" / "rewards"
RATINGS = {"mine": {"path": "a.jsonl", "licence": "CC0", "heads": {"good": {}, "kind": {}}}}
COMPARED = {"mine": {"path": "a.jsonl", "licence": "CC0"}}
NEEDED: dict[str, dict[str, Any]] = {
    "ridge": {"ratings": RATINGS, "features": {"layer": 3}},
    "regression": {"ratings": RATINGS},
    "absolute": {"ratings": RATINGS, "absolute": {"label": "good"}},
    "preference": {"comparisons": COMPARED},
    "comparer": {"comparisons": COMPARED},
}


def recipe_of(kind: str, **sections: Any) -> RewardRecipe:
    return RewardRecipe.model_validate({"name": "r", "kind": kind, **NEEDED[kind], **sections})


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_loads_and_its_dump_gives_it_back(path: Path) -> None:
    recipe = load(path)
    assert RewardRecipe.model_validate(yaml.safe_load(config.dump(recipe))) == recipe
    assert recipe.outputs()


def test_every_kind_has_what_it_needs() -> None:
    assert set(READS) == set(NEEDED)
    assert set(LOSSES) == set(METRICS) == set(NEEDED) - {"ridge"}
    assert {kind: recipe_of(kind).outputs() for kind in NEEDED} == {
        "ridge": ("good", "kind"),
        "regression": ("good", "kind"),
        "absolute": ("absolute",),
        "preference": ("preference",),
        "comparer": ("a", "b", "tie"),
    }
    assert recipe_of("comparer", loss={"ties": False}).outputs() == ("a", "b")
    assert [head.name for head in recipe_of("comparer").heads()] == ["preference"]


@pytest.mark.parametrize(
    ("kind", "sections", "says"),
    [
        ("ridge", {"comparisons": COMPARED}, "comparisons is not read by the kind ridge"),
        ("ridge", {"features": {}}, "features.layer is required"),
        ("ridge", {"loss": {}}, "loss is not read by the kind ridge"),
        ("preference", {"ratings": RATINGS}, "ratings is not read by the kind preference"),
        ("preference", {"comparisons": {}}, "comparisons is required and missing"),
        ("preference", {"features": {"layer": 2}}, "features is not read"),
        ("preference", {"folds": 3}, "folds is not read by the kind preference"),
        ("preference", {"loss": {"margn": 1}}, "unknown key loss.margn. Did you mean 'margin'"),
        ("preference", {"loss": {"label_smoothing": 0.5}}, "loss.label_smoothing"),
        ("regression", {"loss": {"margin": 1}}, "unknown key loss.margin"),
        ("regression", {"absolute": {"label": "good"}}, "absolute is not read"),
        ("absolute", {"absolute": {}}, "give either weights"),
        ("absolute", {"absolute": {"label": "god"}}, "Did you mean 'good'"),
        ("absolute", {"absolute": {"weights": {"god": 1.0}}}, "Did you mean 'good'"),
        ("absolute", {"absolute": {"label": "good", "low": 0.9}}, "absolute.low must be below"),
        ("absolute", {"network": {"lm_weight": 0.1}}, "network.lm_weight needs the kind regression"),
        ("preference", {"network": {"length_expert": True}}, "network.length_expert needs the kind comparer"),
        ("comparer", {"folds": 1}, "one fold leaves nothing"),
        ("comparer", {"early_stopping": {"every": 5, "metric": "spearman"}}, "spearman is no figure of comparer"),
        ("comparer", {"early_stopping": {"every": 5}, "validation": 0}, "early_stopping needs validation"),
        ("comparer", {"comparisons": {**COMPARED, "b": {**COMPARED["mine"], "head": "x"}}}, "a comparer has one head"),
        ("regression", {"network": {"freeze": True}, "learner": {"lora": {}}}, "network.freeze trains the head alone"),
        ("regression", {"network": {"max_response_tokens": 512}}, "max_response_tokens must be below"),
        ("regression", {"learner": {"max_length": 99}}, "learner.max_length is not read"),
    ],
)
def test_faults_name_their_key(kind: str, sections: dict[str, Any], says: str) -> None:
    with pytest.raises((ConfigError, ValidationError)) as raised:
        recipe_of(kind, **sections)
    assert says in str(raised.value)


def test_one_label_keeps_its_orientation_and_a_weighting_turns_it_round() -> None:
    ratings = {"mine": {**RATINGS["mine"], "heads": {"good": {}, "toxicity": {"higher_is_better": False}}}}
    for absolute, wanted in (
        ({"label": "toxicity"}, False),
        ({"label": "good"}, True),
        ({"weights": {"good": 0.5, "toxicity": -0.5}}, True),
    ):
        (head,) = recipe_of("absolute", ratings=ratings, absolute=absolute).heads()
        assert head.higher_is_better is wanted


def test_the_forms_are_those_of_the_losses() -> None:
    from typing import get_args

    from rhumbline.fitting.recipe import Absolute
    from rhumbline.losses import ABSOLUTE_FORMS

    assert set(get_args(Absolute.model_fields["form"].annotation)) == set(ABSOLUTE_FORMS)


def test_an_override_reaches_the_loss(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("kind: preference\ncomparisons: {mine: {path: a.jsonl, licence: CC0}}\n")
    loss = load(path, ["loss.margin=strength", "loss.centring=0.01"]).loss
    assert (loss.margin, loss.centring) == ("strength", 0.01)  # type: ignore[union-attr]  # the kind is preference
    with pytest.raises(ConfigError, match=r"mine\.yaml: unknown key loss\.swap"):
        load(path, ["loss.swap=both"])
