"""The train loop of reward networks: a task in, a checkpoint out. Independent of Ray, as `learning.train` is for policies.

    result = fit(task, recipe=recipe, out_dir="rewards/mine", seed=7)
    result.checkpoint                    # full weights that transformers loads; its adapter/ under LoRA
    schema = finish(task, recipe, result.checkpoint)         # fitting.results: what its outputs mean

A step draws units of a task (an answer, a prompt's answers, a comparison), cuts them by length into micro-batches of at most
learner.micro_batch_tokens padded tokens, and shares these among the workers. Their losses are divided by the mass of the whole
step. Which units a step has depends on (seed, step) alone, its random numbers on (seed, step, rank): a run that resumes at a
step with as many workers has the losses of one undisturbed. N inputs, M inputs of a micro-batch, H outputs, V vocabulary.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from rhumbline.cards.length_only import LengthClasses
from rhumbline.errors import TrainingError
from rhumbline.fitting.kinds import BETTER, KINDS, Figures, Learned
from rhumbline.fitting.recipe import METRICS, EarlyStopping, RewardRecipe
from rhumbline.fitting.task import Input, Task
from rhumbline.learning import checkpoints
from rhumbline.learning.engine import Engine, World
from rhumbline.learning.loop import Report, make_engine, update
from rhumbline.learning.optim import adamw, trained
from rhumbline.learning.packing import Order
from rhumbline.learning.policy import resolve, set_threads
from rhumbline.learning.precision import dtype_of
from rhumbline.learning.recompute import recompute
from rhumbline.losses.sft import sft
from rhumbline.queries import derive_seed
from rhumbline.rewards.network import Network
from rhumbline.rewards.reading import NetworkSpec
from rhumbline.rewards.trees import Row

Array = NDArray[np.float64]
BEST = "best.safetensors"  # of the trained weights, among a step's state
# What does not bear on the weights, besides what a continuation may change of the learner.
_APART = {"name", "notes", "bootstrap", "learner", "features", "ridge", "extraction"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """What a training came to."""

    checkpoint: Path  # Hugging Face layout
    adapter: Path | None  # the LoRA alone, within `checkpoint`
    steps: int  # that were made
    steps_planned: int  # without early stopping
    kept_step: int  # whose weights were kept
    kept_value: float | None  # the validation figure of that step; None: the last step's weights, nothing was watched
    metric: str | None  # its name
    tokens: int  # that were read over all steps and workers; by a decoder a prompt once for all of its answers
    seconds: float  # of the steps that this process made
    tokens_per_s: float  # over all workers
    final_loss: float
    num_units: int  # that were trained on: answers, prompts or comparisons
    identity: str  # of recipe and data: equal ones give equal weights
    resumed_at: int  # 0: from the start


def fit(
    task: Task,
    *,
    recipe: RewardRecipe,
    out_dir: str | Path,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    resume_from: str | Path | None = None,
    report: Report | None = None,
) -> FitResult:
    """Train on the task's training units; every worker calls it with the same ones. Rank 0 writes `out_dir`.

    resume_from: a folder that `report` was given. `report` is called on every worker after every step. The last checkpoint stays
    in `out_dir`/steps: whoever goes on with the weights takes it away when that is done. Raises TrainingError for a loss that is
    no number, and for a checkpoint of another training.
    """
    learner, world, out = recipe.learner, World(rank, world_size), Path(out_dir)
    set_threads(learner.threads)
    out.mkdir(parents=True, exist_ok=True)
    learned, units = KINDS[recipe.kind](task, recipe), task.within("train")
    order = Order(len(units), learner.batch_size, learner.epochs, seed)
    spec = spec_of(recipe, task)
    network = _start(recipe, spec, seed)
    rows = [read(network, one) for one in task.inputs]
    shared = network.decoder and recipe.kind != "comparer"  # prompts, by their answers
    engine = make_engine(learner, network, adamw(network, learner.lr, learner.betas, learner.weight_decay), world)
    which = identity(recipe, task, seed)
    state = {"tokens": 0, "loss": float("nan"), "watch": None, **checkpoints.resume(engine, resume_from, which)}
    if resume_from is not None and world.rank == 0 and (Path(resume_from) / BEST).is_file():
        shutil.copyfile(Path(resume_from) / BEST, out / BEST)
    watch = _Watch(recipe.early_stopping, METRICS[recipe.kind][0], state["watch"])
    start, loss, tokens, own_tokens = int(state["step"]), float(state["loss"]), int(state["tokens"]), 0
    step, began = start, time.perf_counter()
    while step < len(order) and not watch.over:
        torch.manual_seed(derive_seed(seed, step, rank))  # dropout
        first = step * learner.batch_size
        drawn = [(units[i], (first + j) // len(units)) for j, i in enumerate(order[step])]
        loss, parts, read_tokens = _accumulate(engine, learned, rows, shared, drawn, recipe, world)
        lr, grad_norm = update(engine, learner, loss, step, len(order))
        step, tokens, own_tokens = step + 1, tokens + read_tokens, own_tokens + read_tokens
        held: Figures = {}
        if watch.due(step, len(order)):
            held = _validate(engine, learned, task, rows, recipe, world)
            if watch.look(step, held):
                weights = engine.weights(trained_only=True)
                if world.rank == 0:
                    _write_weights(weights, out / BEST)
        folder = None
        if step % learner.checkpoint_every == 0 and step < len(order):
            state = {"step": step, "tokens": tokens, "loss": loss, "watch": watch.state}
            best = out / BEST if watch.kept_step else None
            folder = checkpoints.write(engine, out / "steps", state, which, world, best)
        if report is not None:
            figures = {
                "learn/step": step,
                "learn/steps": len(order),
                "learn/epoch": step * learner.batch_size / len(units),
                "learn/loss": loss,
                **{f"learn/{name}": value for name, value in parts.items()},
                **{f"validate/{name}": value for name, value in held.items()},
                "learn/grad_norm": grad_norm,
                "learn/lr": lr,
                "learn/tokens": tokens,
                "learn/tokens_per_s": own_tokens / (time.perf_counter() - began),
            }
            report(figures, folder)
    seconds = time.perf_counter() - began
    adapter = _publish(engine, recipe, spec, seed, out, world, out / BEST if watch.kept_step else None)
    return FitResult(
        checkpoint=out,
        adapter=adapter,
        steps=step,
        steps_planned=len(order),
        kept_step=watch.kept_step or step,
        kept_value=watch.value,
        metric=watch.metric if watch.stopping is not None else None,
        tokens=tokens,
        seconds=seconds,
        tokens_per_s=own_tokens / seconds if own_tokens > 0 else 0.0,
        final_loss=loss,
        num_units=len(units),
        identity=which,
        resumed_at=start,
    )


def told(result: FitResult) -> dict[str, Any]:
    """What is kept beside the weights: no paths, for the folder is renamed when it is complete."""
    return {name: value for name, value in asdict(result).items() if name not in ("checkpoint", "adapter")}


def spec_of(recipe: RewardRecipe, task: Task) -> NetworkSpec:
    """What the recipe's network reads and gives. A length expert is fitted on the training comparisons."""
    wanted = recipe.network
    expert: tuple[tuple[float, float, float], ...] = ()
    if wanted.length_expert:
        units, classes = task.within("train"), len(recipe.outputs())
        expert = LengthClasses.fit(task.targets["winner"][units], task.lengths_of_both(units), classes).logits()
    return NetworkSpec(
        kind_of_input="triple" if recipe.kind == "comparer" else "pair",
        pooling=wanted.pooling,
        max_tokens=wanted.max_tokens,
        max_response_tokens=wanted.max_response_tokens,
        length_logits=expert,
        outputs=recipe.outputs(),
    )


