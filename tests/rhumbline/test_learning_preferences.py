"""Training on pairs and judged answers: the loss of a batch, where training starts, what it learns, however it is cut."""

from __future__ import annotations

import json
import math
import os
import socket
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch.nn.functional import logsigmoid

from rhumbline.data.chat import Encoded, encode
from rhumbline.errors import DataError, TrainingError
from rhumbline.learning.policy import load_policy, load_tokenizer
from rhumbline.learning.preferences import balanced
from rhumbline.learning.train import fit
from rhumbline.learning.units import encode_judged
from rhumbline.losses import UNPAIRED_LOSSES
from tests.rhumbline.learning_fakes import Log, examples, quick, tiny_policy
from tests.rhumbline.preference_fakes import data, judged, loss_of, pair, to_two_prompts, train

LORA = {"r": 4, "alpha": 8}
KINDS = ("dpo", "ipo", "jpo", "modpo", "kto", "bco")


@pytest.fixture
def policy(tmp_path) -> Path:
    return tiny_policy(tmp_path / "policy")


# --- an independent implementation: one padded batch, torch's own log_softmax, the formulas written out ---------------


def padded_logps(folder: Path, encoded: list[Encoded], whole: bool = False) -> torch.Tensor:
    """(N,) sums over the answers' tokens, or over all but each sample's first."""
    model = load_policy(folder, torch.float32)
    longest = max(map(len, encoded))
    ids_NT = torch.zeros(len(encoded), longest, dtype=torch.long)
    seen_NT, learned_NT = torch.zeros_like(ids_NT), torch.zeros_like(ids_NT)
    for row, one in enumerate(encoded):
        ids_NT[row, : len(one)] = torch.tensor(one.token_ids)
        seen_NT[row, : len(one)] = 1
        learned_NT[row, 1 if whole else one.prompt_length : len(one)] = 1
    with torch.no_grad():
        logp_NTV = model(input_ids=ids_NT, attention_mask=seen_NT).logits.double().log_softmax(-1)
    logp_NT = logp_NTV[:, :-1].gather(2, ids_NT[:, 1:, None])[:, :, 0]
    return (logp_NT * learned_NT[:, 1:]).sum(1)


