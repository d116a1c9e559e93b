"""The train loop: examples in, a checkpoint out. Independent of Ray; `actors/learner.py` is the shell around it.

    result = fit(examples, learner=recipe.learner, policy_dir=folder, out_dir="checkpoints/t=1", seed=7)
    result.checkpoint                    # full weights that transformers and vLLM load; its adapter/ under LoRA

Examples without a teacher learn their response (`losses.sft`). Those with one learn the distribution that the frozen
teacher, asked as `teacher` says, has over the same response (`losses.distill`). Both share one denominator. A
step's samples and their order depend on (seed, step) alone, its random numbers on (seed, step, rank), so a run that resumes
at a step with as many workers has the losses of one undisturbed.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rhumbline import config
from rhumbline.data.chat import Encoded, encode
from rhumbline.errors import DataError, TrainingError
from rhumbline.learning import checkpoints, lora
from rhumbline.learning.engine import DeepSpeedEngine, Engine, TorchEngine, World
from rhumbline.learning.optim import adamw, cosine
from rhumbline.learning.packing import Order, bins, learned_logits, pack, packed_attention
from rhumbline.learning.policy import (
    load_adapter,
    load_policy,
    load_tokenizer,
    merge_adapter,
    resolve,
    save_adapter,
    save_policy,
    set_threads,
)
from rhumbline.losses.distill import distill
from rhumbline.losses.sft import Reduction, sft, token_weights
from rhumbline.queries import derive_seed
from rhumbline.records import Example

Report = Callable[[dict[str, Any], Path | None], None]  # figures of a step, and a folder where a checkpoint was written


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One example as tokens."""

    student: Encoded
    teacher: Encoded | None
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a training came to."""

    checkpoint: Path  # Hugging Face layout
    adapter: Path | None  # the LoRA alone, within `checkpoint`
    steps: int
    tokens: int  # prompts and responses, over all steps and workers
    seconds: float  # of the steps that this process made
    tokens_per_s: float  # over all workers
    final_loss: float  # nats per unit of weight, of the last step
    num_examples: int  # that were trained on
    dropped_too_long: int  # longer than learner.max_length
    dropped_empty: int  # without a token to learn
    resumed_at: int  # 0: from the start


def fit(
    examples: Sequence[Example],
    *,
    learner: config.Learner,
    policy_dir: str | Path,
    out_dir: str | Path,
    seed: int,
    adapter_dir: str | Path | None = None,
    teacher_dir: str | Path | None = None,
    rank: int = 0,
    world_size: int = 1,
    resume_from: str | Path | None = None,
    report: Report | None = None,
    reduction: Reduction = "token",
    trust_remote_code: bool = False,
) -> TrainResult:
    """Train `policy_dir` on `examples`; every worker calls it with the same ones. Rank 0 writes `out_dir`.

    adapter_dir: a LoRA of `policy_dir` to go on with (merged first when full weights are trained).
    teacher_dir: the frozen teacher of examples that have one; None: `policy_dir`, without the adapter. resume_from: a
    folder that `report` was given. `report` is called on every worker after every step. Raises TrainingError without
    examples, for a loss that is no number, and for a checkpoint of another training.
    """
    set_threads(learner.threads)
    world, out = World(rank, world_size), Path(out_dir)
    tokenizer = load_tokenizer(policy_dir, trust_remote_code)
    samples, too_long, empty = encode_examples(examples, tokenizer, learner.max_length)
    if not samples:
        raise TrainingError(
            f"nothing to learn from: of {len(examples)} examples {too_long} are longer than {learner.max_length} "
            f"tokens (learner.max_length) and {empty} have no token to learn"
        )
    order = Order(len(samples), learner.batch_size, learner.epochs, seed)
    torch.manual_seed(derive_seed(seed, "adapter"))
    with ExitStack() as stack:
        model, teacher = _models(
            learner, samples, policy_dir, adapter_dir, teacher_dir or policy_dir, trust_remote_code, stack
        )
        optimizer = adamw(model, learner.lr, learner.betas, learner.weight_decay)
        engine = make_engine(learner, model, optimizer, world)
        identity = _identity(learner, samples, seed, reduction)
        state = {"tokens": 0, "loss": float("nan"), **checkpoints.resume(engine, resume_from, identity)}
        start, loss = int(state["step"]), float(state["loss"])
        tokens, began, own_tokens = int(state["tokens"]), time.perf_counter(), 0
        for step in range(start, len(order)):
            torch.manual_seed(derive_seed(seed, step, rank))  # dropout
            batch = [samples[i] for i in order[step]]
            loss = _accumulate(engine, teacher, batch, learner.micro_batch_tokens, reduction, world)
            lr, grad_norm = update(engine, learner, loss, step, len(order))
            own_tokens += sum(len(s.student) for s in batch)
            tokens += sum(len(s.student) for s in batch)
            folder = None
            if (step + 1) % learner.checkpoint_every == 0 and step + 1 < len(order):
                state = {"step": step + 1, "tokens": tokens, "loss": loss}
                folder = checkpoints.write(engine, out / "steps", state, identity, world)
            if report is not None:
                seconds = time.perf_counter() - began
                figures = {
                    "learn/step": step + 1,
                    "learn/steps": len(order),
                    "learn/epoch": (step + 1) * learner.batch_size / len(samples),
                    "learn/loss": loss,
                    "learn/grad_norm": grad_norm,
                    "learn/lr": lr,
                    "learn/tokens": tokens,
                    "learn/tokens_per_s": own_tokens / seconds,
                }
                report(figures, folder)
        seconds = time.perf_counter() - began
        adapter = _publish(engine, model, tokenizer, learner, policy_dir, out, world, trust_remote_code)
    return TrainResult(
        checkpoint=out,
        adapter=adapter,
        steps=len(order),
        tokens=tokens,
        seconds=seconds,
        tokens_per_s=own_tokens / seconds if own_tokens > 0 else 0.0,
        final_loss=loss,
        num_examples=len(samples),
        dropped_too_long=too_long,
        dropped_empty=empty,
        resumed_at=start,
    )


def encode_examples(examples: Sequence[Example], tokenizer: Any, max_length: int) -> tuple[list[Sample], int, int]:
    """Examples as tokens, and how many were dropped: too long (either side), and without a token to learn."""
    samples, too_long, empty = [], 0, 0
    for example in examples:
        if not (math.isfinite(example.weight) and example.weight >= 0):
            raise DataError(f"example {example.id}: weight is {example.weight}, expected a number from 0")
        student = encode(example.messages, example.response, tokenizer, example.complete)
        teacher = None
        if example.teacher is not None:
            teacher = encode(example.teacher, example.response, tokenizer, example.complete)
        if student.num_learned == 0:
            empty += 1
        elif max(len(student), 0 if teacher is None else len(teacher)) > max_length:
            too_long += 1
        else:
            samples.append(Sample(student=student, teacher=teacher, weight=example.weight))
    return samples, too_long, empty


def make_engine(learner: config.Learner, model: Any, optimizer: torch.optim.Optimizer, world: World) -> Engine:
    """The engine that `learner.engine` names."""
    dtype = getattr(torch, learner.dtype)
    if learner.engine == "deepspeed":
        return DeepSpeedEngine(
            model, optimizer, learner.deepspeed, max_grad_norm=learner.max_grad_norm, dtype=dtype, world=world
        )
    lora.fuse(model)  # not under DeepSpeed: ZeRO 3 gathers a weight when its own layer is called
    return TorchEngine(model, optimizer, max_grad_norm=learner.max_grad_norm, dtype=dtype, world=world)


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


# --- one step ---------------------------------------------------------------------------------------------------------


def _accumulate(
    engine: Engine, teacher: Any, batch: Sequence[Sample], max_tokens: int, reduction: Reduction, world: World
) -> float:
    """Gradients of this worker's share of a step; returns the loss of the whole step, over all workers."""
    device = next(engine.model.parameters()).device
    counts, weights = [s.student.num_learned for s in batch], [s.weight for s in batch]
    _, mass = token_weights(counts, weights, reduction)
    denominator = mass if mass > 0 else 1.0  # every sample of the step may weigh nothing
    groups: list[list[int]] = []
    for taught in (False, True):
        members = [i for i, s in enumerate(batch) if (s.teacher is not None) == taught]
        for group in bins([len(batch[i].student) for i in members], max_tokens, world.size):
            groups.append([members[j] for j in group])
    mine, total = groups[world.rank :: world.size], 0.0
    for position, group in enumerate(mine):
        chosen = [batch[i] for i in group or [0]]
        packed = pack([s.student for s in chosen], device)
        # An empty group is another worker's doing: this one makes the pass all the same, with nothing in it.
        spread, _ = token_weights(packed.counts, [s.weight if group else 0.0 for s in chosen], reduction)
        weights_R = torch.tensor(spread, device=device)
        with engine.autocast():
            teacher_RV = _teach(teacher, chosen, device)
            logits_RV = learned_logits(engine.model, packed)
        if teacher_RV is None:
            loss, _ = sft(logits_RV, packed.targets, weights_R, denominator)
        else:
            loss, _ = distill(logits_RV, teacher_RV, weights_R, denominator)
        engine.backward(loss, last=position == len(mine) - 1)
        total += float(loss.detach())
    return world.total(total, device)


