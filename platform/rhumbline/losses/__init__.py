"""Losses: pure functions of tensors that return (loss, metrics). To add one: a file, and a line here.

Those that share an interface are in a dict, by the name that a recipe gives them. The losses of reward models,
`regression`, `preference` and `comparison`, have one each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rhumbline.losses.absolute import mse_with_penalty, sigmoid_bce, sigmoid_mse
from rhumbline.losses.distill import distill
from rhumbline.losses.kl import k1, k2, k3
from rhumbline.losses.sft import sft

if TYPE_CHECKING:
    from torch import Tensor

LOSSES = {"sft": sft, "distill": distill}  # (logits_RV, targets_R or teacher_RV, weights_R, denominator)
KL_ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}
# (outputs_N, labels_N, denominator, weights_N=None)
ABSOLUTE_FORMS: dict[str, Callable[..., tuple[Tensor, dict[str, float]]]] = {
    "mse_with_penalty": mse_with_penalty,
    "sigmoid_mse": sigmoid_mse,
    "sigmoid_bce": sigmoid_bce,
}
