"""Recipes: one YAML, one frozen model per stage, one override syntax. Imports neither torch nor Ray.

    recipe = load("jobs/recipes/smol.yaml", ["learner.lr=1e-4", "directions.per_prompt=3"])
    recipe.learner.lr                      # 1e-4
    load("jobs/recipes/grpo/smol.yaml", kind=GrpoRecipe)

Class defaults are a vetted recipe for models of 1B and more; the YAML files under `jobs/recipes` say what differs. A
recipe may name another one to start from: `extends: dpa.yaml`. What lies over something else (a recipe over the one that it
extends, an override over both) adds to its mappings; an empty mapping, `{}`, empties them, and another `directions.codec`
starts without the options of the one before. Unknown keys are errors with the key's path and a did-you-mean.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar, overload

from rhumbline.config.online import Grpo, GrpoKl, GrpoRecipe, Kl, OnlineRecipe, Ppo, PpoRecipe, Update
from rhumbline.config.preferences import DpoRecipe, PairFile, PreferenceLoss, SampleStore
from rhumbline.config.reading import build, differences, dump, merge, read
from rhumbline.config.run import Recipe, Run
from rhumbline.config.sections import (
    ComparerSource,
    Directions,
    Evaluation,
    Generator,
    Initial,
    Learner,
    Lora,
    NetworkSource,
    Objective,
    Policy,
    PolicyLearner,
    Prompts,
    RegressionSource,
    Rewards,
    Rule,
    RulesSource,
    Sampling,
    Scorer,
    Section,
    Selection,
    Source,
    Style,
)
from rhumbline.config.sft import Conversations, SftLearner, SftPolicy, SftRecipe, SftStage, load_sft
from rhumbline.config.soups import SoupRecipe
from rhumbline.config.sweep import Dimension, Search, SweepRecipe, load_sweep, try_space
from rhumbline.errors import ConfigError

# By the key `job`.
JOBS: dict[str, type[Run]] = {
    "dpa": Recipe,
    "dpo": DpoRecipe,
    "ppo": PpoRecipe,
    "grpo": GrpoRecipe,
    "soups": SoupRecipe,
}
R = TypeVar("R", bound=Run)

__all__ = [
    "JOBS",
    "ComparerSource",
    "Conversations",
    "Dimension",
    "Directions",
    "DpoRecipe",
    "Evaluation",
    "Generator",
    "Grpo",
    "GrpoKl",
    "GrpoRecipe",
    "Initial",
    "Kl",
    "Learner",
    "Lora",
    "NetworkSource",
    "Objective",
    "OnlineRecipe",
    "PairFile",
    "Policy",
    "PolicyLearner",
    "Ppo",
    "PpoRecipe",
    "PreferenceLoss",
    "Prompts",
    "Recipe",
    "RegressionSource",
    "Rewards",
    "Rule",
    "RulesSource",
    "Run",
    "SampleStore",
    "Sampling",
    "Scorer",
    "Search",
    "Section",
    "Selection",
    "SftLearner",
    "SftPolicy",
    "SftRecipe",
    "SftStage",
    "SoupRecipe",
    "Source",
    "Style",
    "SweepRecipe",
    "Update",
    "build",
    "differences",
    "dump",
    "load",
    "load_sft",
    "load_sweep",
    "merge",
    "read",
    "try_space",
    "validate",
]


@overload
def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe: ...
@overload
def load(path: str | Path, overrides: list[str] | tuple[str, ...] = (), *, kind: type[R]) -> R: ...
def load(path: str | Path, overrides: list[str] | tuple[str, ...] = (), *, kind: type[Run] = Recipe) -> Run:
    """Read a recipe and lay `key.sub=value` overrides over it, the value read as YAML. Raises ConfigError."""
    return validate(read(path, overrides), str(path), kind=kind)


@overload
def validate(raw: dict[str, Any], origin: str) -> Recipe: ...
@overload
def validate(raw: dict[str, Any], origin: str, *, kind: type[R]) -> R: ...
def validate(raw: dict[str, Any], origin: str, *, kind: type[Run] = Recipe) -> Run:
    """Build a recipe from plain data; every fault is named by its path. Raises ConfigError, also for one of another job."""
    job = raw.get("job", "dpa")
    wanted = next((name for name, known in JOBS.items() if known is kind), None)
    if wanted is not None and job != wanted and job in JOBS:
        raise ConfigError(
            f"{origin} is a recipe of jobs/{job}.py, not of jobs/{wanted}.py: a recipe says which by its key job, without it is "
            "one of jobs/dpa.py"
        )
    return build(kind, raw, origin)