@torch.no_grad()
def _teach(teacher: Any, chosen: Sequence[Sample], device: torch.device) -> torch.Tensor | None:
    asked = [s.teacher for s in chosen if s.teacher is not None]
    if not asked:
        return None
    with ExitStack() as stack:
        if hasattr(teacher, "disable_adapter"):
            stack.enter_context(teacher.disable_adapter())
        return learned_logits(teacher, pack(asked, device))


# --- models and checkpoints -------------------------------------------------------------------------------------------


def _models(
    learner: config.Learner,
    samples: Sequence[Sample],
    policy_dir: str | Path,
    adapter_dir: str | Path | None,
    teacher_dir: str | Path,
    trust_remote_code: bool,
    stack: ExitStack,
) -> tuple[Any, Any]:
    """What is trained, and its teacher: the policy itself with its adapter switched off, or a frozen copy."""
    dtype = getattr(torch, learner.weights_dtype) if learner.lora is not None else torch.float32
    policy: Any = load_policy(policy_dir, dtype, trust_remote_code)
    stack.enter_context(packed_attention(policy))
    taught = any(s.teacher is not None for s in samples)
    if learner.lora is not None:
        model = lora.attach(policy, learner.lora, adapter_dir)
        teacher = model if taught and resolve(teacher_dir) == resolve(policy_dir) else None
    else:
        model, teacher = policy, None
        if adapter_dir is not None:
            model = load_adapter(policy, adapter_dir).merge_and_unload()
        model.requires_grad_(True)
    if taught and teacher is None:
        teacher = load_policy(teacher_dir, None, trust_remote_code)
        stack.enter_context(packed_attention(teacher))
    return model.train(), teacher


def _identity(learner: config.Learner, samples: Sequence[Sample], seed: int, reduction: Reduction) -> str:
    teachers = [None if sample.teacher is None else sample.teacher.token_ids for sample in samples]
    return checkpoints.identity(
        [learner.model_dump(mode="json", exclude=checkpoints.FREE), seed, reduction],
        (repr((s.student.token_ids, t, s.weight)) for s, t in zip(samples, teachers, strict=True)),
    )


def _publish(
    engine: Engine,
    model: Any,
    tokenizer: Any,
    learner: config.Learner,
    policy_dir: str | Path,
    out: Path,
    world: World,
    trust_remote_code: bool,
) -> Path | None:
    """Write full weights, and under LoRA the adapter beside them; the merged weights hold the adapter as it was
    saved.
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
