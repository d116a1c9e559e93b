from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rhumbline import config
from rhumbline.config.online import GrpoKl
from rhumbline.learning.credit import Measured, credit, mean_kl
from rhumbline.learning.trajectories import Trajectory

KL_FREE = config.Kl(coefficient=0.0)


def answer(group: str, tokens: int, rewards: tuple[float, ...], **fields: Any) -> Trajectory:
    base: dict[str, Any] = {
        "id": group,
        "group": group,
        "prompt_ids": (1,),
        "response_ids": (2,) * tokens,
        "engine_logprobs": (),
        "rewards": rewards,
        "direction": (1.0,) * len(rewards),
        "truncated": False,
    }
    return Trajectory(**base | fields)


def measured(logp: list[float], reference: list[float], values: list[float] | None = None) -> Measured:
    return Measured(
        logp_R=torch.tensor(logp),
        reference_logp_R=torch.tensor(reference),
        entropy_R=torch.zeros(len(logp)),
        values_R=torch.tensor(values or [0.0] * len(logp)),
    )


def test_ppo_by_hand():
    # A score of 2 and a KL of .5 and -.25 at beta .1: rewards -.05, 2.025. Values 1, .5; gamma 1, lam .5.
    # d_2 = 2.025 - .5 = 1.525; d_1 = -.05 + .5 - 1 = -.55; A_1 = -.55 + .5 * 1.525 = .2125. Returns A + V.
    settings = config.Ppo(lam=0.5, whiten=False)
    got, told = credit([answer("a", 2, (2.0,))], measured([-1.0, -2.0], [-1.5, -1.75], [1.0, 0.5]), settings, beta=0.1)
    assert got.advantages_R.tolist() == pytest.approx([0.2125, 1.525])
    assert got.returns_R.tolist() == pytest.approx([1.2125, 2.025])
    assert told["learn/score_mean"] == 2.0  # without the KL
    # Explained: residuals .2125, 1.525, of variance .65625^2; returns have .40625^2.
    assert told["learn/value_explained"] == pytest.approx(1 - (0.65625 / 0.40625) ** 2)


def test_an_answer_that_was_cut_ends_like_any_other():
    # Score 2, value 1 before the only token: d = 2 - 1, and the value is to become 2, which it was given.
    settings = config.Ppo(whiten=False, kl=KL_FREE)
    for truncated in (True, False):
        got, _ = credit(
            [answer("a", 1, (2.0,), truncated=truncated)], measured([-1.0], [-1.0], [1.0]), settings, beta=0.0
        )
        assert got.advantages_R.tolist() == [1.0]
        assert got.returns_R.tolist() == [2.0]


def test_values_of_answers_that_are_always_cut_settle_at_their_score():
    # Values that become the returns, again and again: the last one is the score at once, those before it follow.
    settings = config.Ppo(whiten=False, kl=KL_FREE, lam=0.5)
    values = [0.0, 0.0, 0.0]
    for _ in range(40):
        got, _ = credit(
            [answer("a", 3, (2.0,), truncated=True)], measured([-1.0] * 3, [-1.0] * 3, values), settings, 0.0
        )
        values = got.returns_R.tolist()
    assert values == pytest.approx([2.0, 2.0, 2.0], abs=1e-6)


def test_the_kl_of_another_version_s_answers_is_weighed_as_their_loss_is():
    # k1 of 1, 2 and -1. The engine's version drew the first token twice as gladly as the policy does, the second four times
    # less so: weights .5 and, capped, 2. The second answer's engine is unknown: weight 1. (.5 + 4 - 1) / 2 = 1.75.
    p = math.log(0.25)
    answers = [answer("a", 2, (0.0,), engine_logprobs=(math.log(0.5), math.log(0.0625))), answer("b", 1, (0.0,))]
    seen = measured([p, p, p], [p - 1.0, p - 2.0, p + 1.0])
    assert mean_kl(answers, seen, 2.0) == pytest.approx(1.75)
    assert mean_kl(answers, seen, None) == pytest.approx(1.0)


def test_the_weighed_kl_of_an_old_version_s_draws_is_the_policy_s_own():
    # A vocabulary of three, each token as often as the old version draws it in four: sum old w k1 = KL(new || ref).
    old, new, ref = [0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.4, 0.3, 0.3]
    drawn = [0, 0, 1, 2]
    answers = [answer(str(i), 1, (0.0,), engine_logprobs=(math.log(old[k]),)) for i, k in enumerate(drawn)]
    seen = measured([math.log(new[k]) for k in drawn], [math.log(ref[k]) for k in drawn])
    expected = sum(q * math.log(q / r) for q, r in zip(new, ref, strict=True))
    assert mean_kl(answers, seen, 2.0) == pytest.approx(expected, rel=1e-5)


def test_the_share_of_clipped_scores_is_told():
    batch = [answer("a", 1, (3.0,)), answer("b", 1, (-0.5,)), answer("c", 1, (-2.5,)), answer("d", 1, (2.0,))]
    for clip, share in ((2.0, 0.5), (None, 0.0)):
        _, told = credit(batch, measured([-1.0] * 4, [-1.0] * 4), config.Ppo(score_clip=clip), 0.0)
        assert told["learn/score_clipped"] == share
        assert told["learn/score_mean"] == 0.5


