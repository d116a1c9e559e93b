"""One optimiser step over micro-batches and workers, by plain torch or by DeepSpeed, behind one interface.

    engine = TorchEngine(model, optimizer, max_grad_norm=1.0, dtype=torch.bfloat16, world=World(rank=0, size=2))
    for i, micro in enumerate(mine):
        with engine.autocast():
            loss = sum_over(micro) / denominator          # of the whole step: every micro-batch of every worker
        engine.backward(loss, last=i == len(mine) - 1)
    grad_norm = engine.step(lr=1e-4)

Gradients are summed, not averaged, over micro-batches and workers. With the denominator in the loss the update depends
neither on how a step was cut nor on how many workers shared it. Every worker makes the same number of backward passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn

from rhumbline.errors import ConfigError, TrainingError
from rhumbline.learning.optim import trained


@dataclass(frozen=True, slots=True)
class World:
    """This worker and how many there are. torch.distributed is initialised by whoever starts them."""

    rank: int = 0
    size: int = 1

    def total(self, value: float, device: torch.device | str = "cpu") -> float:
        """The sum of a number over all workers."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=device)
        dist.all_reduce(tensor)
        return float(tensor)


class Engine(Protocol):
    """What the train loop needs. `model` is what forward passes go through."""

    model: nn.Module

    def autocast(self) -> AbstractContextManager[Any]: ...

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Add the gradient of a loss that is already normalised. `last`: of this worker's passes in the step."""

    def step(self, lr: float) -> float:
        """Sum over workers, clip, update; returns the norm before clipping. A non-finite norm updates nothing.

        A group of weights with a learning rate of its own says how many times `lr` it is: `lr_scale`.
        """

    def weights(self, trained_only: bool) -> dict[str, torch.Tensor]:
        """Full weights by the bare model's names. Every worker calls it; on rank 0 they are complete."""

    def save(self, folder: Path) -> None:
        """Trained weights and the optimiser's state, to go on from. Every worker calls it; rank 0 makes the folder."""

    def load(self, folder: Path) -> None: ...


class TorchEngine:
    """Weights on every worker, gradients summed by all-reduce."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        max_grad_norm: float,
        dtype: torch.dtype,
        world: World,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.max_grad_norm, self.dtype, self.world = max_grad_norm, dtype, world
        self.trained = trained(model)
        if world.size > 1:
            for parameter in self.trained.values():  # seeds make them equal already; a difference would never heal
                dist.broadcast(parameter.data, src=0)

    def autocast(self) -> AbstractContextManager[Any]:
        device = next(iter(self.trained.values())).device.type
        return torch.autocast(device, self.dtype) if self.dtype == torch.bfloat16 else nullcontext()

    def backward(self, loss: torch.Tensor, last: bool) -> None:  # noqa: ARG002  gradients only meet in `step`
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def step(self, lr: float) -> float:
        self._sum_over_workers()
        norm = float(nn.utils.clip_grad_norm_(self.trained.values(), self.max_grad_norm))
        if norm == norm and norm != float("inf"):
            for group in self.optimizer.param_groups:
                group["lr"] = lr * group.get("lr_scale", 1.0)
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _sum_over_workers(self) -> None:
        if self.world.size == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.trained.values()]
        flat = torch.cat([g.reshape(-1) for g in gradients])  # one message instead of hundreds
        dist.all_reduce(flat)
        sizes = [g.numel() for g in gradients]
        for parameter, summed in zip(self.trained.values(), torch.split(flat, sizes), strict=True):
            parameter.grad = summed.view_as(parameter)

    def weights(self, trained_only: bool) -> dict[str, torch.Tensor]:
        source: Mapping[str, torch.Tensor] = self.trained if trained_only else self.model.state_dict()
        return {name: tensor.detach() for name, tensor in source.items()}

    def save(self, folder: Path) -> None:
        if self.world.rank != 0:
            return
        save_file({k: v.cpu().contiguous() for k, v in self.weights(True).items()}, folder / "trained.safetensors")
        torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")

    def load(self, folder: Path) -> None:
        try:
            stored = load_file(folder / "trained.safetensors")
            state = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
        except Exception as e:  # each library says in its own way that a file is missing or torn
            raise TrainingError(f"{folder} is no checkpoint to go on from: {e}") from e
        if stored.keys() != self.trained.keys():
            raise TrainingError(f"{folder} holds other weights than those that are trained: it is of another training")
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(stored[name])
        self.optimizer.load_state_dict(state)


class DeepSpeedEngine:
    """ZeRO 1 to 3 (arXiv:1910.02054). `settings` are DeepSpeed's own and pass through; only batching is ours."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: Mapping[str, Any],
        *,
        max_grad_norm: float,
        dtype: torch.dtype,
        world: World,
    ) -> None:
        deepspeed = _import_deepspeed()
        # Micro-batches differ in number from step to step, so accumulation is ended by hand and DeepSpeed counts none.
        ours = {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
        clash = {k for k in (*ours, "train_batch_size", "optimizer", "scheduler") if k in settings}
        if clash:
            raise ConfigError(
                f"learner.deepspeed sets {', '.join(sorted(clash))}: use learner.batch_size, .lr and so on"
            )
        defaults: dict[str, Any] = {
            "gradient_clipping": max_grad_norm,
            "zero_optimization": {"stage": 1},
            "bf16": {"enabled": dtype == torch.bfloat16},
            "zero_allow_untested_optimizer": True,
        }
        self.world, self.stage = world, int((settings.get("zero_optimization") or {}).get("stage", 1))
        self._gathered = deepspeed.zero.GatheredParameters
        self.bare, names = model, trained(model)
        self._trained = set(names)
        # It casts buffers too, and rotary frequencies in bf16 put far tokens at wrong positions: they are put back.
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        self.engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config={**defaults, **settings, **ours}, dist_init_required=False
        )
        for name, buffer in model.named_buffers():
            buffer.data = buffers[name].to(buffer.device)
        self.model: nn.Module = self.engine

    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext()  # DeepSpeed casts the model itself and keeps fp32 masters of what is trained

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss * self.world.size)  # it averages over workers; our gradients are sums
        if not last:
            self.engine.step()  # closes the pass, updates nothing

    def step(self, lr: float) -> float:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self.engine.step()
        return float(self.engine.get_global_grad_norm() or 0.0)

    def weights(self, trained_only: bool) -> dict[str, torch.Tensor]:
        out: dict[str, torch.Tensor] = {}
        for name, parameter in self.bare.named_parameters():
            if trained_only and name not in self._trained:
                continue
            with self._gathered([parameter], enabled=self.stage == 3):  # one at a time: a rank may not hold them all
                if self.world.rank == 0:
                    out[name] = parameter.detach().cpu().clone()
        return out

    def save(self, folder: Path) -> None:
        # DeepSpeed writes pickles. They stay within the run and are read back by this training only.
        self.engine.save_checkpoint(str(folder), tag="state", exclude_frozen_parameters=True)

    def load(self, folder: Path) -> None:
        path, _ = self.engine.load_checkpoint(str(folder), tag="state", load_module_strict=False)
        if path is None:
            raise TrainingError(f"{folder} is no DeepSpeed checkpoint to go on from")


def _import_deepspeed() -> Any:
    try:
        import deepspeed
        import deepspeed.ops
    except ImportError as e:
        raise ConfigError("learner.engine deepspeed needs the package deepspeed: pip install deepspeed") from e
    # Its shared-memory all-reduce would be compiled on first use, which needs a compiler on every node; gloo does as
    # well.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