@pytest.mark.parametrize("kind", ["dpo", "ipo", "jpo", "modpo"])
def test_the_loss_of_a_batch_of_pairs_is_that_of_an_independent_implementation(policy, tmp_path, kind):
    other, pairs = tiny_policy(tmp_path / "other", seed=1), [pair(i, weight=1 + i % 2) for i in range(7)]
    if kind == "jpo":
        pairs = [*pairs[:4], *(to_two_prompts(i, weight=1 + i % 2) for i in range(4, 7))]
    smoothing = 0.0 if kind == "ipo" else 0.1
    loss = loss_of(kind, beta=0.3, label_smoothing=smoothing)
    learner = quick(batch_size=7, epochs=1, micro_batch_tokens=100)
    log = train(policy, tmp_path / "out", pairs, loss, learner=learner, reference_dir=other)

    tokenizer = load_tokenizer(policy)
    answers = [[p.chosen for p in pairs], [p.rejected for p in pairs]]
    asked = [[p.messages for p in pairs], [p.rejected_messages or p.messages for p in pairs]]
    sides = [
        [encode(*one, tokenizer) for one in zip(turns, texts, strict=True)]
        for turns, texts in zip(asked, answers, strict=True)
    ]
    ratios = [padded_logps(policy, side, kind == "jpo") - padded_logps(other, side, kind == "jpo") for side in sides]
    weights = torch.tensor([p.weight for p in pairs], dtype=torch.float64)
    if kind == "ipo":
        means = [r / torch.tensor([s.num_learned for s in side]) for r, side in zip(ratios, sides, strict=True)]
        rewards = [0.3 * m for m in means]
        losses = (means[0] - means[1] - 1 / 0.6) ** 2
        right = rewards[0] > rewards[1]
    else:
        own = torch.tensor([p.direction[0] for p in pairs]).double() if kind == "modpo" else torch.ones(7).double()
        margin = torch.tensor([p.direction[1] * p.gaps[1] for p in pairs]).double() if kind == "modpo" else 0.0
        rewards = [0.3 * r / own for r in ratios]
        x = (0.3 * (ratios[0] - ratios[1]) - margin) / own
        losses = -0.9 * logsigmoid(x) - 0.1 * logsigmoid(-x)
        right = x > 0
    assert log.of("loss")[0] == pytest.approx(float((weights * losses).sum() / weights.sum()), rel=1e-5, abs=1e-5)
    for name, rows in (
        ("chosen_reward", rewards[0]),
        ("rejected_reward", rewards[1]),
        ("margin", rewards[0] - rewards[1]),
        ("accuracy", right),
        ("chosen_logp", padded_logps(policy, sides[0], kind == "jpo")),
        ("rejected_logp", padded_logps(policy, sides[1], kind == "jpo")),
    ):
        assert log.of(name)[0] == pytest.approx(float((weights * rows).sum() / weights.sum()), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("kind", ["kto", "bco"])
def test_the_loss_of_a_batch_of_answers_is_that_of_an_independent_implementation(policy, tmp_path, kind):
    # This way round the mean log-ratio of the mismatched answers is above 0, where it is not clamped.
    other, policy = policy, tiny_policy(tmp_path / "trained", seed=1)
    samples = [judged(i, weight=1 + i % 2) for i in range(8)]
    loss = loss_of(kind, beta=0.05, desirable_weight=2.0, undesirable_weight=0.5)
    learner = quick(batch_size=8, epochs=1, micro_batch_tokens=60)
    log = train(policy, tmp_path / "out", samples, loss, learner=learner, reference_dir=other)

    tokenizer = load_tokenizer(policy)
    units, _ = encode_judged(samples, tokenizer, 512, mismatched_seed=7)
    weights = torch.tensor([s.weight for s in samples], dtype=torch.float64)

    def ratios(rows: list[Encoded]) -> torch.Tensor:
        return padded_logps(policy, rows) - padded_logps(other, rows)

    kl = float((weights * ratios([u.mismatched[0] for u in units])).sum() / weights.sum())
    point = 0.05 * max(kl, 0.0) if kind == "kto" else 0.0
    assert kl > 0
    rewards = 0.05 * ratios([encode(s.messages, s.response, tokenizer) for s in samples])
    total = 0.0
    for sample, reward in zip(samples, rewards.tolist(), strict=True):
        x = reward - point if sample.desirable else point - reward
        probability = 1 / (1 + math.exp(-x))
        wrong = 1 - probability if kind == "kto" else -math.log(probability)
        total += sample.weight * (2.0 if sample.desirable else 0.5) * wrong
    assert log.of("reference_point")[0] == pytest.approx(point, abs=1e-5)
    assert log.of("loss")[0] == pytest.approx(total / float(weights.sum()), abs=1e-5)
    for name, wanted in (("desirable_reward", True), ("undesirable_reward", False)):
        chosen = torch.tensor([s.desirable is wanted for s in samples]).double() * weights
        assert log.of(name)[0] == pytest.approx(float((chosen * rewards).sum() / chosen.sum()), abs=1e-5)


# --- where it starts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_the_first_loss_of_dpo_is_ln_2(policy, tmp_path, lora, dtype):
    learner = quick(lora=lora, dtype=dtype, epochs=1, micro_batch_tokens=90)
    log = train(policy, tmp_path / "out", data("dpo", 9), loss_of("dpo"), learner=learner)
    assert log.of("loss")[0] == pytest.approx(math.log(2), abs=1e-7)
    assert log.of("margin")[0] == pytest.approx(0.0, abs=1e-7)
    assert log.of("accuracy")[0] == 0.5
    assert log.of("loss")[1] != pytest.approx(math.log(2), abs=1e-4)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_an_adapter_that_is_gone_on_with_is_part_of_the_reference(policy, tmp_path, lora):
    before = fit(examples(8), learner=quick(lora=LORA), policy_dir=policy, out_dir=tmp_path / "sft", seed=7)
    given: dict[str, Any] = {"learner": quick(lora=lora, epochs=1), "adapter_dir": before.adapter}
    log = train(policy, tmp_path / "out", data("dpo", 8), loss_of("dpo"), **given)
    assert log.of("loss")[0] == pytest.approx(math.log(2), abs=1e-6)
    # Against the policy without the adapter it would not be.
    away = train(policy, tmp_path / "away", data("dpo", 8), loss_of("dpo"), reference_dir=policy, **given)
    assert abs(away.of("loss")[0] - math.log(2)) > 0.01


@pytest.mark.parametrize(("kind", "first"), [("dpo", math.log(2)), ("bco", math.log(2)), ("kto", 0.5)])
@pytest.mark.parametrize("share", [0.0, 0.3], ids=["none asked for", "asked for"])
def test_there_is_no_dropout_whatever_the_adapter_was_trained_with(policy, tmp_path, kind, first, share):
    before = fit(
        examples(8), learner=quick(lora={**LORA, "dropout": 0.3}), policy_dir=policy, out_dir=tmp_path / "sft", seed=7
    )
    assert json.loads((before.adapter / "adapter_config.json").read_text())["lora_dropout"] == 0.3
    learner = quick(lora={**LORA, "dropout": share}, epochs=1)
    even = (
        {} if kind == "dpo" else {"desirable_weight": 1.0, "undesirable_weight": 1.0}
    )  # or a step's mix of both counts
    loss = loss_of(kind, **even)
    log = train(policy, tmp_path / "out", data(kind, 8), loss, learner=learner, adapter_dir=before.adapter)
    assert log.of("loss")[0] == pytest.approx(first, abs=1e-6)
    assert log.of("margin")[0] == pytest.approx(0.0, abs=1e-6)


def test_a_reference_equal_to_the_start_changes_nothing(policy, tmp_path):
    logs = [
        train(policy, tmp_path / str(i), data("dpo", 8), loss_of("dpo"), learner=quick(lora=LORA), reference_dir=folder)
        for i, folder in enumerate((None, policy))
    ]
    assert logs[0].of("loss") == pytest.approx(logs[1].of("loss"), abs=1e-6)


# --- what it learns ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_it_comes_to_tell_the_sides_apart(policy, tmp_path, kind):
    learner = quick(lora=LORA, batch_size=8, epochs=16)
    log = train(policy, tmp_path / "out", data(kind, 8), loss_of(kind), learner=learner)
    assert log.of("loss")[-1] < log.of("loss")[0]
    assert log.of("accuracy")[-1] >= 0.75
    assert log.of("margin")[-1] > 0.05
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "out" / "steps").exists()


