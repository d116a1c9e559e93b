from __future__ import annotations

import importlib.util
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from rhumbline import config
from rhumbline.errors import ConfigError, TrainingError
from rhumbline.learning.engine import DeepSpeedEngine, TorchEngine, World
from rhumbline.learning.train import fit
from tests.rhumbline.learning_fakes import examples, quick, tiny_model, tiny_policy


def toy(weight: float = 2.0, **settings: Any) -> TorchEngine:
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(layer.weight, weight)
    options: dict[str, Any] = {"max_grad_norm": 1e9, "dtype": torch.float32, "world": World()}
    return TorchEngine(layer, torch.optim.SGD(layer.parameters(), lr=1.0), **options | settings)


def weight(engine: TorchEngine) -> torch.Tensor:
    found: torch.Tensor = engine.weights(True)["weight"]
    return found


def test_gradients_of_micro_batches_add_up():
    # loss = w (1 + 2 + 4) / 7: gradient 1, and w = 2 - 0.5 * 1.
    engine = toy()
    for x in (1.0, 2.0, 4.0):
        engine.backward(engine.model(torch.tensor([[x]])).sum() / 7, last=x == 4.0)
    assert engine.step(lr=0.5) == pytest.approx(1.0)
    assert weight(engine).item() == pytest.approx(1.5)
    assert engine.model.weight.grad is None


def test_clipping_returns_the_norm_before_it():
    engine = toy(max_grad_norm=0.25)
    engine.backward(engine.model(torch.tensor([[3.0]])).sum(), last=True)
    assert engine.step(lr=1.0) == pytest.approx(3.0)
    assert weight(engine).item() == pytest.approx(2.0 - 0.25, abs=1e-5)


def test_a_gradient_that_is_no_number_updates_nothing():
    engine = toy()
    engine.backward(engine.model(torch.tensor([[float("nan")]])).sum(), last=True)
    norm = engine.step(lr=1.0)
    assert norm != norm
    assert weight(engine).item() == 2.0


def test_state_comes_back_and_a_broken_one_is_named(tmp_path):
    def made() -> TorchEngine:
        layer = torch.nn.Linear(2, 1)
        torch.nn.init.ones_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        return TorchEngine(
            layer, torch.optim.AdamW(layer.parameters()), max_grad_norm=1.0, dtype=torch.float32, world=World()
        )

    def steps(engine: TorchEngine, count: int) -> None:
        for _ in range(count):
            engine.backward(engine.model(torch.tensor([[1.0, -2.0]])).square().sum(), last=True)
            engine.step(lr=0.1)

    straight = made()
    steps(straight, 4)
    first = made()
    steps(first, 2)
    first.save(tmp_path)
    assert {p.suffix for p in tmp_path.iterdir()} == {".safetensors", ".pt"}
    second = made()
    second.load(tmp_path)
    steps(second, 2)
    for name, tensor in straight.weights(True).items():
        assert torch.equal(tensor, second.weights(True)[name])
    with pytest.raises(TrainingError, match="other weights"):
        toy().load(tmp_path)
    (tmp_path / "optimizer.pt").write_bytes(b"torn")
    with pytest.raises(TrainingError, match="no checkpoint to go on from"):
        made().load(tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
def test_batching_is_not_deepspeed_s_to_set():
    layer = torch.nn.Linear(1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deepspeed's own, on import
        with pytest.raises(ConfigError, match=r"gradient_accumulation_steps.*learner\.batch_size"):
            DeepSpeedEngine(
                layer,
                torch.optim.AdamW(layer.parameters()),
                {"gradient_accumulation_steps": 4},
                max_grad_norm=1.0,
                dtype=torch.float32,
                world=World(),
            )


# --- several workers --------------------------------------------------------------------------------------------------


def _worker(rank: int, size: int, port: int, policy: str, out: str, settings: dict[str, Any], resume: str) -> None:
    import torch.distributed as dist

    warnings.simplefilter("ignore")
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "DS_ACCELERATOR": "cpu"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=size)
    learner = config.Learner.model_validate(settings)
    stopped = int(os.environ.get("STOP_AFTER", "0"))
    taken = 0

    def report(figures: dict[str, Any], folder: Path | None) -> None:
        nonlocal taken
        taken += 1
        if taken == stopped:
            raise KeyboardInterrupt

    try:
        fit(
            examples(13),
            learner=learner,
            policy_dir=policy,
            out_dir=out,
            seed=7,
            rank=rank,
            world_size=size,
            resume_from=resume or None,
            report=report,
        )
    except KeyboardInterrupt:
        dist.barrier()  # the other rank may still be in a collective of this step
        os._exit(0)  # like a kill: an engine that is torn down while it trains may abort, by a race of its threads
    dist.destroy_process_group()


def _rotary(rank: int, rendezvous: str) -> None:
    import torch.distributed as dist

    warnings.simplefilter("ignore")
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "DS_ACCELERATOR": "cpu"}
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=0, world_size=1)
    model = tiny_model()
    expected = model.model.rotary_emb.inv_freq.clone()
    optimizer = torch.optim.AdamW(model.parameters())
    DeepSpeedEngine(model, optimizer, {}, max_grad_norm=1.0, dtype=torch.bfloat16, world=World())
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert torch.equal(model.model.rotary_emb.inv_freq, expected)
    dist.destroy_process_group()