def read(network: Network, one: Input) -> Row:
    """An input as tokens."""
    if one.other is not None:
        return network.reader.triple(one.prompt, one.answer, one.other, one.profile)
    return network.reader.pair(one.prompt, one.answer, one.profile)


def identity(recipe: RewardRecipe, task: Task, seed: int) -> str:
    """A hash of what the trained weights depend on."""
    settings = recipe.model_dump(mode="json", exclude=_APART)
    settings["learner"] = recipe.learner.model_dump(mode="json", exclude=checkpoints.FREE)
    targets = {name: values.tolist() for name, values in task.targets.items()}
    units = (task.members, task.splits, targets)
    # NaN and float64 print exactly.
    return checkpoints.identity([settings, seed], [json.dumps([asdict(one) for one in task.inputs]), repr(units)])


def cuts(lengths: Sequence[int], max_tokens: int, multiple_of: int = 1) -> list[list[int]]:
    """Indices into `lengths`, longest first, in groups of at most `max_tokens` padded tokens, one index at least.

    Neighbours in length share a group, so padding is little. The number of groups is a multiple of `multiple_of` (the workers,
    which must all do the same number of passes): groups are halved until it is, and empty ones added where nothing is left to
    halve.
    """
    ranked = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    groups: list[list[int]] = []
    for i in ranked:
        if groups and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= max_tokens:
            groups[-1].append(i)
        else:
            groups.append([i])
    while len(groups) % multiple_of:
        place = max(range(len(groups)), key=lambda g: (len(groups[g]) > 1, lengths[groups[g][0]] * len(groups[g])))
        half = len(groups[place]) // 2
        if half == 0:
            groups += [[] for _ in range(-len(groups) % multiple_of)]
            break
        groups[place : place + 1] = [groups[place][:half], groups[place][half:]]
    return groups


