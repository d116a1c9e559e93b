from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file

from rhumbline import config
from rhumbline.config.online import GrpoKl
from rhumbline.errors import ConfigError, TrainingError
from rhumbline.learning import checkpoints
from rhumbline.learning.logprobs import token_logprobs
from rhumbline.learning.online import OnlineLearner
from rhumbline.learning.policy import load_policy
from rhumbline.learning.trajectories import Trajectory, read, write
from tests.fakes import tiny_policy
from tests.rhumbline.learning_fakes import quick

LORA = {"r": 4, "alpha": 8}
PPO, GRPO = config.Ppo(), config.Grpo()


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return tiny_policy(tmp_path_factory.mktemp("online") / "policy")


def trajectory(index: int, rewards: tuple[float, ...] = (1.0, -0.5), **fields: Any) -> Trajectory:
    """Answers of 3 to 9 tokens, two to a group."""
    rng = np.random.default_rng(index)
    length = int(rng.integers(3, 10))
    base: dict[str, Any] = {
        "id": f"p{index // 2}/d0/s{index % 2}",
        "group": f"p{index // 2}/d0",
        "prompt_ids": tuple(np.random.default_rng((1, index // 2)).integers(0, 256, 4 + index // 2 % 3).tolist()),
        "response_ids": tuple(rng.integers(0, 256, length).tolist()),
        "engine_logprobs": (),
        "rewards": rewards,
        "direction": (0.8, 0.6),
        "truncated": index % 3 == 0,
    }
    return Trajectory(**base | fields)


def batch(size: int = 12, seed: int = 0) -> list[Trajectory]:
    rng = np.random.default_rng((seed, 99))
    return [trajectory(i, tuple(rng.normal(size=2).tolist())) for i in range(size)]


def made(policy: Path, settings: config.Ppo | config.Grpo = GRPO, **options: Any) -> OnlineLearner:
    learner = quick(**{"lr": 3e-3, "warmup_steps": 0, "micro_batch_tokens": 64} | options.pop("learner", {}))
    arguments: dict[str, Any] = {"total_steps": 10, "answers_per_step": 12, "policy_dir": policy, "seed": 7}
    return OnlineLearner(settings, learner, **arguments | options)


def figures(metrics: dict[str, float]) -> dict[str, float]:
    """Those that no clock has a part in."""
    return {name: figure for name, figure in metrics.items() if name != "learn/tokens_per_s"}


def weights(learner: OnlineLearner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in learner.engine.weights(True).items()}


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float((a[k] - b[k]).square().sum()) for k in a))


def with_engine(policy: Path, answers: list[Trajectory], off: float = 0.0) -> list[Trajectory]:
    """As an engine would have sampled them: log-probabilities of the policy itself, `off` nats too high."""
    rows = token_logprobs(load_policy(policy, torch.float32), [one.encoded for one in answers])
    return [
        trajectory(i, one.rewards, engine_logprobs=tuple((row + off).tolist()))
        for i, (one, row) in enumerate(zip(answers, rows, strict=True))
    ]


CASES = [
    pytest.param(PPO, None, id="ppo full"),
    pytest.param(config.Ppo(reduction="sample", value_lr=1e-2), LORA, id="ppo lora"),
    pytest.param(config.Ppo(kl=config.Kl(place="loss", estimator="k2")), LORA, id="ppo kl in the loss"),
    pytest.param(GRPO, LORA, id="grpo lora"),
    pytest.param(config.Grpo(per_objective=True, whiten=True), None, id="gdpo full"),
    pytest.param(
        config.Grpo(advantage="leave_one_out", reduction="constant", kl=GrpoKl(place="reward", coefficient=0.1)),
        LORA,
        id="rloo lora",
    ),
]


# --- what an update depends on ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "lora"), CASES)
def test_the_update_does_not_depend_on_the_micro_batches(policy, settings, lora):
    told, after, start = [], [], {}
    for tokens in (20, 10_000):
        learner = made(policy, settings, learner={"lora": lora, "micro_batch_tokens": tokens}, max_tokens=9)
        start = weights(learner)
        told.append([figures(learner.update(step, batch(seed=step))) for step in (1, 2)])
        after.append(weights(learner))
    for one, other in zip(*told, strict=True):
        assert one == pytest.approx(other, rel=2e-3, abs=1e-5)
    assert distance(*after) < 0.02 * distance(after[0], start)
    assert distance(after[0], start) > 0


@pytest.mark.parametrize(("settings", "lora"), CASES[:4:3])
def test_what_was_saved_goes_on_as_if_nothing_had_happened(policy, tmp_path, settings, lora):
    adaptive = type(settings.kl)(controller="adaptive", coefficient=0.1, target=0.01, horizon=20)
    settings = settings.model_copy(update={"kl": adaptive})
    straight = made(policy, settings, learner={"lora": lora})
    for step in (1, 2):
        straight.update(step, batch(seed=step))
    straight.save(tmp_path / "state")
    expected = straight.update(3, batch(seed=3))
    again = made(policy, settings, learner={"lora": lora, "micro_batch_tokens": 64})
    again.load(tmp_path / "state")
    assert again.step == 2
    assert figures(again.update(3, batch(seed=3))) == figures(expected)
    assert distance(weights(again), weights(straight)) == 0.0
    assert expected["learn/kl_coefficient"] != 0.1
    with pytest.raises(TrainingError, match="belongs to a training with other"):
        made(policy, settings, learner={"lora": lora, "lr": 1e-4}).load(tmp_path / "state")


def _rank(rank: int, size: int, rendezvous: str, folder: str, out: str, name: str, engine: dict[str, Any]) -> None:
    import torch.distributed as dist

    warnings.simplefilter("ignore")
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size)
    settings, options = {"ppo": (PPO, {}), "grpo": (GRPO, {"lora": LORA})}[name]
    learner = made(Path(folder), settings, learner=options | engine, rank=rank, world_size=size)
    # Five answers of which an optimiser step takes four: the second has one, and a rank that has none.
    told = [figures(learner.update(step, batch(6, seed=step)[: 6 if name == "grpo" else 5])) for step in (1, 2)]
    told.append({str(i): p for i, row in enumerate(learner.probe([one.encoded for one in batch(2)])) for p in row[:1]})
    (Path(out) / f"{rank}.json").write_text(json.dumps(told))
    (Path(out) / "state").mkdir(exist_ok=True)
    learner.save(Path(out) / "state")
    if rank == 0:
        (Path(out) / "weights").mkdir()
    dist.barrier()
    learner.publish(Path(out) / "weights", full=True)
    dist.barrier()
    dist.destroy_process_group()


