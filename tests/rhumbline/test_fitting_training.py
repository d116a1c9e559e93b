"""Every kind of reward network on a model of two layers: it learns, resumes to the bit, and does not see how a step was cut."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rhumbline.cards.length_only import LengthClasses
from rhumbline.data.chat import encode
from rhumbline.errors import TrainingError
from rhumbline.fitting import training
from rhumbline.fitting.kinds import KINDS
from rhumbline.fitting.recipe import EarlyStopping
from rhumbline.fitting.training import cuts, fit, read
from rhumbline.learning.logprobs import response_logprobs
from rhumbline.learning.policy import load_policy, load_tokenizer
from rhumbline.rewards.network import Network
from tests.fakes import tiny_policy
from tests.rhumbline.learning_fakes import Log
from tests.rhumbline.reward_tasks import LORA, recipe_of, task_of

KINDS_HERE = ["regression", "absolute", "preference", "comparer"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy(tmp_path_factory.mktemp("backbone") / "policy")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "model.safetensors"))


@pytest.mark.parametrize(
    ("kind", "sections"),
    [
        *((kind, {}) for kind in KINDS_HERE),
        ("regression", {"network": {"max_tokens": 160, "max_response_tokens": 48, "lm_weight": 0.1}}),
        ("absolute", {"absolute": {"label": "good", "form": "mse_with_penalty"}}),
        ("preference", {"learner": {"lora": LORA}, "loss": {"margin": "strength", "centring": 0.01}}),
        ("comparer", {"learner": {"lora": LORA}, "loss": {"swap": "both"}}),
        ("comparer", {"network": {"max_tokens": 320, "length_expert": True}}),
        ("regression", {"network": {"max_tokens": 160, "max_response_tokens": 48, "freeze": True}}),
    ],
)
def test_it_learns_and_what_it_writes_loads(
    backbone: Path, tmp_path: Path, kind: str, sections: dict[str, Any]
) -> None:
    learner = {"epochs": 12, **sections.get("learner", {})}
    recipe, task, log = recipe_of(kind, backbone, **{**sections, "learner": learner}), task_of(kind), Log()
    result = fit(task, recipe=recipe, out_dir=tmp_path / "out", seed=7, report=log)
    assert result.steps == result.steps_planned == result.kept_step == len(log.figures) == 48
    frozen = recipe.network.freeze
    assert np.mean(log.losses[-4:]) < (0.97 if frozen else 0.8) * np.mean(log.losses[:4])
    assert result.num_units == 16
    assert not (tmp_path / "out" / training.BEST).exists()
    assert (result.adapter is not None) == (recipe.learner.lora is not None)
    network = Network.load(result.checkpoint)
    train = task.within("train")
    expert = (
        LengthClasses.fit(task.targets["winner"][train], task.lengths_of_both(train)).logits()
        if kind == "comparer"
        else ()
    )
    assert network.spec.length_logits == (expert if recipe.network.length_expert else ())
    held = task.within("test")
    outputs_NH = network.raw([read(network, one) for one in task.inputs])
    figures = KINDS[kind](task, recipe).figures(outputs_NH, held)
    if not frozen:
        assert figures.get("accuracy", 1.0) > 0.6
        assert figures.get("spearman", 1.0) > 0.3


@pytest.mark.parametrize("kind", KINDS_HERE)
def test_the_update_does_not_depend_on_the_micro_batches(backbone: Path, tmp_path: Path, kind: str) -> None:
    logs = []
    for tokens in (40, 10_000):
        recipe, log = recipe_of(kind, backbone, learner={"micro_batch_tokens": tokens}), Log()
        fit(task_of(kind), recipe=recipe, out_dir=tmp_path / str(tokens), seed=7, report=log)
        logs.append(log)
    assert logs[0].losses == pytest.approx(logs[1].losses, rel=1e-3)
    norms = [[f["learn/grad_norm"] for f in log.figures] for log in logs]
    assert norms[0] == pytest.approx(norms[1], rel=1e-2)


@pytest.mark.parametrize("adapter", [None, {**LORA, "dropout": 0.2}], ids=["full", "lora"])
def test_layers_that_are_computed_again_give_the_same_weights(
    backbone: Path, tmp_path: Path, adapter: dict[str, Any] | None
) -> None:
    """What is dropped out is dropped out the second time as well."""
    made = []
    for again in (False, True):
        recipe = recipe_of("preference", backbone, learner={"lora": adapter, "gradient_checkpointing": again})
        fit(task_of("preference"), recipe=recipe, out_dir=tmp_path / str(again), seed=7)
        made.append(weights(tmp_path / str(again)))
    assert made[0].keys() == made[1].keys()
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


@pytest.mark.parametrize(("kind", "lora"), [("preference", {**LORA, "dropout": 0.2}), ("comparer", None)])
def test_resuming_gives_the_run_that_was_not_disturbed(
    backbone: Path, tmp_path: Path, kind: str, lora: dict[str, Any] | None
) -> None:
    stopping = {"every": 1, "patience": 100}
    recipe, task = recipe_of(kind, backbone, learner={"lora": lora}, early_stopping=stopping), task_of(kind)
    straight, before, after = Log(), Log(stop_after=5), Log()
    whole = fit(task, recipe=recipe, out_dir=tmp_path / "whole", seed=7, report=straight)
    with pytest.raises(KeyboardInterrupt):
        fit(task, recipe=recipe, out_dir=tmp_path / "cut", seed=7, report=before)
    assert before.folders[-1].name == "000004"
    # Only what the checkpoint holds survives on another node.
    (tmp_path / "cut" / training.BEST).unlink()
    result = fit(task, recipe=recipe, out_dir=tmp_path / "cut", seed=7, report=after, resume_from=before.folders[-1])
    assert before.losses + after.losses[1:] == straight.losses  # step 5 was made twice
    assert result.resumed_at == 4
    assert (result.kept_step, result.kept_value, result.tokens) == (whole.kept_step, whole.kept_value, whole.tokens)
    left, right = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    assert all(torch.equal(left[name], right[name]) for name in left | right)


def test_a_checkpoint_of_another_training_is_refused(backbone: Path, tmp_path: Path) -> None:
    task, log = task_of("regression"), Log(stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        fit(task, recipe=recipe_of("regression", backbone), out_dir=tmp_path, seed=7, report=log)
    (folder,) = log.folders
    for recipe, seed in (
        (recipe_of("regression", backbone, learner={"lr": 0.02}), 7),
        (recipe_of("regression", backbone, network={"max_tokens": 120, "max_response_tokens": 48}), 7),
        (recipe_of("regression", backbone), 8),
    ):
        with pytest.raises(TrainingError, match="belongs to a training with other"):
            fit(task, recipe=recipe, out_dir=tmp_path, seed=seed, resume_from=folder)
    smaller = recipe_of("regression", backbone, learner={"micro_batch_tokens": 60, "threads": 1}, notes="told more")
    assert fit(task, recipe=smaller, out_dir=tmp_path, seed=7, resume_from=folder).resumed_at == 2


def test_early_stopping_keeps_the_best_weights(backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = iter([{"accuracy": v} for v in (0.5, 0.8, None, 0.8, 0.9)])
    monkeypatch.setattr(training, "_validate", lambda *_: next(figures))
    kept: list[dict[str, torch.Tensor]] = []
    write = training._write_weights

    def keep(tensors: dict[str, torch.Tensor], path: Path) -> None:
        kept.append({name: tensor.clone() for name, tensor in tensors.items()})
        write(tensors, path)

    monkeypatch.setattr(training, "_write_weights", keep)
    recipe = recipe_of("preference", backbone, learner={"epochs": 10}, early_stopping={"every": 2, "patience": 2})
    result = fit(task_of("preference"), recipe=recipe, out_dir=tmp_path, seed=7)
    assert (result.steps, result.steps_planned, result.kept_step, result.kept_value) == (8, 40, 4, 0.8)
    assert result.metric == "accuracy"
    saved, best = weights(tmp_path), kept[-1]
    assert len(kept) == 2
    assert torch.equal(saved["score.weight"], best["model.score.weight"])
    assert not (tmp_path / training.BEST).exists()


def test_a_figure_that_is_no_number_is_never_the_best() -> None:
    stopping = EarlyStopping(every=1, patience=2)
    watch = training._Watch(stopping, "log_loss", None)
    looks = [
        watch.look(step, {"log_loss": v}) for step, v in enumerate((math.nan, 0.7, math.inf, 0.6, None, 0.6), start=1)
    ]
    assert looks == [True, True, False, True, False, False]
    assert (watch.kept_step, watch.value, watch.over) == (4, 0.6, True)
    again = training._Watch(stopping, "log_loss", watch.state)
    assert (again.kept_step, again.value, again.over) == (4, 0.6, True)


def test_the_language_modelling_loss_is_the_base_models(backbone: Path, tmp_path: Path) -> None:
    shape = {"max_tokens": 160, "max_response_tokens": 48, "lm_weight": 0.5}
    recipe = recipe_of("regression", backbone, learner={"batch_size": 16, "epochs": 1}, network=shape)
    task, log = task_of("regression"), Log()
    fit(task, recipe=recipe, out_dir=tmp_path / "out", seed=7, report=log)
    (first,) = log.figures
    assert first["learn/loss"] == pytest.approx(first["learn/label_loss"] + 0.5 * first["learn/lm_loss"])
    tokenizer = load_tokenizer(backbone)
    trained_on = [task.inputs[i] for i in task.read_by(task.within("train"))]
    encoded = [encode(one.prompt.messages, one.answer, tokenizer) for one in trained_on]
    said = sum(response_logprobs(load_policy(backbone), encoded))
    assert first["learn/lm_loss"] == pytest.approx(-said / sum(e.num_learned for e in encoded), rel=1e-3)
    # Labels are standardised, so a fresh network is wrong by their variance.
    assert first["learn/label_loss"] == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_cuts_waste_little_and_serve_every_worker(workers: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 200, size=57).tolist()
    groups = cuts(lengths, 400, workers)
    assert len(groups) % workers == 0
    assert sorted(i for group in groups for i in group) == list(range(57))
    assert all(len(group) * max(lengths[i] for i in group) <= 400 for group in groups if len(group) > 1)
    ends = [(max(lengths[i] for i in group), min(lengths[i] for i in group)) for group in groups if group]
    assert all(one[1] >= other[0] for one, other in itertools.pairwise(ends))  # neighbours in length
    assert cuts([5], 400, 3) == [[0], [], []]
    assert cuts([500, 3], 400) == [[0], [1]]
