"""The online learner: PPO and GRPO updates on answers that were sampled and scored elsewhere. Knows no Ray.

    learner = OnlineLearner(recipe.grpo, recipe.learner, total_steps=100, answers_per_step=64, policy_dir=folder, seed=7)
    for step in range(1, 101):
        metrics = learner.update(step, batch)                  # the step's trajectories, the same ones on every rank
        learner.publish(Path(f"checkpoints/t={step}"), full=True)      # what the next answers are sampled with

An update first asks, without a gradient, what the policy, its reference and its value head say of every answer; each rank asks
its share, and all get all of it. From that come the advantages (`learning.credit`), the same on every rank. Then `epochs`
passes over the answers in optimiser steps of `batch_size`, whose losses have whole-step denominators: nothing depends on
micro-batches or on the number of ranks. Nothing is random but the order, which is of (seed, step): an update that is made
again from the same state comes out the same. Dropout is off, since with it a policy differs from itself.

N answers of a step, R their tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
import time
import weakref
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rhumbline import config, durable
from rhumbline.config.online import unlearnable
from rhumbline.data.chat import Encoded
from rhumbline.errors import ConfigError, TrainingError
from rhumbline.learning import checkpoints, value
from rhumbline.learning.credit import Credited, Measured, credit, mean_kl
from rhumbline.learning.engine import World
from rhumbline.learning.logprobs import chosen_logprobs, entropies
from rhumbline.learning.loop import make_engine, start, update
from rhumbline.learning.optim import adamw
from rhumbline.learning.packing import FLASH, Order, Packed, bins, learned_logits, pack
from rhumbline.learning.policy import load_tokenizer, merge_adapter, save_adapter, save_policy, set_threads
from rhumbline.learning.reference import reference_of
from rhumbline.learning.trajectories import Trajectory, check
from rhumbline.losses import KL_CONTROLLERS, KL_ESTIMATORS
from rhumbline.losses.control import Coefficient
from rhumbline.losses.grpo import answer_weights, grpo
from rhumbline.losses.kl import CLAMP
from rhumbline.losses.ppo import value_loss
from rhumbline.queries import derive_seed


class OnlineLearner:
    """One rank of the learners. Every method is called on all ranks alike."""

    def __init__(
        self,
        settings: config.Ppo | config.Grpo,
        learner: config.Learner,
        *,
        total_steps: int,
        answers_per_step: int,
        policy_dir: str | Path,
        adapter_dir: str | Path | None = None,
        reference_dir: str | Path | None = None,
        seed: int,
        max_tokens: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        trust_remote_code: bool = False,
    ) -> None:
        """Load `policy_dir`, and under LoRA go on with `adapter_dir` (full weights: it is merged in first).

        reference_dir: what the KL is measured against; None: the policy as it starts. total_steps and answers_per_step give
        the learning rate its schedule. max_tokens: the most tokens an answer may have, for settings.reduction 'constant'.
        """
        set_threads(learner.threads)
        _check_settings(settings, learner, answers_per_step, max_tokens)
        self.settings, self.learner, self.seed, self.max_tokens = settings, learner, seed, max_tokens
        self.world = World(rank, world_size)
        self.policy_dir, self.trust_remote_code = policy_dir, trust_remote_code
        self.total = total_steps * -(-answers_per_step * learner.epochs // learner.batch_size)  # optimiser steps
        self.step, self.taken, self.tokens = 0, 0, 0  # the last step; optimiser steps and tokens so far
        self.coefficient = Coefficient(value=settings.kl.coefficient)
        self.tokenizer = load_tokenizer(policy_dir, trust_remote_code)
        stack = ExitStack()
        weakref.finalize(self, stack.close)  # attention is packed as long as the learner lives
        self.policy = start(learner, policy_dir, adapter_dir, seed, trust_remote_code, stack)
        self.reference = reference_of(
            self.policy, learner, policy_dir, adapter_dir, reference_dir, trust_remote_code, stack
        )
        self.other_reference = reference_dir is not None  # than the policy as it starts
        model, optimizer = self.policy, adamw(self.policy, learner.lr, learner.betas, learner.weight_decay)
        if isinstance(settings, config.Ppo):
            model = value.PolicyWithValue(self.policy)
            scale = 1.0 if settings.value_lr is None else settings.value_lr / learner.lr
            head = {"params": list(model.head.parameters()), "weight_decay": 0.0, "lr_scale": scale}
            optimizer.add_param_group(head)
        self.engine = make_engine(learner, model, optimizer, self.world)
        self.engine.model.eval()
        said = [settings.model_dump(mode="json"), learner.model_dump(mode="json", exclude=checkpoints.FREE)]
        self.identity = checkpoints.identity([*said, total_steps, answers_per_step, seed, max_tokens], ())

    def update(self, step: int, batch: Sequence[Trajectory]) -> dict[str, float]:
        """Learn from the answers of a step; returns its metrics, which are equal on all ranks.

        Raises TrainingError for a batch that nothing can be learned from, and for a loss or a gradient that is no number.
        """
        began, beta = time.perf_counter(), self.coefficient.value
        try:
            check(batch, grouped=isinstance(self.settings, config.Grpo))
            measured = self._measure(batch)
            kl = mean_kl(batch, measured, self.settings.importance_cap)
            if not math.isfinite(kl):
                raise TrainingError(
                    f"the KL to the reference is {kl}: the policy or its reference is broken, or gives a sampled token no "
                    "probability. Look at the checkpoint that training starts from (policy.initial)"
                )
            credited, metrics = credit(batch, measured, self.settings, beta)
            metrics |= self._learn(step, batch, credited, beta)
        except TrainingError as e:
            raise TrainingError(f"step {step}: {e}") from e
        self._control(kl, len(batch))
        tokens = sum(len(one.prompt_ids) + len(one.response_ids) for one in batch)
        self.step, self.tokens = step, self.tokens + tokens
        ratio_max, seconds = self._largest([metrics["learn/ratio_max"], time.perf_counter() - began])
        return metrics | {
            # Nats per answer, of the policy before the update; what the controller reads wherever the KL is charged.
            "learn/kl": kl,
            "learn/kl_coefficient": beta,
            "learn/kl_stuck_high": float(self.coefficient.stuck_high),
            "learn/kl_stuck_low": float(self.coefficient.stuck_low),
            "learn/entropy": float(measured.entropy_R.double().mean()),
            "learn/length_mean": sum(len(one.response_ids) for one in batch) / len(batch),
            "learn/truncated": sum(one.truncated for one in batch) / len(batch),
            "learn/ratio_max": ratio_max,
            "learn/tokens": float(self.tokens),  # prompts and answers, over all steps, each once
            "learn/tokens_per_s": self.learner.epochs * tokens / seconds,
        }

    def probe(self, encoded: Sequence[Encoded]) -> list[list[float]]:
        """Log-probabilities of the learned tokens of each sample under the weights as they are, in their own precision."""
        return self._told(encoded, None)

    def probe_start(self, encoded: Sequence[Encoded]) -> list[list[float]] | None:
        """The same under the weights that training started from. None: what there is to ask are others, or rounded otherwise."""
        if self.other_reference:
            return None
        with self.reference as copy:
            return None if copy is not None and copy.dtype != self.policy.dtype else self._told(encoded, copy)

    def _told(self, encoded: Sequence[Encoded], copy: Any) -> list[list[float]]:
        asked = [i for i, one in enumerate(encoded) if one.num_learned > 0]
        out: list[list[float]] = [[] for _ in encoded]
        policy = self.policy.get_base_model() if hasattr(self.policy, "get_base_model") else self.policy
        # Flash attention computes in half precision alone: there the figures are as rounded as those of training.
        flash = policy.config._attn_implementation == FLASH
        with torch.no_grad(), self.engine.autocast() if flash else nullcontext():
            for group in bins([len(encoded[i]) for i in asked], self.learner.micro_batch_tokens):
                packed = pack([encoded[asked[j]] for j in group], self.policy.device)
                logits_RV = self._forward(packed)[0] if copy is None else learned_logits(copy, packed)
                logp_R = chosen_logprobs(logits_RV, packed.targets).cpu()
                for j, row in zip(group, torch.split(logp_R, list(packed.counts)), strict=True):
                    out[asked[j]] = row.tolist()
        return out

    @property
    def rounded(self) -> bool:
        """Whether full weights lose something when they are stored in bf16."""
        return self.learner.lora is not None or any(p.dtype != torch.bfloat16 for p in self.policy.parameters())

    def publish(self, out: Path, *, full: bool) -> None:
        """Rank 0 writes the weights in Hugging Face layout: under LoRA out/adapter, and where `full` the merged ones in out."""
        if not full and self.learner.lora is None:
            raise ConfigError("full weights are trained, so there is no adapter to publish: set generator.sync to full")
        weights = self.engine.weights(trained_only=self.learner.lora is not None)
        if self.world.rank != 0:
            return
        if isinstance(self.settings, config.Ppo):
            weights = {k.removeprefix(value.PREFIX): w for k, w in weights.items() if k.startswith(value.PREFIX)}
        if self.learner.lora is None:
            save_policy(self.policy, self.tokenizer, out, weights)
            return
        adapter = save_adapter(self.policy, out / "adapter", weights)
        if full:
            merge_adapter(self.policy_dir, adapter, out, self.tokenizer, self.trust_remote_code)

    def save(self, folder: Path) -> None:
        """What it takes to go on: trained weights, value head, optimiser, KL coefficient, counters."""
        folder.mkdir(parents=True, exist_ok=True)
        self.engine.save(folder)
        if self.world.rank == 0:
            counted = {"step": self.step, "taken": self.taken, "tokens": self.tokens}
            state = {"identity": self.identity, **counted, "coefficient": dataclasses.asdict(self.coefficient)}
            durable.replace(folder / checkpoints.STATE, durable.to_json(state).encode())

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote. Raises TrainingError where it is of another training."""
        state = checkpoints.resume(self.engine, folder, self.identity)
        self.step, self.taken, self.tokens = (int(state[name]) for name in ("step", "taken", "tokens"))
        self.coefficient = Coefficient(**state["coefficient"])

    # --- one step -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _measure(self, batch: Sequence[Trajectory]) -> Measured:
        """What policy, value head and reference say of every answer."""
        encoded, rows, device = [one.encoded for one in batch], _rows(batch), self.policy.device
        logp_R, entropy_R, values_R, reference_R = out_4R = torch.zeros(4, rows[-1].stop, device=device)
        mine = self._share([len(e) for e in encoded])
        for group in mine:
            packed, place = pack([encoded[i] for i in group or [0]], device), _join(rows, group or [0])
            with self.engine.autocast():
                logits_RV, values = self._forward(packed)
            if group:  # an empty one drops what it heard
                logp_R[place] = chosen_logprobs(logits_RV, packed.targets)
                entropy_R[place] = entropies(logits_RV)
                if values is not None:
                    values_R[place] = values.float()
        with self.reference as copy:
            for group in mine:
                packed = pack([encoded[i] for i in group or [0]], device)
                with self.engine.autocast():
                    logits_RV = self._forward(packed)[0] if copy is None else learned_logits(copy, packed)
                if group:
                    reference_R[_join(rows, group)] = chosen_logprobs(logits_RV, packed.targets)
        if self.world.size > 1:
            dist.all_reduce(out_4R)
        logp_R, entropy_R, values_R, reference_R = out_4R.cpu()
        return Measured(logp_R=logp_R, reference_logp_R=reference_R, entropy_R=entropy_R, values_R=values_R)

    def _learn(self, step: int, batch: Sequence[Trajectory], credited: Credited, beta: float) -> dict[str, float]:
        """All optimiser steps on the batch."""
        order = Order(len(batch), self.learner.batch_size, self.learner.epochs, derive_seed(self.seed, step))
        sums: Counter[str] = Counter()
        losses, norms, ratio_max, lr = [], [], 0.0, 0.0
        for indices in order:
            loss, largest = self._accumulate(batch, indices, credited, beta, sums)
            lr, norm = update(self.engine, self.learner, loss, self.taken, self.total)
            self.taken, ratio_max = self.taken + 1, max(ratio_max, largest)
            losses.append(loss)
            norms.append(norm)
        summed = self._summed(sums)
        mass, policy_loss = summed["weight_sum"], summed["loss"] / len(order)
        terms: dict[str, float] = {}  # that are added to the policy's, each before its coefficient
        if self.settings.kl.place == "loss":
            terms["learn/kl_loss"] = summed["kl_loss"] / len(order)
            if beta != 0:  # 0 times infinity would be NaN
                policy_loss -= beta * terms["learn/kl_loss"]
        if isinstance(self.settings, config.Ppo):
            terms["learn/value_loss"] = summed["value_loss"] / len(order)
        return terms | {
            "learn/loss": sum(losses) / len(order),
            "learn/policy_loss": policy_loss,
            "learn/clip_fraction": sum(summed[f"clipped_{kind}_sum"] for kind in ("low", "high", "dual")) / mass,
            "learn/update_kl": summed["old_kl_sum"] / mass,  # per token: how far the update has gone, on average
            "learn/ratio_max": ratio_max,
            "learn/grad_norm": sum(norms) / len(order),
            "learn/lr": lr,
        }

    def _accumulate(
        self, batch: Sequence[Trajectory], indices: Sequence[int], credited: Credited, beta: float, sums: Counter[str]
    ) -> tuple[float, float]:
        """Gradients of this rank's share of an optimiser step; its loss over all ranks, and this rank's largest ratio."""
        settings, device = self.settings, self.policy.device
        encoded, rows = [batch[i].encoded for i in indices], _rows(batch)
        spread: dict[str, Any] = {"reduction": settings.reduction, "length": self.max_tokens}
        _, mass = answer_weights([e.num_learned for e in encoded], [1.0] * len(encoded), **spread)
        mine, total, largest = self._share([len(e) for e in encoded]), 0.0, 0.0
        for position, group in enumerate(mine):
            chosen = group or [0]
            packed = pack([encoded[j] for j in chosen], device)
            weights, _ = answer_weights(packed.counts, [1.0 if group else 0.0] * len(chosen), **spread)
            weights_R = torch.tensor(weights, device=device)
            known = credited.at(_join(rows, [indices[j] for j in chosen]), device)
            with self.engine.autocast():
                logits_RV, values_R = self._forward(packed)
            logp_R = chosen_logprobs(logits_RV, packed.targets)
            loss, told = grpo(
                logp_R, known.old_logp_R, known.advantages_R, weights_R, mass, **self._options(known, beta)
            )
            sums.update(told)
            if settings.kl.place == "loss":
                sums.update({"kl_loss": told["kl_sum"] / mass})
            if isinstance(settings, config.Ppo):
                assert values_R is not None
                of_values, told = value_loss(
                    values_R, known.values_R, known.returns_R, weights_R, mass, clip=settings.value_clip
                )
                loss = loss + settings.value_coefficient * of_values
                sums.update({f"value_{name}": figure for name, figure in told.items()})
            self.engine.backward(loss, last=position == len(mine) - 1)
            total += float(loss.detach())
            if group:
                largest = max(largest, float((logp_R.detach() - known.old_logp_R).max().clamp(max=CLAMP).exp()))
        return self.world.total(total, device), largest

    def _options(self, known: Credited, beta: float) -> dict[str, Any]:
        """Of the policy loss, which is GRPO's with or without a KL term: PPO's is the same."""
        said = self.settings
        options: dict[str, Any] = {"clip_low": said.clip_low, "clip_high": said.clip_high, "dual_clip": said.dual_clip}
        if said.importance_cap is not None:
            options |= {"behaviour_logp_R": known.engine_logp_R, "importance_cap": said.importance_cap}
        if said.kl.place == "loss":
            kl = KL_ESTIMATORS[said.kl.estimator]
            options |= {"reference_logp_R": known.reference_logp_R, "beta": beta, "kl": kl}
        return options

    def _forward(self, packed: Packed) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits of the answers' tokens; values before each where there is a value head."""
        if isinstance(self.settings, config.Ppo):
            return value.logits_and_values(self.engine.model, packed)
        return learned_logits(self.engine.model, packed), None

    def _control(self, kl: float, samples: int) -> None:
        said = self.settings.kl
        options = {} if said.target is None else {"target": said.target, "horizon": said.horizon}
        self.coefficient = KL_CONTROLLERS[said.controller](self.coefficient, kl=kl, samples=samples, **options)

    # --- across ranks -------------------------------------------------------------------------------------------------

    def _share(self, lengths: Sequence[int]) -> list[list[int]]:
        """This rank's groups. An empty one is another rank's doing: the pass is made all the same (ZeRO 3 counts them)."""
        return bins(lengths, self.learner.micro_batch_tokens, self.world.size)[self.world.rank :: self.world.size]

    def _summed(self, sums: Counter[str]) -> dict[str, float]:
        names = sorted(sums)
        figures = torch.tensor([sums[name] for name in names], dtype=torch.float64, device=self.policy.device)
        if self.world.size > 1:
            dist.all_reduce(figures)
        return dict(zip(names, figures.tolist(), strict=True))

    def _largest(self, figures: list[float]) -> list[float]:
        most = torch.tensor(figures, dtype=torch.float64, device=self.policy.device)
        if self.world.size > 1:
            dist.all_reduce(most, op=dist.ReduceOp.MAX)
        return [float(figure) for figure in most]


def _check_settings(
    settings: config.Ppo | config.Grpo, learner: config.Learner, answers_per_step: int, max_tokens: int | None
) -> None:
    if told := unlearnable(settings, learner, answers_per_step):
        raise ConfigError(told)
    if settings.reduction == "constant" and max_tokens is None:
        raise ConfigError(
            "reduction is 'constant', which divides by the most tokens an answer may have: give max_tokens, the recipe's "
            "sampling.max_tokens"
        )


def _rows(batch: Sequence[Trajectory]) -> list[range]:
    """The rows of each answer's tokens among those of all answers."""
    rows, end = [], 0
    for one in batch:
        rows.append(range(end, end := end + len(one.response_ids)))
    return rows


def _join(rows: Sequence[range], members: Sequence[int]) -> torch.Tensor:
    return torch.tensor([row for i in members for row in rows[i]], dtype=torch.long)
