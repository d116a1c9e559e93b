"""A reward model by its name, whatever made it: what the command line and cards take as MODEL.

model = open_model("rewards/mine")             # a folder that jobs/reward.py wrote: a column per head
model = open_model("embedded")                 # the shipped one
model = open_model("smol.yaml")                # a recipe of a run: all of its sources, a column per objective
model.setup()                                  # loads what is heavy
comparer = open_comparer("rewards/arena")      # None where the folder holds a scorer of single answers
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rhumbline import config, recipes
from rhumbline.errors import ConfigError, did_you_mean
from rhumbline.rewards.comparer import Comparer, ComparerRewards
from rhumbline.rewards.model import RewardModel, Source
from rhumbline.rewards.objectives import Objectives
from rhumbline.rewards.regression import EMBEDDED, SCHEMA, RegressionHeads, RegressionRewards
from rhumbline.rewards.trained import TrainedRewards

RIDGE = "ridge"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a recipe says of a source besides its folder; see `config.NetworkSource` and `config.ComparerSource`."""

    output: str | None = None  # of a preference or an absolute network: logit or probability
    profile: str | None = None  # of a conditional model: who judges
    reference: str | None = None  # of a comparer: a file of answers to compare with
    trust_remote_code: bool = False


def open_model(name: str, options: Options = Options()) -> RewardModel:
    """A model that is not yet set up.

    Raises ConfigError for a name that is neither a folder of a reward model nor a recipe, and for an option that it lacks.
    """
    given = [key for key in ("output", "profile", "reference") if getattr(options, key) is not None]
    if name.endswith((".yaml", ".yml")):
        if given:
            raise ConfigError(f"--{given[0]}: {name} is a recipe, which says it for each of its sources")
        path = recipes.find(name)
        if recipes.of_rewards(config.read(path)):
            raise ConfigError(f"{name} is a recipe of jobs/reward.py, not a model: give the folder that it wrote")
        recipe = config.load(path)
        policy = recipe.policy
        return RewardModel.build(recipe.rewards, policy=policy.initial, trust_remote_code=policy.trust_remote_code)
    kind = kind_of(name)
    opener, reads = _OPENERS[kind]
    for key in given:
        if key not in reads:
            raise ConfigError(f"--{key}: {name} is a {kind} model, which has no such option")
    source = opener(name, options)
    heads = source.heads
    objectives = Objectives(
        tuple(head.name for head in heads),
        tuple(1 if head.higher_is_better else -1 for head in heads),
        np.eye(len(heads)),
    )
    return RewardModel([source], objectives)


def open_comparer(name: str, *, trust_remote_code: bool = False) -> Comparer | None:
    """The comparer in a folder, loaded; None where it holds another kind."""
    if name.endswith((".yaml", ".yml")) or kind_of(name) != "comparer":
        return None
    rewards = ComparerRewards(name, trust_remote_code=trust_remote_code)
    rewards.setup()
    return rewards.comparer


def kind_of(folder: str) -> str:
    """'ridge', or the kind that the folder's schema names. Raises ConfigError where there is none."""
    if folder == EMBEDDED:
        return RIDGE
    path = Path(folder).expanduser() / SCHEMA
    try:
        kind = json.loads(path.read_text(encoding="utf-8")).get("kind", RIDGE)
    except FileNotFoundError:
        near = did_you_mean(path.parent.name, [p.name for p in path.parent.parent.glob("*/") if (p / SCHEMA).exists()])
        raise ConfigError(
            f"{folder}: no reward model: {path} is missing.{near} Expected a folder that jobs/reward.py wrote, "
            f"'{EMBEDDED}', or a recipe that ends in .yaml"
        ) from None
    except (OSError, ValueError, AttributeError) as e:
        raise ConfigError(f"{path} cannot be read: {e}") from None
    if kind not in _OPENERS:
        raise ConfigError(f"{path}: unknown kind {kind!r}, expected one of {', '.join(_OPENERS)}")
    return str(kind)


def _ridge(folder: str, options: Options) -> Source:
    return RegressionRewards(RegressionHeads.load(folder), trust_remote_code=options.trust_remote_code)


def _network(folder: str, options: Options) -> Source:
    return TrainedRewards(
        folder, output=options.output, profile=options.profile, trust_remote_code=options.trust_remote_code
    )


def _comparer(folder: str, options: Options) -> Source:
    return ComparerRewards(
        folder,
        reference=options.reference,
        profile=options.profile,
        trust_remote_code=options.trust_remote_code,
    )


# Kind -> how it is opened, and the options that it reads.
_OPENERS: dict[str, tuple[Callable[[str, Options], Source], tuple[str, ...]]] = {
    RIDGE: (_ridge, ()),
    "regression": (_network, ("output",)),
    "preference": (_network, ("output", "profile")),
    "absolute": (_network, ("output",)),
    "comparer": (_comparer, ("profile", "reference")),
}
