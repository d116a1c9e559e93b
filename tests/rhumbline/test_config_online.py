"""Recipes of jobs/ppo.py and jobs/grpo.py: defaults that hold in part, and settings that cannot work."""

from __future__ import annotations

from pathlib import Path

import pytest

from rhumbline import config
from rhumbline.errors import ConfigError

RECIPES = Path(__file__).parents[2] / "jobs" / "recipes"
SMOL = {"ppo": RECIPES / "ppo" / "smol.yaml", "grpo": RECIPES / "grpo" / "smol.yaml"}


def loaded(job: str, *overrides: str) -> config.OnlineRecipe:
    kind = config.PpoRecipe if job == "ppo" else config.GrpoRecipe
    return config.load(SMOL[job], overrides, kind=kind)


@pytest.mark.parametrize("path", sorted([*RECIPES.glob("ppo/*.yaml"), *RECIPES.glob("grpo/*.yaml")]), ids=str)
def test_every_shipped_recipe_loads(path: Path) -> None:
    kind = config.PpoRecipe if path.parent.name == "ppo" else config.GrpoRecipe
    assert config.load(path, kind=kind).update().kl.coefficient > 0


@pytest.mark.parametrize("path", sorted(RECIPES.glob("grpo/*.yaml")), ids=str)
def test_a_shipped_recipe_that_normalises_each_objective_whitens_their_sum(path: Path) -> None:
    settings = config.load(path, kind=config.GrpoRecipe).grpo
    assert settings.whiten == settings.per_objective  # GDPO is both (arXiv:2601.05242)


def test_the_thesis_s_table_of_hyperparameters() -> None:
    recipe = config.load(RECIPES / "ppo" / "thesis-7b.yaml", kind=config.PpoRecipe)
    ppo, learner = recipe.ppo, recipe.learner
    assert recipe.rewards.standardise  # a network's logit is 50 + 10 z: all of it is beyond the clip of 4
    assert (ppo.clip_low, ppo.clip_high, ppo.value_clip, ppo.score_clip) == (0.4, 0.4, 0.4, 4.0)
    assert (learner.lr, learner.weight_decay, learner.betas, learner.epochs) == (1.41e-5, 1e-6, (0.9, 0.95), 4)
    assert learner.lora is not None
    assert (learner.lora.r, learner.lora.alpha, learner.lora.targets) == (16, 32, "all-linear")
    assert (recipe.prompts.max_prompt_tokens, recipe.sampling.max_tokens) == (1024, 512)


def test_a_part_of_kl_leaves_the_rest_of_it_where_the_method_has_it() -> None:
    assert config.Grpo().kl.place == "loss"
    assert config.Grpo().kl.coefficient == 0.04
    for part in ({"coefficient": 0.01}, {"controller": "adaptive", "target": 6.0}):
        assert config.Grpo.model_validate({"kl": part}).kl.place == "loss"
        assert config.Ppo.model_validate({"kl": part}).kl.place == "reward"
    assert config.Grpo.model_validate({"kl": {"estimator": "k2"}}).kl.coefficient == 0.04
    assert config.Grpo.model_validate({"kl": {"place": "reward"}}).kl.place == "reward"  # RLOO


@pytest.mark.parametrize(
    ("job", "overrides", "message"),
    [
        ("ppo", ["policy.restart_from=t0"], r"policy\.restart_from is t0, which is of jobs/dpa\.py"),
        ("ppo", ["overlap=true", "ppo.importance_cap=null"], r"ppo\.importance_cap: null leaves that"),
        ("grpo", ["overlap=true", "grpo.importance_cap=null"], r"grpo\.importance_cap: null"),
        (
            "grpo",
            ["learner.lora=null", "generator.sync=adapter"],
            r"generator\.sync is adapter, and learner\.lora null",
        ),
        ("ppo", ["learner.lora.dropout=0.1"], r"learner\.lora\.dropout is 0\.1"),
        ("grpo", ["samples=1"], r"samples is 1, and an answer alone in its group .*Give samples 2 or more"),
        ("grpo", ["grpo.per_objective=true", "grpo.kl.place=reward"], r"set grpo\.kl\.place to loss"),
        (
            "ppo",
            ["prompts_per_step=10", "directions.per_prompt=3", "samples=2", "ppo.kl.horizon=12"],
            r"ppo\.kl\.horizon is 12 answers, and a step has 60 .*more than 12",
        ),
        ("ppo", ["overlap=true", "keep_checkpoints=1"], r"keep_checkpoints is 1, and with overlap .* give 2"),
        ("ppo", ["ppo.kl={place: reward, estimator: k2}"], r"kl\.estimator is k2, and kl\.place reward takes k1"),
        (
            "grpo",
            ["grpo.kl={controller: fixed, horizon: 50, target: null}"],
            r"kl\.horizon is 50, and kl\.controller fixed",
        ),
        (
            "ppo",
            ["ppo.kl={controller: adaptive, coefficient: 100, target: 6}"],
            r"kl\.coefficient is 100, .* 10 at most",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_with_their_keys(job: str, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loaded(job, *overrides)


def test_what_is_just_inside_is_taken() -> None:
    sizes = ["prompts_per_step=10", "directions.per_prompt=3", "samples=2"]
    assert loaded("ppo", *sizes, "ppo.kl.horizon=12.1").answers_per_step == 60
    assert loaded("ppo", "overlap=true").overlap
    assert loaded("ppo", "ppo.importance_cap=null").update().importance_cap is None
    assert loaded("grpo", "policy.restart_from=initial").policy.restart_from == "initial"
