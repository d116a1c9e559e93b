from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rhumbline import config
from rhumbline.data.chat import encode
from rhumbline.errors import DataError, TrainingError
from rhumbline.learning import checkpoints, train
from rhumbline.learning.engine import TorchEngine, World
from rhumbline.learning.logprobs import response_logprobs, token_logprobs
from rhumbline.learning.lora import attach, fuse
from rhumbline.learning.packing import Order, packed_attention
from rhumbline.learning.policy import load_policy, load_tokenizer, resolve
from rhumbline.learning.train import encode_examples, fit
from rhumbline.records import Example, Message
from rhumbline.tables import from_parquet
from tests.rhumbline.learning_fakes import Log, example, examples, quick, tiny_policy

LORA = {"r": 4, "alpha": 8}


@pytest.fixture
def policy(tmp_path) -> Path:
    return tiny_policy(tmp_path / "policy")


def moved(a: Path, b: Path) -> float:
    x, y = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return float(sum((x[k].float() - y[k].float()).square().sum() for k in x)) ** 0.5


@pytest.mark.parametrize(("lora", "share"), [(None, 0.2), (LORA, 0.5)], ids=["full", "lora"])
def test_it_learns_and_what_it_writes_loads(policy, tmp_path, lora, share):
    log = Log()
    data = [example(i, "abc") for i in range(8)]
    learner = quick(lora=lora, epochs=12)
    result = fit(data, learner=learner, policy_dir=policy, out_dir=tmp_path / "out", seed=7, report=log)
    assert result.steps == len(log.figures) == 24
    assert result.final_loss == log.losses[-1] < share * log.losses[0]
    tokenizer = load_tokenizer(result.checkpoint)
    encoded = [encode(e.messages, e.response, tokenizer, e.complete) for e in data]
    before = response_logprobs(load_policy(policy), encoded)
    after = response_logprobs(load_policy(result.checkpoint), encoded)
    assert sum(after) > sum(before) + 10 * len(data)
    # The first step's loss is that of the untrained policy: nats per learned token of its own four samples.
    assert log.losses[0] == pytest.approx(-sum(before) / sum(e.num_learned for e in encoded), rel=0.2)
    assert result.tokens == 12 * sum(len(e) for e in encoded)
    assert result.tokens_per_s > 0
    assert not (tmp_path / "out" / "steps").exists()
    assert (result.adapter is None) == (lora is None)
    if result.adapter is not None:
        assert {p.name for p in result.adapter.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_the_update_does_not_depend_on_the_micro_batches(policy, tmp_path, lora):
    logs = []
    for tokens in (40, 10_000):
        log = Log()
        learner = quick(lora=lora, micro_batch_tokens=tokens)
        fit(examples(10), learner=learner, policy_dir=policy, out_dir=tmp_path / str(tokens), seed=7, report=log)
        logs.append(log)
    assert logs[0].losses == pytest.approx(logs[1].losses, rel=1e-4)
    norms = [[f["learn/grad_norm"] for f in log.figures] for log in logs]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    assert moved(tmp_path / "40", tmp_path / "10000") < 0.02 * moved(tmp_path / "40", policy)


@pytest.mark.parametrize("lora", [None, {**LORA, "dropout": 0.2}], ids=["full", "lora with dropout"])
def test_resuming_gives_the_losses_of_an_undisturbed_run(policy, tmp_path, lora):
    learner = quick(lora=lora)
    straight, before, after = Log(), Log(stop_after=5), Log()
    settings: dict[str, Any] = {"learner": learner, "policy_dir": policy, "seed": 7}
    whole = fit(examples(16), **settings, out_dir=tmp_path / "whole", report=straight)
    with pytest.raises(KeyboardInterrupt):
        fit(examples(16), **settings, out_dir=tmp_path / "cut", report=before)
    assert before.folders[-1] == tmp_path / "cut" / "steps" / "000004"
    assert [p.name for p in (tmp_path / "cut" / "steps").iterdir()] == ["000004"]  # the older one is gone
    result = fit(examples(16), **settings, out_dir=tmp_path / "cut", report=after, resume_from=before.folders[-1])
    assert before.losses + after.losses[1:] == straight.losses  # step 5 was made twice
    assert result.resumed_at == 4
    assert result.tokens == whole.tokens
    assert moved(tmp_path / "cut", tmp_path / "whole") == 0.0


def test_a_checkpoint_of_another_training_is_refused(policy, tmp_path):
    log = Log(stop_after=3)
    settings: dict[str, Any] = {"policy_dir": policy, "out_dir": tmp_path / "out"}
    with pytest.raises(KeyboardInterrupt):
        fit(examples(16), learner=quick(), seed=7, report=log, **settings)
    (folder,) = log.folders
    for data, learner, seed in (
        (examples(15), quick(), 7),
        (examples(16), quick(lr=2e-2), 7),
        (examples(16), quick(), 8),
    ):
        with pytest.raises(TrainingError, match="belongs to a training with other"):
            fit(data, learner=learner, seed=seed, resume_from=folder, **settings)
    with pytest.raises(TrainingError, match="no checkpoint to go on from"):
        fit(examples(16), learner=quick(), seed=7, resume_from=tmp_path, **settings)
    # How the work is cut may change: a machine with less memory goes on where another stopped.
    smaller = quick(micro_batch_tokens=40, threads=1)
    assert fit(examples(16), learner=smaller, seed=7, resume_from=folder, **settings).resumed_at == 2


def test_a_loss_that_is_no_number_stops_with_a_remedy(policy, tmp_path, monkeypatch):
    from rhumbline.learning import train

    real, calls = train.sft, 0

    def broken(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        loss, metrics = real(*args)
        return (loss * float("nan"), metrics) if calls == 3 else (loss, metrics)

    monkeypatch.setattr(train, "sft", broken)
    with pytest.raises(TrainingError, match=r"step 2 is nan\. Lower learner\.lr.*samples are in .*nan-batch\.json"):
        fit(examples(16), learner=quick(), policy_dir=policy, out_dir=tmp_path / "out", seed=7)
    assert not (tmp_path / "out" / "model.safetensors").exists()
    kept = json.loads((tmp_path / "nan-batch.json").read_text())
    assert kept == {"step": 2, "samples": [f"e{i}" for i in Order(16, 4, 2, 7)[2]]}
    saved = {example.id: example for example in examples(16)}
    assert from_parquet((tmp_path / "failed-batch.parquet").read_bytes()) == [saved[id_] for id_ in kept["samples"]]


def test_nothing_to_learn_from_says_why(policy, tmp_path):
    data = [example(1, "x" * 500), example(2, "", complete=False)]
    with pytest.raises(DataError, match=r"of 2 examples 1 are longer than 256 tokens.* 1 have no token"):
        fit(data, learner=quick(max_length=256), policy_dir=policy, out_dir=tmp_path / "out", seed=7)


def test_examples_are_dropped_and_counted(policy):
    tokenizer = load_tokenizer(policy)
    kept = example(3, "abc", weight=2.0)
    data = [example(1, "x" * 500), example(2, "", complete=False), kept, example(4, "abc", teacher="y" * 500)]
    samples, too_long, empty = encode_examples(data, tokenizer, 256)
    assert (len(samples), too_long, empty) == (1, 2, 1)
    assert samples[0].weight == 2.0
    assert samples[0].student == encode(kept.messages, "abc", tokenizer)
    with pytest.raises(DataError, match="weight is nan"):
        encode_examples([example(5, "a", weight=float("nan"))], tokenizer, 256)


def test_a_sample_without_weight_teaches_nothing(policy, tmp_path):
    data = [example(0, "abc"), example(1, "zzz", weight=0.0)]
    learner = quick(batch_size=2, epochs=1)
    with_it = fit(data, learner=learner, policy_dir=policy, out_dir=tmp_path / "a", seed=7)
    fit(data[:1], learner=learner, policy_dir=policy, out_dir=tmp_path / "b", seed=7)
    assert moved(tmp_path / "a", tmp_path / "b") < 1e-3 * moved(tmp_path / "a", policy)
    alone = fit([data[1]], learner=learner, policy_dir=policy, out_dir=tmp_path / "c", seed=7)
    assert alone.final_loss == 0.0
    assert with_it.final_loss > 0


def test_an_adapter_is_gone_on_with(policy, tmp_path):
    settings: dict[str, Any] = {"policy_dir": policy, "seed": 7}
    first = fit(examples(8), learner=quick(lora=LORA), out_dir=tmp_path / "first", **settings)
    assert first.adapter is not None
    log = Log()
    again = quick(lora=LORA, lr=1e-9, warmup_steps=0)
    fit(examples(8), learner=again, out_dir=tmp_path / "second", adapter_dir=first.adapter, report=log, **settings)
    assert moved(tmp_path / "first", tmp_path / "second") < 1e-3 * moved(tmp_path / "first", policy)
    # Full weights begin from the adapter merged in: the same first loss.
    full = Log()
    learner = quick(lr=1e-9, warmup_steps=0)
    fit(examples(8), learner=learner, out_dir=tmp_path / "third", adapter_dir=first.adapter, report=full, **settings)
    assert full.losses[0] == pytest.approx(log.losses[0], rel=1e-2)


@pytest.mark.parametrize(("saved", "asked"), [(0.3, 0.0), (0.0, 0.3), (0.3, 0.1)])
def test_dropout_is_the_recipe_s_and_not_that_of_an_adapter_which_is_gone_on_with(policy, tmp_path, saved, asked):
    def lora_of(share: float) -> config.Lora:
        return config.Lora(r=4, alpha=8, dropout=share)

    attach(load_policy(policy, torch.float32), lora_of(saved)).save_pretrained(tmp_path / "saved")
    model = attach(load_policy(policy, torch.float32), lora_of(asked), tmp_path / "saved")
    found = {module.p for name, module in model.named_modules() if "lora_dropout" in name and hasattr(module, "p")}
    assert found == ({asked} if asked > 0 else set())
    assert model.peft_config["default"].lora_dropout == asked
    assert (fuse(model) > 0) == (asked == 0)  # only without dropout there is the faster forward pass


# --- a teacher --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_a_teacher_asked_as_the_student_teaches_nothing(policy, tmp_path, lora):
    log = Log()
    learner = quick(lora=lora, epochs=1)
    fit(examples(8, teacher="v"), learner=learner, policy_dir=policy, out_dir=tmp_path / "out", seed=7, report=log)
    assert log.losses[0] == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_the_student_comes_to_answer_as_the_teacher(policy, tmp_path, lora):
    log = Log()
    learner = quick(lora=lora, epochs=15)
    data = examples(8, teacher="Answer in capitals, please.")
    fit(data, learner=learner, policy_dir=policy, out_dir=tmp_path / "out", seed=7, report=log)
    assert log.losses[-1] < 0.3 * log.losses[0]


def test_the_first_distilled_loss_is_the_kl_of_the_two_prompts(policy, tmp_path):
    log = Log()
    data = [example(0, "abcdef", teacher="w"), example(1, "xyz", teacher="w")]
    learner = quick(batch_size=2, epochs=1)
    fit(data, learner=learner, policy_dir=policy, out_dir=tmp_path / "out", seed=7, report=log)
    model, tokenizer = load_policy(policy, torch.float32), load_tokenizer(policy)
    total, count = 0.0, 0
    for one in data:
        rows = []
        for messages in (one.teacher, one.messages):
            assert messages is not None
            encoded = encode(messages, one.response, tokenizer)
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([encoded.token_ids])).logits[0]
            rows.append(logits[encoded.prompt_length - 1 : -1].log_softmax(-1))
        total += float((rows[0].exp() * (rows[0] - rows[1])).sum())
        count += len(rows[0])
    assert log.losses[0] == pytest.approx(total / count, rel=1e-3)
    assert log.losses[0] > 0.01


def test_another_teacher_and_a_mixture_with_plain_examples(policy, tmp_path):
    other = tiny_policy(tmp_path / "other", seed=1)
    data = [*examples(4), *examples(4, teacher="v")]
    settings: dict[str, Any] = {"policy_dir": policy, "seed": 7}
    log = Log()
    learner = quick(lora=LORA, batch_size=8, epochs=10)
    fit(data, learner=learner, teacher_dir=other, out_dir=tmp_path / "a", report=log, **settings)
    plain = Log()
    fit(data, learner=learner, out_dir=tmp_path / "b", report=plain, **settings)
    assert log.losses[0] > plain.losses[0] + 0.5  # another policy asked alike disagrees; the same does not
    assert log.losses[-1] < log.losses[0]


def test_a_worker_without_a_share_makes_the_passes_of_those_that_have_one(policy, tmp_path, monkeypatch):
    data = [*examples(3), *examples(1, teacher="v")]
    samples, _, _ = encode_examples(data, load_tokenizer(policy), 512)
    model: Any = load_policy(policy, torch.float32)
    engine = TorchEngine(
        model, torch.optim.SGD(model.parameters()), max_grad_norm=1.0, dtype=torch.float32, world=World()
    )
    monkeypatch.setattr(World, "total", lambda _self, value, _device: value)
    asked: dict[int, list[bool]] = {0: [], 1: []}
    with packed_attention(model):
        for rank, seen in asked.items():

            def teach(_teacher: Any, chosen: Any, _device: Any, seen: list[bool] = seen) -> None:
                seen.append(chosen[0].teacher is not None)

            monkeypatch.setattr(train, "_teach", teach)
            train._accumulate(engine, model, samples, 512, World(rank, 2))
    assert asked[0] == asked[1] == [False, True]  # under ZeRO 3 all must ask for the same weights


def test_the_state_of_a_step_holds_no_more_than_it_needs(policy, tmp_path):
    log = Log(stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        fit(examples(16), learner=quick(lora=LORA), policy_dir=policy, out_dir=tmp_path / "o", seed=7, report=log)
    (folder,) = log.folders
    assert {p.name for p in folder.iterdir()} == {"state.json", "trained.safetensors", "optimizer.pt"}
    assert all("lora_" in name for name in load_file(folder / "trained.safetensors"))
    state = json.loads((folder / "state.json").read_text())
    assert state["step"] == 2
    assert state["loss"] == log.losses[1]


@pytest.mark.slow
@pytest.mark.parametrize("teacher", [None, "Answer in one short sentence."], ids=["sft", "distil"])
def test_the_embedded_policy_learns_in_bf16(tmp_path, teacher):
    policy, log = resolve("embedded"), Log()
    learner = quick(
        lora={"r": 8, "alpha": 16}, lr=2e-3, epochs=6, batch_size=4, dtype="bfloat16", weights_dtype="bfloat16"
    )
    response = "A rhumb line crosses every meridian at the same angle."
    data = [example(i, response, teacher) for i in range(4)]
    result = fit(data, learner=learner, policy_dir=policy, out_dir=tmp_path / "out", seed=7, report=log)
    assert result.steps == 6
    assert log.losses[-1] < 0.7 * log.losses[0]
    if teacher is None:
        tokenizer = load_tokenizer(result.checkpoint)
        encoded = [encode(e.messages, e.response, tokenizer) for e in data]
        before, after = (sum(response_logprobs(load_policy(p), encoded)) for p in (policy, result.checkpoint))
        assert after > before + 4


@pytest.mark.parametrize("rank", [0, 1])
def test_a_checkpoint_is_reported_by_the_worker_that_wrote_it(tmp_path, rank):
    """On one file system every worker sees what rank 0 wrote."""
    (tmp_path / "000002").mkdir()
    (tmp_path / "000002" / "trained.safetensors").touch()
    engine = SimpleNamespace(save=lambda folder: None)
    state = {"step": 2, "tokens": 0, "loss": 0.0}
    written = checkpoints.write(engine, tmp_path, state, "", World(rank, 2))
    assert written == (tmp_path / "000002" if rank == 0 else None)


def test_every_turn_of_the_assistant_carries_the_loss_where_the_example_says_so(policy, tmp_path):
    turns = (
        Message(role="user", content="Why?"),
        Message(role="assistant", content="So it is."),
        Message(role="user", content="Hm?"),
    )
    every = [Example(id=str(i), messages=turns, response="Ah!" * (i + 1), every_turn=True) for i in range(4)]
    samples, _, _ = encode_examples(every, load_tokenizer(policy), 512)
    rows = token_logprobs(load_policy(policy, torch.float32), [s.student for s in samples])
    expected = -float(torch.cat(rows).mean())
    log = Log()
    fit(every, learner=quick(batch_size=4, epochs=1), policy_dir=policy, out_dir=tmp_path / "o", seed=7, report=log)
    assert log.losses[0] == pytest.approx(expected, abs=1e-5)
