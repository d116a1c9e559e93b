"""The learner through a real Ray Train run, on a policy of two layers; with real kills where marked slow."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from actors.learner import learn, learn_rewards
from actors.probes import distance
from actors.weights import read_probe
from rhumbline import config
from rhumbline.data.chat import Encoded
from rhumbline.errors import ConfigError, DataError
from rhumbline.learning.logprobs import token_logprobs
from rhumbline.learning.policy import load_policy
from rhumbline.records import Example, Message
from rhumbline.rewards.trained import TrainedRewards
from tests.fakes import tiny_policy
from tests.rhumbline.reward_tasks import recipe_of, task_of

pytestmark = pytest.mark.usefixtures("cluster")


def examples(number: int = 24) -> list[Example]:
    return [
        Example(
            id=f"e{i}",
            messages=(Message(role="user", content=f"Count to {i}."),),
            response=" ".join(["one"] * (i % 5 + 1)),
        )
        for i in range(number)
    ]


def settings(**options: Any) -> config.Learner:
    """12 steps of 4 samples."""
    quick = {
        "num_cpus": 0.5,
        "threads": 1,
        "lr": 3e-3,
        "batch_size": 4,
        "epochs": 2,
        "warmup_steps": 1,
        "dtype": "float32",
    }
    return config.Learner.model_validate({**quick, **options})


def run(tmp_path: Path, learner: config.Learner, name: str = "run", **options: Any) -> dict[str, Any]:
    policy = tmp_path / "policy"
    if not policy.exists():
        tiny_policy(policy)
    out = tmp_path / name / "t=1"
    return learn(
        examples(), learner, policy_dir=policy, out_dir=out, name=name, storage=tmp_path / "train", seed=3, **options
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_policy(folder, torch.float32, device="cpu").state_dict())


def assert_same_weights(a: Path, b: Path) -> None:
    left, right = weights(a), weights(b)
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=0.0, atol=0.0, msg=name)


def assert_learned_the_same(start: Path, a: Path, b: Path, tolerance: float = 2e-3) -> None:
    """Other sums, the same weights: within `tolerance` and one step of bf16, in which they are stored; and far from `start`.

    12 steps of Adam, whose lr sum up to 0.0195, move a weight by up to that.
    """
    before, left, right = weights(start), weights(a), weights(b)
    assert before.keys() == left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=2**-7, atol=tolerance, msg=name)
    for after in (left, right):  # so untrained weights, on either side, would not pass
        moved = max(float((after[name] - before[name]).abs().max()) for name in before)
        assert moved > 5 * tolerance


def test_it_trains_publishes_once_and_leaves_no_state_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures: list[dict[str, Any]] = []
    result = run(tmp_path, settings(checkpoint_every=5), on_step=figures.append)
    out = tmp_path / "run" / "t=1"
    assert result["steps"] == 12
    assert [f["learn/step"] for f in figures] == list(range(1, 13))
    assert figures[-1]["learn/loss"] < figures[0]["learn/loss"]
    assert result["final_loss"] == figures[-1]["learn/loss"]
    assert (out / "model.safetensors").is_file()
    assert list((tmp_path / "train").iterdir()) == []
    assert "run learn  12/12 steps  100%" in capsys.readouterr().out
    # A second call finds it and makes nothing again.
    before = (out / "model.safetensors").stat().st_mtime_ns
    assert run(tmp_path, settings(checkpoint_every=5)) == result
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    # The probe holds what the published weights say, so an engine that loaded others is found out.
    cases = read_probe(out)
    assert 1 <= len(cases) <= 4
    again = token_logprobs(load_policy(out, torch.float32, device="cpu"), [case.encoded for case in cases])
    # Where it began, as a checkpoint of it would be stored: in bf16.
    start = load_policy(tmp_path / "policy", torch.bfloat16, device="cpu").float()
    began = token_logprobs(start, [case.encoded for case in cases])
    for ours, old, case in zip(again, began, cases, strict=True):
        assert isinstance(case.encoded, Encoded)
        assert ours.tolist() == pytest.approx(list(case.logprobs), abs=1e-5)
        assert case.start is not None
        assert old.tolist() == pytest.approx(list(case.start), abs=1e-5)
        assert distance([case.logprobs], [case.start]) > 0.01


@pytest.mark.slow
def test_no_cleaner_asks_another_cluster_whether_it_lives(tmp_path: Path) -> None:
    """Ray's cleaner ended trainings as soon as a second cluster on the machine had the dashboard's usual port."""
    workers: set[int] = set()
    cleaners: set[int] = set()

    def look(_: dict[str, Any]) -> None:
        workers.update(_processes("ray::RayTrainWorker"))
        cleaners.update(_processes("ray::PlacementGroupCleaner"))

    assert run(tmp_path, settings(epochs=20), on_step=look)["steps"] == 120
    assert workers  # so these are the titles that this Ray gives
    assert not cleaners


def test_a_fault_of_the_recipe_stops_it_at_once_with_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"learner\.deepspeed sets optimizer"):
        run(tmp_path, settings(engine="deepspeed", deepspeed={"optimizer": {"type": "Adam"}}))


def test_without_examples_nothing_is_started(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing was selected"):
        learn([], settings(), policy_dir=tmp_path, out_dir=tmp_path / "o", name="n", storage=tmp_path / "s", seed=0)


@pytest.mark.slow
def test_two_workers_learn_what_one_learns(tmp_path: Path) -> None:
    run(tmp_path, settings(), name="one")
    run(tmp_path, settings(num_workers=2), name="two")
    assert_learned_the_same(tmp_path / "policy", tmp_path / "one" / "t=1", tmp_path / "two" / "t=1")


@pytest.mark.slow
def test_a_killed_worker_costs_the_steps_since_its_checkpoint_and_changes_nothing(tmp_path: Path) -> None:
    long = {"num_workers": 2, "epochs": 20, "checkpoint_every": 5}  # 120 steps
    run(tmp_path, settings(**long), name="calm")
    killed: list[int] = []
    figures: list[dict[str, Any]] = []

    def kill_once(step: dict[str, Any]) -> None:
        figures.append(step)
        if step["learn/step"] >= 30 and not killed:
            victim = max(_processes("ray::RayTrainWorker"))
            killed.append(victim)
            os.kill(victim, signal.SIGKILL)

    result = run(tmp_path, settings(**long), name="killed", on_step=kill_once)
    assert killed
    assert result["steps"] == 120
    assert result["resumed_at"] >= 5
    assert_same_weights(tmp_path / "calm" / "t=1", tmp_path / "killed" / "t=1")


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_shards_over_two_workers(tmp_path: Path, stage: int) -> None:
    zero = {"zero_optimization": {"stage": stage}, "bf16": {"enabled": False}}
    figures: list[dict[str, Any]] = []
    result = run(tmp_path, settings(num_workers=2, engine="deepspeed", deepspeed=zero), on_step=figures.append)
    assert result["steps"] == 12
    assert figures[-1]["learn/loss"] < figures[0]["learn/loss"]
    run(tmp_path, settings(), name="torch")
    assert_learned_the_same(tmp_path / "policy", tmp_path / "torch" / "t=1", tmp_path / "run" / "t=1")


# --- reward networks --------------------------------------------------------------------------------------------------


def rewards(tmp_path: Path, name: str, learner: dict[str, Any], **options: Any) -> dict[str, Any]:
    backbone = tmp_path / "policy"
    if not backbone.exists():
        tiny_policy(backbone)
    quick = {"num_cpus": 0.5, "threads": 1}
    recipe = recipe_of(
        "preference", backbone, learner={**quick, **learner}, early_stopping={"every": 5, "patience": 99}
    )
    out = tmp_path / name / "model"
    return learn_rewards(
        task_of("preference"), recipe, out_dir=out, name=name, storage=tmp_path / "train", seed=3, **options
    )


def test_a_reward_network_is_trained_by_the_same_trainer(tmp_path: Path) -> None:
    figures: list[dict[str, Any]] = []
    result = rewards(tmp_path, "rm", {}, on_step=figures.append)
    assert [f["learn/step"] for f in figures] == list(range(1, 9))
    assert result["metric"] == "accuracy"
    assert {f["learn/step"] for f in figures if "validate/accuracy" in f} == {5, 8}
    source = TrainedRewards(tmp_path / "rm" / "model")
    source.setup()
    assert [head.name for head in source.heads] == ["good", "long"]
    assert list((tmp_path / "train").iterdir()) == []
    assert rewards(tmp_path, "rm", {}) == result  # found again


@pytest.mark.slow
def test_two_workers_train_the_reward_network_that_one_trains(tmp_path: Path) -> None:
    one, two = rewards(tmp_path, "one", {}), rewards(tmp_path, "two", {"num_workers": 2})
    assert two["final_loss"] == pytest.approx(one["final_loss"], rel=1e-3)
    assert two["kept_value"] == pytest.approx(one["kept_value"], abs=0.1)


@pytest.mark.slow
def test_a_killed_worker_changes_nothing_about_a_reward_network(tmp_path: Path) -> None:
    long = {"epochs": 30, "checkpoint_every": 5}  # 120 steps
    calm = rewards(tmp_path, "calm", long)
    killed: list[int] = []

    def kill_once(step: dict[str, Any]) -> None:
        if step["learn/step"] >= 30 and not killed:
            killed.append(max(_processes("ray::RayTrainWorker")))
            os.kill(killed[0], signal.SIGKILL)

    result = rewards(tmp_path, "killed", long, on_step=kill_once)
    assert killed
    assert result["resumed_at"] >= 5
    assert (result["kept_step"], result["kept_value"]) == (calm["kept_step"], calm["kept_value"])
    left, right = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("calm", "killed"))
    assert all(torch.equal(left[name], right[name]) for name in left | right)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_trains_a_reward_network(tmp_path: Path, stage: int) -> None:
    zero = {"zero_optimization": {"stage": stage}, "bf16": {"enabled": False}}
    one = rewards(tmp_path, "torch", {})
    many = rewards(tmp_path, "shards", {"num_workers": 2, "engine": "deepspeed", "deepspeed": zero})
    assert many["final_loss"] == pytest.approx(one["final_loss"], rel=1e-2)


def _processes(title: str) -> list[int]:
    """Process ids in this process's own cluster of what Ray gave a title that begins so.

    All processes of the fixture's cluster descend from this one; those of any other cluster on the machine do not.
    """
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            if " ".join(process.cmdline()).startswith(title):
                found.append(process.pid)
    return found
