#!/usr/bin/env python
"""Tokens per second and peak memory of LoRA training: `learning.train.fit` and `fit_preferences` against TRL's trainers.

    .venv/bin/python benchmarks/learner.py
    .venv/bin/python benchmarks/learner.py --which sft --no-packing
    .venv/bin/python benchmarks/learner.py --which dpo --pairs 9 --steps 8

Ours      packed rows of at most 512 tokens, attention sample by sample, fused LoRA, no logits for prompt tokens. DPO's
          reference reads every pair once before the first step, which is counted.
The rival the same policy, examples, LoRA, AdamW, cosine, clipping, precision and threads.
          SFT: `trl.SFTTrainer` with packing (best fit decreasing, rows of 512 tokens, one in a forward pass), its default
          loss, which makes logits for learned tokens only, on the assistant's tokens. It packs the whole epoch, so a step
          has as many rows as come to about our samples. --no-packing: padded batches.
          DPO: `trl.DPOTrainer` on the same pairs in the same order. TRL 1.13 has no packing there, and has
          withdrawn its padding-free path, so batches are padded, by default of about 512 tokens too. As TRL does unless told
          otherwise (`precompute_ref_log_probs`), the reference, the policy without its adapter, reads pairs as they come up.

It is spared what costs it most: gradient checkpointing, which TRL switches on, and frozen weights in fp32. Tokens are given
to it; neither side is timed making them, loading, or writing checkpoints. Both count the same tokens: prompts and
responses, of both sides of a pair, once an epoch, without padding and without what the reference reads.

Every run has a process of its own, and its peak memory is what that process held at most until its last step was over,
libraries included, a checkpoint's writing not. The peaks are beside the runs in NAME_memory.csv.

Both must do the same. Before anything is timed, both make two steps in float32 on the same few examples, from an adapter that
already says something, against a reference without one, so that the first loss of DPO is not just ln 2. The first losses must
be the same, to SAME of themselves; so must the second, to which gradients and the optimiser's step have led.
"""

from __future__ import annotations

import csv
import importlib.util
import math
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Annotated, Any, Literal, TypeVar
from unittest.mock import patch

import torch
import typer

from benchmarks.measure.inputs import answers, first_queries, smol
from benchmarks.measure.options import Out, Pairs, Seed, Threads
from benchmarks.measure.ratio import RESULTS, WARM_UP, Ratio, Side, Work, compare
from benchmarks.measure.trainer import seconds_of, unattended
from rhumbline import config
from rhumbline.cli import user_errors
from rhumbline.codecs import conversation
from rhumbline.data.chat import Encoded
from rhumbline.errors import ConfigError
from rhumbline.learning import lora, preferences, train
from rhumbline.learning.packing import Order
from rhumbline.learning.policy import load_adapter, load_policy, load_tokenizer, resolve, save_adapter, set_threads
from rhumbline.learning.precision import dtype_of, name_of
from rhumbline.learning.units import encode_pairs
from rhumbline.records import Example, Pair

Method = Literal["sft", "dpo"]
Result = TypeVar("Result")
IGNORED = -100  # a label without loss
FEW = 4  # examples or pairs of the warm-up, and of the steps in float32
SAME = 1e-4  # of a loss in float32, by which the two sides may differ
SCALE = 0.02  # standard deviation of B in the adapter that those steps start from
LOSS = config.PreferenceLoss(kind="dpo", beta=0.1)  # beta is TRL's default too
REMEDY = "pip install --no-deps -r requirements/cpu.txt"


