"""One update of online training: what it depends on, how it starts and goes on, what it publishes and what it refuses."""

from __future__ import annotations

import json
import math
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file

from rhumbline import config
from rhumbline.config.online import GrpoKl
from rhumbline.errors import ConfigError, TrainingError
from rhumbline.learning import checkpoints
from rhumbline.learning.logprobs import token_logprobs
from rhumbline.learning.policy import load_policy
from rhumbline.learning.trajectories import read, write
from tests.fakes import tiny_policy
from tests.rhumbline.online_fakes import GRPO, LORA, PPO, batch, distance, figures, made, trajectory, weights


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return tiny_policy(tmp_path_factory.mktemp("online") / "policy")


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


def test_full_weights_and_their_reference_rest_in_the_same_precision(policy):
    learner = made(policy, learner={"weights_dtype": "bfloat16"})  # which is of frozen weights under LoRA
    told = learner.update(1, batch())
    assert told["learn/kl"] == pytest.approx(0.0, abs=1e-4)
    assert learner.probe_start([one.encoded for one in batch(2)]) is not None


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
    assert below.probe_start([one.encoded for one in batch(2)]) is None  # that would be of another policy
    assert abs(below.update(1, batch())["learn/kl"]) > 1e-2


# --- weights out ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "lora"), [(PPO, None), (PPO, LORA), (GRPO, None), (GRPO, LORA)])
def test_what_is_published_is_the_live_policy(policy, tmp_path, settings, lora):
    learner = made(policy, settings, learner={"lora": lora, "lr": 3e-2})
    learner.update(1, batch())
    learner.publish(tmp_path, full=True)
    asked = [one.encoded for one in batch(4)]
    live, start = learner.probe(asked), learner.probe_start(asked)
    assert learner.probe(asked) == live  # the reference has answered, and the policy is what it was
    served = token_logprobs(load_policy(tmp_path, torch.float32), asked)
    base = token_logprobs(load_policy(policy, torch.float32), asked)
    assert start is not None
    for begun, before in zip(start, base, strict=True):
        assert begun == pytest.approx(before.tolist(), abs=1e-5)
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
