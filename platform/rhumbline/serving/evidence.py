"""What a run has measured of the policy that is served: usual rewards, the front, and whether steering does anything.

    ranges(store, ["evaluation/t=2/scores"], contract)      # {"helpfulness": (51.7, 63.8, 73.2), ...}
    achieved(evaluation_json, names)[0].rewards             # (64.1, 38.0)
    effect(evaluation_json).why                             # 'verbosity follows its weight (Spearman 0.97 [0.90, 1.00])...'

A page that lets people steer must say where there is no evidence that steering works. K objectives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rhumbline.directions import Direction, normalise
from rhumbline.evaluation.headline import say_interval
from rhumbline.records import Scored
from rhumbline.steering import Steering
from rhumbline.store import RunStore

JSON = Mapping[str, Any]  # PolicyEvaluation.to_json
Ranges = Mapping[str, tuple[float, float, float]]  # objective -> 10%, 50% and 90% quantile of its scores, 0-100


@dataclass(frozen=True, slots=True, kw_only=True)
class Achieved:
    """One evaluated direction."""

    direction: Direction  # (K,) asked for
    rewards: tuple[float, ...]  # (K,) mean over held-out prompts, 0-100
    pareto: bool  # no other evaluated direction is at least as good everywhere and better somewhere


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """Whether a measurement shows that rewards follow the direction."""

    proven: bool
    why: str  # one sentence with the figures


UNMEASURED = Effect(
    proven=False, why="No evaluation of this checkpoint was found, so whether steering works is not known."
)


def ranges(store: RunStore | None, stages: Sequence[str], contract: Steering) -> Ranges | None:
    """Quantiles of the scores in `stages`; without any, those of the calibration, which t=0's samples gave. None: neither."""
    rewards_NK = [] if store is None else [one.rewards for stage in stages for one in store.read(stage, Scored)]
    if rewards_NK:
        quantiles_3K = np.quantile(np.array(rewards_NK, dtype=np.float64), [0.1, 0.5, 0.9], axis=0)
    else:
        known = [contract.calibration.get(key) for key in ("p10", "p50", "p90")]
        if any(row is None for row in known):
            return None
        quantiles_3K = np.array(known, dtype=np.float64)
    return {
        name: (float(q[0]), float(q[1]), float(q[2]))
        for name, q in zip(contract.objectives, quantiles_3K.T, strict=True)
    }


def achieved(evaluation: JSON, names: Sequence[str]) -> tuple[Achieved, ...]:
    """The evaluated directions in the order of the evaluation, those without a finite mean left out."""
    out = []
    for entry in evaluation.get("directions") or ():
        means = [entry["rewards"][name]["value"] for name in names]
        if entry["vector"] is not None and None not in means:
            direction, rewards = normalise(entry["vector"]), tuple(float(mean) for mean in means)
            out.append(Achieved(direction=direction, rewards=rewards, pareto=bool(entry["pareto"])))
    return tuple(out)


def effect(evaluation: JSON) -> Effect:
    """Proven where an objective's achieved mean follows its weight: the 95% interval of their rank correlation lies above 0.

    `why` says it of every objective, since one may follow and another not. Intervals are by resampled prompts.
    """
    rho = evaluation.get("spearman")
    if not rho:
        return UNMEASURED
    said, follows = [], []
    for name, interval in rho.items():
        low, high = interval["low"], interval["high"]
        if low is not None and low > 0:
            follows.append(name)
            verb = "follows its weight"
        elif high is not None and high < 0:
            verb = "goes against its weight"
        else:
            verb = "is not shown to follow its weight"
        said.append(f"{name} {verb} (Spearman {say_interval(interval)})")
    prompts = len((evaluation.get("per_prompt") or {}).get("prompts") or ())
    where = f"over {len(evaluation['directions'])} directions" + (f" on {prompts} held-out prompts" if prompts else "")
    return Effect(proven=bool(follows), why=f"{'; '.join(said)}, {where}.")
