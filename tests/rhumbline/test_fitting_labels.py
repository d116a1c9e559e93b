"""The recipe of reward heads, and ratings as a matrix of labels with holes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rhumbline import config
from rhumbline.errors import ConfigError, DataError
from rhumbline.fitting import recipe as recipes
from rhumbline.fitting.labels import gather
from rhumbline.fitting.recipe import RewardRecipe

FOLDER = Path(__file__).parents[2] / "jobs" / "recipes" / "rewards"


def row(prompt: str, response: str, split: str = "train", **ratings: float) -> dict[str, Any]:
    return {"prompt": prompt, "response": response, "ratings": ratings, "split": split}


def recipe_of(tmp_path: Path, rows: list[dict[str, Any]], **changes: Any) -> RewardRecipe:
    file = tmp_path / "ratings.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    heads = {
        "kind": {},
        "rude": {"label": "toxicity", "scale": {"raw_low": 1, "raw_high": 5}, "higher_is_better": False},
    }
    mine = {"path": str(file), "licence": "CC0", "heads": heads} | changes
    return RewardRecipe.model_validate({"name": "r", "ratings": {"mine": mine}, "features": {"layer": 1}})


ROWS = [
    row("a", "1", kind=0.5, toxicity=1),
    row("a", "2", kind=1.0),
    row("b", "3", toxicity=5),
    row("c", "4", "test", kind=0.0, toxicity=3),
]


def test_labels_are_on_0_to_100_and_holes_stay_holes(tmp_path: Path) -> None:
    answers = gather(recipe_of(tmp_path, ROWS))
    np.testing.assert_array_equal(answers.labels_NH, [[50, 0], [100, np.nan], [np.nan, 100], [0, 50]])
    assert answers.train_N.tolist() == [True, True, True, False]
    assert [text for _, text in answers.pairs] == ["1", "2", "3", "4"]
    assert answers.groups_N[0] == answers.groups_N[1] != answers.groups_N[2]
    assert answers.counts("mine") == {"train": 3, "test": 1, "dropped": 0}


def test_a_conversation_that_is_tested_on_is_not_trained_on(tmp_path: Path) -> None:
    longer = row("", "5", kind=0.2)
    longer["messages"] = [
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "more"},
    ]
    del longer["prompt"]
    for other in ROWS:
        other["messages"] = [{"role": "user", "content": other["prompt"]}]
    answers = gather(recipe_of(tmp_path, [*ROWS, longer]))
    assert answers.counts("mine") == {"train": 3, "test": 1, "dropped": 1}


def test_without_a_test_split_every_tenth_conversation_is_held_out(tmp_path: Path) -> None:
    rows = [row(f"question {i // 2}", f"{i}", kind=0.5, toxicity=2) for i in range(400)]
    answers = gather(recipe_of(tmp_path, rows, test=None))
    held_out = set(answers.groups_N[~answers.train_N])
    assert 8 <= len(held_out) <= 36  # of 200, expected 20
    assert not held_out & set(answers.groups_N[answers.train_N])


def test_two_data_sets_leave_each_others_heads_empty(tmp_path: Path) -> None:
    base = recipe_of(tmp_path, ROWS).model_dump()
    other = tmp_path / "other.jsonl"
    other.write_text(
        "".join(json.dumps(row(f"o{i}", "x", split, kind=0.1)) + "\n" for i, split in enumerate(["train", "test"]))
    )
    base["ratings"]["second"] = {"path": str(other), "licence": "MIT", "heads": {"kind2": {"label": "kind"}}}
    answers = gather(RewardRecipe.model_validate(base))
    np.testing.assert_allclose(answers.labels_NH[:, 2], [np.nan] * 4 + [10] * 2)
    assert np.isnan(answers.labels_NH[4:, :2]).all()
    assert answers.counts("second") == {"train": 1, "test": 1, "dropped": 0}


def test_faults_in_the_data_are_named_by_key(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"heads\.rude: a rating is 9, its scale goes from 1 to 5"):
        gather(recipe_of(tmp_path, [*ROWS, row("d", "6", toxicity=9)]))
    with pytest.raises(
        DataError, match=r"no training answer has the rating 'knd'\. Did you mean 'kind'\? .*: kind, toxicity"
    ):
        gather(recipe_of(tmp_path, ROWS, heads={"k": {"label": "knd"}}))
    with pytest.raises(DataError, match=r"ratings\.mine: .*not found.*ratings\.mine\.path=FILE"):
        gather(recipe_of(tmp_path, ROWS, path=str(tmp_path / "missing.jsonl")))


# --- the recipe -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_loads_and_survives_its_dump(path: Path) -> None:
    recipe = recipes.load(path)
    assert RewardRecipe.model_validate(yaml.safe_load(config.dump(recipe))) == recipe
    assert recipe.heads()
    assert all(head.licence for head in recipe.heads())


def test_overrides_reach_every_key() -> None:
    recipe = recipes.load(
        FOLDER / "oasst.yaml", ["ratings.oasst1.path=x.jsonl", "ridge.alpha_low=1e-2", "features.layer=7"]
    )
    assert (recipe.ratings["oasst1"].path, recipe.ridge.alpha_low, recipe.features.layer) == ("x.jsonl", 0.01, 7)
    assert list(recipe.ratings["oasst1"].heads)[:2] == ["helpfulness", "quality"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("features.layr=3", "unknown key features.layr. Did you mean 'layer'?"),
        ("features.layer=0", "features.layer"),
        ("features.max_response_tokens=384", "below features.max_tokens"),
        ("ratings.oasst1.heads.quality.scale=unti", "unknown scale 'unti'. Did you mean 'unit'?"),
        (
            "ratings.b={path: x, licence: y, heads: {quality: {}}}",
            "the head 'quality' is already one of ratings.oasst1",
        ),
        ("ridge.alpha_low=1e9", "ridge.alpha_low"),
        ("features.layer", "expected key.sub=value"),
    ],
)
def test_faults_in_the_recipe_are_named(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as e:
        recipes.load(FOLDER / "oasst.yaml", [override])
    assert said in str(e.value)


def test_a_scale_that_falls_is_refused() -> None:
    path = "ratings.oasst1.heads.quality.scale={raw_low: 1, raw_high: 0}"
    with pytest.raises(ConfigError, match="raw_low < raw_high"):
        recipes.load(FOLDER / "oasst.yaml", [path]).heads()
