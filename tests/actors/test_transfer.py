"""Weight transfer: which files count as weights, what vLLM is told in which order, and the real engine where marked slow."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.generator import Generator
from actors.probes import Case
from actors.transfer import EXTENSION, FILES, INDEX, adapter_folder, session_settings, weight_files
from actors.weights import read_probe, write_probe
from rhumbline import config
from rhumbline.data.chat import encode
from rhumbline.errors import ConfigError, WeightSyncError
from rhumbline.learning.logprobs import token_logprobs
from rhumbline.learning.policy import load_policy, load_tokenizer, resolve, save_policy
from tests.engines import llm, running
from tests.fakes import query, tiny_policy

TOLERANCE = 0.1  # bf16 in vLLM against fp32
SAMPLING = config.Sampling(max_tokens=12)
# 128 tokens are a block of the prefix cache on a CPU: a long shared prompt is what would go stale.
LONG = [query("Think about rivers, seas and winds. " * 30 + "Why is the sky blue?", seed=5)]


# --- files ------------------------------------------------------------------------------------------------------------


def tensors_file(path: Path, *names: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: torch.ones(64) for name in names}, path)
    return path


def sharded(folder: Path, weight_map: dict[str, str]) -> Path:
    for file in {*weight_map.values()}:
        tensors_file(folder / file, *(name for name, where in weight_map.items() if where == file))
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def test_full_weights_are_one_file_or_the_shards_of_an_index(tmp_path: Path) -> None:
    one = tensors_file(tmp_path / "one" / "model.safetensors", "a")
    tensors_file(tmp_path / "one" / "adapter" / "adapter_model.safetensors", "lora")
    tensors_file(tmp_path / "one" / "optimizer.safetensors", "momentum")  # no weights of the policy's
    assert weight_files(one.parent) == [one]
    two = sharded(
        tmp_path / "two", {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}
    )
    tensors_file(two / "model-old.safetensors", "a")  # the index does not name it
    assert [file.name for file in weight_files(two)] == ["model-1.safetensors", "model-2.safetensors"]


def test_an_adapter_alone_is_no_full_weights_and_the_message_says_what_to_set(tmp_path: Path) -> None:
    tensors_file(tmp_path / "adapter" / "adapter_model.safetensors", "lora")
    with pytest.raises(WeightSyncError, match=r"holds an adapter and no full weights.*generator\.sync: adapter"):
        weight_files(tmp_path)
    assert adapter_folder(tmp_path) == tmp_path / "adapter"


def test_pickles_are_not_weights(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightSyncError, match="pickles are not read"):
        weight_files(tmp_path)


def test_a_torn_file_is_told_from_a_whole_one_before_any_weight_is_read(tmp_path: Path) -> None:
    torn = tensors_file(tmp_path / "model.safetensors", "a", "b")
    os.truncate(torn, torn.stat().st_size - 8)
    with pytest.raises(WeightSyncError, match=r"model\.safetensors cannot be read.*copied whole"):
        weight_files(tmp_path)
    adapter = tensors_file(tmp_path / "adapter" / "adapter_model.safetensors", "lora")
    os.truncate(adapter, adapter.stat().st_size - 8)
    with pytest.raises(WeightSyncError, match="copied whole"):
        adapter_folder(tmp_path)


def test_an_index_has_to_tell_the_truth(tmp_path: Path) -> None:
    lost = sharded(tmp_path / "lost", {"a": "model-1.safetensors", "b": "model-2.safetensors"})
    (lost / "model-2.safetensors").unlink()
    with pytest.raises(WeightSyncError, match=r"model-2\.safetensors cannot be read"):
        weight_files(lost)
    mixed = sharded(tmp_path / "mixed", {"a": "model-1.safetensors", "b": "model-1.safetensors"})
    tensors_file(mixed / "model-1.safetensors", "a")
    with pytest.raises(WeightSyncError, match=r"lacks 1 tensors.*such as b"):
        weight_files(mixed)
    for name in ("../model.safetensors", "model.bin"):
        (mixed / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(WeightSyncError, match="in the same folder"):
            weight_files(mixed)
    (mixed / INDEX).write_text('{"weight_map": {"a"')
    with pytest.raises(WeightSyncError, match="no index"):
        weight_files(mixed)


# --- the session ------------------------------------------------------------------------------------------------------


def test_what_the_session_sets_itself_cannot_be_set_in_the_recipe() -> None:
    assert session_settings({"max_model_len": 512})["weight_transfer_config"] == {"backend": FILES}
    with pytest.raises(ConfigError, match=r"generator\.engine\.weight_transfer_config"):
        session_settings({"weight_transfer_config": {"backend": "nccl"}})


class Engine:
    """As far as a weight sync goes: writes down what it is asked."""

    model_config = SimpleNamespace(max_model_len=512)

    def __init__(self, **settings: Any) -> None:
        self.settings, self.calls = settings, []

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> bool:
            self.calls.append((name, *args, *kwargs.values()))
            if getattr(self, "broken", None) == name:
                raise RuntimeError(f"{name} failed")
            return name != getattr(self, "refused", None)

        return call


def engine_args() -> Any:
    from dataclasses import make_dataclass

    return make_dataclass("EngineArgs", ["model"])


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Generator, Path]:
    """A generator whose vLLM is `Engine`, and the folder of its policy."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=Engine, EngineArgs=engine_args()))
    policy = tiny_policy(tmp_path / "policy")
    generator = Generator(config.Generator(sync="transfer"), model=str(policy))
    generator.setup()
    return generator, policy


