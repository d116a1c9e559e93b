"""Gradient checkpointing (arXiv:1604.06174): a layer keeps its input, and computes the rest again in the backward pass.

    recompute(model)        # the same function, the same gradients; a third more time, a fraction of the activations

transformers does this in training mode alone, and preferences and online training run in evaluation mode, where nothing is
dropped out. So the forward passes of its layers are wrapped here, whenever a gradient will be wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from rhumbline.errors import ConfigError


def recompute(model: Any) -> int:
    """Wrap every layer of a transformers model, in place; returns how many. Raises ConfigError where it has none.

    To be called before an adapter or an engine is put around the model.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ConfigError(
            f"learner.gradient_checkpointing: {type(model).__name__} has no layers that transformers could compute again. "
            "Leave it out, and lower learner.micro_batch_tokens"
        )
    for layer in layers:
        setattr(layer, "forward", _again(layer.forward))  # noqa: B010  mypy takes an assignment for a mistake
    return len(layers)


def _again(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return wrapped