def ranks(tmp_path: Path, policy: Path, name: str, size: int, engine: dict[str, Any] | None = None) -> Path:
    out = tmp_path / f"{name}-{size}-{len(engine or {})}"
    out.mkdir()
    mp.spawn(_rank, (size, str(out / "rendezvous"), str(policy), str(out), name, engine or {}), nprocs=size)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_two_ranks_make_the_update_of_one(tmp_path, policy, name):
    one, two = ranks(tmp_path, policy, name, 1), ranks(tmp_path, policy, name, 2)
    told = [json.loads(file.read_text()) for file in (one / "0.json", two / "0.json", two / "1.json")]
    assert told[1] == told[2]
    for ours, others in zip(told[0], told[1], strict=True):
        assert ours == pytest.approx(others, rel=2e-3, abs=1e-5)
    a, b = (load_file(out / "state" / "trained.safetensors") for out in (one, two))
    assert distance(a, b) < 0.02 * sum(float(tensor.square().sum()) for tensor in a.values()) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("name", "stage"), [("ppo", 3), ("ppo", 1), ("grpo", 3)])
def test_deepspeed_makes_the_update_of_torch(tmp_path, policy, name, stage):
    pytest.importorskip("deepspeed")
    one = ranks(tmp_path, policy, name, 1)
    two = ranks(
        tmp_path, policy, name, 2, {"engine": "deepspeed", "deepspeed": {"zero_optimization": {"stage": stage}}}
    )
    ours, others = (json.loads((out / "0.json").read_text()) for out in (one, two))
    for a, b in zip(ours, others, strict=True):
        assert a == pytest.approx(b, rel=5e-3, abs=1e-4)
    a, b, base = (load_file(folder / "model.safetensors") for folder in (one / "weights", two / "weights", policy))
    assert a.keys() == b.keys() == base.keys()
    assert distance(a, b) < 0.05 * distance(a, base)


# --- the first update -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "lora"), CASES)
def test_the_first_optimiser_step_starts_at_ratio_1_and_without_a_kl(policy, settings, lora):
    learner = made(policy, settings, learner={"lora": lora, "batch_size": 12, "epochs": 1}, max_tokens=9)
    told = learner.update(1, batch())
    assert told["learn/ratio_max"] == pytest.approx(1.0, abs=1e-4)
    assert told["learn/clip_fraction"] == 0.0
    assert told["learn/kl"] == pytest.approx(0.0, abs=1e-4)
    assert told["learn/update_kl"] == pytest.approx(0.0, abs=1e-6)
    assert told["learn/grad_norm"] > 0
    # What was learned shows next time: the policy has left its reference.
    assert abs(learner.update(2, batch())["learn/kl"]) > 1e-3


def test_the_adapter_that_training_goes_on_with_is_the_reference(policy, tmp_path):
    first = made(policy, learner={"lora": LORA, "lr": 3e-2})
    for step in range(1, 4):
        first.update(step, batch())
    first.publish(tmp_path / "out", full=True)
    for lora in (LORA, None):
        second = made(policy, learner={"lora": lora}, adapter_dir=tmp_path / "out" / "adapter")
        assert second.update(1, batch())["learn/kl"] == pytest.approx(0.0, abs=1e-3)
        assert abs(second.update(2, batch())["learn/kl"]) > 1e-3
        assert not any("reference" in name for name in weights(second))
    # Measured against the policy below the adapter it is what the adapter has learned.
    below = made(policy, learner={"lora": LORA}, adapter_dir=tmp_path / "out" / "adapter", reference_dir=policy)
    assert abs(below.update(1, batch())["learn/kl"]) > 1e-2


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


