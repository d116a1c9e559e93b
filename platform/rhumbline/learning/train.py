"""Learning from examples: they go in, a checkpoint comes out. Independent of Ray; `actors/learner.py` is the shell around it.

    result = fit(examples, learner=recipe.learner, policy_dir=folder, out_dir="checkpoints/t=1", seed=7)
    result.checkpoint                    # full weights that transformers and vLLM load; its adapter/ under LoRA

Examples without a teacher learn their response (`losses.sft`). Those with one learn the distribution that the frozen
teacher, asked as `teacher` says, has over the same response (`losses.distill`). Both share one denominator. The steps
themselves, and how they are resumed, are `learning.loop`'s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rhumbline import config
from rhumbline.data.chat import Encoded
from rhumbline.data.dialogues import encode_example
from rhumbline.errors import DataError
from rhumbline.learning import checkpoints
from rhumbline.learning.engine import Engine, World
from rhumbline.learning.loop import Gradients, Report, TrainResult, complete, start
from rhumbline.learning.loop import make_engine as make_engine
from rhumbline.learning.optim import adamw
from rhumbline.learning.packing import Order, bins, learned_logits, pack, packed_attention
from rhumbline.learning.policy import load_policy, load_tokenizer, resolve, set_threads
from rhumbline.learning.units import Dropped
from rhumbline.losses.distill import distill
from rhumbline.losses.sft import sft, token_weights
from rhumbline.records import Example


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One example as tokens."""

    id: str
    student: Encoded
    teacher: Encoded | None
    weight: float


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
    trust_remote_code: bool = False,
) -> TrainResult:
    """Train `policy_dir` on `examples`; every worker calls it with the same ones. Rank 0 writes `out_dir`.

    adapter_dir: a LoRA of `policy_dir` to go on with (merged first when full weights are trained).
    teacher_dir: the frozen teacher of examples that have one; None: `policy_dir`, without the adapter. resume_from: a
    folder that `report` was given. `report` is called on every worker after every step. Raises DataError without
    examples, TrainingError for a loss that is no number and for a checkpoint of another training.
    """
    set_threads(learner.threads)
    world = World(rank, world_size)
    tokenizer = load_tokenizer(policy_dir, trust_remote_code)
    samples, too_long, empty = encode_examples(examples, tokenizer, learner.max_length)
    if not samples:
        raise DataError(
            f"nothing to learn from: of {len(examples)} examples {too_long} are longer than {learner.max_length} "
            f"tokens (learner.max_length) and {empty} have no token to learn. Raise learner.max_length, or give other data"
        )
    known = {example.id: example for example in examples}
    order = Order(len(samples), learner.batch_size, learner.epochs, seed)
    with ExitStack() as stack:
        model = start(learner, policy_dir, adapter_dir, seed, trust_remote_code, stack)
        teacher = _teacher(model, learner, samples, policy_dir, teacher_dir or policy_dir, trust_remote_code, stack)
        optimizer = adamw(model, learner.lr, learner.betas, learner.weight_decay)
        engine = make_engine(learner, model, optimizer, world)

        def accumulate(places: Sequence[int], carried: Mapping[str, Any]) -> Gradients:  # noqa: ARG001  it carries nothing
            batch = [samples[i] for i in places]
            loss = _accumulate(engine, teacher, batch, learner.micro_batch_tokens, world)
            return Gradients(loss=loss, tokens=sum(len(s.student) for s in batch))

        return complete(
            engine,
            model,
            tokenizer,
            order,
            learner,
            accumulate,
            [known[s.id] for s in samples],
            Dropped(too_long=too_long, empty=empty),
            policy_dir=policy_dir,
            seed=seed,
            world=world,
            out=Path(out_dir),
            identity=_identity(learner, samples, seed),
            resume_from=resume_from,
            report=report,
            trust_remote_code=trust_remote_code,
        )


def encode_examples(examples: Sequence[Example], tokenizer: Any, max_length: int) -> tuple[list[Sample], int, int]:
    """Examples as tokens, and how many were dropped: too long (either side), and without a token to learn."""
    samples, too_long, empty = [], 0, 0
    for example in examples:
        if not (math.isfinite(example.weight) and example.weight >= 0):
            raise DataError(f"example {example.id}: weight is {example.weight}, expected a number from 0")
        student = encode_example(example, tokenizer)
        teacher = None
        if example.teacher is not None:
            teacher = encode_example(replace(example, messages=example.teacher), tokenizer)
        if student.num_learned == 0:
            empty += 1
        elif max(len(student), 0 if teacher is None else len(teacher)) > max_length:
            too_long += 1
        else:
            samples.append(Sample(id=example.id, student=student, teacher=teacher, weight=example.weight))
    return samples, too_long, empty


# --- one step ---------------------------------------------------------------------------------------------------------


def _accumulate(engine: Engine, teacher: Any, batch: Sequence[Sample], max_tokens: int, world: World) -> float:
    """Gradients of this worker's share of a step; returns the loss of the whole step, over all workers."""
    device = next(engine.model.parameters()).device
    counts, weights = [s.student.num_learned for s in batch], [s.weight for s in batch]
    _, mass = token_weights(counts, weights)
    denominator = mass if mass > 0 else 1.0  # every sample of the step may weigh nothing
    groups: list[tuple[list[int], int]] = []  # members, and who stands in where there are none
    for taught in (False, True):
        members = [i for i, s in enumerate(batch) if (s.teacher is not None) == taught]
        for group in bins([len(batch[i].student) for i in members], max_tokens, world.size):
            groups.append(([members[j] for j in group], members[0]))
    mine, total = groups[world.rank :: world.size], 0.0
    for position, (group, instead) in enumerate(mine):
        chosen = [batch[i] for i in group or [instead]]
        packed = pack([s.student for s in chosen], device)
        # An empty group is another worker's doing: this one makes the same passes, a teacher's too, with nothing in them.
        spread, _ = token_weights(packed.counts, [s.weight if group else 0.0 for s in chosen])
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


# --- the teacher, and whose checkpoints these are ---------------------------------------------------------------------


def _teacher(
    model: Any,
    learner: config.Learner,
    samples: Sequence[Sample],
    policy_dir: str | Path,
    teacher_dir: str | Path,
    trust_remote_code: bool,
    stack: ExitStack,
) -> Any:
    """The policy itself, whose adapter is switched off when it teaches, or a frozen copy; None where nothing is taught."""
    if all(s.teacher is None for s in samples):
        return None
    if learner.lora is not None and resolve(teacher_dir) == resolve(policy_dir):
        return model
    teacher = load_policy(teacher_dir, None, trust_remote_code)
    stack.enter_context(packed_attention(teacher))
    return teacher


def _identity(learner: config.Learner, samples: Sequence[Sample], seed: int) -> str:
    teachers = [None if sample.teacher is None else sample.teacher.token_ids for sample in samples]
    return checkpoints.identity(
        [learner.model_dump(mode="json", exclude=checkpoints.FREE), seed],
        (repr((s.student.token_ids, t, s.weight)) for s, t in zip(samples, teachers, strict=True)),
    )
