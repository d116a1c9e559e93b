"""Losses: pure functions of tensors that return (loss, metrics). To add one: a file, and a line here.

Those that share an interface are in a dict, by the name that a recipe gives them. The losses of reward models,
`regression`, `preference` and `comparison`, have one each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from rhumbline.errors import ConfigError, did_you_mean
from rhumbline.losses.absolute import mse_with_penalty, sigmoid_bce, sigmoid_mse
from rhumbline.losses.advantages import centred, leave_one_out, standardised
from rhumbline.losses.control import adaptive, fixed
from rhumbline.losses.distill import distill
from rhumbline.losses.dpo import dpo, ipo
from rhumbline.losses.grpo import grpo
from rhumbline.losses.kl import Estimator, k1, k2, k3, k3_k2
from rhumbline.losses.kto import bco, kto
from rhumbline.losses.ppo import ppo
from rhumbline.losses.sft import sft

if TYPE_CHECKING:
    from torch import Tensor

    from rhumbline.config import PreferenceLoss, Update
    from rhumbline.losses.control import Coefficient

LOSSES = {"sft": sft, "distill": distill}  # (logits_RV, targets_R or teacher_RV, weights_R, denominator)
KL_ESTIMATORS: dict[str, Estimator] = {"k1": k1, "k2": k2, "k3": k3, "k3_k2": k3_k2}  # (logp, reference_logp)
# (logp_R, old_logp_R, advantages_R, weights_R, denominator)
POLICY_LOSSES: dict[str, Callable[..., tuple[Tensor, dict[str, float]]]] = {"ppo": ppo, "grpo": grpo}
# (rewards_N, groups_N)
GROUP_ADVANTAGES: dict[str, Callable[..., tuple[Tensor, dict[str, float]]]] = {
    "standardised": standardised,
    "centred": centred,
    "leave_one_out": leave_one_out,
}
# (state, kl, samples), and where the recipe gives kl.target also target=..., horizon=...
KL_CONTROLLERS: dict[str, Callable[..., Coefficient]] = {"fixed": fixed, "adaptive": adaptive}
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
    _check("loss", loss.kind, "loss.kind", [*PAIRED_LOSSES, *UNPAIRED_LOSSES])


def check_update(update: Update, section: str) -> None:
    """Raises ConfigError for a name in a recipe's section `ppo` or `grpo` that no dict here has."""
    _check("KL estimator", update.kl.estimator, f"{section}.kl.estimator", KL_ESTIMATORS)
    _check("KL controller", update.kl.controller, f"{section}.kl.controller", KL_CONTROLLERS)
    advantage = getattr(update, "advantage", None)  # of a group: PPO has none
    if advantage is not None:
        _check("advantage", advantage, f"{section}.advantage", GROUP_ADVANTAGES)


def _check(what: str, name: str, key: str, known: Iterable[str]) -> None:
    names = list(known)
    if name not in names:
        raise ConfigError(f"unknown {what} {name!r} ({key}).{did_you_mean(name, names)} Known: {', '.join(names)}")
