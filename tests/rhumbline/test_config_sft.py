"""Recipes of jobs/sft.py: the thesis's defaults, stages with their own learner, and faults by their key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rhumbline.config import SftRecipe, dump, load, load_sft
from rhumbline.errors import ConfigError

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "jobs" / "recipes" / "sft").glob("*.yaml"))
STAGES = "job: sft\nstages:\n  pre_sft: {data: {a: {path: a.jsonl}}}\n  sft: {data: {b: {path: b.jsonl}}, learner: {epochs: 2}}\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(STAGES)
    return file


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_sft(path, overrides)
    return str(error.value)


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_every_shipped_recipe_loads_and_its_dump_is_itself(path: Path) -> None:
    recipe = load_sft(path)
    assert SftRecipe.model_validate(yaml.safe_load(dump(recipe))) == recipe
    assert list(recipe.stages) == ["pre_sft", "sft"]
    assert [recipe.learner_of(name).epochs for name in recipe.stages] == [1, 2]


def test_defaults_are_the_thesis_s(path: Path) -> None:
    recipe = load_sft(path)
    learner = recipe.learner_of("sft")
    assert recipe.name == "mine"
    assert learner.lora is not None
    assert (learner.lora.r, learner.lora.alpha, learner.lora.targets) == (16, 32, "all-linear")
    assert (learner.lr, learner.warmup, learner.max_grad_norm, learner.batch_size) == (1e-4, 0.03, 0.3, 64)
    assert learner.betas == (0.9, 0.999)
    assert [recipe.learner_of(name).epochs for name in recipe.stages] == [1, 2]


@pytest.mark.parametrize(("share", "steps", "expected"), [(0.03, 100, 3), (0.03, 101, 4), (0.0, 50, 0), (0.07, 100, 7)])
def test_the_warm_up_is_a_share_of_the_steps_rounded_up(path: Path, share: float, steps: int, expected: int) -> None:
    learner = load_sft(path, [f"learner.warmup={share}"]).learner_of("sft").for_steps(steps)
    assert learner.warmup_steps == expected
    assert not hasattr(learner, "warmup")


def test_a_stage_lays_its_own_over_the_learner(path: Path) -> None:
    recipe = load_sft(path, ["learner.lora.r=4", "stages.sft.learner.lora.alpha=8", "stages.pre_sft.learner.lora=null"])
    assert recipe.learner_of("pre_sft").lora is None
    lora = recipe.learner_of("sft").lora
    assert lora is not None
    assert (lora.r, lora.alpha) == (4, 8)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["learner.lrr=1"], "unknown key learner.lrr. Did you mean 'lr'?"),
        (["stages.sft.learner.epoch=3"], "unknown key stages.sft.learner.epoch. Did you mean 'epochs'?"),
        (["stages.sft.data.b.min_ratings={q: 1}"], "Did you mean 'min_rating'?"),
        (["stages.sft.data.b.min_rating={q: .nan}"], "stages.sft.data.b.min_rating.q"),
        (["stages.sft.data={}"], "stages.sft.data"),
        (["stages={}"], "stages"),
        (["stages.a/b={data: {b: {path: b}}}"], "a stage is a folder's name"),
        (["learner.warmup_steps=20"], "give learner.warmup"),
        (["stages.sft.learner.warmup_steps=20"], "give learner.warmup"),
        (["learner.warmup=2"], "learner.warmup"),
        (["held_out=1"], "held_out"),
        (["stages.sft.data.b.turns=first"], "turns"),
        (["stages.sft.data.b.weight=0"], "weight"),
        (["job=dpa"], "is no recipe of jobs/sft.py: it says job: dpa"),
    ],
)
def test_a_fault_is_named_by_its_key(path: Path, overrides: list[str], says: str) -> None:
    assert says in refusal(path, *overrides)


def test_recipes_of_other_jobs_are_refused_both_ways() -> None:
    assert "it says no job, expected job: sft" in refusal(ROOT / "jobs" / "recipes" / "dpa.yaml")
    with pytest.raises(ConfigError, match="job"):
        load(RECIPES[0])
