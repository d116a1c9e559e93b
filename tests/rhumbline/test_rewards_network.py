"""The network: equal to transformers' own forward, independent of the batch, and what it saves is what it was."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    RobertaConfig,
    RobertaForMaskedLM,
)

from rhumbline.config import Lora
from rhumbline.errors import ConfigError, ScoringError
from rhumbline.learning.optim import trained
from rhumbline.learning.policy import load_adapter
from rhumbline.rewards.network import Network, NetworkSpec
from rhumbline.rewards.pretrained import padding_token
from tests.rhumbline.chat_fakes import CHATML, byte_tokenizer
from tests.rhumbline.network_fakes import CLS, PAD, SEP, letter_tokenizer, started, tiny_base, tiny_tied
from tests.rhumbline.rewards_fakes import PAIRS, ask, tiny_backbone

PAIR = NetworkSpec(kind_of_input="pair", outputs=("helpfulness", "verbosity"), max_tokens=256, max_response_tokens=160)
TRIPLE = NetworkSpec(kind_of_input="triple", outputs=("a", "b", "tie"), max_tokens=250)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("encoder"), encoder=True)


@pytest.fixture(params=["decoder", "encoder"])
def base(request: pytest.FixtureRequest, decoder: Path, encoder: Path) -> Path:
    return decoder if request.param == "decoder" else encoder


def rows_of(network: Network) -> list:
    if network.spec.kind_of_input == "pair":
        return [network.reader.pair(prompt, text) for prompt, text in PAIRS]
    return [network.reader.triple(prompt, text, "Something else.") for prompt, text in PAIRS]


@pytest.mark.parametrize("spec", [PAIR, TRIPLE], ids=["pair", "triple"])
def test_transformers_own_forward_gives_our_outputs(base: Path, spec: NetworkSpec, tmp_path: Path) -> None:
    network = started(base, spec)
    rows = rows_of(network)
    outputs_NH = network.outputs(rows).detach()
    assert outputs_NH.shape == (len(rows), len(spec.outputs))
    assert outputs_NH.std(dim=0).min() > 0.01
    network.save(tmp_path)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32)
    assert tuple(theirs.config.id2label.values()) == spec.outputs
    for row, outputs_H in zip(rows, outputs_NH, strict=True):
        given = {"input_ids": torch.tensor([[*row.prefix, *row.answer]])}
        if not network.decoder:
            given["token_type_ids"] = torch.tensor([[0] * len(row.prefix) + [1] * len(row.answer)])
        with torch.no_grad():
            torch.testing.assert_close(theirs(**given).logits[0], outputs_H, atol=1e-5, rtol=1e-4)
    mine = Network.load(tmp_path)
    assert mine.spec == spec
    np.testing.assert_allclose(mine.raw(rows), outputs_NH, atol=1e-5)


def test_padding_is_never_the_end_token_that_is_scored(decoder: Path, tmp_path: Path) -> None:
    """The tokenizer pads with its end token. Transformers would take the token before it for the last one of every row."""
    network = started(decoder, PAIR)
    end = network.tokenizer.eos_token_id
    rows = rows_of(network)[:2]
    ours_NH = network.outputs(rows).detach()
    network.save(tmp_path)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32)
    assert theirs.config.pad_token_id == network.tokenizer.pad_token_id != end
    width = max(map(len, rows))
    ids_NT = torch.full((2, width), theirs.config.pad_token_id)
    for n, row in enumerate(rows):
        ids_NT[n, : len(row)] = torch.tensor([*row.prefix, *row.answer])
    mask_NT = torch.arange(width)[None] < torch.tensor([[len(row)] for row in rows])
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids_NT, attention_mask=mask_NT.long()).logits, ours_NH, atol=1e-5, rtol=1e-4)
        theirs.config.pad_token_id = end  # what was there before
        assert not torch.allclose(theirs(ids_NT[:1, : len(rows[0])]).logits[0], ours_NH[0], atol=1e-2)


def test_a_tokenizer_with_nothing_to_pad_with_is_refused() -> None:
    assert padding_token(byte_tokenizer(CHATML)) == 256  # the mark that opens a turn: no row ends in it
    with pytest.raises(ConfigError, match="no token to pad with but the end token"):
        padding_token(byte_tokenizer(CHATML, bos=None))


def test_a_padding_token_that_the_model_has_no_embedding_for_is_left() -> None:
    tokenizer = byte_tokenizer(CHATML, more_special=("<pad>",))
    tokenizer.pad_token = "<pad>"
    assert padding_token(tokenizer, num_embeddings=259) == 258
    assert (
        padding_token(tokenizer, num_embeddings=258) == 256
    )  # as Llama's with a <pad> that was added beside the model


@pytest.mark.parametrize("pooling", ["end", "mean"])
def test_outputs_do_not_depend_on_the_batch(base: Path, pooling: str) -> None:
    spec = NetworkSpec(kind_of_input="pair", outputs=("x",), pooling=pooling, max_tokens=256, max_response_tokens=160)
    network = started(base, spec)
    rows = rows_of(network)
    alone_NH = np.concatenate([network.raw([row]) for row in rows])
    order = [3, 0, 4, 2, 1]
    for budget in (1, 300, 100_000):
        for side in ("right", "left"):
            found_NH = network.raw([rows[i] for i in order], budget, side)
            np.testing.assert_allclose(found_NH, alone_NH[order], atol=2e-5)
    groups = list(network.batches(rows, 300))
    assert sorted(i for group in groups for i in group) == list(range(len(rows)))
    assert network.raw([]).shape == (0, 1)


def test_mean_is_over_the_answer_and_an_empty_one_has_its_end(decoder: Path) -> None:
    spec = NetworkSpec(kind_of_input="pair", outputs=("x",), pooling="mean", max_tokens=256, max_response_tokens=160)
    network = started(decoder, spec)
    outputs_NH = network.outputs(rows := rows_of(network)).detach()
    for row, output in zip(rows, outputs_NH[:, 0].tolist(), strict=True):
        states_TD = network.inner.model(torch.tensor([[*row.prefix, *row.answer]])).last_hidden_state[0]
        answer = states_TD[len(row.prefix) : -1] if len(row.answer) > 1 else states_TD[-1:]
        assert output == pytest.approx(network.head(answer.mean(dim=0)).item(), abs=1e-5)


def test_answers_that_share_a_prompt_have_the_gradient_of_those_that_do_not(decoder: Path) -> None:
    network = started(decoder, PAIR)
    rows = [row for row in rows_of(network) if row.prefix == rows_of(network)[0].prefix]
    assert len(rows) == 3
    network.outputs(rows).square().sum().backward()
    together = {name: p.grad.clone() for name, p in network.named_parameters()}
    network.zero_grad()
    for row in rows:
        network.outputs([row]).square().sum().backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(together[name], parameter.grad, atol=2e-4, rtol=1e-3)


def test_logits_by_length_are_added_kept_and_turn_with_the_answers(base: Path, tmp_path: Path) -> None:
    logits = ((0.1, 2.0, -0.5), (0.1, -2.0, -0.5), (-0.3, 0.0, 0.25))
    plain = started(base, TRIPLE)
    known = Network(plain.model, plain.tokenizer, replace(TRIPLE, length_logits=logits)).eval()
    rows = rows_of(plain)
    d_N = np.array([row.log_ratio for row in rows])
    assert np.ptp(d_N) > 0.5
    added_NC = np.stack([np.ones_like(d_N), d_N, np.abs(d_N)], axis=1) @ np.array(logits).T
    np.testing.assert_allclose(known.raw(rows), plain.raw(rows) + added_NC, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        by_length_NC = known.outputs(rows) - plain.outputs(rows)
    np.testing.assert_allclose(by_length_NC.detach().numpy(), added_NC, atol=1e-5)  # not rounded to bf16
    known.save(tmp_path)
    loaded = Network.load(tmp_path)
    assert loaded.spec == known.spec
    np.testing.assert_allclose(loaded.raw(rows), known.raw(rows), atol=1e-5)


def test_a_fresh_head_is_near_zero_and_follows_the_seed(decoder: Path) -> None:
    def fresh(seed: int) -> np.ndarray:
        torch.manual_seed(seed)
        network = Network.start(decoder, PAIR)
        return network.raw(rows_of(network))

    assert 0 < np.abs(fresh(1)).max() < 0.1  # a Bradley-Terry loss starts at ln 2
    np.testing.assert_array_equal(fresh(1), fresh(1))
    assert not np.array_equal(fresh(1), fresh(2))


@pytest.mark.parametrize("make", [tiny_backbone, tiny_tied], ids=["untied", "tied"])
def test_logits_of_answers_are_those_of_the_base_model(make: object, tmp_path: Path) -> None:
    make(tmp_path)
    network = started(tmp_path, PAIR, lm=True)
    rows = rows_of(network)
    outputs_NH, logits_RV, targets_R = network.outputs_and_logits(rows)
    torch.testing.assert_close(outputs_NH, network.outputs(rows))
    assert targets_R.tolist() == [token for row in rows for token in row.answer]
    causal = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    at = 0
    for row in rows:
        with torch.no_grad():
            logits_TV = causal(torch.tensor([[*row.prefix, *row.answer]])).logits[0]
        size = len(row.answer)
        torch.testing.assert_close(
            logits_RV[at : at + size].detach(), logits_TV[len(row.prefix) - 1 : -1], atol=1e-3, rtol=1e-3
        )
        at += size
    assert at == len(targets_R)


def test_under_lora_the_adapter_and_the_head_are_trained_and_merged_when_saved(base: Path, tmp_path: Path) -> None:
    network = started(base, PAIR)
    rows = rows_of(network)
    before_NH = network.raw(rows)
    network.attach(Lora(r=4, alpha=8))
    np.testing.assert_allclose(network.raw(rows), before_NH, atol=1e-5)  # B = 0
    assert all(".lora_" in name or ".modules_to_save." in name for name in trained(network))
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in trained(network).values():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    live_NH = network.raw(rows)
    assert np.abs(live_NH - before_NH).max() > 0.05
    network.save(tmp_path / "out", {k: v.detach().clone() for k, v in trained(network).items()})
    assert network.raw(rows) == pytest.approx(live_NH)  # saving changes nothing
    saved_NH = Network.load(tmp_path / "out").raw(rows)
    np.testing.assert_allclose(saved_NH, live_NH, atol=0.05)  # the adapter's file is bf16
    torch.manual_seed(0)
    peft = load_adapter(started(base, PAIR).model, tmp_path / "out" / "adapter").eval()
    again = Network.load(tmp_path / "out")
    again.model = peft.merge_and_unload()
    np.testing.assert_allclose(again.raw(rows), saved_NH, atol=1e-4)


@pytest.mark.parametrize("pooling", ["end", "mean"])
def test_over_weights_in_bf16_the_head_is_trained_and_read_in_fp32(base: Path, pooling: str) -> None:
    """An encoder's model calls its head itself: with states in bf16 torch would refuse, and autocast would round outputs."""
    spec = NetworkSpec(kind_of_input="pair", outputs=("x",), pooling=pooling, max_tokens=256, max_response_tokens=160)
    torch.manual_seed(0)
    network = Network.start(base, spec, dtype=torch.bfloat16)
    network.attach(Lora(r=4, alpha=8))
    assert {p.dtype for p in network.head.parameters()} == {torch.float32}
    assert {p.dtype for p in trained(network).values()} == {torch.float32}
    assert torch.bfloat16 in {p.dtype for p in network.parameters()}
    rows = rows_of(network.eval())
    for cast_as in (nullcontext(), torch.autocast("cpu", torch.bfloat16)):
        network.zero_grad()
        with cast_as:
            outputs_NH = network.outputs(rows)
        assert outputs_NH.dtype == torch.float32
        assert not torch.equal(outputs_NH, outputs_NH.bfloat16().float())
        outputs_NH.square().sum().backward()
        assert all(p.grad.isfinite().all() for p in network.head.parameters() if p.requires_grad)


