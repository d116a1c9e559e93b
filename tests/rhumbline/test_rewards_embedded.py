"""The heads that the package ships: they load without a backbone, and their card tells what they are."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from rhumbline.cards.card import markdown
from rhumbline.fitting import recipe as recipes
from rhumbline.rewards.invariance import PROBES
from rhumbline.rewards.regression import RegressionHeads, embedded

FOLDER = Path(__file__).parents[2] / "jobs" / "recipes" / "rewards"
ATTRIBUTES = ("helpfulness", "quality", "creativity", "humor", "toxicity", "violence")


@pytest.fixture(scope="module")
def heads() -> RegressionHeads:
    return RegressionHeads.load("embedded")


@pytest.fixture(scope="module")
def card() -> dict[str, object]:
    return json.loads((embedded() / "card.json").read_text())


def test_the_schema_says_what_the_numbers_mean(heads: RegressionHeads) -> None:
    schema = heads.schema
    assert tuple(head.name for head in schema.heads) == ATTRIBUTES
    assert all(head.licence == "Apache-2.0" and (head.scale, head.offset) == (100, 0) for head in schema.heads)
    assert [head.name for head in schema.heads if not head.higher_is_better] == ["toxicity", "violence"]
    assert schema.backbone == "embedded"
    assert schema.fingerprint["hidden_size"] * len(schema.features.pooling) == heads.coefficients_HD.shape[1]
    assert len(schema.probes) == len(PROBES)
    assert np.isfinite(heads.coefficients_HD).all()


def test_the_known_answers_are_told_apart(heads: RegressionHeads) -> None:
    scores_PH = np.array([probe["scores"] for probe in heads.schema.probes])
    helpful = dict(zip([probe["response"][:4] for probe in heads.schema.probes], scores_PH[:, 0], strict=True))
    assert 0 < scores_PH[:, 0].min() < scores_PH[:, 0].max() < 100
    assert helpful["Air "] > helpful["No."] + 5


def test_the_card_belongs_to_the_weights_and_to_the_shipped_recipe(
    heads: RegressionHeads, card: dict[str, object]
) -> None:
    assert card["id"] == heads.id
    # Read again: a key that came later has its default in older cards.
    assert recipes.RewardRecipe.model_validate(card["recipe"]) == recipes.load(FOLDER / "oasst.yaml")
    assert (embedded() / "card.md").read_text() == markdown(card)
    assert not re.search(
        r"(^|[\s`'\"=(])/\w", (embedded() / "card.md").read_text()
    )  # no path of the machine that made it


def test_helpfulness_knows_more_than_length(card: dict[str, object]) -> None:
    figures = card["heads"]["helpfulness"]["held_out"]
    assert figures["n"] > 800
    assert figures["spearman_given_length"]["low"] > 0.1
    assert figures["mae"]["value"] < figures["length_only_mae"]["value"]


def test_they_are_small() -> None:
    files = [path for path in resources.files("rhumbline.rewards").joinpath("embedded").iterdir() if path.is_file()]
    assert {path.name for path in files} == {"heads.safetensors", "schema.json", "card.json", "card.md"}
    assert sum(len(path.read_bytes()) for path in files) < 300_000
