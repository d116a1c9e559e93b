"""Updates of online training, one after the other: what they learn, and the figures that tell of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from rhumbline import config
from rhumbline.config.online import GrpoKl
from rhumbline.learning.logprobs import token_logprobs
from rhumbline.learning.online import OnlineLearner
from rhumbline.learning.policy import load_policy
from rhumbline.learning.trajectories import Trajectory
from tests.fakes import tiny_policy
from tests.rhumbline.online_fakes import PPO, batch, made, trajectory


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return tiny_policy(tmp_path_factory.mktemp("online") / "policy")


def with_engine(policy: Path, answers: list[Trajectory], off: float = 0.0) -> list[Trajectory]:
    """As an engine would have sampled them: log-probabilities of the policy itself, `off` nats too high."""
    rows = token_logprobs(load_policy(policy, torch.float32), [one.encoded for one in answers])
    return [
        trajectory(i, one.rewards, engine_logprobs=tuple((row + off).tolist()))
        for i, (one, row) in enumerate(zip(answers, rows, strict=True))
    ]


# --- what is learned --------------------------------------------------------------------------------------------------


def sampled(
    learner: OnlineLearner, count: int, length: int, seed: int, reward: Callable[..., float]
) -> list[Trajectory]:
    """Fresh answers to one prompt, drawn token by token from the policy as it is."""
    generator, asked = torch.Generator().manual_seed(seed), (65, 66, 67)
    ids = torch.tensor([asked] * count)
    logp = []
    attention = learner.policy.config._attn_implementation
    bare = learner.policy.get_base_model() if hasattr(learner.policy, "get_base_model") else learner.policy
    bare.set_attn_implementation("sdpa")
    with torch.no_grad():
        for _ in range(length):
            log_probs = learner.policy(input_ids=ids).logits[:, -1].log_softmax(-1)
            drawn = torch.multinomial(log_probs.exp(), 1, generator=generator)
            logp.append(log_probs.gather(1, drawn))
            ids = torch.cat([ids, drawn], 1)
    bare.set_attn_implementation(attention)
    return [
        Trajectory(
            id=f"a{seed}/{i}",
            group=f"a{seed}/{i // 8}",
            prompt_ids=asked,
            response_ids=tuple(row[3:].tolist()),
            engine_logprobs=tuple(float(step[i]) for step in logp),
            rewards=(reward(row[3:]),),
            direction=(1.0,),
            truncated=False,
        )
        for i, row in enumerate(ids)
    ]


def letters(tokens: torch.Tensor) -> float:
    """The share of tokens below 64: a quarter of the vocabulary."""
    return float((tokens < 64).double().mean())


@pytest.mark.parametrize(
    ("settings", "lora"),
    [
        pytest.param(config.Grpo(kl=GrpoKl(place="loss", coefficient=0.001)), {"r": 8, "alpha": 32}, id="grpo"),
        pytest.param(
            config.Grpo(advantage="leave_one_out", kl=GrpoKl(place="reward", coefficient=0.001)), None, id="rloo"
        ),
        pytest.param(config.Ppo(kl=config.Kl(coefficient=0.001)), None, id="ppo"),
    ],
)
def test_the_reward_of_fresh_samples_rises(policy, settings, lora):
    learner = made(
        policy,
        settings,
        learner={"lora": lora, "lr": 3e-2, "batch_size": 32, "epochs": 2, "micro_batch_tokens": 1024},
        answers_per_step=64,
        total_steps=8,
    )
    told = []
    for step in range(1, 9):
        told.append(learner.update(step, sampled(learner, 64, 8, step, letters)))
    after = np.mean([one.rewards[0] for one in sampled(learner, 256, 8, 99, letters)])
    before = told[0]["learn/score_mean"]
    standard_error = told[0]["learn/score_std"] / 8
    assert after > before + 5 * standard_error
    assert told[-1]["learn/kl"] > told[0]["learn/kl"]
    assert max(one["learn/engine_gap"] for one in told) < 1e-4  # sampled with the weights that are updated


def test_values_come_to_explain_returns(policy):
    """Answers whose first token foretells their reward; the head learns it, and its rate is its own."""
    answers = [
        trajectory(i, (float(i % 2), 0.0), response_ids=(i % 2,) * 4, truncated=False, group="g", prompt_ids=(9, 8))
        for i in range(12)
    ]
    settings = config.Ppo(value_lr=0.05, value_coefficient=1.0, value_clip=None, kl=config.Kl(coefficient=0.0))
    learner = made(policy, settings, learner={"lr": 1e-5, "max_grad_norm": 100.0}, total_steps=20)
    told = [learner.update(step, answers) for step in range(1, 11)]
    assert told[0]["learn/value_explained"] == pytest.approx(0.0, abs=1e-6)  # values start at 0
    assert told[-1]["learn/value_explained"] > 0.5
    assert told[-1]["learn/value_loss"] < 0.5 * told[0]["learn/value_loss"]


def test_values_of_answers_that_are_all_cut_settle_at_their_score(policy):
    """Nothing but a constant score, and no answer that ended by itself: V is it, and does not run away."""
    answers = [
        trajectory(i, (2.0,), direction=(1.0,), response_ids=(7, 8, 9), truncated=True, prompt_ids=(9, 8))
        for i in range(8)
    ]
    settings = config.Ppo(value_lr=0.05, value_coefficient=1.0, value_clip=None, kl=config.Kl(coefficient=0.0))
    learner = made(policy, settings, learner={"lr": 1e-5, "max_grad_norm": 100.0}, total_steps=40)
    for step in range(1, 31):
        told = learner.update(step, answers)
    assert learner._measure(answers).values_R.tolist() == pytest.approx([2.0] * 24, abs=0.3)
    assert told["learn/value_loss"] < 0.05


# --- figures ----------------------------------------------------------------------------------------------------------


def test_scores_are_the_rewards_under_each_answer_s_own_direction(policy):
    # sphere: (3, 4) has length 5, so .6 * 1 + .8 * 2 = 2.2; (1, -1) / sqrt 2: (1 - 2) / 1.4142 = -.7071.
    # simplex: 3 / 7 + 8 / 7 = 1.571429; .5 - 1 = -.5.
    answers = [trajectory(0, (1.0, 2.0), direction=(3.0, 4.0)), trajectory(1, (1.0, 2.0), direction=(1.0, -1.0))]
    for scaling, mean, std in (("sphere", 0.7464466, 1.4535534), ("simplex", 0.5357143, 1.0357143)):
        told = made(policy, config.Grpo(weights=scaling)).update(1, answers)
        assert told["learn/score_mean"] == pytest.approx(mean)
        assert told["learn/score_std"] == pytest.approx(std)


def test_figures_of_length_and_of_objectives_without_a_say(policy):
    answers = [trajectory(i, (float(i % 2), float(i // 2))) for i in range(6)]  # the second differs between groups only
    answers[5] = trajectory(5, (0.0, 2.0))  # and the last group's two answers are alike
    told = made(policy).update(1, answers)
    assert told["learn/constant_objectives"] == 1.0
    assert (told["learn/constant_objectives/0"], told["learn/constant_objectives/1"]) == (0.0, 1.0)
    assert told["learn/constant_groups"] == 1.0
    assert told["learn/truncated"] == pytest.approx(2 / 6)
    lengths = [len(one.response_ids) for one in answers]
    assert told["learn/length_mean"] == pytest.approx(sum(lengths) / 6)
    assert told["learn/tokens"] == sum(lengths) + sum(len(one.prompt_ids) for one in answers)
    assert made(policy, PPO).update(1, answers)["learn/constant_objectives"] == 0.0  # PPO compares across groups


def test_the_engine_s_mismatch_is_reported_and_corrected(policy):
    plain = batch()
    exact, off = with_engine(policy, plain), with_engine(policy, plain, off=math.log(2))
    told = {name: made(policy).update(1, answers) for name, answers in (("exact", exact), ("off", off))}
    assert told["exact"]["learn/engine_gap"] < 1e-5
    assert told["exact"]["learn/importance_mean"] == pytest.approx(1.0, abs=1e-4)
    assert told["off"]["learn/importance_mean"] == pytest.approx(0.5, abs=1e-4)  # it says twice the probability
    probabilities = np.exp([p for one in exact for p in one.engine_logprobs])
    assert told["off"]["learn/engine_gap"] == pytest.approx(probabilities.mean(), rel=1e-3)
    assert told["off"]["learn/engine_gap_max"] == pytest.approx(probabilities.max(), rel=1e-3)
    assert "learn/engine_gap" not in made(policy).update(1, plain)
    # Without a KL the gradient of the first optimiser step is halved by it, and is what it was without correction.
    settings = config.Grpo(kl=GrpoKl(place="loss", coefficient=0.0))
    once = {"batch_size": 12, "epochs": 1}
    norms = [
        made(policy, s, learner=once).update(1, off)["learn/grad_norm"]
        for s in (settings, settings.model_copy(update={"importance_cap": None}))
    ]
    assert norms[0] == pytest.approx(norms[1] / 2, rel=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(config.Grpo(kl=GrpoKl(coefficient=0.5)), id="grpo"),
        pytest.param(config.Grpo(reduction="constant", kl=GrpoKl(estimator="k2", coefficient=0.5)), id="constant"),
        pytest.param(config.Ppo(kl=config.Kl(place="loss", coefficient=0.5)), id="ppo"),
        pytest.param(config.Grpo(kl=GrpoKl(place="reward", coefficient=0.5)), id="reward"),
        pytest.param(config.Grpo(kl=GrpoKl(coefficient=0.0)), id="free"),
    ],
)
def test_the_loss_is_the_sum_of_its_terms(policy, settings):
    learner = made(policy, settings, learner={"lr": 3e-2}, max_tokens=9)
    for step in (1, 2):
        told = learner.update(step, batch(seed=step))
        terms = told["learn/policy_loss"] + settings.kl.coefficient * told.get("learn/kl_loss", 0.0)
        if isinstance(settings, config.Ppo):
            terms += settings.value_coefficient * told["learn/value_loss"]
        assert told["learn/loss"] == pytest.approx(terms, rel=1e-5, abs=1e-6)
    assert ("learn/kl_loss" in told) == (settings.kl.place == "loss")
    if settings.kl.place == "loss":
        assert told["learn/kl_loss"] > 1e-3


@pytest.mark.parametrize("reduction", ["token", "constant"])
def test_the_kl_that_the_loss_is_charged_with_by_numpy(policy, reduction):
    """One optimiser step: k3 of each token before it, over the tokens or over `max_tokens` times the answers."""
    settings = config.Grpo(reduction=reduction, kl=GrpoKl(coefficient=0.1))
    learner = made(policy, settings, learner={"lr": 3e-3, "batch_size": 12, "epochs": 1}, max_tokens=9)
    assert learner.update(1, batch())["learn/kl_loss"] == pytest.approx(0.0, abs=1e-6)
    asked = [one.encoded for one in batch(seed=2)]
    reference = token_logprobs(load_policy(policy, torch.float32), asked)
    log_ratio = np.concatenate([np.array(p) - q.numpy() for p, q in zip(learner.probe(asked), reference, strict=True)])
    told = learner.update(2, batch(seed=2))
    mass = len(log_ratio) if reduction == "token" else 9 * len(asked)
    assert told["learn/kl_loss"] == pytest.approx((np.expm1(-log_ratio) + log_ratio).sum() / mass, rel=1e-3)
    # The controller's is another: k1, per answer. Nobody drew these from an engine, so no importance weight.
    assert told["learn/kl"] == pytest.approx(log_ratio.sum() / len(asked), rel=1e-3)


def test_the_controller_follows_the_kl(policy):
    # A target of 1e-3 nats is soon passed; one of 1e9 never. 32 answers of a horizon of 64, errors of a fifth: 10% a step.
    for target, factor in ((1e-3, 1.1), (1e9, 0.9)):
        kl = GrpoKl(controller="adaptive", coefficient=0.1, target=target, horizon=64)
        learner = made(policy, config.Grpo(kl=kl), learner={"lr": 1e-2})
        told = [learner.update(step, sampled(learner, 32, 8, step, letters)) for step in (1, 2, 3)]
        coefficients = [one["learn/kl_coefficient"] for one in told]
        assert coefficients[:2] == [0.1, pytest.approx(0.1 * 0.9)]  # no KL at first
        assert told[1]["learn/kl"] > 2e-3
        assert coefficients[2] == pytest.approx(coefficients[1] * factor)
    fixed = made(policy)
    assert [fixed.update(step, batch())["learn/kl_coefficient"] for step in (1, 2)] == [0.04, 0.04]
