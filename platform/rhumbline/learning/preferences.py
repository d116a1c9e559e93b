"""Learning from preferences, off-line: pairs (DPO, IPO, JPO, MODPO) or judged answers (KTO, BCO) go in, a checkpoint comes out.

    loss = config.PreferenceLoss(kind="dpo", beta=0.1)
    result = fit_preferences(pairs, learner=recipe.learner, loss=loss, policy_dir=folder, out_dir="checkpoints/t=1", seed=7)

The losses compare the policy with a frozen reference, by default the policy as it is before the first step. What the reference
says of every answer is computed once, before training, in the micro-batches of the first epoch and by the same kernels: the
first loss of DPO is ln 2 to the last digit, in bf16 too, and no second model is held. The two sides of a pair are never parted,
so how a step is cut into micro-batches and over workers changes nothing. The steps themselves are `learning.loop`'s.

N units (pairs, or judged answers) of a part of a step, S sides of each: chosen and rejected, or one answer. Log-probabilities
of sequences are sums in fp64 of those of tokens in fp32: sums of hundreds of nats are subtracted from each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist

from rhumbline import config
from rhumbline.data.chat import Encoded
from rhumbline.learning import checkpoints
from rhumbline.learning.engine import Engine, World
from rhumbline.learning.logprobs import sequence_logprobs
from rhumbline.learning.loop import (
    Accumulate,
    Gradients,
    Report,
    TrainResult,
    complete,
    make_engine,
    resting_dtype,
    start,
)
from rhumbline.learning.optim import adamw
from rhumbline.learning.packing import Order, bins, packed_attention
from rhumbline.learning.policy import load_policy, load_tokenizer, set_threads
from rhumbline.learning.precision import dtype_of
from rhumbline.learning.units import JudgedUnit, PairUnit, Units, encode_samples
from rhumbline.losses import PAIRED_LOSSES, UNPAIRED_LOSSES, options
from rhumbline.losses.dpo import dpo, modpo
from rhumbline.losses.kto import RewardShift, kl_reference_point, mismatched_sums
from rhumbline.records import Judged, Pair

# (places of a part's units, policy_NS, reference_NS, weights_N, denominator) -> the part's share of the loss, and its sums
PartLoss = Callable[
    [Sequence[int], torch.Tensor, torch.Tensor, torch.Tensor, float], tuple[torch.Tensor, Mapping[str, float]]
]


def fit_preferences(
    samples: Sequence[Pair] | Sequence[Judged],
    *,
    learner: config.Learner,
    loss: config.PreferenceLoss,
    policy_dir: str | Path,
    out_dir: str | Path,
    seed: int,
    objectives: Sequence[str] = (),
    adapter_dir: str | Path | None = None,
    reference_dir: str | Path | None = None,
    rank: int = 0,
    world_size: int = 1,
    resume_from: str | Path | None = None,
    report: Report | None = None,
    trust_remote_code: bool = False,
) -> TrainResult:
    """Train `policy_dir` on `samples`; every worker calls it with the same ones. Rank 0 writes `out_dir`.

    objectives: (K,) names in recipe order, for modpo, which finds `loss.learned` among them. adapter_dir: a LoRA of `policy_dir`
    to go on with (merged first when full weights are trained). reference_dir: full weights of another reference than the policy
    that training starts from. resume_from: a folder that `report` was given.

    `report` is called on every worker after every step. Beside the figures of every training it gets means over the step by
    the samples' weights: learn/accuracy, learn/margin, and of pairs learn/chosen_reward, learn/rejected_reward,
    learn/chosen_logp and learn/rejected_logp, of judged answers learn/desirable_reward, learn/undesirable_reward and
    learn/reference_point. A mean of no sample is left out.

    Raises DataError for samples that the loss cannot learn from, TrainingError where none is left, for a loss that is no
    number, and for a checkpoint of another training.
    """
    set_threads(learner.threads)
    world = World(rank, world_size)
    tokenizer = load_tokenizer(policy_dir, trust_remote_code)
    units, dropped = encode_samples(samples, tokenizer, learner.max_length, loss, objectives, seed)
    if loss.kind in UNPAIRED_LOSSES:
        loss = balanced(loss, cast("Sequence[JudgedUnit]", units))
    known = {sample.id: sample for sample in samples}
    order = Order(len(units), learner.batch_size, learner.epochs, seed)
    with ExitStack() as stack:
        model = start(learner, policy_dir, adapter_dir, seed, trust_remote_code, stack)
        engine = make_engine(learner, model, adamw(model, learner.lr, learner.betas, learner.weight_decay), world)
        engine.model.eval()  # with dropout the policy would differ from its reference before anything is learned
        # Before `complete`, which puts trained weights into the engine where it resumes.
        accumulate = _against_reference(
            engine, units, order, learner, loss, objectives, world, reference_dir, trust_remote_code
        )
        return complete(
            engine,
            model,
            tokenizer,
            order,
            learner,
            accumulate,
            [known[unit.id] for unit in units],
            dropped,
            policy_dir=policy_dir,
            seed=seed,
            world=world,
            out=Path(out_dir),
            identity=_identity(learner, loss, units, seed),
            resume_from=resume_from,
            report=report,
            trust_remote_code=trust_remote_code,
        )


def balanced(loss: config.PreferenceLoss, units: Sequence[JudgedUnit]) -> config.PreferenceLoss:
    """`loss` with the weights of its classes: N / (2 n) of a class of n among N units, so that both weigh the same. One that is
    given stays.

    One desirable answer of 16: 8 for it and 16 / 30 for each of the others. KTO wants the ratio of the classes' masses between 1
    and 4/3 (arXiv:2402.01306, section 4.2).
    """
    desirable = sum(unit.desirable for unit in units)
    counts = {"desirable_weight": desirable, "undesirable_weight": len(units) - desirable}
    open_ones = {key: len(units) / (2 * max(n, 1)) for key, n in counts.items() if getattr(loss, key) is None}
    return loss.model_copy(update=open_ones)


# --- one step ---------------------------------------------------------------------------------------------------------


def _against_reference(
    engine: Engine,
    units: Units,
    order: Order,
    learner: config.Learner,
    loss: config.PreferenceLoss,
    objectives: Sequence[str],
    world: World,
    reference_dir: str | Path | None,
    trust_remote_code: bool,
) -> Accumulate:
    """What a step does, once the reference has read every answer. A reference of its own is let go of here."""
    with _reference(engine, learner, reference_dir, trust_remote_code) as reference:
        refer = partial(_refer, engine, reference, order, learner.micro_batch_tokens, world)
        said_NS = refer([unit.sides for unit in units])
        if loss.kind not in UNPAIRED_LOSSES:
            return _pairing(engine, cast("Sequence[PairUnit]", units), said_NS, objectives, learner, loss, world)
        judged = cast("Sequence[JudgedUnit]", units)
        mismatched_NS = refer([unit.mismatched for unit in judged]) if loss.kind == "kto" else None
        return _judging(engine, judged, said_NS, mismatched_NS, learner, loss, world)


def _pairing(
    engine: Engine,
    units: Sequence[PairUnit],
    reference_NS: torch.Tensor,
    objectives: Sequence[str],
    learner: config.Learner,
    loss: config.PreferenceLoss,
    world: World,
) -> Accumulate:
    said = options(loss)
    learned = objectives.index(loss.learned) if loss.kind == "modpo" and loss.learned is not None else 0

    def part(
        places: Sequence[int], policy_NS: Any, reference_NS: Any, weights_N: Any, denominator: float
    ) -> tuple[torch.Tensor, Mapping[str, float]]:
        device = policy_NS.device
        tokens_NS = torch.tensor([[side.num_learned for side in units[i].sides] for i in places], device=device)
        columns: list[Any] = [tensor[:, side] for tensor in (policy_NS, reference_NS, tokens_NS) for side in (0, 1)]
        if loss.kind != "modpo":
            return PAIRED_LOSSES[loss.kind](*columns, denominator, weights_P=weights_N, **said)
        # Each direction has a beta of its own: the parts' losses, over one denominator, add up.
        total, sums = policy_NS.new_zeros(()), dict[str, float]()
        for direction in dict.fromkeys(units[i].direction for i in places):
            rows = [row for row, i in enumerate(places) if units[i].direction == direction]
            gaps_PK = torch.tensor([units[places[row]].gaps for row in rows], dtype=torch.float64, device=device)
            beta, margin_P = modpo(gaps_PK, direction, learned, loss.beta)
            own = {
                **said,
                "beta": beta,
                "margin_P": margin_P,
                "weights_P": weights_N[rows],
                "denominator": denominator,
            }
            share, own_sums = dpo(*(column[rows] for column in columns), **own)
            total = total + share
            _add(sums, own_sums)
        return total, sums

    def accumulate(places: Sequence[int], carried: Mapping[str, Any]) -> Gradients:
        sums, tokens = _accumulate(engine, units, places, reference_NS, part, learner.micro_batch_tokens, world)
        names = ("chosen_reward", "rejected_reward", "margin", "chosen_logp", "rejected_logp")
        metrics = {f"learn/{name}": _mean(sums, f"{name}_sum") for name in names}
        metrics = {"learn/accuracy": _mean(sums, "correct_sum"), **metrics}
        return Gradients(loss=sums["loss"], tokens=tokens, metrics=_known(metrics), carried=carried)

    return accumulate


def _judging(
    engine: Engine,
    units: Sequence[JudgedUnit],
    reference_NS: torch.Tensor,
    mismatched_NS: torch.Tensor | None,
    learner: config.Learner,
    loss: config.PreferenceLoss,
    world: World,
) -> Accumulate:
    said = options(loss)

    def accumulate(places: Sequence[int], carried: Mapping[str, Any]) -> Gradients:
        shift = RewardShift(**carried)
        if mismatched_NS is None:
            point = shift.delta
        else:
            asked = [units[i].mismatched for i in places]
            policy_M = _sequences(engine, engine.model, asked, learner.micro_batch_tokens, world)[:, 0]
            weights_M = torch.tensor([units[i].weight for i in places])
            kl_sums = mismatched_sums(policy_M, mismatched_NS[list(places), 0], weights_M)
            # A step in which no sample has a weight learns nothing from any point.
            point = kl_reference_point(kl_sums, loss.beta) if float(kl_sums[1]) > 0 else 0.0

        def part(
            places: Sequence[int], policy_NS: Any, reference_NS: Any, weights_N: Any, denominator: float
        ) -> tuple[torch.Tensor, Mapping[str, float]]:
            return UNPAIRED_LOSSES[loss.kind](
                policy_NS[:, 0],
                reference_NS[:, 0],
                torch.tensor([units[i].desirable for i in places], device=policy_NS.device),
                denominator,
                reference_point=point,
                weights_N=weights_N,
                **said,
            )

        sums, tokens = _accumulate(engine, units, places, reference_NS, part, learner.micro_batch_tokens, world)
        desirable = _mean(sums, "desirable_reward_sum", "desirable_weight_sum")
        undesirable = _mean(sums, "undesirable_reward_sum", "undesirable_weight_sum")
        metrics = {
            "learn/accuracy": _mean(sums, "correct_sum"),
            "learn/desirable_reward": desirable,
            "learn/undesirable_reward": undesirable,
            "learn/margin": None if desirable is None or undesirable is None else desirable - undesirable,
            "learn/reference_point": point,
        }
        after = asdict(shift.after(sums)) if mismatched_NS is None else carried
        return Gradients(loss=sums["loss"], tokens=tokens, metrics=_known(metrics), carried=after)

    return accumulate


def _accumulate(
    engine: Engine,
    units: Units,
    places: Sequence[int],
    reference_NS: torch.Tensor,
    part: PartLoss,
    max_tokens: int,
    world: World,
) -> tuple[dict[str, float], int]:
    """Gradients of this worker's share of a step; returns the sums of the whole step over all workers, and its tokens."""
    device = _device(engine)
    mass = sum(units[i].weight for i in places)
    denominator = mass if mass > 0 else 1.0  # every unit of the step may weigh nothing
    mine, tokens = _parts([units[i].sides for i in places], max_tokens, world)
    sums: dict[str, float] = {}
    for position, group in enumerate(mine):
        # An empty group is another worker's doing: this one makes the pass all the same, with nothing in it.
        own = [places[j] for j in group or [0]]
        with engine.autocast():
            policy_NS = _said(engine.model, [units[i].sides for i in own], device)
        weights_N = torch.tensor([units[i].weight if group else 0.0 for i in own], dtype=torch.float64, device=device)
        loss, own_sums = part(own, policy_NS, reference_NS[own].to(device), weights_N, denominator)
        engine.backward(loss.float(), last=position == len(mine) - 1)
        _add(sums, own_sums)
    total = torch.tensor(list(sums.values()), dtype=torch.float64, device=device)
    return dict(zip(sums, _over_workers(total, world).tolist(), strict=True)), tokens


