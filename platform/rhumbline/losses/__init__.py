"""Losses: pure functions of tensors that return (loss, metrics). To add one: a file, and a line here.

What a recipe chooses by name is in a dict here, with the others of its interface: losses of preferences (`loss.kind`) and
of absolute reward models, advantages of groups, estimators and controllers of the KL. What a job always learns by is
imported from its own module: `sft`, `distill`, `ppo`, `grpo`. The losses of reward models, `regression`, `preference` and
`comparison`, have an interface each.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from rhumbline.errors import ConfigError, did_you_mean
from rhumbline.losses.absolute import mse_with_penalty, sigmoid_bce, sigmoid_mse
from rhumbline.losses.advantages import centred, leave_one_out, standardised
from rhumbline.losses.control import adaptive, fixed
from rhumbline.losses.dpo import dpo, ipo
from rhumbline.losses.kl import Estimator, k1, k2, k3, k3_k2
from rhumbline.losses.kto import bco, kto

if TYPE_CHECKING:
    from torch import Tensor

    from rhumbline.config import PreferenceLoss, Update
    from rhumbline.losses.control import Coefficient

KL_ESTIMATORS: dict[str, Estimator] = {"k1": k1, "k2": k2, "k3": k3, "k3_k2": k3_k2}  # (logp, reference_logp)
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
#  weights_P=None), and of the options in a recipe's section `loss` those that it has a parameter for: `options`. jpo is dpo,
# given log-probabilities that are summed over the prompts' tokens too, and modpo is dpo with a margin
PAIRED_LOSSES: dict[str, Callable[..., tuple[Tensor, dict[str, float]]]] = {
    "dpo": dpo,
    "ipo": ipo,
    "jpo": dpo,
    "modpo": dpo,
}
# (policy_N, reference_N, desirable_N, denominator, reference_point=..., weights_N=None), and options as above
UNPAIRED_LOSSES: dict[str, Callable[..., tuple[Tensor, dict[str, float]]]] = {"kto": kto, "bco": bco}


def check_loss(loss: PreferenceLoss) -> None:
    """Raises ConfigError for a `loss.kind` that neither pairs nor judged answers are learned by, and for an option that its
    function has no parameter for.
    """
    known = PAIRED_LOSSES | UNPAIRED_LOSSES
    _check("loss", loss.kind, "loss.kind", known)
    for key, value in loss.options().items():
        if _takes(known[loss.kind], key):
            continue
        default = type(loss).model_fields[key].default
        if value != default:
            others = [kind for kind, function in known.items() if _takes(function, key)]
            raise ConfigError(
                f"loss.{key} is {value:g}, and {loss.kind} (loss.kind) takes none: it is for {', '.join(others)}. Leave it out"
            )


def options(loss: PreferenceLoss) -> dict[str, Any]:
    """What the recipe's section `loss` says to the function of its kind: the options that this has a parameter for, by name.

    One that is None is left to the function's own default.
    """
    function = (PAIRED_LOSSES | UNPAIRED_LOSSES)[loss.kind]
    return {key: value for key, value in loss.options().items() if value is not None and _takes(function, key)}


def _takes(function: Callable[..., Any], option: str) -> bool:
    parameters = inspect.signature(function).parameters
    return option in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())


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
