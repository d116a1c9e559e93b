"""What a rank publishes beside its weights: figures that an engine which reads them must give, rounding told apart."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.probes import distance, prove, stored
from actors.ranks import Rank, Ranks
from actors.weights import read_probe
from rhumbline.data.chat import Encoded
from rhumbline.errors import WeightSyncError
from rhumbline.learning.policy import load_policy, load_tokenizer, save_policy
from tests.fakes import tiny_policy
from tests.rhumbline.learning_fakes import quick
from tests.rhumbline.online_fakes import GRPO, LORA, PPO, batch, made

SMALL = 1e-4  # of an adapter's B: its product with A is below what bf16 keeps of most weights
CASES = [Encoded(token_ids=(5, 6, 7, 8, 9), loss_mask=(False, False, True, True, True))]


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """Weights of which bf16 keeps every bit, as those of any checkpoint."""
    made_up = tiny_policy(tmp_path / "fp32")
    return save_policy(load_policy(made_up, torch.float32), load_tokenizer(made_up), tmp_path / "policy")


def rank(policy: Path, **learner: object) -> Rank:
    """Rank 0 of one, after a step."""
    one = Rank(0, 1, {"policy_dir": str(policy), "adapter_dir": None, "trust_remote_code": False})
    one.learner = made(policy, GRPO, learner={"lora": LORA, **learner})
    one.learner.update(1, batch(seed=1))
    return one


def moved(of: Rank, size: float) -> None:
    """Give the adapter's B an exact size, beside weights of which bf16 keeps eight bits."""
    with torch.no_grad():
        for name, parameter in of.learner.policy.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.full_like(parameter, size))


@pytest.mark.parametrize("size", [SMALL, 1e-2, 0.3])
def test_an_engine_that_read_what_was_stored_is_proven_however_much_was_rounded(
    policy: Path, tmp_path: Path, size: float
) -> None:
    one = rank(policy)
    moved(one, size)
    rounding = one.publish(str(tmp_path / "t=1"), full=True, stored=True, cases=CASES)
    (case,) = read_probe(tmp_path / "t=1")
    exact = one.learner.probe(CASES)
    assert rounding == pytest.approx(distance(exact, [case.logprobs]), abs=1e-7)
    said, began = stored(tmp_path / "t=1", CASES), stored(policy, CASES)
    assert case.start == pytest.approx(began[0], abs=1e-6)
    assert prove(said, [case], before=began, accepted={}, tolerance=1.0) == pytest.approx(0.0, abs=1e-6)
    if size == SMALL:  # held against the learner's own figures, the engine would seem to have kept the old weights
        assert 2 * distance(said, began) < distance(exact, began)
        with pytest.raises(WeightSyncError, match="that training started from"):
            prove(said, [replace(case, logprobs=exact[0])], before=began, accepted={}, tolerance=1.0)
    else:  # that it kept them is seen
        with pytest.raises(WeightSyncError):
            prove(began, [case], before=began, accepted={}, tolerance=1.0)


def test_an_engine_that_reads_the_adapter_is_held_against_the_learner_itself(policy: Path, tmp_path: Path) -> None:
    one = rank(policy)
    moved(one, 1e-3)
    assert one.publish(str(tmp_path / "t=1"), full=False, stored=False, cases=CASES) == 0.0
    (case,) = read_probe(tmp_path / "t=1")
    assert [list(case.logprobs)] == one.learner.probe(CASES)
    assert [list(case.start or ())] == one.learner.probe_start(CASES)


def test_weights_that_are_trained_in_bf16_lose_nothing(policy: Path, tmp_path: Path) -> None:
    one = rank(policy, lora=None)
    assert one.learner.rounded
    one.learner.policy.to(torch.bfloat16)
    assert not one.learner.rounded
    assert one.publish(str(tmp_path / "t=1"), full=True, stored=True, cases=CASES) == 0.0


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_group_of_ray_actors_trains_under_deepspeed(policy: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    zero = {"zero_optimization": {"stage": 3}}
    learner = quick(engine="deepspeed", deepspeed=zero, dtype="bfloat16", num_workers=2, num_cpus=0.5, threads=1)
    arguments: dict[str, Any] = {
        "settings": PPO,
        "total_steps": 2,
        "answers_per_step": 12,
        "policy_dir": str(policy),
        "adapter_dir": None,
        "seed": 7,
        "trust_remote_code": False,
        "max_tokens": 9,
    }
    with Ranks(
        arguments, learner, batch_of=lambda step: batch(seed=step), states=tmp_path / "states", deadline_s=600
    ) as group:
        told = group.update(1)
        group.save()
        group.publish(tmp_path / "t=1", full=True, stored=True, cases=CASES)
    assert math.isfinite(told["learn/loss"])
    assert told["learn/kl"] == pytest.approx(0.0, abs=1e-3)
    (case,) = read_probe(tmp_path / "t=1")
    assert case.logprobs == pytest.approx(stored(tmp_path / "t=1", CASES)[0], abs=0.1)
    assert distance([case.logprobs], stored(policy, CASES)) > 0
