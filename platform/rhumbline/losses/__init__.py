"""Losses: pure functions of tensors that return (loss, metrics). To add one: a file, and a line here.

Those that share an interface are in a dict, by the name that a recipe gives them. The losses of reward models,
`regression`, `preference` and `comparison`, have one each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rhumbline.errors import ConfigError, did_you_mean
from rhumbline.losses.absolute import mse_with_penalty, sigmoid_bce, sigmoid_mse
from rhumbline.losses.advantages import centred, leave_one_out, standardised
from rhumbline.losses.control import adaptive, fixed
from rhumbline.losses.distill import distill
from rhumbline.losses.dpo import dpo, ipo
from rhumbline.losses.grpo import grpo
from rhumbline.losses.kl import k1, k2, k3, k3_k2
from rhumbline.losses.kto import bco, kto
from rhumbline.losses.ppo import ppo
from rhumbline.losses.sft import sft

if TYPE_CHECKING:
    from torch import Tensor

    from rhumbline.config import PreferenceLoss
    from rhumbline.losses.control import Coefficient

LOSSES = {"sft": sft, "distill": distill}  # (logits_RV, targets_R or teacher_RV, weights_R, denominator)
KL_ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3, "k3_k2": k3_k2}
# (logp_R, old_logp_R, advantages_R, weights_R, denominator)
POLICY_LOSSES: dict[str, Callable[..., tuple[Tensor, dict[str, float]]]] = {"ppo": ppo, "grpo": grpo}
# (rewards_N, groups_N)
GROUP_ADVANTAGES: dict[str, Callable[..., tuple[Tensor, dict[str, float]]]] = {
    "standardised": standardised,
    "centred": centred,
    "leave_one_out": leave_one_out,
}
KL_CONTROLLERS: dict[str, Callable[..., Coefficient]] = {"fixed": fixed, "adaptive": adaptive}  # (state, kl, samples)
# (outputs_N, labels_N, denominator, weights_N=None)
ABSOLUTE_FORMS: dict[str, Callable[..., tuple[Tensor, dict[str, float]]]] = {
    "mse_with_penalty": mse_with_penalty,
    "sigmoid_mse": sigmoid_mse,
    "sigmoid_bce": sigmoid_bce,
}
# (chosen_P, rejected_P, reference_chosen_P, reference_rejected_P, chosen_tokens_P, rejected_tokens_P, denominator,
#  beta=..., weights_P=None); jpo is dpo, given log-probabilities that are summed over
# the prompts' tokens too, and modpo is dpo with a margin
PAIRED_LOSSES: dict[str, Callable[..., tuple[Tensor, dict[str, float]]]] = {
    "dpo": dpo,
    "ipo": ipo,
    "jpo": dpo,
    "modpo": dpo,
}
# (policy_N, reference_N, desirable_N, denominator, reference_point=..., beta=..., weights_N=None)
UNPAIRED_LOSSES: dict[str, Callable[..., tuple[Tensor, dict[str, float]]]] = {"kto": kto, "bco": bco}


def check_loss(loss: PreferenceLoss) -> None:
    """Raises ConfigError for a `loss.kind` that neither pairs nor judged answers are learned by."""
    known = [*PAIRED_LOSSES, *UNPAIRED_LOSSES]
    if loss.kind not in known:
        near = did_you_mean(loss.kind, known)
        raise ConfigError(f"unknown loss {loss.kind!r} (loss.kind).{near} Known: {', '.join(known)}")