def test_of_one_prompt_jpo_is_dpo(policy, tmp_path):
    logs = [train(policy, tmp_path / kind, data(kind, 8), loss_of(kind)) for kind in ("dpo", "jpo")]
    assert logs[0].of("loss") == pytest.approx(logs[1].of("loss"), rel=1e-3)
    assert logs[0].of("chosen_logp")[0] > logs[1].of("chosen_logp")[0] + 10  # of the prompts too


def test_of_two_prompts_jpo_learns_these_too_and_the_others_nothing(policy, tmp_path):
    pairs = [to_two_prompts(i) for i in range(8)]
    alike = [pair(i) for i in range(8)]
    jpo = train(policy, tmp_path / "jpo", pairs, loss_of("jpo"))
    dpo = train(policy, tmp_path / "dpo", alike, loss_of("dpo"))
    assert jpo.of("loss")[0] == pytest.approx(dpo.of("loss")[0], abs=1e-6)
    assert jpo.of("loss")[-1] != pytest.approx(dpo.of("loss")[-1], rel=0.05)
    with pytest.raises(DataError, match="its answers are to two prompts, of which only jpo learns"):
        train(policy, tmp_path / "other", pairs, loss_of("dpo"))


def test_both_classes_weigh_the_same_unless_they_are_given(policy, tmp_path):
    units, _ = encode_judged([judged(i) for i in range(9)], load_tokenizer(policy), 512)
    assert sum(unit.desirable for unit in units) == 3
    even = balanced(loss_of("kto"), units)
    assert (even.desirable_weight, even.undesirable_weight) == (1.5, 0.75)  # 9 / (2 * 3), 9 / (2 * 6)
    given = balanced(loss_of("kto", undesirable_weight=0.5), units)
    assert (given.desirable_weight, given.undesirable_weight) == (1.5, 0.5)
    spoken = loss_of("bco", desirable_weight=1.5, undesirable_weight=0.75)
    samples = [judged(i) for i in range(9)]
    logs = [train(policy, tmp_path / str(i), samples, loss) for i, loss in enumerate((loss_of("bco"), spoken))]
    assert logs[0].of("loss") == logs[1].of("loss")


def test_modpo_of_one_objective_alone_is_dpo(policy, tmp_path):
    alone = [pair(i, direction=(1.0, 0.0)) for i in range(8)]
    modpo = train(policy, tmp_path / "modpo", alone, loss_of("modpo"))
    dpo = train(policy, tmp_path / "dpo", alone, loss_of("dpo"))
    assert modpo.of("loss") == pytest.approx(dpo.of("loss"), rel=1e-5)


def test_a_sample_without_weight_teaches_nothing(policy, tmp_path):
    for kind in ("dpo", "kto"):
        samples = data(kind, 6)
        weightless = [type(s)(**{f: getattr(s, f) for f in s.__slots__} | {"weight": 0.0}) for s in samples]
        log = train(policy, tmp_path / kind, weightless, loss_of(kind), learner=quick(epochs=1))
        assert log.of("loss") == [0.0, 0.0]
        assert log.of("grad_norm") == [0.0, 0.0]
        assert "learn/accuracy" not in log.figures[0]


def test_bco_carries_its_running_means_from_step_to_step(policy, tmp_path):
    log = train(policy, tmp_path / "out", data("bco", 8), loss_of("bco"), learner=quick(batch_size=8, epochs=3))
    means = [(log.of("desirable_reward")[i] + log.of("undesirable_reward")[i]) / 2 for i in range(3)]
    points = [0.0, means[0], (means[0] + means[1]) / 2]  # every step has the same number of answers of either class
    assert log.of("reference_point") == pytest.approx(points, abs=1e-12)
    assert points[2] != 0.0