def test_scores_are_clipped_and_the_kl_is_charged_in_one_place():
    one, seen = answer("a", 1, (9.0,)), measured([-1.0], [-2.0])
    for place, expected in (("reward", 3.9), ("loss", 4.0)):
        settings = config.Ppo(score_clip=4.0, whiten=False, kl=config.Kl(place=place))
        got, _ = credit([one], seen, settings, beta=0.1)
        assert got.advantages_R.tolist() == pytest.approx([expected])


def test_whitened_advantages_have_mean_0_and_returns_are_those_before():
    answers = [answer("a", 2, (2.0,)), answer("b", 1, (-1.0,))]
    seen = measured([-1.0] * 3, [-1.0] * 3)
    got, told = credit(answers, seen, config.Ppo(lam=1.0), beta=0.0)
    # 2, 2, -1: mean 1, unbiased variance 3.
    assert got.advantages_R.tolist() == pytest.approx([1 / math.sqrt(3)] * 2 + [-2 / math.sqrt(3)], abs=1e-6)
    assert got.returns_R.tolist() == [2.0, 2.0, -1.0]
    assert told["learn/advantage_std"] == pytest.approx(math.sqrt(2))  # before, denominator 3


def test_grpo_gives_every_token_the_advantage_of_its_answer():
    answers = [answer("a", 2, (3.0,)), answer("a", 1, (1.0,)), answer("b", 1, (5.0,)), answer("b", 1, (5.0,))]
    seen = measured([-1.0] * 5, [-1.0] * 5)
    settings = config.Grpo(advantage="centred")
    got, told = credit(answers, seen, settings, beta=0.04)
    assert got.advantages_R.tolist() == [1.0, 1.0, -1.0, 0.0, 0.0]
    assert told["learn/constant_groups"] == 1.0


def test_the_kl_of_an_answer_is_taken_off_before_the_baseline():
    # Scores 3 and 1; log-ratios 1 + 1 and -1 at beta .5: 2 and 1.5. Leave one out: .5 and -.5.
    answers = [answer("a", 2, (3.0,)), answer("a", 1, (1.0,))]
    seen = measured([-1.0, -1.0, -2.0], [-2.0, -2.0, -1.0])
    settings = config.Grpo(advantage="leave_one_out", kl=GrpoKl(place="reward"))
    got, told = credit(answers, seen, settings, beta=0.5)
    assert got.advantages_R.tolist() == [0.5, 0.5, -0.5]
    assert told["learn/score_mean"] == 2.0


def test_each_objective_is_normalised_on_its_own():
    # Objective 0: 0 and 2, centred -1 and 1. Objective 1: 30 and 10, centred 10 and -10. v = (.6, .8).
    # standardised: std 1.41421 and 14.1421: -+.70711 and +-.70711; .6 * -.70711 + .8 * .70711 = .141421.
    answers = [answer("a", 1, (0.0, 30.0), direction=(3.0, 4.0)), answer("a", 1, (2.0, 10.0), direction=(3.0, 4.0))]
    seen = measured([-1.0] * 2, [-1.0] * 2)
    got, told = credit(answers, seen, config.Grpo(per_objective=True), beta=0.0)
    assert (told["learn/groups"], told["learn/constant_groups/0"], told["learn/constant_groups/1"]) == (1.0, 0.0, 0.0)
    assert got.advantages_R.tolist() == pytest.approx([0.141421, -0.141421], abs=1e-4)
    summed, _ = credit(answers, seen, config.Grpo(), beta=0.0)
    assert summed.advantages_R.tolist() == pytest.approx([0.70711, -0.70711], abs=1e-4)  # the wide one rules
    centred, _ = credit(answers, seen, config.Grpo(per_objective=True, advantage="centred"), beta=0.0)
    assert centred.advantages_R.tolist() == pytest.approx([7.4, -7.4])


def test_tokens_without_the_engine_s_word_are_not_corrected():
    answers = [answer("a", 1, (0.0,), engine_logprobs=(-1.5,)), answer("a", 2, (1.0,))]
    seen = measured([-1.0, -2.0, -3.0], [-1.0] * 3)
    got, told = credit(answers, seen, config.Grpo(importance_cap=1.2), beta=0.0)
    assert got.engine_logp_R.tolist() == [-1.5, -2.0, -3.0]
    assert told["learn/engine_gap"] == pytest.approx(math.exp(-1.0) - math.exp(-1.5))
    assert told["learn/importance_mean"] == pytest.approx(1.2)  # exp(.5), capped
    assert told["learn/importance_capped"] == 1.0


def test_some_rows_of_what_is_credited():
    answers = [answer("a", 2, (3.0,)), answer("a", 1, (1.0,))]
    got, _ = credit(answers, measured([-1.0, -2.0, -3.0], [0.0] * 3), config.Grpo(), beta=0.0)
    part = got.at(torch.tensor([2, 0]), torch.device("cpu"))
    assert part.old_logp_R.tolist() == [-3.0, -1.0]
    assert part.advantages_R.tolist() == [got.advantages_R[2], got.advantages_R[0]]