# --- one step ---------------------------------------------------------------------------------------------------------


def _accumulate(
    engine: Engine,
    learned: Learned,
    rows: Sequence[Row],
    shared: bool,
    drawn: Sequence[tuple[int, int]],
    recipe: RewardRecipe,
    world: World,
) -> tuple[float, dict[str, float], int]:
    """Gradients of this worker's share of a step's (unit, epoch): the loss of the whole step over all workers, its parts where
    there are several, and the tokens that all of them read.
    """
    device, lm_weight = _device(engine), recipe.network.lm_weight
    members = [learned.members(unit, epoch) for unit, epoch in drawn]
    mass = learned.mass([unit for unit, _ in drawn])
    learned_tokens = sum(sum(_learned_tokens(rows[i])) for own in members for i in own)
    sizes = [_size([rows[i] for i in own], shared) for own in members]
    groups = cuts(sizes, recipe.learner.micro_batch_tokens, world.size)
    mine, labels_total, lm_total = groups[world.rank :: world.size], 0.0, 0.0
    for position, group in enumerate(mine):
        # An empty group is another worker's doing: this one makes the pass all the same, for nothing.
        chosen = group or [0]
        reads = [rows[i] for j in chosen for i in members[j]]
        with engine.autocast():
            outputs_MH, logits_RV = engine.model(reads, lm=lm_weight > 0)
        loss = learned.loss(outputs_MH, [drawn[j][0] for j in chosen], [drawn[j][1] for j in chosen], mass)
        labels_total += float(loss.detach()) if group else 0.0
        if lm_weight > 0:
            targets_R = torch.tensor([token for row in reads for token in row.answer], device=device)
            weights_R = torch.tensor([weight for row in reads for weight in _learned_tokens(row)], device=device)
            language, _ = sft(logits_RV, targets_R, weights_R, max(learned_tokens, 1.0))
            lm_total += float(language.detach()) if group else 0.0
            loss = loss + lm_weight * language
        engine.backward(loss if group else loss * 0.0, last=position == len(mine) - 1)
    labels_total = world.total(labels_total, device)
    if lm_weight == 0:
        return labels_total, {}, sum(sizes)
    lm_total = world.total(lm_total, device)
    return labels_total + lm_weight * lm_total, {"label_loss": labels_total, "lm_loss": lm_total}, sum(sizes)


def _learned_tokens(row: Row) -> list[float]:
    """The weight of each token of an answer in the language-modelling loss: the end token of one that was cut is no end."""
    whole = row.length == len(row.answer) - 1
    return [1.0] * (len(row.answer) - 1) + [1.0 if whole else 0.0]


def _size(rows: Sequence[Row], shared: bool) -> int:
    """Tokens of a unit: where it is `shared`, a prompt is computed once for its answers."""
    return sum(map(len, rows)) - (sum(len(row.prefix) for row in rows[1:]) if shared else 0)


