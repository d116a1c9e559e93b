"""The trainings of benchmarks/learner.py by TRL: SFTTrainer, packed or padded, and DPOTrainer, on the same tokens.

alone(trl_trained, job, 1, Rival(packing=True, batch=2)).seconds
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.measure.learner_job import LOSS, Job, Trained, encoded, peak_mib
from benchmarks.measure.trainer import seconds_of, unattended
from rhumbline.data.chat import Encoded
from rhumbline.learning.packing import Order
from rhumbline.learning.policy import load_adapter, load_policy, load_tokenizer, set_threads
from rhumbline.learning.precision import dtype_of

IGNORED = -100  # a label without loss


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
