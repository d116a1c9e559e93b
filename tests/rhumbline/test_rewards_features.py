"""Features of a real (tiny) Llama: equal to the plain model's hidden states, and independent of the batch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from rhumbline.errors import ConfigError, ScoringError
from rhumbline.rewards.features import Backbone, FeatureSpec, identity
from tests.rhumbline.rewards_fakes import HIDDEN, PAIRS, ask, tiny_backbone

SPEC = FeatureSpec(layer=1, pooling=("mean", "last", "end"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    return Backbone.load(folder, SPEC)


def plain(folder: Path, backbone: Backbone, layer: int) -> np.ndarray:
    """mean, last and end of every pair by the whole model, one pair at a time, without padding or shared prompts."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    out = []
    for prompt, response in PAIRS:
        row = backbone.row(prompt, response)
        with torch.no_grad():
            states = model(torch.tensor([[*row.prefix, *row.answer]]), output_hidden_states=True).hidden_states[layer][
                0
            ]
        answer = states[len(row.prefix) : -1] if len(row.answer) > 1 else states[-1:]
        out.append(torch.cat([answer.mean(dim=0), answer[-1], states[-1]]).numpy())
    return np.stack(out)


@pytest.mark.parametrize("layer", [1, 2])
def test_equal_to_the_hidden_states_of_the_whole_model(folder: Path, layer: int) -> None:
    spec = FeatureSpec(layer=layer, pooling=SPEC.pooling)
    cut = Backbone.load(folder, spec)
    assert len(cut.model.layers) == layer
    features_ND, lengths_N = cut.features(PAIRS)
    assert features_ND.shape == (len(PAIRS), 3 * HIDDEN)
    np.testing.assert_allclose(features_ND, plain(folder, cut, layer), atol=1e-4)
    assert lengths_N.tolist() == [len(text.encode()) for _, text in PAIRS]  # one token per byte


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(range(len(PAIRS))), st.sampled_from([1, 60, 200, 100_000]), st.sampled_from(["right", "left"]))
def test_invariant_to_batch_size_order_and_padding_side(
    backbone: Backbone, order: list[int], budget: int, side: str
) -> None:
    reference, _ = backbone.features(PAIRS, token_budget=1)
    shuffled, _ = backbone.features([PAIRS[i] for i in order], budget, side)
    np.testing.assert_allclose(shuffled, reference[order], atol=2e-4)


def test_answers_to_one_prompt_do_not_see_each_other(backbone: Backbone) -> None:
    alone, _ = backbone.features([PAIRS[0]])
    beside, _ = backbone.features([(PAIRS[0][0], "Something quite different, and first."), PAIRS[0]])
    np.testing.assert_allclose(beside[1], alone[0], atol=1e-4)
    assert not np.allclose(beside[0], beside[1], atol=1e-2)


def test_too_long_pairs_lose_the_prompts_beginning_and_the_answers_end(folder: Path) -> None:
    short = Backbone.load(folder, FeatureSpec(layer=1, max_tokens=40, max_response_tokens=10))
    row = short.row(ask("x" * 100 + "END"), "0123456789abcdef")
    whole = short.tokenizer.decode([*row.prefix, *row.answer])
    assert len(row.prefix) + len(row.answer) == 40
    assert "END" in whole
    assert "0123456789<|im_end|>" in whole
    assert row.length == 16


def test_a_backbone_that_gives_no_numbers_is_refused(folder: Path) -> None:
    broken = Backbone.load(folder, SPEC)
    with torch.no_grad():
        broken.model.layers[0].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(ScoringError, match="not finite for 5 of 5 answers"):
        broken.features(PAIRS)


def test_identity_is_read_without_loading(folder: Path) -> None:
    assert identity(folder) == {
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 258,
    }
    assert Backbone.load(folder, SPEC).fingerprint == identity(folder)


def test_code_that_comes_with_a_backbone_runs_only_when_it_is_trusted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    shutil.copytree(folder, tmp_path / "own")
    told = json.loads((folder / "config.json").read_text())
    told |= {"model_type": "own", "auto_map": {"AutoConfig": "code.Own"}}
    (tmp_path / "own" / "config.json").write_text(json.dumps(told))
    (tmp_path / "own" / "code.py").write_text(
        "from transformers import LlamaConfig\n\n\nclass Own(LlamaConfig):\n    model_type = 'own'\n"
    )
    with pytest.raises(ConfigError, match="trust_remote_code"):
        identity(tmp_path / "own")
    assert identity(tmp_path / "own", trust_remote_code=True)["model_type"] == "own"


def test_what_cannot_be_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"features\.layer is 3, the backbone in .* has 2 layers"):
        Backbone.load(folder, FeatureSpec(layer=3))
    with pytest.raises(ConfigError, match="cannot read this backbone"):
        Backbone.load(tmp_path, FeatureSpec(layer=1))
    with pytest.raises(ConfigError, match="max_response_tokens"):
        FeatureSpec(layer=1, max_tokens=10, max_response_tokens=10)
    with pytest.raises(ConfigError, match="pooling from mean, last, end"):
        FeatureSpec(layer=1, pooling=())
