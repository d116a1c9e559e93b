"""AdamW and its learning rate.

optimizer = adamw(model, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.01)
factor = cosine(step, total=200, warmup=20, floor=0.1)      # times lr
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that are trained, by name. A tied weight appears once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def adamw(model: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float) -> torch.optim.AdamW:
    """AdamW (arXiv:1711.05101). Weight decay spares vectors (norms, biases): shrinking them only rescales a layer.

    Trained weights must be fp32, and so are the moments: in bf16 an update smaller than 1/256 of its weight is lost.
    """
    weights: Mapping[str, nn.Parameter] = trained(model)
    assert weights, "nothing to train"
    assert all(p.dtype == torch.float32 for p in weights.values()), "trained weights are fp32"
    matrices = [p for p in weights.values() if p.ndim >= 2]
    vectors = [p for p in weights.values() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, fused=True)


def cosine(step: int, total: int, warmup: int, floor: float) -> float:
    """Factor on the learning rate at `step` (from 0) of `total`: linear up over `warmup` steps, then half a cosine.

    Step 0 has 1/(warmup + 1), so no step is wasted at zero; step `warmup` has 1, and step `total` would have `floor`. A
    warm-up longer than half the run is shortened to that.
    """
    warmup = min(warmup, total // 2)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total - warmup)
    return floor + (1 - floor) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