def test_a_head_of_several_layers_is_trained_whole_and_saved(tmp_path: Path) -> None:
    tokenizer = letter_tokenizer()
    settings = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=300,
        type_vocab_size=2,
        initializer_range=0.3,
        pad_token_id=PAD,
        bos_token_id=CLS,
        eos_token_id=SEP,
    )
    torch.manual_seed(0)
    RobertaForMaskedLM(settings).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    network = started(tmp_path / "base", PAIR)
    network.attach(Lora(r=4, alpha=8))
    assert not [
        name for name in trained(network) if "classifier" in name and ".lora_" in name
    ]  # it would not be merged
    with torch.no_grad():
        for parameter in trained(network).values():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    rows = rows_of(network)
    network.eval().save(tmp_path / "out")
    np.testing.assert_allclose(Network.load(tmp_path / "out").raw(rows), network.raw(rows), atol=0.05)


def test_given_weights_are_what_is_saved(decoder: Path, tmp_path: Path) -> None:
    """Engines that shard them give the full ones by this module's names."""
    network, other = started(decoder, PAIR, seed=0), started(decoder, PAIR, seed=1)
    rows = rows_of(network)
    network.save(tmp_path, dict(other.named_parameters()), dtype=torch.bfloat16)
    kept = Network.load(tmp_path)
    np.testing.assert_allclose(kept.raw(rows), other.raw(rows), atol=0.2)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert next(kept.parameters()).dtype == torch.float32


