"""What recipes name of online training: one of each is added by a function and a line in a dict, and unknown ones are refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rhumbline import config
from rhumbline.errors import ConfigError
from rhumbline.learning.online import OnlineLearner
from rhumbline.learning.trajectories import Trajectory
from rhumbline.losses import GROUP_ADVANTAGES, KL_CONTROLLERS, KL_ESTIMATORS, check_update
from rhumbline.losses.control import Coefficient
from rhumbline.losses.rows import widen
from rhumbline.plan import Plan, check
from tests.fakes import tiny_policy
from tests.rhumbline.learning_fakes import quick

GRPO = Path(__file__).parents[2] / "jobs" / "recipes" / "grpo" / "smol.yaml"


# --- one of each ------------------------------------------------------------------------------------------------------


def ranked(rewards_N: torch.Tensor, groups_N: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    """Each answer against every other of its group: how many it beats less how many beat it."""
    same_NN = groups_N[:, None] == groups_N[None, :]
    return (torch.sign(rewards_N[:, None] - rewards_N[None, :]) * same_NN).sum(1), {}


def log_ratio_capped(logp: torch.Tensor, reference_logp: torch.Tensor) -> torch.Tensor:
    """k2 up to a nat."""
    return (widen(logp) - widen(reference_logp)).clamp(-1, 1).square() / 2


def doubling(state: Coefficient, kl: float, samples: int, *, target: float, horizon: float) -> Coefficient:
    """Twice as much while the KL is above its target, half below it."""
    return replace(state, value=state.value * (2 if kl > target else 0.5))


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GROUP_ADVANTAGES, "ranked", ranked)
    monkeypatch.setitem(KL_ESTIMATORS, "capped", log_ratio_capped)
    monkeypatch.setitem(KL_CONTROLLERS, "doubling", doubling)


NEW = [
    "grpo.advantage=ranked",
    "grpo.kl.estimator=capped",
    "grpo.kl.controller=doubling",
    "grpo.kl.coefficient=0.04",
    "grpo.kl.target=3",
]


@pytest.mark.usefixtures("added")
def test_what_a_line_adds_a_recipe_may_name_and_a_learner_follows(tmp_path: Path) -> None:
    recipe = config.load(GRPO, NEW, kind=config.GrpoRecipe)
    check(recipe)
    learner = OnlineLearner(
        recipe.grpo,
        quick(lr=1e-3, warmup_steps=0),
        total_steps=4,
        answers_per_step=4,
        policy_dir=tiny_policy(tmp_path / "policy"),
        seed=7,
    )
    for step, expected in ((1, 0.02), (2, 0.01)):  # the KL is 0 at first and small then: below 3
        metrics = learner.update(step, answers())
        assert learner.coefficient.value == pytest.approx(expected)
        # Ranks in a group of two, rewards 1 and 2: -1 and 1; their standard deviation over the tokens, 3 an answer, is 1.
        assert metrics["learn/advantage_std"] == pytest.approx(1.0)
        assert math.isfinite(metrics["learn/loss"])


def answers() -> list[Trajectory]:
    return [
        Trajectory(
            id=f"p{i // 2}/d0/s{i % 2}",
            group=f"p{i // 2}/d0",
            prompt_ids=(65, 66, 67 + i // 2),
            response_ids=(70 + i, 71, 72),
            engine_logprobs=(),
            rewards=(1.0 + i % 2, 0.0),
            direction=(1.0, 0.0),
            truncated=False,
        )
        for i in range(4)
    ]


# --- what is unknown --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "grpo.advantage=centered",
            r"unknown advantage 'centered' \(grpo\.advantage\)\. Did you mean 'centred'\? Known: standardised, centred",
        ),
        (
            "grpo.kl.estimator=k3k2",
            r"unknown KL estimator 'k3k2' \(grpo\.kl\.estimator\)\. Did you mean 'k3_k2'\? Known: k1, k2",
        ),
        (
            "grpo.kl.controller=adaptiv",
            r"unknown KL controller 'adaptiv' \(grpo\.kl\.controller\)\. Did you mean 'adaptive'\? Known: fixed",
        ),
    ],
)
def test_an_unknown_name_is_refused_before_anything_is_loaded(override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Plan.make(config.load(GRPO, [override], kind=config.GrpoRecipe), dry_run=True)


def test_all_that_is_there_may_be_named() -> None:
    for name in GROUP_ADVANTAGES:
        check_update(config.Grpo(advantage=name), "grpo")
    for name in KL_ESTIMATORS:
        check_update(config.Ppo(kl=config.Kl(place="loss", estimator=name)), "ppo")
    for name in KL_CONTROLLERS:
        target = None if name == "fixed" else 3.0
        check_update(config.Ppo(kl=config.Kl(controller=name, target=target)), "ppo")


def test_a_target_is_for_who_steers_to_it() -> None:
    with pytest.raises(ValueError, match=r"kl\.target is 3, and kl\.controller fixed steers to none"):
        config.Kl(target=3.0)
    with pytest.raises(ValueError, match=r"the adaptive controller needs kl\.target"):
        config.Kl(controller="adaptive")


def test_what_the_online_jobs_share_is_no_recipe_by_itself() -> None:
    raw = config.load(GRPO, kind=config.GrpoRecipe).model_dump(exclude={"job", "grpo"})
    with pytest.raises(TypeError, match="abstract"):
        config.OnlineRecipe.model_validate(raw)
