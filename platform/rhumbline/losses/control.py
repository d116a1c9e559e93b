"""Controllers of the KL coefficient: fixed, and adaptive towards a target KL.

    state = Coefficient(value=0.02)
    state = adaptive(state, kl=1.7, samples=128, target=1.0)            # after every step: its mean KL, its answers
    state.value, state.stuck_high                                       # 0.0200512, 0
    Coefficient(**json.loads(json.dumps(dataclasses.asdict(state))))    # resumes

The KL is over all workers and in the unit of the target, nats per answer or per token. It is of the policy and the reference
that the coefficient stands between, but need not be the very estimate that is charged: online training reads k1 per answer,
of the policy before the update (`learning.credit.mean_kl`), also where the loss is charged with another estimator, per token
and of the policy as it moves. A controller that reads a KL which its coefficient does not move never settles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficient:
    """The coefficient, and how long its controller has been helpless.

    A target that cannot be reached shows in `stuck_high` or `stuck_low` growing with every step: of a coefficient that
    stays at its bound although the KL asks for more. The policy drifts whatever it costs (`stuck_high`: a learning rate too
    high, or a bound too low), or does not drift so far even for nothing (`stuck_low`: nothing to gain, or too few steps).
    Which count is too many is the caller's to say.
    """

    value: float
    stuck_high: int = 0  # updates in a row at the upper bound with the KL above its target
    stuck_low: int = 0  # updates in a row at the lower bound with the KL below its target


def fixed(state: Coefficient, kl: float, samples: int) -> Coefficient:  # noqa: ARG001 (the interface of both)
    """The coefficient stays."""
    return state


def adaptive(
    state: Coefficient,
    kl: float,
    samples: int,
    *,
    target: float,
    horizon: float = 10_000,
    low: float = 1e-6,
    high: float = 10.0,
) -> Coefficient:
    """beta' = beta (1 + clip(kl / target - 1, +-0.2) samples / horizon), held in [low, high].

    Proportional in log space, the error clipped (Ziegler et al., arXiv:1909.08593, section 2.2). A KL that is off by a fifth
    or more multiplies beta by about exp(0.2) every `horizon` samples. `low` is above 0, since from 0 a factor leads nowhere.
    A KL that is not finite, or a step so large that the factor could pass 0, is a fault of the caller's.
    """
    assert math.isfinite(kl), f"the KL is {kl}"
    assert target > 0, f"expected a target KL above 0, got {target}"
    assert 0 < low <= high, f"expected bounds with 0 < low <= high, got {low} and {high}"
    assert 0 <= samples < 5 * horizon, f"{samples} samples in a step are too many for a horizon of {horizon}"
    error = min(max(kl / target - 1, -0.2), 0.2)
    value = min(max(state.value * (1 + error * samples / horizon), low), high)
    return replace(
        state,
        value=value,
        stuck_high=state.stuck_high + 1 if value == high and kl > target else 0,
        stuck_low=state.stuck_low + 1 if value == low and kl < target else 0,
    )
