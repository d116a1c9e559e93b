"""What every training of a policy shares: its start, its steps in order, its checkpoints, and the weights that it ends with.

    model = start(learner, policy_dir, adapter_dir, seed, trust_remote_code, stack)
    engine = make_engine(learner, model, adamw(model, learner.lr, learner.betas, learner.weight_decay), world)
    where = {"policy_dir": policy_dir, "out": out, "seed": 7, "world": world, "identity": which}
    result = complete(engine, model, tokenizer, order, learner, accumulate, samples, dropped, **where)

What is learned is the caller's: `accumulate` adds up the gradients of a step and says what it came to. A step's samples
depend on (seed, step) alone, its random numbers on (seed, step, rank), and what `accumulate` carries from step to step is
saved with the weights, so a run that resumes with as many workers has the losses of one undisturbed.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rhumbline import config, durable, tables
from rhumbline.errors import TrainingError
from rhumbline.learning import checkpoints, lora
from rhumbline.learning.engine import DeepSpeedEngine, Engine, TorchEngine, World
from rhumbline.learning.optim import cosine
from rhumbline.learning.packing import Order, packed_attention
from rhumbline.learning.policy import load_adapter, load_policy, merge_adapter, save_adapter, save_policy
from rhumbline.learning.precision import dtype_of
from rhumbline.learning.recompute import recompute
from rhumbline.learning.units import Dropped
from rhumbline.queries import derive_seed
from rhumbline.records import Example, Judged, Pair

Report = Callable[[dict[str, Any], Path | None], None]  # figures of a step, and a folder where a checkpoint was written
Record = Example | Pair | Judged
NAN_BATCH, FAILED_BATCH = "nan-batch.json", "failed-batch.parquet"  # a step that came to no number: ids, and samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradients:
    """A step whose gradients are there, of all workers together."""

    loss: float  # per unit of weight
    tokens: int  # prompts and responses
    metrics: Mapping[str, float] = field(default_factory=dict)  # beside the loss, by their full names
    carried: Mapping[str, Any] = field(default_factory=dict)  # plain data for the next step; saved with checkpoints


# Adds this worker's share of the gradients of a step, of the samples at these places, given what the last step carried.
Accumulate = Callable[[Sequence[int], Mapping[str, Any]], Gradients]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a training came to."""

    checkpoint: Path  # Hugging Face layout
    adapter: Path | None  # the LoRA alone, within `checkpoint`
    steps: int
    tokens: int  # prompts and responses, over all steps and workers
    seconds: float  # of the steps that this process made
    tokens_per_s: float  # over all workers
    final_loss: float  # per unit of weight, of the last step; nats, ipo's in squared nats, kto's in none
    num_examples: int  # that were trained on; pairs, where it learns from pairs
    dropped_too_long: int  # longer than learner.max_length
    dropped_empty: int  # without a token to learn
    dropped_equal: int = 0  # pairs of which both answers are the same
    resumed_at: int  # 0: from the start


def complete(
    engine: Engine,
    model: Any,
    tokenizer: Any,
    order: Order,
    learner: config.Learner,
    accumulate: Accumulate,
    samples: Sequence[Record],
    dropped: Dropped,
    *,
    policy_dir: str | Path,
    seed: int,
    world: World,
    out: Path,
    identity: str,
    resume_from: str | Path | None = None,
    report: Report | None = None,
    trust_remote_code: bool = False,
) -> TrainResult:
    """Make every step of `order` that `resume_from` has not, then `publish`. policy_dir: what `model` was started from.

    `samples` are those that `order` counts, in its order. Raises TrainingError for a checkpoint of another training, and for a
    loss or a gradient that is no number, once the step's samples are in failed-batch.parquet beside `out`, and their ids in
    nan-batch.json.
    """
    state = {"tokens": 0, "loss": float("nan"), "carried": {}, **checkpoints.resume(engine, resume_from, identity)}
    resumed_at, loss, carried = int(state["step"]), float(state["loss"]), state["carried"]
    tokens, began, own_tokens = int(state["tokens"]), time.perf_counter(), 0
    for step in range(resumed_at, len(order)):
        torch.manual_seed(derive_seed(seed, step, world.rank))  # dropout
        made = accumulate(order[step], carried)
        loss, carried = made.loss, made.carried
        try:
            lr, grad_norm = update(engine, learner, loss, step, len(order))
        except TrainingError as e:
            told, kept = out.parent / NAN_BATCH, out.parent / FAILED_BATCH
            if world.rank == 0:
                _keep(told, kept, step, [samples[i] for i in order[step]])
            raise TrainingError(f"{e}. The ids of its samples are in {told}, the samples themselves in {kept}") from e
        own_tokens += made.tokens
        tokens += made.tokens
        folder = None
        if (step + 1) % learner.checkpoint_every == 0 and step + 1 < len(order):
            state = {"step": step + 1, "tokens": tokens, "loss": loss, "carried": carried}
            folder = checkpoints.write(engine, out / "steps", state, identity, world)
        if report is not None:
            seconds = time.perf_counter() - began
            figures = {
                "learn/step": step + 1,
                "learn/steps": len(order),
                "learn/epoch": (step + 1) * order.batch_size / order.num_samples,
                "learn/loss": loss,
                **made.metrics,
                "learn/grad_norm": grad_norm,
                "learn/lr": lr,
                "learn/tokens": tokens,
                "learn/tokens_per_s": own_tokens / seconds,
            }
            report(figures, folder)
    seconds = time.perf_counter() - began
    adapter = publish(engine, model, tokenizer, learner, policy_dir, out, world, trust_remote_code)
    return TrainResult(
        checkpoint=out,
        adapter=adapter,
        steps=len(order),
        tokens=tokens,
        seconds=seconds,
        tokens_per_s=own_tokens / seconds if own_tokens > 0 else 0.0,
        final_loss=loss,
        num_examples=len(samples),
        dropped_too_long=dropped.too_long,
        dropped_empty=dropped.empty,
        dropped_equal=dropped.equal,
        resumed_at=resumed_at,
    )


