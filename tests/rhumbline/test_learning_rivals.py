"""Every loss on one real batch, against implementations that share nothing with ours: TRL's where it has the loss, else numpy.

    .venv/bin/python -m pytest -q -s -m slow tests/rhumbline/test_learning_rivals.py

The batch is what the embedded model answers to embedded prompts. The policy is that model with a LoRA which already changes what
it says, the reference is the model without. Ours are the first losses of the training entry points, in fp32 and micro-batches
smaller than the batch, or losses of log-probabilities from packed rows. The other side is given the same token ids: TRL's own
`compute_loss` of a padded batch, or formulas in fp64 on what transformers' model says of one sequence at a time. They may differ
by 1e-5. The table is printed, and written to build/agreement.csv.

N answers, K objectives, R their tokens, P pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rhumbline import config
from rhumbline.data.chat import Encoded, encode
from rhumbline.learning.online import OnlineLearner
from rhumbline.learning.policy import resolve
from rhumbline.learning.preferences import fit_preferences
from rhumbline.learning.train import fit
from rhumbline.learning.units import PairUnit, encode_judged, encode_pairs
from rhumbline.losses.advantages import centred, gae, leave_one_out, moments, standardised, token_rewards, whiten
from rhumbline.losses.grpo import answer_weights, grpo
from rhumbline.losses.kl import k1, k2, k3, k3_k2
from rhumbline.losses.kto import bco
from rhumbline.losses.ppo import ppo, value_loss
from rhumbline.losses.steerlm2 import pull, target_weights
from rhumbline.records import Example
from tests.rhumbline import trl_losses
from tests.rhumbline.agreement import Agreement
from tests.rhumbline.real_batch import (
    LORA,
    MAX_TOKENS,
    OBJECTIVES,
    PROMPTS,
    SAMPLES,
    SEED,
    Batch,
    Policies,
    Tokens,
    make_adapter,
    sample,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore"),  # TRL's, of itself and what it stands on
]

TABLE = Path(__file__).parents[2] / "build" / "agreement.csv"
BETA, SMOOTHING = 0.3, 0.1
DESIRABLE, UNDESIRABLE = 1.5, 0.5  # weights of KTO's classes
LEARNER = config.Learner(
    lora=LORA, dtype="float32", batch_size=PROMPTS * SAMPLES, micro_batch_tokens=256, epochs=1, warmup_steps=0
)


@pytest.fixture(scope="module")
def agreement() -> Iterator[Agreement]:
    table = Agreement()
    yield table
    table.write(TABLE)
    print(f"\n\n{table}")


@pytest.fixture(scope="module")
def policies(tmp_path_factory) -> Policies:
    folder = resolve("embedded")
    return Policies(folder, make_adapter(folder, tmp_path_factory.mktemp("adapter")))


@pytest.fixture(scope="module")
def batch(policies) -> Batch:
    made = sample(policies)
    assert 0 < sum(one.desirable for one in made.judged) < len(made.judged)
    assert len({len(one.response_ids) for one in made.trajectories}) > 1
    return made


# --- ours -------------------------------------------------------------------------------------------------------------


class FirstStepMade(Exception):  # noqa: N818  no error: nothing after the step is looked at, so it is not made
    """Ends a training."""


def first_loss(train: Callable[..., Any], samples: Sequence[Any], policies: Policies, out: Path, **given: Any) -> float:
    """What `train` reports of its first step, from the adapter on."""
    losses: list[float] = []

    def report(figures: dict[str, Any], _folder: Path | None) -> None:
        assert figures["learn/steps"] == 1  # all samples are in it
        losses.append(figures["learn/loss"])
        raise FirstStepMade

    settings: dict[str, Any] = {"learner": LEARNER, "adapter_dir": policies.adapter, "seed": SEED, "report": report}
    with pytest.raises(FirstStepMade):
        train(samples, **settings | given, policy_dir=policies.dir, out_dir=out)
    return losses[0]


def preference_loss(samples: Sequence[Any], policies: Policies, out: Path, kind: str, **settings: Any) -> float:
    """The first loss of `fit_preferences` against the model without the adapter."""
    loss = config.PreferenceLoss(kind=kind, beta=BETA, **settings)
    given: dict[str, Any] = {"loss": loss, "objectives": OBJECTIVES, "reference_dir": policies.dir}
    return first_loss(fit_preferences, samples, policies, out, **given)


# --- TRL --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def trl(monkeypatch, tmp_path) -> dict[str, Any]:
    monkeypatch.setattr(
        "huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True
    )  # TRL reports what is trained with it
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    return trl_losses.trl_settings(tmp_path / "trl")


def test_sft_agrees_with_trl(agreement, policies, batch, trl, tmp_path):
    examples = [
        Example(id=one.id, messages=one.messages, response=one.response, complete=one.complete) for one in batch.judged
    ]
    encoded = [encode(one.messages, one.response, policies.tokenizer, one.complete) for one in examples]
    ours = first_loss(fit, examples, policies, tmp_path / "out")
    agreement.check("SFT", "TRL", ours, trl_losses.sft(trl, policies, encoded))


def test_dpo_agrees_with_trl(agreement, policies, batch, trl, tmp_path):
    ours = preference_loss(batch.pairs(), policies, tmp_path / "out", "dpo")
    theirs = trl_losses.dpo(trl, policies, paired(batch, policies), beta=BETA, loss_type=["sigmoid"])
    agreement.check("DPO", "TRL", ours, theirs)


def test_conservative_dpo_agrees_with_trl(agreement, policies, batch, trl, tmp_path):
    """Of a pair with the surprise s, and f when turned round, ours is (1 - e) s + e f.

    TRL ignores e in its 'sigmoid', s, and has it in 'robust', ((1 - e) s - e f) / (1 - 2 e). A sum of these is ours.
    """
    e = SMOOTHING
    ours = preference_loss(batch.pairs(), policies, tmp_path / "out", "dpo", label_smoothing=e)
    both = {"loss_type": ["sigmoid", "robust"], "loss_weights": [2 * (1 - e), -(1 - 2 * e)], "label_smoothing": e}
    theirs = trl_losses.dpo(trl, policies, paired(batch, policies), beta=BETA, **both)
    agreement.check("DPO, label smoothing", "TRL", ours, theirs)


def test_ipo_agrees_with_trl(agreement, policies, batch, trl, tmp_path):
    ours = preference_loss(batch.pairs(), policies, tmp_path / "out", "ipo")
    theirs = trl_losses.dpo(trl, policies, paired(batch, policies), beta=BETA, loss_type=["ipo"])
    agreement.check("IPO", "TRL", ours, theirs)


def test_kto_agrees_with_trl(agreement, policies, batch, trl, tmp_path):
    units, _ = encode_judged(batch.judged, policies.tokenizer, LEARNER.max_length, mismatched_seed=SEED)
    weights = {"desirable_weight": DESIRABLE, "undesirable_weight": UNDESIRABLE}
    ours = preference_loss(batch.judged, policies, tmp_path / "out", "kto", **weights)
    agreement.check("KTO", "TRL", ours, trl_losses.kto(trl, policies, units, beta=BETA, **weights))


def test_bco_agrees_with_trl(agreement, policies, batch, trl, tmp_path):
    """TRL moves its shift before the loss, by the mean of all rewards; ours moves after it, so the first loss is without one."""
    units, _ = encode_judged(batch.judged, policies.tokenizer, LEARNER.max_length)
    unshifted, shifted, shift = trl_losses.bco(trl, policies, units, beta=BETA)
    even = {"desirable_weight": 1.0, "undesirable_weight": 1.0}  # TRL weighs no class
    ours = preference_loss(batch.judged, policies, tmp_path / "out", "bco", **even)
    agreement.check("BCO, first step", "TRL", ours, unshifted)
    policy_N, reference_N = Tokens.of(policies, [u.sides[0] for u in units], LEARNER.micro_batch_tokens).sums()
    desirable_N = torch.tensor([unit.desirable for unit in units])
    loss, _ = bco(policy_N, reference_N, desirable_N, len(units), reference_point=shift, beta=BETA)
    assert shift != 0
    agreement.check("BCO, shifted", "TRL", float(loss), shifted)


def test_the_first_loss_of_dpo_from_its_reference_is_ln_2(agreement, policies, batch, tmp_path):
    ours = first_loss(
        fit_preferences, batch.pairs(), policies, tmp_path / "out", loss=config.PreferenceLoss(kind="dpo", beta=BETA)
    )
    agreement.check("DPO, first step from the reference", "ln 2", ours, math.log(2), allowed=1e-6)


def paired(batch: Batch, policies: Policies) -> list[PairUnit]:
    return encode_pairs(batch.pairs(), policies.tokenizer, LEARNER.max_length)[0]


# --- pairs, by numpy --------------------------------------------------------------------------------------------------


def log_ratios(policies: Policies, sides: Sequence[Encoded]) -> np.ndarray:
    return np.array([policies.answer("policy", one).sum() - policies.answer("reference", one).sum() for one in sides])


def surprise(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0.0, -x)


def test_jpo_agrees_with_numpy(agreement, policies, batch, tmp_path):
    pairs, units = (
        batch.joint_pairs(),
        encode_pairs(batch.joint_pairs(), policies.tokenizer, LEARNER.max_length, joint=True)[0],
    )
    gap_P = np.zeros(len(pairs))
    for place, (pair, unit) in enumerate(zip(pairs, units, strict=True)):
        assert pair.rejected_messages != pair.messages
        for sign, one in zip((1, -1), unit.sides, strict=True):
            gap_P[place] += sign * (policies.says("policy", one).sum() - policies.says("reference", one).sum())
    ours = preference_loss(pairs, policies, tmp_path / "out", "jpo")
    agreement.check("JPO", "numpy, fp64", ours, surprise(BETA * gap_P).mean())


def test_modpo_agrees_with_numpy(agreement, policies, batch, tmp_path):
    """-log sigmoid((beta (log_ratio_chosen - log_ratio_rejected) - w_1 gap_1) / w_0), each pair under its own w."""
    pairs, units = batch.pairs(), paired(batch, policies)
    gap_P = log_ratios(policies, [u.sides[0] for u in units]) - log_ratios(policies, [u.sides[1] for u in units])
    w_PK, gaps_PK = np.array([pair.direction for pair in pairs]), np.array([pair.gaps for pair in pairs])
    theirs = surprise((BETA * gap_P - w_PK[:, 1] * gaps_PK[:, 1]) / w_PK[:, 0]).mean()
    ours = preference_loss(pairs, policies, tmp_path / "out", "modpo", learned=OBJECTIVES[0])
    agreement.check("MODPO", "numpy, fp64", ours, theirs)


# --- PPO and GRPO, by numpy -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokens(policies, batch) -> Tokens:
    return Tokens.of(policies, batch.encoded, LEARNER.micro_batch_tokens)


def groups() -> torch.Tensor:
    return torch.arange(PROMPTS).repeat_interleave(SAMPLES)


def against_group(kind: str, scores_N: np.ndarray) -> np.ndarray:
    """Group by group."""
    out_GS = []
    for rewards_S in scores_N.reshape(PROMPTS, SAMPLES):
        if kind == "leave_one_out":
            others_S = [np.delete(rewards_S, i).mean() for i in range(SAMPLES)]
            out_GS.append(rewards_S - np.array(others_S))
        else:
            scale = rewards_S.std(ddof=1) + 1e-4 if kind == "standardised" else 1.0
            out_GS.append((rewards_S - rewards_S.mean()) / scale)
    return np.concatenate(out_GS)


def weighed(kind: str, tokens: Tokens, loss_R: np.ndarray) -> float:
    """The mean over the tokens; over the answers' means; over the answers' sums, by the most tokens that one may have."""
    if kind == "token":
        return float(loss_R.mean())
    own = [loss_R[tokens.place_R == n] for n in range(len(tokens.counts))]
    return float(np.mean([one.mean() if kind == "sample" else one.sum() / MAX_TOKENS for one in own]))


def clipped(ratio_R: np.ndarray, advantages_R: np.ndarray, dual: float | None = None) -> np.ndarray:
    """Token by token, by the cases: where the ratio is past its bound the loss stays at what it is there."""
    out = []
    for ratio, advantage in zip(ratio_R, advantages_R, strict=True):
        if advantage >= 0:
            out.append(-advantage * min(ratio, 1.2))
        else:
            out.append(-advantage * min(max(ratio, 0.8), np.inf if dual is None else dual))
    return np.array(out)


@pytest.mark.parametrize("dual", [None, 1.5])
def test_ppo_agrees_with_numpy(agreement, tokens, batch, dual):
    """From the reference as the policy that drew the answers, to the policy: ratios on both sides of the clip."""
    advantages_N = against_group("centred", batch.scores())
    ratio_R, advantages_R = np.exp(tokens.true_R - tokens.true_reference_R), advantages_N[tokens.place_R]
    spread, mass = answer_weights(tokens.counts, [1.0] * len(tokens.counts))
    inputs = (tokens.logp_R, tokens.reference_R, torch.tensor(advantages_R).float(), torch.tensor(spread), mass)
    loss, told = ppo(*inputs, dual_clip=dual)
    clips = ["low", "high"] if dual is None else ["low", "high", "dual"]
    assert all(told[f"clipped_{side}_sum"] > 0 for side in clips), told
    theirs = clipped(ratio_R, advantages_R, dual).mean()
    agreement.check(f"PPO, clipped{'' if dual is None else ' on both sides'}", "numpy, fp64", float(loss), theirs)


def test_gae_whitening_and_the_value_loss_agree_with_numpy(agreement, tokens, batch):
    gamma, lam, beta, clip, rng = 0.98, 0.9, 0.05, 0.2, np.random.default_rng(SEED)
    R = len(tokens.place_R)
    values_R, moved_R = (x.astype(np.float32) for x in (rng.normal(size=R), 0.3 * rng.normal(size=R)))
    kl_R, lengths = k1(tokens.logp_R, tokens.reference_R), tokens.counts
    rewards_R = token_rewards(torch.tensor(batch.scores()), kl_R, beta, lengths)
    advantages_R, returns_R = gae(rewards_R, torch.tensor(values_R), lengths, gamma=gamma, lam=lam)
    white_R = whiten(advantages_R, moments(advantages_R))

    # sum_l (gamma lam)^l (r_{t+l} + gamma V_{t+l+1} - V_{t+l}), answer by answer.
    by_hand = []
    for n in range(len(lengths)):
        rows = tokens.place_R == n
        r_T, v_T = -beta * (tokens.true_R - tokens.true_reference_R)[rows], values_R[rows].astype(np.float64)
        r_T[-1] += batch.scores()[n]
        delta_T = r_T + gamma * np.append(v_T[1:], 0.0) - v_T
        by_hand += [
            sum((gamma * lam) ** ahead * delta_T[t + ahead] for ahead in range(len(delta_T) - t))
            for t in range(len(delta_T))
        ]
    true_R = np.array(by_hand)
    agreement.check("GAE, advantages with the KL in the reward", "numpy, fp64", advantages_R, true_R)
    agreement.check("GAE, whitened", "numpy, fp64", white_R, (true_R - true_R.mean()) / true_R.std(ddof=1))

    now_R, goal_R = values_R + moved_R, true_R + values_R
    spread, mass = answer_weights(lengths, [1.0] * len(lengths))
    inputs = (torch.tensor(now_R), torch.tensor(values_R), returns_R, torch.tensor(spread), mass)
    for bound in (None, clip):
        held_R = now_R if bound is None else np.clip(now_R, values_R - bound, values_R + bound)
        theirs = np.maximum((now_R - goal_R) ** 2, (held_R - goal_R) ** 2).mean() / 2
        loss, told = value_loss(*inputs, clip=bound)
        assert bound is None or told["clipped_sum"] > 0
        agreement.check(f"value loss{'' if bound is None else ', clipped'}", "numpy, fp64", float(loss), theirs)


@pytest.mark.parametrize("reduction", ["token", "sample", "constant"])
@pytest.mark.parametrize(
    "advantage", [standardised, centred, leave_one_out], ids=["standardised", "centred", "leave_one_out"]
)
def test_grpo_agrees_with_numpy(agreement, tokens, batch, advantage, reduction):
    kind, beta = advantage.__name__, 0.04
    advantages_N, _ = advantage(torch.tensor(batch.scores()), groups())
    spread, mass = answer_weights(tokens.counts, [1.0] * len(tokens.counts), reduction, length=MAX_TOKENS)
    inputs = (tokens.logp_R, tokens.reference_R, advantages_N.float()[tokens.place_R], torch.tensor(spread), mass)
    loss, _ = grpo(*inputs, reference_logp_R=tokens.reference_R, beta=beta, kl=k3)
    log_ratio_R = tokens.true_R - tokens.true_reference_R
    policy_R = clipped(np.exp(log_ratio_R), against_group(kind, batch.scores())[tokens.place_R])
    theirs = weighed(reduction, tokens, policy_R + beta * np.minimum(np.exp(-log_ratio_R) - 1 + log_ratio_R, 10))
    agreement.check(f"GRPO, {kind}, by {reduction}", "numpy, fp64", float(loss), theirs)


def test_kl_estimators_agree_with_numpy(agreement, tokens):
    log_ratio_R = tokens.true_R - tokens.true_reference_R
    k3_R = np.minimum(np.exp(-log_ratio_R) - 1 + log_ratio_R, 10)
    values = {
        k1: ("k1", log_ratio_R),
        k2: ("k2", log_ratio_R**2 / 2),
        k3: ("k3", k3_R),
        k3_k2: ("straight-through k3, of k2", k3_R),
    }
    for estimate, (name, theirs_R) in values.items():
        ours_R = estimate(tokens.logp_R, tokens.reference_R)
        agreement.check(f"KL, {name}", "numpy, fp64", ours_R.double().mean(), theirs_R.mean())
    logp_R = tokens.logp_R.clone().requires_grad_()
    k3_k2(logp_R, tokens.reference_R).mean().backward()
    theirs_R = log_ratio_R / len(log_ratio_R)
    agreement.check("KL, gradient of straight-through", "numpy, fp64", logp_R.grad, theirs_R)


def test_steerlm2_weights_agree_with_numpy(agreement, tokens, policies, batch):
    """Attributes as a normal distribution around the rewards, the prior the reference, the proposal the policy."""
    attribute_N = -0.5 * (batch.rewards_NK[:, 0] - 1.0) ** 2
    logp_N, prior_N = tokens.sums()
    target_N, _ = target_weights(torch.tensor(attribute_N), prior_N, logp_N, groups())
    pull_N, _ = pull(target_N, prior_N, logp_N, groups())

    policy, reference = (np.bincount(tokens.place_R, x) for x in (tokens.true_R, tokens.true_reference_R))
    shares = []
    for log_w_N in (attribute_N + reference - policy, reference - policy):
        w_GS = np.exp(log_w_N).reshape(PROMPTS, SAMPLES)
        shares.append((w_GS / w_GS.sum(1, keepdims=True)).ravel())
    agreement.check("SteerLM 2, weights", "numpy, fp64", target_N, shares[0])
    agreement.check("SteerLM 2, pull", "numpy, fp64", pull_N, shares[0] - shares[1])


# --- the online learner's first loss, by numpy ------------------------------------------------------------------------


def first_update(settings: config.Ppo | config.Grpo, policies: Policies, batch: Batch) -> float:
    learner = OnlineLearner(
        settings,
        LEARNER,
        total_steps=1,
        answers_per_step=len(batch.trajectories),
        policy_dir=policies.dir,
        adapter_dir=policies.adapter,
        reference_dir=policies.dir,
        seed=SEED,
        max_tokens=MAX_TOKENS,
    )
    return learner.update(1, batch.trajectories)["learn/loss"]


def importance(tokens: Tokens, cap: float) -> np.ndarray:
    """The reference drew the answers, and the policy learns from them; before it has moved, its ratio to itself is 1."""
    return np.minimum(np.exp(tokens.true_R - tokens.true_reference_R), cap)


def test_an_update_of_grpo_agrees_with_numpy(agreement, policies, tokens, batch):
    kl = config.GrpoKl(place="loss", estimator="k2", coefficient=0.05)
    settings = config.Grpo(advantage="standardised", reduction="constant", kl=kl, importance_cap=1.5)
    log_ratio_R = tokens.true_R - tokens.true_reference_R
    advantages_R = against_group("standardised", batch.scores())[tokens.place_R]
    theirs = weighed("constant", tokens, -importance(tokens, 1.5) * advantages_R + 0.05 * log_ratio_R**2 / 2)
    agreement.check("GRPO, update", "numpy, fp64", first_update(settings, policies, batch), theirs)


def test_an_update_of_rloo_agrees_with_numpy(agreement, policies, tokens, batch):
    kl = config.GrpoKl(place="reward", coefficient=0.05)
    # Per answer a group's advantages would add up to 0, whatever they are.
    settings = config.Grpo(advantage="leave_one_out", reduction="token", kl=kl, importance_cap=None)
    charged_N = batch.scores() - 0.05 * np.bincount(tokens.place_R, tokens.true_R - tokens.true_reference_R)
    theirs = weighed("token", tokens, -against_group("leave_one_out", charged_N)[tokens.place_R])
    agreement.check("RLOO, update", "numpy, fp64", first_update(settings, policies, batch), theirs)


def test_an_update_of_ppo_agrees_with_numpy(agreement, policies, tokens, batch):
    """Values start at 0: advantages are discounted sums of rewards, and what the value head is to become."""
    settings = config.Ppo(gamma=0.98, lam=0.9, value_coefficient=0.5, kl=config.Kl(coefficient=0.05))
    advantages = []
    for n in range(len(tokens.counts)):
        r_T = -0.05 * (tokens.true_R - tokens.true_reference_R)[tokens.place_R == n]
        r_T[-1] += batch.scores()[n]
        ahead = 0.0
        own = [ahead := r + 0.98 * 0.9 * ahead for r in r_T[::-1]]
        advantages += own[::-1]
    raw_R = np.array(advantages)
    white_R = (raw_R - raw_R.mean()) / raw_R.std(ddof=1)
    theirs = (-importance(tokens, 2.0) * white_R).mean() + 0.5 * (raw_R**2).mean() / 2
    agreement.check("PPO, update", "numpy, fp64", first_update(settings, policies, batch), theirs)