# --- weights out ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "lora"), [(PPO, None), (PPO, LORA), (GRPO, None), (GRPO, LORA)])
def test_what_is_published_is_the_live_policy(policy, tmp_path, settings, lora):
    learner = made(policy, settings, learner={"lora": lora, "lr": 3e-2})
    learner.update(1, batch())
    learner.publish(tmp_path, full=True)
    asked = [one.encoded for one in batch(4)]
    live = learner.probe(asked)
    served = token_logprobs(load_policy(tmp_path, torch.float32), asked)
    base = token_logprobs(load_policy(policy, torch.float32), asked)
    for ours, theirs, before in zip(live, served, base, strict=True):
        assert theirs.tolist() == pytest.approx(ours, abs=0.1)  # stored in bf16
        assert float((torch.tensor(ours) - before).abs().max()) > 0.3
    if lora is None:
        with pytest.raises(ConfigError, match=r"generator\.sync"):
            learner.publish(tmp_path / "adapter", full=False)
    else:
        learner.publish(tmp_path / "alone", full=False)
        assert [p.name for p in (tmp_path / "alone").iterdir()] == ["adapter"]
        stored = load_file(tmp_path / "alone" / "adapter" / "adapter_model.safetensors")
        assert all("lora_" in name for name in stored)


# --- bad input --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_learned_from_is_named(policy):
    learner = made(policy)
    with pytest.raises(TrainingError, match=r"step 3: no answer to learn from"):
        learner.update(3, [])
    with pytest.raises(TrainingError, match=r"1 groups have one answer.*the first is p1/d0"):
        learner.update(1, batch(3))
    for wrong, message in (
        ({"response_ids": ()}, "0 of its own"),
        ({"engine_logprobs": (-1.0,)}, "1 log-probabilities of the engine"),
        ({"rewards": (1.0,)}, "1 rewards and 2 weights"),
        ({"direction": (0.0, 0.0)}, "all its weights are 0"),
    ):
        with pytest.raises(TrainingError, match=message):
            learner.update(1, [trajectory(0, **wrong), trajectory(1)])


def test_a_reward_that_is_no_number_stops(policy):
    learner = made(policy)
    before, answers = weights(learner), [trajectory(0), trajectory(1, (float("nan"), 0.0))]
    with pytest.raises(TrainingError, match=r"step 5: answer p0/d0/s1 has the rewards \(nan"):
        learner.update(5, answers)
    assert distance(before, weights(learner)) == 0.0


def test_a_batch_that_is_written_is_read_back_and_no_part_of_it_is_left_by_a_failure(tmp_path, monkeypatch):
    file = write(answers := [trajectory(0), trajectory(1, (float("nan"), 0.0))], tmp_path / "train" / "failed.parquet")
    assert repr(read(file)) == repr(answers)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write(batch(), file)
    assert [path.name for path in file.parent.iterdir()] == ["failed.parquet"]
    assert repr(read(file)) == repr(answers)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_loss_or_a_gradient_that_is_no_number_stops(policy, monkeypatch, what):
    from rhumbline.learning import online

    real = online.grpo

    def broken(logp_R: torch.Tensor, *args: Any, **options: Any) -> Any:
        loss, metrics = real(logp_R, *args, **options)
        # The root of 0 is 0, and infinitely steep.
        return loss + (math.inf if what == "loss" else (logp_R.sum() * 0).sqrt()), metrics

    monkeypatch.setattr(online, "grpo", broken)
    learner = made(policy)
    before = weights(learner)
    with pytest.raises(TrainingError, match=rf"step 1: the {what} of .*Lower learner\.lr"):
        learner.update(1, batch())
    assert distance(before, weights(learner)) == 0.0


def test_settings_that_cannot_work_are_refused_at_once(policy):
    for settings, learner, message in (
        (GRPO, {"lora": {"dropout": 0.1}}, r"learner\.lora\.dropout"),
        (config.Grpo(reduction="constant"), {}, "max_tokens"),
        (
            config.Grpo(per_objective=True).model_copy(update={"kl": GrpoKl(place="reward")}),
            {},
            r"grpo\.kl\.place",
        ),
        (
            config.Grpo(kl=GrpoKl(controller="adaptive", target=1.0, horizon=2)),
            {},
            r"kl\.horizon is 2 answers, and a step has 12",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            made(policy, settings, learner=learner)


def test_a_state_without_its_last_file_is_none(policy, tmp_path):
    learner = made(policy)
    learner.save(tmp_path / "state")
    (tmp_path / "state" / checkpoints.STATE).unlink()
    with pytest.raises(TrainingError, match="no checkpoint to go on from"):
        learner.load(tmp_path / "state")