def train(tmp_path: Path, name: str, size: int, settings: dict[str, Any], resume: str = "") -> Path:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out = tmp_path / name
    mp.spawn(_worker, (size, port, str(tmp_path / "policy"), str(out), settings, resume), nprocs=size)
    return out


def distance(a: Path, b: Path, base: Path) -> float:
    """How far two trained policies are apart, as a share of how far the first is from where it started."""
    from safetensors.torch import load_file

    x, y, z = (load_file(f / "model.safetensors") for f in (a, b, base))
    apart = sum((x[k].float() - y[k].float()).square().sum() for k in x)
    moved = sum((x[k].float() - z[k].float()).square().sum() for k in x)
    return float(apart / moved) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
def test_two_workers_make_the_update_of_one(tmp_path, lora):
    base = tiny_policy(tmp_path / "policy")
    settings = quick(lora=lora, micro_batch_tokens=90).model_dump(mode="json")
    one, two = train(tmp_path, "one", 1, settings), train(tmp_path, "two", 2, settings)
    assert distance(one, two, base) < 0.02
    assert distance(one, base, base) == pytest.approx(1.0)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
def test_deepspeed_leaves_rotary_frequencies_in_fp32(tmp_path):
    mp.spawn(_rotary, (str(tmp_path / "rendezvous"),), nprocs=1)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_makes_the_update_of_torch(tmp_path, stage):
    base = tiny_policy(tmp_path / "policy")
    settings = quick(micro_batch_tokens=90, lr=3e-3).model_dump(mode="json")
    reference = train(tmp_path, "torch", 1, settings)
    sharded = settings | {"engine": "deepspeed", "deepspeed": {"zero_optimization": {"stage": stage}}}
    assert distance(reference, train(tmp_path, "zero", 2, sharded), base) < 0.05


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
def test_deepspeed_computes_layers_again(tmp_path, lora):
    """Under ZeRO 3 a layer's weights are gathered for the second time, too."""
    base = tiny_policy(tmp_path / "policy")
    settings = quick(micro_batch_tokens=90, lr=3e-3, lora=lora).model_dump(mode="json")
    reference = train(tmp_path, "torch", 1, settings)
    sharded = settings | {"engine": "deepspeed", "deepspeed": {"zero_optimization": {"stage": 3}}}
    again = sharded | {"gradient_checkpointing": True}
    assert distance(reference, train(tmp_path, "again", 2, again), base) < 0.05


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
def test_deepspeed_goes_on_where_it_stopped(tmp_path, monkeypatch, lora):
    base = tiny_policy(tmp_path / "policy")
    zero = {"engine": "deepspeed", "deepspeed": {"zero_optimization": {"stage": 3}}, "dtype": "bfloat16", "lora": lora}
    settings = quick(**zero).model_dump(mode="json")
    straight = train(tmp_path, "straight", 2, settings)
    monkeypatch.setenv("STOP_AFTER", "3")
    stopped = train(tmp_path, "stopped", 2, settings)
    monkeypatch.delenv("STOP_AFTER")
    resumed = train(tmp_path, "resumed", 2, settings, resume=str(stopped / "steps" / "000002"))
    assert distance(straight, resumed, base) < 0.02