def _validate(
    engine: Engine, learned: Learned, task: Task, rows: Sequence[Row], recipe: RewardRecipe, world: World
) -> Figures:
    """Figures on the validation units: every worker reads its share of them, and all of them get the same figures."""
    units = task.within("validation")
    wanted = task.read_by(units)
    groups = cuts([len(rows[i]) for i in wanted], recipe.learner.micro_batch_tokens, world.size)
    device = _device(engine)
    said_NH = torch.zeros(len(wanted), len(recipe.outputs()), dtype=torch.float64, device=device)
    engine.model.eval()
    try:
        with torch.no_grad():
            for group in groups[world.rank :: world.size]:
                with engine.autocast():
                    outputs_MH, _ = engine.model([rows[wanted[j]] for j in group or [0]])
                if group:
                    said_NH[group] = outputs_MH.double()
    finally:
        engine.model.train()
    if world.size > 1:
        dist.all_reduce(said_NH)
    outputs_NH = np.full((len(rows), said_NH.shape[1]), np.nan)
    outputs_NH[wanted] = said_NH.cpu().numpy()
    return learned.figures(outputs_NH, units)


class _Watch:
    """Early stopping: which step was the best, and whether it is over. Its state is plain and goes with a checkpoint."""

    def __init__(self, stopping: EarlyStopping | None, metric: str, state: dict[str, Any] | None) -> None:
        self.stopping, self.metric = stopping, metric
        if stopping is not None and stopping.metric is not None:
            self.metric = stopping.metric
        known = state or {}
        self.value: float | None = known.get("value")
        self.kept_step, self.misses = int(known.get("kept_step", 0)), int(known.get("misses", 0))

    @property
    def state(self) -> dict[str, Any]:
        return {"value": self.value, "kept_step": self.kept_step, "misses": self.misses}

    @property
    def over(self) -> bool:
        return self.stopping is not None and self.misses >= self.stopping.patience

    def due(self, step: int, total: int) -> bool:
        return self.stopping is not None and (step % self.stopping.every == 0 or step == total)

    def look(self, step: int, figures: Figures) -> bool:
        """Is this the best step so far? A figure that is not defined is no improvement, but the first look is always kept."""
        value, sign = figures[self.metric], BETTER[self.metric]
        if value is not None and not math.isfinite(value):
            value = None  # kept as the best so far, it would never be beaten
        better = value is not None and (self.value is None or sign * value > sign * self.value)
        if better or self.kept_step == 0:
            self.value, self.kept_step, self.misses = value, step, 0
            return True
        self.misses += 1
        return False


# --- models -----------------------------------------------------------------------------------------------------------


def _start(recipe: RewardRecipe, spec: NetworkSpec, seed: int, device: str | None = None) -> Network:
    """The backbone with a fresh head, and what the recipe trains of it set to be trained."""
    learner, frozen = recipe.learner, recipe.network.freeze
    base = dtype_of(learner.weights_dtype) if learner.lora is not None else torch.float32
    torch.manual_seed(derive_seed(seed, "head"))
    network = Network.start(
        resolve(recipe.backbone),
        spec,
        lm=recipe.network.lm_weight > 0,
        trust_remote_code=recipe.trust_remote_code,
        dtype=base,
        device=device,
    )
    if learner.gradient_checkpointing:
        recompute(network)
    if learner.lora is not None:
        network.attach(learner.lora)
    else:
        network.requires_grad_(not frozen)
        network.head.requires_grad_(True)
    network.head.float()  # with all that is trained, whatever the frozen weights are in
    return network.train()


def _device(engine: Engine) -> torch.device:
    return next(engine.model.parameters()).device


def _write_weights(weights: dict[str, torch.Tensor], path: Path) -> None:
    temporary = path.with_name(f".{path.name}.new")
    save_file({name: tensor.cpu().contiguous() for name, tensor in weights.items()}, temporary)
    temporary.replace(path)


def _publish(
    engine: Engine, recipe: RewardRecipe, spec: NetworkSpec, seed: int, out: Path, world: World, best: Path | None
) -> Path | None:
    """Write the weights of `best`, else the last ones, through a fresh network: no engine's casts and shards get in."""
    weights = engine.weights(trained_only=True)
    if world.rank == 0:
        if best is not None:
            weights = load_file(best)
        fresh = _start(recipe, spec, seed, device="cpu")
        known = dict(fresh.named_parameters())
        if weights.keys() != trained(fresh).keys():
            raise TrainingError(f"{out}: the trained weights are not those that the network trains")
        with torch.no_grad():
            for name, tensor in weights.items():
                known[name].copy_(tensor)
        fresh.save(out)
        (out / BEST).unlink(missing_ok=True)
    return out / "adapter" if recipe.learner.lora is not None else None