# --- however it is cut ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_update_does_not_depend_on_the_micro_batches(policy, tmp_path, kind):
    logs = [
        train(policy, tmp_path / str(tokens), data(kind, 10), loss_of(kind), learner=quick(micro_batch_tokens=tokens))
        for tokens in (1, 120, 10_000)
    ]
    for log in logs[1:]:
        assert log.of("loss") == pytest.approx(logs[0].of("loss"), rel=2e-3)
        assert log.of("loss")[0] == pytest.approx(logs[0].of("loss")[0], abs=1e-6)
        assert log.of("grad_norm")[0] == pytest.approx(logs[0].of("grad_norm")[0], rel=1e-3)
        assert log.of("accuracy") == pytest.approx(logs[0].of("accuracy"), abs=0.13)


@pytest.mark.parametrize(
    ("kind", "lora"), [("dpo", None), ("dpo", {**LORA, "dropout": 0.2}), ("kto", LORA), ("bco", None)]
)
def test_resuming_gives_the_losses_of_an_undisturbed_run(policy, tmp_path, kind, lora):
    given: dict[str, Any] = {"learner": quick(lora=lora)}
    straight = train(policy, tmp_path / "whole", data(kind, 16), loss_of(kind), **given)
    before, after = Log(stop_after=5), Log()
    with pytest.raises(KeyboardInterrupt):
        train(policy, tmp_path / "cut", data(kind, 16), loss_of(kind), **given, report=before)
    assert before.folders[-1].name == "000004"
    train(
        policy, tmp_path / "cut", data(kind, 16), loss_of(kind), **given, report=after, resume_from=before.folders[-1]
    )
    assert before.of("loss") + after.of("loss")[1:] == straight.of("loss")  # step 5 was made twice
    point = "reference_point" if kind in UNPAIRED_LOSSES else "margin"
    assert after.of(point) == straight.of(point)[4:]


def test_a_checkpoint_of_another_loss_or_other_samples_is_refused(policy, tmp_path):
    log = Log(stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        train(policy, tmp_path / "out", data("dpo", 16), loss_of("dpo"), report=log)
    for samples, loss in ((data("dpo", 16), loss_of("dpo", beta=0.2)), (data("dpo", 15), loss_of("dpo"))):
        with pytest.raises(TrainingError, match="belongs to a training with other"):
            train(policy, tmp_path / "out", samples, loss, resume_from=log.folders[0])


def _worker(rank: int, port: int, policy: str, out: str) -> None:
    import torch.distributed as dist

    warnings.simplefilter("ignore")
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    for kind in KINDS:
        given: dict[str, Any] = {"learner": quick(micro_batch_tokens=90), "rank": rank, "world_size": 2}
        log = train(Path(policy), Path(out) / kind, data(kind, 13), loss_of(kind), **given)
        (Path(out) / f"{kind}-{rank}.json").write_text(json.dumps(log.figures))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_workers_make_the_update_of_one(policy, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_worker, (port, str(policy), str(tmp_path)), nprocs=2)
    for kind in KINDS:
        one = train(
            policy, tmp_path / "one", data(kind, 13), loss_of(kind), learner=quick(micro_batch_tokens=90)
        ).figures
        first, second = (json.loads((tmp_path / f"{kind}-{rank}.json").read_text()) for rank in (0, 1))
        for figures in (*one, *first, *second):
            figures.pop("learn/tokens_per_s")
        assert first == second  # every worker reports the whole step
        assert first[0] == pytest.approx(one[0], rel=1e-3, abs=1e-5)
        assert [f["learn/loss"] for f in first] == pytest.approx([f["learn/loss"] for f in one], rel=2e-3)
        assert first[-1]["learn/tokens"] == one[-1]["learn/tokens"]


# --- a loss that is no number -----------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_names_the_batch(policy, tmp_path):
    poisoned = tiny_policy(tmp_path / "poisoned", seed=1)
    weights = load_file(poisoned / "model.safetensors")
    weights["model.norm.weight"].fill_(float("nan"))
    save_file(weights, poisoned / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingError, match=r"step 0 is nan\. Lower learner\.lr.*samples are in .*nan-batch\.json"):
        train(policy, tmp_path / "run" / "out", data("dpo", 8), loss_of("dpo"), reference_dir=poisoned)
    kept = json.loads((tmp_path / "run" / "nan-batch.json").read_text())
    assert kept["step"] == 0
    assert len(kept["samples"]) == 4
    assert set(kept["samples"]) <= {f"p{i}" for i in range(8)}
