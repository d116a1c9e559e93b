"""Soups: the arithmetic against sums written out, and everything that must not be mixed."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rhumbline.errors import ConfigError, DirectionError, TrainingError
from rhumbline.learning.policy import load_policy, load_tokenizer, save_adapter
from rhumbline.learning.soups import check_policy, interpolate, soup_weights
from tests.rhumbline.learning_fakes import tiny_model, tiny_policy

IDS = torch.tensor([[5, 6, 7, 8, 9]])


def moved(base: Path, folder: Path, seed: int, by: float = 0.02) -> Path:
    """A policy trained from the base, or as good as: every weight moved a little."""
    model = load_policy(base, torch.float32)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += by * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    load_tokenizer(base).save_pretrained(folder)
    return folder


def adapter(base: Path, folder: Path, seed: int) -> dict[str, torch.Tensor]:
    """A LoRA with random A and B; its tensors as stored."""
    torch.manual_seed(seed)
    settings = LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(load_policy(base), settings)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.15)
    save_adapter(model, folder)
    return load_file(folder / "adapter_model.safetensors")


def delta(stored: dict[str, torch.Tensor], name: str) -> torch.Tensor | None:
    """scale * B A of one weight, in fp32; None where it has no adapter."""
    prefix = f"base_model.model.{name.removesuffix('.weight')}"
    if f"{prefix}.lora_A.weight" not in stored:
        return None
    return 6 / 4 * stored[f"{prefix}.lora_B.weight"].float() @ stored[f"{prefix}.lora_A.weight"].float()


def bytes_of(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- weights ----------------------------------------------------------------------------------------------------------


def test_weights_are_the_shares_of_the_direction() -> None:
    # |0.8| / (0.8 + 0.6) = 4/7
    assert soup_weights((0.8, -0.6), (1, -1)) == pytest.approx((4 / 7, 3 / 7))
    assert soup_weights((1.0, 0.0), (1, -1)) == (1.0, 0.0)
    assert soup_weights((1.0, 6e-17), (1, -1))[0] == 1.0  # a cosine of 90 degrees is no wish


@pytest.mark.parametrize("length", [0.1, 1.0, 30.0])
def test_weights_are_convex_whatever_the_length_of_the_direction(length: float) -> None:
    weights = soup_weights((0.3 * length, -0.5 * length, 0.2 * length), (1, -1, 1))
    assert sum(weights) == pytest.approx(1.0)
    assert weights == pytest.approx((0.3, 0.5, 0.2))


def test_a_wish_that_no_policy_was_trained_for_is_refused() -> None:
    with pytest.raises(DirectionError, match=r"verbosity by \+0\.6, and its policy was trained for less"):
        soup_weights((0.8, 0.6), (1, -1), ("helpfulness", "verbosity"))
    with pytest.raises(DirectionError, match="all zero"):
        soup_weights((0.0, 0.0), (1, -1))
    with pytest.raises(DirectionError, match="3 weights, the soup 2"):
        soup_weights((0.0, 0.0, 1.0), (1, -1))
    with pytest.raises(DirectionError, match="finite"):
        soup_weights((float("nan"), 1.0), (1, 1))


# --- full weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_soup_is_the_base_and_the_weighted_differences(tmp_path: Path, tied: bool) -> None:
    base = tiny_policy(tmp_path / "base", tied)
    policies = {"a": moved(base, tmp_path / "a", 1), "b": moved(base, tmp_path / "b", 2)}
    before = bytes_of(tmp_path)
    out = interpolate(base, policies, {"a": 0.25, "b": 0.75}, tmp_path / "out" / "soup")
    assert bytes_of(tmp_path).items() >= before.items()  # inputs are only read
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["soup"]  # nothing left behind
    W, A, B, soup = (load_file(folder / "model.safetensors") for folder in (base, *policies.values(), out))
    assert soup.keys() == W.keys()
    assert ("lm_head.weight" in soup) == (not tied)
    for name in W:
        expected = W[name] + 0.25 * (A[name] - W[name]) + 0.75 * (B[name] - W[name])
        assert soup[name].dtype == torch.bfloat16
        torch.testing.assert_close(soup[name].float(), expected, rtol=2**-8, atol=1e-6)  # one rounding to bf16


def test_transformers_loads_a_soup_as_it_is(tmp_path: Path) -> None:
    base = tiny_policy(tmp_path / "base")
    out = interpolate(base, {"a": moved(base, tmp_path / "a", 1)}, {"a": 0.5}, tmp_path / "soup")
    again = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert again.dtype == torch.bfloat16
    assert again.config.tie_word_embeddings
    assert load_tokenizer(out)("hi")["input_ids"] == load_tokenizer(base)("hi")["input_ids"]


def test_a_weight_of_one_gives_the_policy_and_of_zero_the_base(tmp_path: Path) -> None:
    base = tiny_policy(tmp_path / "base")
    policies = {"a": moved(base, tmp_path / "a", 1), "b": moved(base, tmp_path / "b", 2)}
    for weights, same in (({"a": 1.0, "b": 0.0}, policies["a"]), ({"a": 0.0, "b": 0.0}, base)):
        out = interpolate(base, policies, weights, tmp_path / f"soup-{weights['a']:g}")
        expected, soup = load_file(same / "model.safetensors"), load_file(out / "model.safetensors")
        for name in expected:
            torch.testing.assert_close(soup[name].float(), expected[name], rtol=2**-8, atol=1e-6)


def test_the_order_of_the_policies_does_not_matter(tmp_path: Path) -> None:
    base = tiny_policy(tmp_path / "base")
    a, b = moved(base, tmp_path / "a", 1), moved(base, tmp_path / "b", 2)
    one = interpolate(base, {"a": a, "b": b}, {"a": 0.3, "b": 0.7}, tmp_path / "one")
    two = interpolate(base, {"b": b, "a": a}, {"a": 0.3, "b": 0.7}, tmp_path / "two")
    left, right = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=2**-7, atol=1e-6)  # sums of fp32, then bf16


def test_shards_stay_shards(tmp_path: Path) -> None:
    whole = tiny_policy(tmp_path / "whole")
    model = load_policy(whole, torch.float32)
    model.save_pretrained(tmp_path / "base", max_shard_size="20KB")
    load_tokenizer(whole).save_pretrained(tmp_path / "base")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 1
    a = moved(whole, tmp_path / "a", 1)  # not sharded, as a policy from elsewhere may be
    soups = [
        interpolate(base, {"a": a}, {"a": 0.5}, tmp_path / f"of-{base.name}") for base in (tmp_path / "base", whole)
    ]
    sharded, single = (AutoModelForCausalLM.from_pretrained(soup, dtype=torch.float32).eval() for soup in soups)
    assert len(list(soups[0].glob("*.safetensors"))) > 1
    assert torch.equal(sharded(IDS).logits, single(IDS).logits)


def test_a_second_copy_of_a_tied_head_is_no_tensor_of_its_own(tmp_path: Path) -> None:
    base = tiny_policy(tmp_path / "base")
    a = moved(base, tmp_path / "a", 1)
    stored = load_file(a / "model.safetensors")
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"].clone()
    save_file(stored, a / "model.safetensors", metadata={"format": "pt"})
    soup = interpolate(base, {"a": a}, {"a": 1.0}, tmp_path / "soup")
    assert "lm_head.weight" not in load_file(soup / "model.safetensors")


# --- adapters ---------------------------------------------------------------------------------------------------------


def test_adapters_are_summed_as_differences_of_weights_and_peft_s_linear_merge_is_not_that(tmp_path: Path) -> None:
    base = tiny_policy(tmp_path / "base")
    stored = {name: adapter(base, tmp_path / name, seed) for seed, name in enumerate("ab", 1)}
    weights = {"a": 0.25, "b": 0.75}
    soup = load_file(
        interpolate(base, {name: tmp_path / name for name in "ab"}, weights, tmp_path / "soup") / "model.safetensors"
    )
    W = load_file(base / "model.safetensors")

    model = PeftModel.from_pretrained(load_policy(base, torch.float32), str(tmp_path / "a"), adapter_name="a")
    model.load_adapter(str(tmp_path / "b"), adapter_name="b")
    model.add_weighted_adapter(["a", "b"], [0.25, 0.75], "both", combination_type="linear")
    model.set_adapter("both")
    linear = dict(model.merge_and_unload(adapter_names=["both"]).state_dict())

    adapted = 0
    for name, base_weight in W.items():
        deltas = {key: delta(stored[key], name) for key in "ab"}
        if deltas["a"] is None or deltas["b"] is None:
            torch.testing.assert_close(soup[name].float(), base_weight, rtol=2**-8, atol=1e-6)
            continue
        adapted += 1
        explicit = 0.25 * deltas["a"] + 0.75 * deltas["b"]
        # Rounded to bf16 twice: each merged policy, and their sum.
        torch.testing.assert_close(soup[name].float(), base_weight + explicit, rtol=2**-6, atol=2**-8)
        ours, theirs = soup[name].float() - base_weight - explicit, linear[name] - base_weight - explicit
        assert ours.norm() < 0.02 * explicit.norm()
        assert theirs.norm() > 0.3 * explicit.norm()  # the cross terms
    assert adapted == 14


def test_an_adapter_and_full_weights_mix(tmp_path: Path) -> None:
    base = tiny_policy(tmp_path / "base")
    adapter(base, tmp_path / "a", 1)
    full = moved(base, tmp_path / "b", 2)
    soup = interpolate(base, {"a": tmp_path / "a", "b": full}, {"a": 0.0, "b": 1.0}, tmp_path / "soup")
    expected, found = load_file(full / "model.safetensors"), load_file(soup / "model.safetensors")
    for name in expected:
        torch.testing.assert_close(found[name].float(), expected[name], rtol=2**-8, atol=1e-6)


def test_what_bf16_does_not_keep_is_told(tmp_path: Path) -> None:
    base = tiny_policy(tmp_path / "base")
    stored = {name: tensor.bfloat16() for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(stored, base / "model.safetensors", metadata={"format": "pt"})
    for name, size in (("far", 2.0**-4), ("near", 2.0**-14)):
        (tmp_path / name).mkdir()
        for file in base.iterdir():
            shutil.copy(file, tmp_path / name)
        moved_by = {key: (tensor.float() + size).float() for key, tensor in stored.items()}
        save_file(moved_by, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    told = {}
    for name in ("far", "near"):
        soup = interpolate(base, {"a": tmp_path / name}, {"a": 0.5}, tmp_path / f"soup-{name}")
        told[name] = json.loads((soup / "soup.json").read_text())
        assert told[name]["weights"] == {"a": 0.5}
    assert 0 < told["far"]["rounding"] < 0.1
    assert told["near"]["rounding"] > 0.5  # most of it is below what bf16 keeps
    none = interpolate(base, {"a": tmp_path / "near"}, {"a": 0.0}, tmp_path / "none")
    assert json.loads((none / "soup.json").read_text())["rounding"] == 0.0


# --- what is refused --------------------------------------------------------------------------------------------------


def spoiled(base: Path, folder: Path, key: str, change: str) -> Path:
    moved(base, folder, 1)
    stored = load_file(folder / "model.safetensors")
    if change == "nan":
        stored[key][0] = float("nan")
    elif change == "shape":
        stored[key] = stored[key][:-1].clone()
    elif change == "gone":
        del stored[key]
    else:
        stored[key] = torch.randn_like(stored[key])
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("nan", r"has 32 values that are not finite"),
        ("shape", r"has shape \(31, 32\), expected \(32, 32\)"),
        ("gone", r"the base has the tensor .*, it does not"),
        ("other", r"does not stem from this base: .* more than its whole length"),
    ],
)
def test_a_policy_that_is_not_of_this_base_is_refused_with_the_tensor(tmp_path: Path, change: str, says: str) -> None:
    base, key = tiny_policy(tmp_path / "base"), "model.layers.1.self_attn.q_proj.weight"
    policy = spoiled(base, tmp_path / "a", key, change)
    with pytest.raises(TrainingError, match=says) as error:
        interpolate(base, {"a": policy}, {"a": 0.5}, tmp_path / "soup")
    assert key in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "base"]  # nothing half made


def test_a_policy_of_another_shape_or_seed_is_refused(tmp_path: Path) -> None:
    base, other = tiny_policy(tmp_path / "base"), tiny_policy(tmp_path / "other", seed=1)
    with pytest.raises(TrainingError, match="does not stem from this base"):
        interpolate(base, {"a": other}, {"a": 0.5}, tmp_path / "soup")
    tiny_model(num_hidden_layers=1).save_pretrained(tmp_path / "short")
    with pytest.raises(TrainingError, match=r"the base has the tensor model\.layers\.1"):
        interpolate(base, {"a": tmp_path / "short"}, {"a": 0.5}, tmp_path / "soup")


# --- what is refused before anything is mixed -------------------------------------------------------------------------


def test_policies_of_this_base_may_be_mixed(tmp_path: Path) -> None:
    base = tiny_policy(tmp_path / "base")
    adapter(base, tmp_path / "lora", 1)
    for name, folder in (("full", moved(base, tmp_path / "full", 1)), ("lora", tmp_path / "lora"), ("base", base)):
        check_policy(base, name, folder)


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    base, other = tiny_policy(tmp_path / "base"), tiny_policy(tmp_path / "other", seed=1)
    adapter(other, tmp_path / "lora", 1)
    with pytest.raises((ConfigError, TrainingError), match="another base"):
        check_policy(base, "a", tmp_path / "lora")


def test_an_adapter_that_does_not_say_its_base_has_to_fit_it(tmp_path: Path) -> None:
    base = tiny_policy(tmp_path / "base")
    stored = adapter(base, tmp_path / "lora", 1)
    save_file(stored, tmp_path / "lora" / "adapter_model.safetensors", metadata={"format": "pt"})
    check_policy(base, "a", tmp_path / "lora")
    tiny_model(num_hidden_layers=1).save_pretrained(tmp_path / "short")
    with pytest.raises((ConfigError, TrainingError), match=r"have no place, such as .*layers\.1"):
        check_policy(tmp_path / "short", "a", tmp_path / "lora")
    tiny_model(intermediate_size=80).save_pretrained(tmp_path / "narrow")
    with pytest.raises((ConfigError, TrainingError), match=r"(?s)does not fit the policy .*size mismatch"):
        check_policy(tmp_path / "narrow", "a", tmp_path / "lora")


@pytest.mark.parametrize(("change", "says"), [("shape", "has shape"), ("gone", "the base has the tensor")])
def test_full_weights_with_other_tensors_are_refused(tmp_path: Path, change: str, says: str) -> None:
    base, key = tiny_policy(tmp_path / "base"), "model.layers.1.self_attn.q_proj.weight"
    policy = spoiled(base, tmp_path / "a", key, change)
    with pytest.raises(TrainingError, match=f"the policy of 'a' .* stem from this base: .*{says}") as error:
        check_policy(base, "a", policy)
    assert key in str(error.value)


def test_full_weights_of_another_start_or_function_are_refused(tmp_path: Path) -> None:
    base = tiny_policy(tmp_path / "base")
    with pytest.raises(TrainingError, match=r"does not stem from this base: .* more than its whole length"):
        check_policy(base, "a", tiny_policy(tmp_path / "other", seed=1))
    policy = moved(base, tmp_path / "a", 1)
    settings = json.loads((policy / "config.json").read_text())
    settings["hidden_act"] = "relu"
    (policy / "config.json").write_text(json.dumps(settings))
    for look in (
        lambda: check_policy(base, "a", policy),
        lambda: interpolate(base, {"a": policy}, {"a": 0.5}, tmp_path / "soup"),
    ):
        with pytest.raises(TrainingError, match=r"its config\.json has hidden_act 'relu', the base's 'silu'"):
            look()


def test_names_and_weights_must_match(tmp_path: Path) -> None:
    base = tiny_policy(tmp_path / "base")
    with pytest.raises(TrainingError, match=r"no policy for 'helpfullness'\. Did you mean 'helpfulness'"):
        interpolate(base, {"helpfulness": base}, {"helpfulness": 0.5, "helpfullness": 0.5}, tmp_path / "soup")
    with pytest.raises(TrainingError, match="no weight for 'b'"):
        interpolate(base, {"a": base, "b": base}, {"a": 1.0}, tmp_path / "soup")
    with pytest.raises(TrainingError, match="weight of 'a' is nan"):
        interpolate(base, {"a": base}, {"a": float("nan")}, tmp_path / "soup")
    with pytest.raises(TrainingError, match="at least one policy"):
        interpolate(base, {}, {}, tmp_path / "soup")
    with pytest.raises(TrainingError, match="exists already"):
        interpolate(base, {"a": base}, {"a": 1.0}, base)