def main(
    pairs: Pairs = 5,
    which: Annotated[Literal["sft", "dpo", "both"], typer.Option(help="what is measured")] = "both",
    steps: Annotated[int, typer.Option(min=1, help="optimiser steps of a run: of 16 examples, or of 8 pairs")] = 4,
    packing: Annotated[bool, typer.Option(help="of TRL's SFTTrainer")] = True,
    rival_batch: Annotated[
        int, typer.Option(min=1, help="pairs in a padded batch of TRL; without packing, twice as many examples")
    ] = 2,
    threads: Threads = 2,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Measure the training of policies."""
    with user_errors(), tempfile.TemporaryDirectory() as scratch:
        if importlib.util.find_spec("trl") is None:
            raise ConfigError(f"the rival, TRL, is not installed: {REMEDY}")
        methods: tuple[Method, ...] = ("sft", "dpo") if which == "both" else (which,)
        rival = Rival(packing=packing, batch=rival_batch)
        jobs = [Job.make(method, steps, threads, seed) for method in methods]
        for job in jobs:
            if job.learner.batch_size % rival.sequences(job):
                raise ConfigError(
                    f"--rival-batch {rival_batch} does not divide {job.learner.batch_size} samples of a step"
                )
        adapter = Path(scratch) / "adapter"
        alone(make_adapter, adapter, seed)
        ratios = []
        for job in jobs:
            name = "learner" if job.method == "sft" else "learner_dpo"
            path = RESULTS / f"{name}.csv" if out is None else out
            if out is not None and which == "both" and job.method == "dpo":
                path = out.with_name(f"{out.stem}_dpo{out.suffix}")
            check_same(job.few().exact(adapter), rival, seed)
            ratios.append(measure(name, job, rival, pairs, seed, path))
        for ratio in reversed(ratios):
            print(ratio)


def measure(name: str, job: Job, rival: Rival, pairs: int, seed: int, path: Path) -> Ratio:
    """The pairs of runs of one method."""
    runs: dict[str, list[Trained]] = {}

    def side(label: str, run: Callable[..., Trained], *options: Any) -> Side:
        runs[label] = []

        def work(pair: int) -> Work:
            made = alone(run, job.few() if pair == WARM_UP else job, seed + pair + 1, *options)
            if pair != WARM_UP:
                runs[label].append(made)
            return Work(made.tokens, made.seconds)

        return Side(label, work)

    sides = encoded(job, load_tokenizer("embedded"))
    tokens, learned = sum(len(s) for row in sides for s in row), sum(s.num_learned for row in sides for s in row)
    kind = "examples" if job.method == "sft" else "pairs"
    where = f"{job.learner.threads} threads, {name_of(job.learner.dtype)}"
    print(f"{len(sides)} {kind}, {tokens} tokens, {learned} of them learned; {where}", flush=True)
    if job.method == "sft":
        ours, theirs = "fit", f"SFTTrainer {'packed' if rival.packing else 'padded'}"
    else:
        ours, theirs = "fit_preferences", "DPOTrainer"
    rivals = [side(theirs, trl_trained, rival)]
    (ratio,) = compare(name, "tokens/s", ours=side(ours, fitted), rivals=rivals, pairs=pairs, out=path)
    assert all(made.tokens == tokens for own in runs.values() for made in own)
    memory = path.with_name(f"{path.stem}_memory.csv")
    with memory.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["pair", "side", "steps", "peak_mib"])
        for label in (ours, theirs):
            rows.writerows((i, label, len(r.losses), f"{r.peak_mib:.1f}") for i, r in enumerate(runs[label]))
            peak = median(made.peak_mib for made in runs[label])
            print(f"{name}/{label.replace(' ', '_')} {len(runs[label][0].losses)} steps, peak memory {peak:.0f} MiB")
    print(f"peaks: {memory}", flush=True)
    return ratio


def check_same(job: Job, rival: Rival, seed: int) -> None:
    """The steps of this job have the same losses on both sides."""
    ours, theirs = alone(fitted, job, seed), alone(trl_trained, job, seed, rival)
    told = ", ".join(f"{a:.6f} and {b:.6f}" for a, b in zip(ours.losses, theirs.losses, strict=True))
    moved = max(abs(a - b) / abs(b) for a, b in zip(ours.losses, theirs.losses, strict=True))
    steps = f"{job.method}, {len(ours.losses)} steps in {job.learner.dtype}"
    print(f"{steps}: losses {told} (ours, TRL's); they differ by up to {moved:.2g} of themselves, allowed is {SAME}")
    assert moved <= SAME, f"{steps}: losses {told}: the two sides do not do the same"
    assert ours.tokens == theirs.tokens, f"{steps}: {ours.tokens} tokens and {theirs.tokens}"


# --- what both sides are given ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a run trains on, by which settings."""

    method: Method
    learner: config.Learner
    samples: tuple[Any, ...]  # Example or Pair
    adapter: Path | None = None  # to start from, with the policy without it as the reference; None: a new one

    @classmethod
    def make(cls, method: Method, steps: int, threads: int, seed: int) -> Job:
        """The first queries of the smol recipe, with stretches of real text for answers."""
        plan, per_sample = smol(), 1 if method == "sft" else 2
        size = plan.recipe.learner.batch_size // per_sample  # so that steps of both methods read about as many tokens
        # No warm-up: TRL's begins at 0, ours does not.
        settings = {"epochs": 1, "threads": threads, "batch_size": size, "warmup_steps": 0}
        queries = first_queries(plan, steps * size)
        said = iter(answers(plan, load_tokenizer("embedded"), len(queries) * per_sample, seed))
        samples: list[Example | Pair] = []
        for query in queries:
            turns = conversation(plan.codec, query.direction, query.prompt.messages)
            if method == "sft":
                samples.append(Example(id=query.id, messages=turns, response=next(said)))
            else:
                samples.append(Pair(id=query.id, messages=turns, chosen=next(said), rejected=next(said)))
        return cls(method=method, learner=plan.recipe.learner.model_copy(update=settings), samples=tuple(samples))

    def few(self) -> Job:
        """One step of a few samples."""
        return replace(self, samples=self.samples[:FEW], learner=self.learner.model_copy(update={"batch_size": FEW}))

    def exact(self, adapter: Path) -> Job:
        """Two epochs in float32, where rounding hides nothing, from this adapter."""
        settings = {"dtype": "float32", "weights_dtype": "float32", "epochs": 2}
        return replace(self, adapter=adapter, learner=self.learner.model_copy(update=settings))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """How TRL is asked to make its batches."""

    packing: bool
    batch: int  # pairs in a padded batch

    def sequences(self, job: Job) -> int:
        """Rows, examples or pairs in a forward pass."""
        if job.method == "sft" and self.packing:
            return 1
        return min(self.batch if job.method == "dpo" else 2 * self.batch, job.learner.batch_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a run came to."""

    tokens: int
    seconds: float
    losses: tuple[float, ...]  # of each step
    peak_mib: float


def encoded(job: Job, tokenizer: Any) -> list[tuple[Encoded, ...]]:
    """An example, or both sides of a pair, as both trainers read them."""
    if job.method == "sft":
        rows = [
            (sample.student,) for sample in train.encode_examples(job.samples, tokenizer, job.learner.max_length)[0]
        ]
    else:
        rows = [unit.sides for unit in encode_pairs(job.samples, tokenizer, job.learner.max_length)[0]]
    assert len(rows) == len(job.samples)
    return rows


def make_adapter(folder: Path, seed: int) -> None:
    """A LoRA of the smol recipe that changes what the policy says."""
    settings = smol().recipe.learner.lora
    assert settings is not None
    torch.manual_seed(seed)
    model = lora.attach(load_policy("embedded", torch.float32), settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=SCALE)
    save_adapter(model, folder)


def alone(work: Callable[..., Result], *args: Any) -> Result:
    """What `work` returns, from a process in which nothing else was done."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *args).result()


def peak_mib() -> float:
    """What this process held at most so far. Linux begins with what its parent held, which is less: it loads no policy."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- ours -------------------------------------------------------------------------------------------------------------


def fitted(job: Job, seed: int) -> Trained:
    """From the engine, when all is loaded, to the last step: what the reference says is between the two."""
    policy = resolve("embedded")
    shared: dict[str, Any] = {"learner": job.learner, "policy_dir": policy, "adapter_dir": job.adapter, "seed": seed}
    with tempfile.TemporaryDirectory() as folder:
        if job.method == "sft":
            with watched(train) as watch:
                result = train.fit(job.samples, **shared, out_dir=folder, report=watch.step)
        else:
            reference = None if job.adapter is None else policy
            with watched(preferences) as watch:
                result = preferences.fit_preferences(
                    job.samples, **shared, loss=LOSS, reference_dir=reference, out_dir=folder, report=watch.step
                )
    assert result.num_examples == len(job.samples)
    return Trained(tokens=result.tokens, seconds=watch.seconds, losses=tuple(watch.losses), peak_mib=watch.peak_mib)


@dataclass(slots=True)
class Watch:
    """Of a training: its clock, which starts with the engine, and what its steps report."""

    began: float = 0.0
    seconds: float = 0.0
    peak_mib: float = 0.0
    losses: list[float] = field(default_factory=list)

    def step(self, figures: dict[str, Any], _folder: Path | None) -> None:
        self.seconds = time.perf_counter() - self.began
        self.peak_mib = peak_mib()
        self.losses.append(float(figures["learn/loss"]))


@contextmanager
def watched(module: ModuleType) -> Iterator[Watch]:
    """Within it, the clock starts when `module` has made its engine."""
    watch, make_engine = Watch(), module.make_engine

    def clocked(*args: Any) -> Any:
        engine = make_engine(*args)
        watch.began = time.perf_counter()
        return engine

    with patch.object(module, "make_engine", clocked):
        yield watch


# --- TRL's ------------------------------------------------------------------------------------------------------------


def trl_trained(job: Job, seed: int, rival: Rival) -> Trained:
    """The same by TRL."""
    import datasets
    from transformers import TrainerCallback

    losses: list[float] = []

    class Recording(TrainerCallback):
        def on_log(self, *_args: Any, **kwargs: Any) -> None:
            logs: dict[str, float] = kwargs["logs"]
            if "loss" in logs:  # of a step; the last log is of the whole training
                losses.append(logs["loss"])

    datasets.disable_progress_bars()
    set_threads(job.learner.threads)
    torch.manual_seed(seed)
    tokenizer = load_tokenizer("embedded")
    rows = encoded(job, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        settings = {**unattended(folder, seed), **trl_settings(job)}
        make = sft_trainer if job.method == "sft" else dpo_trainer
        trainer = make(job, rows, tokenizer, rival, settings)
        trainer.add_callback(Recording())
        seconds = seconds_of(trainer)
    tokens = job.learner.epochs * sum(len(side) for sides in rows for side in sides)
    return Trained(tokens=tokens, seconds=seconds, losses=tuple(losses), peak_mib=peak_mib())


def trl_settings(job: Job) -> dict[str, Any]:
    """What both trainers are told."""
    learner = job.learner
    return {
        "num_train_epochs": learner.epochs,
        "learning_rate": learner.lr,
        "lr_scheduler_type": "cosine",
        "warmup_steps": learner.warmup_steps,
        "adam_beta1": learner.betas[0],
        "adam_beta2": learner.betas[1],
        "weight_decay": learner.weight_decay,
        "max_grad_norm": learner.max_grad_norm,
        "max_length": learner.max_length,
        "bf16": dtype_of(learner.dtype) == torch.bfloat16,
        "gradient_checkpointing": False,
        "logging_strategy": "steps",
        "logging_steps": 1,
    }


def sft_trainer(
    job: Job, samples: Sequence[tuple[Encoded, ...]], tokenizer: Any, rival: Rival, settings: dict[str, Any]
) -> Any:
    """SFTTrainer on tokens and labels."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer, pack_dataset

    learner, size = job.learner, rival.sequences(job)
    rows = []
    for (one,) in samples:
        labels = [i if learned else IGNORED for i, learned in zip(one.token_ids, one.loss_mask, strict=True)]
        rows.append({"input_ids": list(one.token_ids), "labels": labels})
    dataset, parts = Dataset.from_list(rows), learner.batch_size // size
    if rival.packing:
        steps = math.ceil(len(rows) / learner.batch_size)
        parts = math.ceil(len(pack_dataset(dataset, learner.max_length)) / steps)  # the last step may have fewer
    batches: dict[str, Any] = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts}
    policy, peft_config = trl_policy(job)
    return SFTTrainer(
        policy,
        SFTConfig(**settings, **batches, packing=rival.packing),
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=peft_config,
    )


def dpo_trainer(
    job: Job, samples: Sequence[tuple[Encoded, ...]], tokenizer: Any, rival: Rival, settings: dict[str, Any]
) -> Any:
    """DPOTrainer on tokens, in our order."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class OnTokens(DPOTrainer):  # type: ignore[misc]  # TRL's classes are Any to mypy
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    learner, size = job.learner, rival.sequences(job)
    rows = []
    for chosen, rejected in (
        samples[i] for step in Order(len(samples), learner.batch_size, 1, settings["seed"]) for i in step
    ):
        border = chosen.prompt_length
        assert chosen.token_ids[:border] == rejected.token_ids[:border]
        parts = (chosen.token_ids[:border], chosen.token_ids[border:], rejected.token_ids[border:])
        rows.append(dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), map(list, parts), strict=True)))
    batches: dict[str, Any] = {
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": learner.batch_size // size,
    }
    policy, peft_config = trl_policy(job)
    reference = None if job.adapter is None else load_policy("embedded", dtype_of(learner.weights_dtype))
    return OnTokens(
        policy,
        reference,
        DPOConfig(**settings, **batches, train_sampling_strategy="sequential", beta=LOSS.beta),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=peft_config,
    )


def trl_policy(job: Job) -> tuple[Any, Any]:
    """The policy with the adapter of the job; without one, and what TRL is to attach."""
    from peft import LoraConfig

    given = job.learner.lora
    assert given is not None
    policy = load_policy("embedded", dtype_of(job.learner.weights_dtype))
    if job.adapter is not None:
        return load_adapter(policy, job.adapter, trainable=True), None
    options: dict[str, Any] = {"lora_alpha": given.alpha, "lora_dropout": given.dropout, "task_type": "CAUSAL_LM"}
    return policy, LoraConfig(r=given.r, target_modules=given.targets, **options)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL reports what is trained with it
    typer.run(main)
