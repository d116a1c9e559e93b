#!/usr/bin/env python
"""Tokens per second of LoRA training: `rhumbline.learning.train.fit` against transformers' Trainer with padding.

    .venv/bin/python benchmarks/train.py
    .venv/bin/python benchmarks/train.py --pairs 9 --rival-dtype float32

Ours      packed rows of at most 512 tokens, attention sample by sample, fused LoRA, no logits for prompt tokens.
The rival the same model, examples, LoRA, learning rate, samples per step and steps, by transformers' `Trainer` and peft,
          as TRL's SFTTrainer trains where packing is off: right-padded batches of 8 in random order, two of them
          accumulated, bf16 autocast, logits of every token, loss on the response alone. It is spared what costs it
          most there: gradient checkpointing, which TRL switches on, and frozen weights in fp32 (--rival-dtype).

Both count the same tokens, prompts and responses without padding. Only steps are timed: loading, tokenising and writing
checkpoints are not.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer

from benchmarks.measure.inputs import answers, first_queries, smol
from benchmarks.measure.options import Out, Pairs, Seed, Threads
from benchmarks.measure.ratio import WARM_UP, Side, Work, compare
from benchmarks.measure.trainer import seconds_of, unattended
from rhumbline import config
from rhumbline.cli import user_errors
from rhumbline.codecs import conversation
from rhumbline.errors import ConfigError
from rhumbline.learning import lora
from rhumbline.learning.policy import load_policy, load_tokenizer, resolve, set_threads
from rhumbline.learning.train import Sample, encode_examples, fit
from rhumbline.records import Example

IGNORED = -100  # a label without loss
WARM_UP_SAMPLES = 4


def main(
    pairs: Pairs = 5,
    samples: Annotated[int, typer.Option(min=1, help="examples per run, each seen once")] = 32,
    threads: Threads = 2,
    rival_batch: Annotated[int, typer.Option(min=1, help="examples in a padded batch of the rival")] = 8,
    rival_dtype: Annotated[
        Literal["bfloat16", "float32"], typer.Option(help="of the rival's frozen weights; ours are bfloat16")
    ] = "bfloat16",
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Measure training."""
    with user_errors():
        plan = smol()
        learner = plan.recipe.learner.model_copy(update={"epochs": 1, "threads": threads})
        folder = resolve("embedded")
        tokenizer = load_tokenizer(folder)
        texts = answers(plan, tokenizer, samples, seed)
        examples = [
            Example(
                id=query.id, messages=conversation(plan.codec, query.direction, query.prompt.messages), response=text
            )
            for query, text in zip(first_queries(plan, samples), texts, strict=True)
        ]
        encoded, too_long, empty = encode_examples(examples, tokenizer, learner.max_length)
        assert too_long == empty == 0

        def ours(pair: int) -> Work:
            chosen = examples[:WARM_UP_SAMPLES] if pair == WARM_UP else examples
            with tempfile.TemporaryDirectory() as scratch:
                result = fit(chosen, learner=learner, policy_dir=folder, out_dir=scratch, seed=seed + pair + 1)
            return Work(result.tokens, result.seconds)

        def rival(pair: int) -> Work:
            chosen = encoded[:WARM_UP_SAMPLES] if pair == WARM_UP else encoded
            return padded(chosen, folder, learner, rival_batch, rival_dtype, seed + pair + 1)

        tokens, responses = sum(len(s.student) for s in encoded), sum(s.student.num_learned for s in encoded)
        print(f"{samples} examples, {tokens} tokens, {responses} of them learned; {threads} threads")
        name = f"Trainer padded {rival_dtype}"
        (ratio,) = compare(
            "train", "tokens/s", ours=Side("fit packed", ours), rivals=[Side(name, rival)], pairs=pairs, out=out
        )
        print(ratio)


def padded(
    samples: list[Sample], folder: Path, learner: config.Learner, batch_size: int, dtype: str, seed: int
) -> Work:
    """One epoch by transformers' Trainer."""
    from transformers import Trainer, TrainingArguments

    assert learner.lora is not None
    if learner.batch_size % batch_size:
        raise ConfigError(
            f"--rival-batch {batch_size} does not divide the recipe's {learner.batch_size} samples per step"
        )
    set_threads(learner.threads)
    torch.manual_seed(seed)
    model: Any = lora.attach(load_policy(folder, getattr(torch, dtype)), learner.lora)  # peft's own layers, not fused
    pad = model.config.eos_token_id

    def collate(batch: list[dict[str, Sample]]) -> dict[str, torch.Tensor]:
        rows = [row["sample"].student for row in batch]
        width = max(len(row) for row in rows)
        ids_BT = torch.full((len(rows), width), pad)
        labels_BT = torch.full((len(rows), width), IGNORED)
        mask_BT = torch.zeros((len(rows), width), dtype=torch.long)
        for b, row in enumerate(rows):
            ids_BT[b, : len(row)] = torch.tensor(row.token_ids)
            labels_BT[b, : len(row)] = torch.tensor(row.token_ids).where(torch.tensor(row.loss_mask), IGNORED)
            mask_BT[b, : len(row)] = 1
        return {"input_ids": ids_BT, "attention_mask": mask_BT, "labels": labels_BT}

    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            **unattended(scratch, seed),
            num_train_epochs=1,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=learner.batch_size // batch_size,
            learning_rate=learner.lr,
            lr_scheduler_type="cosine",
            adam_beta1=learner.betas[0],
            adam_beta2=learner.betas[1],
            max_grad_norm=learner.max_grad_norm,
            bf16=True,
            remove_unused_columns=False,
        )
        rows: Any = [{"sample": sample} for sample in samples]
        seconds = seconds_of(Trainer(model, arguments, data_collator=collate, train_dataset=rows))
    return Work(sum(len(sample.student) for sample in samples), seconds)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    typer.run(main)