def update(engine: Engine, learner: config.Learner, loss: float, step: int, total: int) -> tuple[float, float]:
    """The optimiser's step of `total` whose gradients are there; returns its learning rate and the norm before clipping.

    Raises TrainingError for a loss or a gradient that is no number.
    """
    remedy = (
        f"Lower learner.lr (it is {learner.lr:g}) or learner.max_grad_norm ({learner.max_grad_norm:g}), lengthen "
        f"learner.warmup_steps ({learner.warmup_steps}), or set learner.dtype to float32"
    )
    if not math.isfinite(loss):
        raise TrainingError(f"the loss of step {step} is {loss}. {remedy}")
    lr = learner.lr * cosine(step, total, learner.warmup_steps, learner.min_lr_ratio)
    grad_norm = engine.step(lr)
    if not math.isfinite(grad_norm):
        raise TrainingError(f"the gradient of step {step} has the norm {grad_norm}. {remedy}")
    return lr, grad_norm


def _keep(told: Path, kept: Path, step: int, samples: Sequence[Record]) -> None:
    told.parent.mkdir(parents=True, exist_ok=True)
    ids = [one.id for one in samples]
    durable.replace(told, durable.to_json({"step": step, "samples": ids}, indent=2).encode())
    durable.replace(kept, tables.to_parquet(samples))


# --- before the first step, and after the last ------------------------------------------------------------------------


def start(
    learner: config.Learner,
    policy_dir: str | Path,
    adapter_dir: str | Path | None,
    seed: int,
    trust_remote_code: bool,
    stack: ExitStack,
) -> Any:
    """The policy that is trained, in training mode: under LoRA with a new adapter or that of a folder, else with it merged in."""
    torch.manual_seed(derive_seed(seed, "adapter"))
    policy: Any = load_policy(policy_dir, resting_dtype(learner), trust_remote_code)
    stack.enter_context(packed_attention(policy, dtype_of(learner.dtype)))
    if learner.gradient_checkpointing:
        recompute(policy)
    if learner.lora is not None:
        return lora.attach(policy, learner.lora, adapter_dir).train()
    model = policy if adapter_dir is None else load_adapter(policy, adapter_dir).merge_and_unload()
    return model.requires_grad_(True).train()


def resting_dtype(learner: config.Learner) -> torch.dtype:
    """That of the weights which are loaded: what is trained is fp32."""
    return dtype_of(learner.weights_dtype) if learner.lora is not None else torch.float32


def make_engine(learner: config.Learner, model: Any, optimizer: torch.optim.Optimizer, world: World) -> Engine:
    """The engine that `learner.engine` names."""
    dtype = dtype_of(learner.dtype)
    if learner.engine == "deepspeed":
        return DeepSpeedEngine(
            model, optimizer, learner.deepspeed, max_grad_norm=learner.max_grad_norm, dtype=dtype, world=world
        )
    lora.fuse(model)  # not under DeepSpeed: ZeRO 3 gathers a weight when its own layer is called
    return TorchEngine(model, optimizer, max_grad_norm=learner.max_grad_norm, dtype=dtype, world=world)


def publish(
    engine: Engine,
    model: Any,
    tokenizer: Any,
    learner: config.Learner,
    policy_dir: str | Path,
    out: Path,
    world: World,
    trust_remote_code: bool = False,
) -> Path | None:
    """Write full weights to `out`, and under LoRA the adapter beside them; the merged weights hold the adapter as it was
    saved. Every worker calls it, rank 0 writes.
    """
    weights = engine.weights(trained_only=learner.lora is not None)
    adapter = out / "adapter" if learner.lora is not None else None
    if world.rank == 0:
        if adapter is None:
            save_policy(model, tokenizer, out, weights)
        else:
            save_adapter(model, adapter, weights)
            merge_adapter(policy_dir, adapter, out, tokenizer, trust_remote_code)
        shutil.rmtree(out / "steps", ignore_errors=True)
    return adapter
