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
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

import typer

from benchmarks.measure.learner_job import Job, Method, Trained, alone, encoded, fitted, make_adapter
from benchmarks.measure.learner_trl import Rival, trl_trained
from benchmarks.measure.options import Out, Pairs, Seed, Threads
from benchmarks.measure.ratio import RESULTS, WARM_UP, Ratio, Side, Work, compare
from rhumbline.cli import user_errors
from rhumbline.errors import ConfigError
from rhumbline.learning.policy import load_tokenizer
from rhumbline.learning.precision import name_of

SAME = 1e-4  # of a loss in float32, by which the two sides may differ
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


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL reports what is trained with it
    typer.run(main)