# --- log-probabilities of sequences -----------------------------------------------------------------------------------


@contextmanager
def _reference(
    engine: Engine, learner: config.Learner, reference_dir: str | Path | None, trust_remote_code: bool
) -> Iterator[Any]:
    """The model in `reference_dir` while it is needed; else the one that is trained, which must not be yet."""
    if reference_dir is None:
        yield engine.model
        return
    # Where the engine does not cast as it computes, it has cast the policy to this.
    dtype = dtype_of(learner.dtype) if learner.engine == "deepspeed" else resting_dtype(learner)
    model = load_policy(reference_dir, dtype, trust_remote_code)
    with packed_attention(model):
        yield model


def _refer(
    engine: Engine, model: Any, order: Order, max_tokens: int, world: World, rows: Sequence[tuple[Encoded, ...]]
) -> torch.Tensor:
    """(N, S) what the reference says of every row, in the micro-batches of the first epoch."""
    table_NS = torch.zeros(len(rows), len(rows[0]), dtype=torch.float64)
    for step in range(-(-len(rows) // order.batch_size)):
        places = list(order[step])
        table_NS[places] = _sequences(engine, model, [rows[i] for i in places], max_tokens, world)
    return table_NS


@torch.no_grad()
def _sequences(
    engine: Engine, model: Any, rows: Sequence[tuple[Encoded, ...]], max_tokens: int, world: World
) -> torch.Tensor:
    """(N, S) log-probabilities of a step's rows without a gradient, each by one worker; all of them get the whole."""
    device = _device(engine)
    out_NS = torch.zeros(len(rows), len(rows[0]), dtype=torch.float64, device=device)
    mine, _ = _parts(rows, max_tokens, world)
    for group in mine:
        with engine.autocast():
            said_NS = _said(model, [rows[j] for j in group or [0]], device)
        if group:
            out_NS[group] = said_NS
    return _over_workers(out_NS, world).cpu()


def _said(model: Any, rows: Sequence[tuple[Encoded, ...]], device: torch.device) -> torch.Tensor:
    """(N, S) log-probabilities, all rows and sides in one pass."""
    return sequence_logprobs(model, [side for sides in rows for side in sides], device).view(len(rows), -1)


def _parts(rows: Sequence[tuple[Encoded, ...]], max_tokens: int, world: World) -> tuple[list[list[int]], int]:
    """This worker's micro-batches of a step, and the tokens of the whole step."""
    sizes = [sum(map(len, sides)) for sides in rows]
    return bins(sizes, max_tokens, world.size)[world.rank :: world.size], sum(sizes)


# --- sums and their means ---------------------------------------------------------------------------------------------


def _over_workers(tensor: torch.Tensor, world: World) -> torch.Tensor:
    if world.size > 1:
        dist.all_reduce(tensor)
    return tensor


def _device(engine: Engine) -> torch.device:
    return next(engine.model.parameters()).device


def _add(sums: dict[str, float], more: Mapping[str, float]) -> None:
    for name, value in more.items():
        sums[name] = sums.get(name, 0.0) + value


def _mean(sums: Mapping[str, float], name: str, weight: str = "weight_sum") -> float | None:
    return sums[name] / sums[weight] if name in sums and sums.get(weight, 0.0) > 0 else None


def _known(metrics: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if value is not None}


def _identity(learner: config.Learner, loss: config.PreferenceLoss, units: Units, seed: int) -> str:
    settings = [learner.model_dump(mode="json", exclude=checkpoints.FREE), loss.model_dump(mode="json"), seed]
    return checkpoints.identity(settings, (repr(unit) for unit in units))