def test_one_session_per_version_then_the_prefix_cache_goes(faked: tuple[Generator, Path]) -> None:
    generator, policy = faked
    engine = llm(generator)
    assert engine.settings["weight_transfer_config"] == {"backend": FILES}
    assert engine.settings["worker_extension_cls"] == EXTENSION
    generator.load("t=1", str(policy))
    generator.load("t=1", str(policy))  # there already
    assert engine.calls == [
        ("init_weight_transfer_engine", {"init_info": {}}),
        ("start_weight_update",),
        ("update_weights", {"update_info": {"path": str(policy)}}),
        ("finish_weight_update", "t=1"),
        ("reset_prefix_cache",),
    ]


def test_an_engine_that_fails_or_keeps_its_cache_stops_the_run(faked: tuple[Generator, Path]) -> None:
    generator, policy = faked
    engine = llm(generator)
    engine.refused = "reset_prefix_cache"
    with pytest.raises(WeightSyncError, match="kept its prefix cache after loading t=1"):
        generator.load("t=1", str(policy))
    engine.broken = "update_weights"
    with pytest.raises(WeightSyncError, match=r"generator\.sync: transfer\): RuntimeError: update_weights failed"):
        generator.load("t=1", str(policy))
    assert generator.version == "initial"


# --- the real engine --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedded() -> Path:
    return resolve("embedded")


@pytest.fixture(scope="module")
def engine(embedded: Path) -> Iterator[Generator]:
    """One engine with the transfer session; the tests below load versions into it one after the other."""
    with running("transfer", embedded) as generator:
        yield generator


def shifted(folder: Path, base: Path, scale: float) -> Path:
    """The policy with other weights in its last layers, and the learner's probe."""
    model: Any = load_policy(base, torch.float32, device="cpu")
    with torch.no_grad():
        for layer in model.model.layers[-4:]:
            layer.mlp.down_proj.weight.mul_(scale)
    tokenizer = load_tokenizer(base)
    save_policy(model, tokenizer, folder)
    asked = [query(text).messages for text in ("Why is the sky blue?", "Name three rivers.")]
    encoded = [encode(messages, "Because air scatters blue light more.", tokenizer) for messages in asked]
    rows = token_logprobs(load_policy(folder, torch.float32, device="cpu"), encoded)
    write_probe(folder, [Case(encoded=e, logprobs=row.tolist()) for e, row in zip(encoded, rows, strict=True)])
    return folder