def test_a_network_that_gives_no_numbers_is_refused(decoder: Path) -> None:
    network = started(decoder, PAIR)
    with torch.no_grad():
        network.head.weight.fill_(float("nan"))
    with pytest.raises(ScoringError, match="not finite for 5 of 5 inputs"):
        network.raw(rows_of(network))


def test_what_cannot_be_is_refused(decoder: Path, encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not of a reward network"):
        Network.load(decoder)
    with pytest.raises(ConfigError, match="cannot read this model"):
        Network.load(tmp_path)
    long = NetworkSpec(kind_of_input="pair", outputs=("x",), max_tokens=2000)
    with pytest.raises(ConfigError, match=r"network\.max_tokens is 2000, this model reads at most 1024"):
        Network.start(decoder, long)
    with pytest.raises(ConfigError, match="reads at most 256"):
        Network.start(encoder, long)
    with pytest.raises(ConfigError, match="this one is an encoder"):
        Network.start(encoder, PAIR, lm=True)
    network = started(decoder, PAIR)
    rows = rows_of(network)
    with pytest.raises(ConfigError, match=r"needs start\(lm=True\)"):
        network.outputs_and_logits(rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="where there is no GPU")
def test_8_bits_need_a_gpu(decoder: Path) -> None:
    with pytest.raises(ConfigError, match="load_in_8bit needs a GPU and the package bitsandbytes"):
        Network.start(decoder, PAIR, load_in_8bit=True)


def test_a_network_whose_weights_are_gone_is_refused(decoder: Path, tmp_path: Path) -> None:
    started(decoder, PAIR).save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"its weights lack score\.weight"):
        Network.load(tmp_path)


@pytest.mark.parametrize("size", [None, 3], ids=["lacking", "of another size"])
def test_a_base_model_whose_layers_are_not_all_there_is_refused(base: Path, tmp_path: Path, size: int | None) -> None:
    """Transformers would draw them at random, and the network would be trained on noise."""
    shutil.copytree(base, tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if ".1." in name and weights[name].dim() == 1)
    found = weights.pop(name)
    if size is not None:
        weights[name] = found[:size].clone()
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"its weights lack \S+\.1\.\S+ \(1 in all\)"):
        Network.start(tmp_path / "base", PAIR)


def test_an_empty_prompt_is_read(base: Path) -> None:
    network = started(base, PAIR)
    assert np.isfinite(network.raw([network.reader.pair(ask(""), "x"), network.reader.pair(ask("a"), "")])).all()
