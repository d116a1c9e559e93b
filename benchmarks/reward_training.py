#!/usr/bin/env python
"""Tokens per second of training a preference model: `rhumbline.fitting.training.fit` against TRL's RewardTrainer.

    .venv/bin/python benchmarks/reward_training.py
    .venv/bin/python benchmarks/reward_training.py --weights full --dtype float32
    .venv/bin/python benchmarks/reward_training.py --answers 4 --batch 12

Ours      a recipe of kind preference: a prompt is read once for all its answers, answers once for all their pairs, batches
          go by length up to a budget of tokens, the LoRA is fused.
The rival `trl.RewardTrainer` on the same pairs in the same order, with the same initial weights, head and LoRA included, the
          same AdamW, cosine, clipping, precision, pairs per step and steps: chosen and rejected texts of a batch padded to
          its longest, the prompt in both. It is spared what costs it most: gradient checkpointing, which TRL switches on
          (--rival-checkpointing), and frozen weights in fp32. Tokens are given to it; neither side is timed making them.

With two answers to a prompt (--answers 2) a prompt is one pair, and all that we save is a prompt and padding; with K answers
both sides train on all K-choose-2 pairs, and TRL reads every answer K - 1 times. Both count the tokens that TRL reads, without
padding, so the ratio is that of seconds. Only steps are timed.

Both must do the same. Dropout is off on both sides. Before anything is timed, one step of each in float32 must have the same
loss, to SAME: a fresh head scores near 0, so every first loss is near log 2, and what would tell another implementation is how
far from it the loss is, which is printed. In the runs the first losses may differ by TOLERANCE, which is wider in bfloat16:
TRL computes the head in it too, ours stays in float32. Later steps drift apart by rounding: their largest difference is
printed, and all losses are in a CSV beside that of the runs, NAME_losses.csv.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal

import torch
import typer

from benchmarks.measure.inputs import smol
from benchmarks.measure.options import Data, Out, Pairs, Seed, Split, Threads
from benchmarks.measure.ratio import RESULTS, WARM_UP, Side, Work, compare
from benchmarks.measure.texts import Asked, described, made, read
from benchmarks.measure.trainer import seconds_of, unattended
from rhumbline.cli import user_errors
from rhumbline.errors import ConfigError
from rhumbline.fitting.kinds import Preference
from rhumbline.fitting.recipe import RewardRecipe
from rhumbline.fitting.task import Task, build
from rhumbline.fitting.training import fit, spec_of
from rhumbline.learning import lora
from rhumbline.learning.packing import Order
from rhumbline.learning.policy import load_tokenizer, resolve, set_threads
from rhumbline.queries import derive_seed
from rhumbline.rewards.network import Network
from rhumbline.rewards.pretrained import load_model
from rhumbline.rewards.reading import Reader

LONGEST = 128  # tokens of a prompt or an answer that is made here
SAME = 1e-5  # nats that the losses of one step in float32 may differ by
TOLERANCE = {"float32": SAME, "bfloat16": 1e-3}  # the same of the first step of every run
REMEDY = "pip install --no-deps -r requirements/cpu.txt"
# A task must have something to test on; nobody trains on it.
HELD_OUT = {
    "messages": [{"role": "user", "content": "Held out?"}],
    "chosen": "Yes.",
    "rejected": "No.",
    "split": "test",
}


def main(
    pairs: Pairs = 5,
    prompts: Annotated[int, typer.Option(min=1, help="prompts that are trained on, each once")] = 16,
    answers: Annotated[int, typer.Option(min=2, help="to a prompt: all pairs of them are trained on")] = 2,
    batch: Annotated[int, typer.Option(min=1, help="pairs per step; 8 is TRL's default")] = 8,
    rival_batch: Annotated[int | None, typer.Option(min=1, help="of these, in a padded batch of TRL; all")] = None,
    weights: Annotated[Literal["lora", "full"], typer.Option(help="what is trained")] = "lora",
    dtype: Annotated[
        Literal["bfloat16", "float32"], typer.Option(help="of forward passes, and of frozen weights")
    ] = "bfloat16",
    rival_checkpointing: Annotated[bool, typer.Option(help="gradient checkpointing, TRL's default")] = False,
    data: Data = None,
    split: Split = None,
    threads: Threads = 2,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Measure the training of preference models."""
    with user_errors(), tempfile.TemporaryDirectory() as scratch:
        micro = batch if rival_batch is None else rival_batch
        per_prompt = math.comb(answers, 2)
        check_options(prompts, per_prompt, batch, micro)
        if data is None:
            asked = made(smol(), load_tokenizer("embedded"), prompts, answers, (LONGEST, LONGEST), seed)
        else:
            asked = read(data, split, prompts, answers, seed, at_least=answers)
        learner = learner_of(batch // per_prompt, weights, dtype, threads)
        whole = Job.of(asked, learner, Path(scratch) / "pairs.jsonl")
        one_step = Job.of(asked[: batch // per_prompt], learner, Path(scratch) / "warm-up.jsonl")
        num_pairs = prompts * per_prompt
        print(
            f"{described(asked)}, {num_pairs} pairs, {whole.num_tokens} tokens as TRL reads them, {num_pairs // batch} "
            f"steps; {weights}, {dtype}; {threads} threads",
            flush=True,
        )
        check_same(one_step, micro, seed)
        losses: dict[str, dict[int, list[float]]] = {"ours": {}, "TRL": {}}

        def ours(pair: int) -> Work:
            job = one_step if pair == WARM_UP else whole
            seconds, losses["ours"][pair] = fitted(job, seed + pair + 1)
            return Work(job.num_tokens, seconds)

        def rival(pair: int) -> Work:
            job = one_step if pair == WARM_UP else whole
            seconds, losses["TRL"][pair] = reward_trainer(job, micro, rival_checkpointing, seed + pair + 1)
            return Work(job.num_tokens, seconds)

        rivals = [Side("RewardTrainer", rival)]
        (ratio,) = compare("reward_training", "tokens/s", ours=Side("fit", ours), rivals=rivals, pairs=pairs, out=out)
        path = RESULTS / "reward_training.csv" if out is None else out
        compare_losses(losses["ours"], losses["TRL"], TOLERANCE[dtype], path.with_name(f"{path.stem}_losses.csv"))
        print(ratio)


def check_options(prompts: int, per_prompt: int, batch: int, micro: int) -> None:
    """Raises ConfigError where TRL is missing, and where steps of the two sides would not be the same pairs."""
    if importlib.util.find_spec("trl") is None:
        raise ConfigError(f"the rival, TRL, is not installed: {REMEDY}")
    if batch % per_prompt or prompts * per_prompt % batch or batch % micro:
        raise ConfigError(
            f"{prompts} prompts of {per_prompt} pairs do not fill steps of {batch} pairs in parts of {micro}: give a --batch "
            "of whole prompts, --prompts that fill all steps, and a --rival-batch that divides --batch"
        )


def learner_of(batch_size: int, weights: str, dtype: str, threads: int) -> dict[str, Any]:
    """A recipe's section, by which both sides train. The learning rate is TRL's default."""
    return {
        "threads": threads,
        "lora": {"r": 16, "alpha": 32} if weights == "lora" else None,
        "lr": 1e-4,
        "warmup_steps": 0,  # theirs begins at 0, ours does not
        "epochs": 1,
        "batch_size": batch_size,  # prompts
        "micro_batch_tokens": 2048,  # as our recipes have it
        "dtype": dtype,
        "weights_dtype": dtype,
    }


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """What one run trains on."""

    recipe: RewardRecipe
    task: Task
    ids: tuple[list[int], ...]  # of task.inputs: TRL is given the tokens that ours reads

    @classmethod
    def of(cls, asked: Sequence[Asked], learner: Mapping[str, Any], path: Path) -> Job:
        """All pairs of each prompt's answers, the earlier one the better, by way of a file: as jobs/reward.py has them."""
        rows = [
            {"messages": [asdict(turn) for turn in prompt.messages], "chosen": a, "rejected": b, "split": "train"}
            for prompt, said in asked
            for a, b in combinations(said, 2)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, HELD_OUT]), encoding="utf-8")
        pairs = {"path": str(path), "test": "test", "licence": "none"}
        given = {"name": "benchmark", "kind": "preference", "comparisons": {"pairs": pairs}, "validation": 0.0}
        recipe = RewardRecipe.model_validate({**given, "learner": learner})
        task = build(recipe)
        assert len(task.within("train")) == len(asked)
        assert len(task.targets["unit"]) == len(rows) + 1
        reader = Reader(load_tokenizer(resolve(recipe.backbone)), spec_of(recipe, task))
        read_rows = [reader.pair(one.prompt, one.answer) for one in task.inputs]
        return cls(recipe, task, tuple([*row.prefix, *row.answer] for row in read_rows))

    def pairs(self, units: Sequence[int]) -> list[tuple[list[int], list[int]]]:
        """(chosen, rejected) tokens of these units, in order."""
        better, worse, _ = Preference(self.task, self.recipe).sides(units)
        return [(self.ids[b], self.ids[w]) for b, w in zip(better, worse, strict=True)]

    @property
    def num_tokens(self) -> int:
        """Of all pairs, without padding."""
        return sum(len(a) + len(b) for a, b in self.pairs(self.task.within("train")))


def fitted(job: Job, seed: int) -> tuple[float, list[float]]:
    """Seconds and the loss of every step."""
    losses: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        result = fit(
            job.task,
            recipe=job.recipe,
            out_dir=folder,
            seed=seed,
            report=lambda figures, _: losses.append(float(figures["learn/loss"])),
        )
    return result.seconds, losses


def reward_trainer(job: Job, batch_size: int, checkpointing: bool, seed: int) -> tuple[float, list[float]]:
    """The same by TRL, on batches of `batch_size` pairs."""
    import datasets
    from trl import RewardConfig, RewardTrainer

    datasets.disable_progress_bars()
    learner, units = job.recipe.learner, job.task.within("train")
    set_threads(learner.threads)
    model, tokenizer = same_start(job.recipe, job.task, seed)
    order = Order(len(units), learner.batch_size, learner.epochs, seed)
    steps = [job.pairs([units[i] for i in step]) for step in order]
    rows = [{"chosen_ids": chosen, "rejected_ids": rejected} for step in steps for chosen, rejected in step]
    losses: list[float] = []

    class Recording(RewardTrainer):  # type: ignore[misc]  # TRL's classes are Any to mypy
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            losses.append(float(loss.detach()))
            return loss

    parts = len(steps[0]) // batch_size
    with tempfile.TemporaryDirectory() as folder:
        arguments = RewardConfig(
            **unattended(folder, seed),
            num_train_epochs=learner.epochs,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=parts,
            train_sampling_strategy="sequential",
            learning_rate=learner.lr,
            lr_scheduler_type="cosine",
            warmup_steps=learner.warmup_steps,
            adam_beta1=learner.betas[0],
            adam_beta2=learner.betas[1],
            weight_decay=learner.weight_decay,
            max_grad_norm=learner.max_grad_norm,
            max_length=job.recipe.network.max_tokens,
            bf16=learner.dtype == "bfloat16",
            gradient_checkpointing=checkpointing,
        )
        dataset = datasets.Dataset.from_list(rows)
        seconds = seconds_of(Recording(model, arguments, train_dataset=dataset, processing_class=tokenizer))
    assert len(losses) == len(steps) * parts
    return seconds, [sum(losses[i : i + parts]) / parts for i in range(0, len(losses), parts)]


def same_start(recipe: RewardRecipe, task: Task, seed: int) -> tuple[Any, Any]:
    """transformers' model as it is, with the weights that `fit` begins with, head and LoRA included; and the tokenizer, whose
    padding is not the end token: TRL's own choice would make it read another position.
    """
    learner, folder = recipe.learner, resolve(recipe.backbone)
    dtype = getattr(torch, learner.weights_dtype) if learner.lora is not None else torch.float32
    torch.manual_seed(derive_seed(seed, "head"))
    network = Network.start(folder, spec_of(recipe, task), dtype=dtype)
    options: dict[str, Any] = {"dtype": dtype, "device": None, "load_in_8bit": False, "trust_remote_code": False}
    model = load_model(folder, network.inner.config, fresh=True, **options)
    if learner.lora is not None:
        network.attach(learner.lora)
        model = lora.attach(model, learner.lora, task_type="SEQ_CLS")
    else:
        model.float()
    model.load_state_dict(network.model.state_dict())
    return model, network.tokenizer


def check_same(job: Job, batch_size: int, seed: int) -> None:
    """One step on both sides in float32, where rounding hides nothing: the same loss."""
    exact = job.recipe.learner.model_copy(update={"dtype": "float32", "weights_dtype": "float32"})
    job = replace(job, recipe=job.recipe.model_copy(update={"learner": exact}))
    (ours,), (theirs,) = fitted(job, seed)[1], reward_trainer(job, batch_size, False, seed)[1]
    moved, told = abs(ours - theirs), abs(theirs - math.log(2))
    print(f"one step in float32: losses differ by {moved:.2g}, allowed are {SAME}; {told:.2g} from log 2", flush=True)
    assert moved <= SAME, f"one step in float32 has losses {ours} and {theirs}: the two sides do not do the same"


def compare_losses(
    ours: Mapping[int, Sequence[float]], theirs: Mapping[int, Sequence[float]], tolerance: float, path: Path
) -> None:
    """Write the losses of all steps of the runs, and see that those of the first steps are the same."""
    rows = [
        (pair, step, a, b)
        for pair in ours
        if pair != WARM_UP
        for step, (a, b) in enumerate(zip(ours[pair], theirs[pair], strict=True))
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["pair", "step", "ours", "TRL"])
        writer.writerows(rows)
    last = max(step for _, step, _, _ in rows)
    moved = [max(abs(a - b) for _, step, a, b in rows if step <= until) for until in (0, last)]
    ends = [fmean(row[side] for row in rows if row[1] == last) for side in (2, 3)]
    print(f"losses: {path}")
    print(f"reward_training/first_losses differ by up to {moved[0]:.2g}, allowed are {tolerance}")
    print(f"reward_training/all_losses differ by up to {moved[1]:.2g}")
    print(f"reward_training/last_losses ours {ends[0]:.4f}, TRL {ends[1]:.4f}, means over the pairs of runs")
    assert moved[0] <= tolerance, f"the first losses differ by up to {moved[0]:.3g}: the two sides do not do the same"


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL reports what is trained with it
    typer.run(main)