def answers(generator: Generator) -> list[tuple[Any, ...]]:
    return [(c.token_ids, c.token_logprobs) for c in generator.generate(LONG, 2, SAMPLING, token_logprobs=True)]


def probed(generator: Generator, cases: list[Case]) -> list[list[float]]:
    """Not vLLM's own checksums of weights: on a CPU those of repacked layers are of nothing."""
    return generator.backend.logprobs([case.encoded for case in cases])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_after_a_transfer_nothing_is_answered_from_the_old_prefix(
    engine: Generator, embedded: Path, tmp_path: Path
) -> None:
    engine.load("u=1", str(shifted(tmp_path / "one", embedded, 1.15)))
    first = answers(engine)
    assert answers(engine) == first  # now the prompt is in the cache
    engine.load("u=2", str(shifted(tmp_path / "two", embedded, 0.85)))
    second = answers(engine)
    engine.load("u=3", str(shifted(tmp_path / "three", embedded, 1.15)))  # the weights of u=1 again
    assert second != first
    assert answers(engine) == first


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_weights_in_shards_arrive_and_what_is_no_checkpoint_leaves_the_engine_as_it_was(
    engine: Generator, embedded: Path, tmp_path: Path
) -> None:
    whole = shifted(tmp_path / "whole", embedded, 1.1)
    engine.load("w=1", str(whole))
    cases = read_probe(whole)
    before = probed(engine, cases)
    torn = shifted(tmp_path / "torn", embedded, 0.9)
    os.truncate(torn / "model.safetensors", 1_000_000)
    for folder in (torn, tmp_path / "absent"):
        with pytest.raises(WeightSyncError):
            engine.load("w=2", str(folder))
    assert probed(engine, cases) == before
    weights = load_file(whole / "model.safetensors")
    shards: dict[str, dict[str, torch.Tensor]] = {"model-1.safetensors": {}, "model-2.safetensors": {}}
    for i, name in enumerate(sorted(weights)):
        shards[f"model-{1 + i % 2}.safetensors"][name] = weights[name]
    folder = tmp_path / "sharded"
    folder.mkdir()
    for file, part in shards.items():
        save_file(part, folder / file, metadata={"format": "pt"})
    where = {name: file for file, part in shards.items() for name in part}
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))
    engine.load("w=3", str(shifted(tmp_path / "other", embedded, 0.9)))
    assert probed(engine, cases) != before
    engine.load("w=4", str(folder))
    assert probed(engine, cases) == before


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_child_processes_know_the_file_engine_and_say_what_is_missing(
    embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    with running("transfer", embedded) as generator:  # in a process of its own, whose end leaves this one's state alone
        one = shifted(tmp_path / "one", embedded, 1.15)
        assert generator.switch("t=1", str(one), read_probe(one), TOLERANCE).gap < TOLERANCE
        half = shifted(tmp_path / "half", embedded, 0.9)
        weights = load_file(half / "model.safetensors")
        kept = {name: tensor for name, tensor in weights.items() if ".layers.29." not in name}
        save_file(kept, half / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(WeightSyncError, match="t=2 from"):
            generator.load("t=2", str(half))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_transferred_weights_are_those_of_a_full_reload_and_of_a_fresh_engine(
    engine: Generator, embedded: Path, tmp_path: Path
) -> None:
    # The last test of this module: the engines that it ends take vLLM's process-wide state with them.
    one = shifted(tmp_path / "one", embedded, 1.2)  # as no other test here has them
    cases = read_probe(one)
    assert engine.switch("t=1", str(one), cases, TOLERANCE).gap < TOLERANCE
    assert llm(engine).get_weight_version() == "t=1"
    with running("full", embedded) as full, running("full", one) as fresh:
        full.switch("t=1", str(one), cases, TOLERANCE)
        assert probed(engine, cases) == probed(full, cases) == probed(fresh, cases)
        assert answers(engine) == answers(full) == answers(fresh)
