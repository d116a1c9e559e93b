"""One evaluation against another, paired by prompt: what an iteration gained.

Works on the JSON of evaluations; resamples the same prompts in both.

    hypervolume_gain(t2, t0).low > 0       # the front grew, beyond the luck of the prompts
    directional_gain(t2, initial)          # per direction, in units of v . r / scale
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from rhumbline.evaluation import frontier
from rhumbline.evaluation.bootstrap import Interval, prompt_counts, prompt_means, resampled_means
from rhumbline.evaluation.evaluate import hypervolumes

FloatArray = npt.NDArray[np.float64]


def hypervolume_gain(later: Mapping[str, Any], earlier: Mapping[str, Any]) -> Interval | None:
    """Hypervolume of `later` minus that of `earlier`, the same prompts drawn for both; see `bootstrap` for the interval.

    None where the two cannot be compared: other objectives, another reference point, or other prompts.
    """
    comparable = all(later[key] == earlier[key] for key in ("objectives", "signs", "reference_point"))
    if not comparable or not _paired(later, earlier):
        return None
    names = later["objectives"]
    signs_K = np.array([later["signs"][name] for name in names], dtype=np.float64)
    reference_K = frontier.maximised([later["reference_point"][name] for name in names], signs_K)
    counts_BP = prompt_counts(len(later["per_prompt"]["prompts"]), later["bootstrap"], later["seed"])
    value, resampled_B = 0.0, np.zeros(len(counts_BP))
    for weight, evaluation in ((1.0, later), (-1.0, earlier)):
        directed = [d for d, entry in enumerate(evaluation["directions"]) if entry["vector"] is not None]
        rewards_DPK = _rewards(evaluation)
        points_DPK = frontier.maximised(rewards_DPK[directed] if directed else rewards_DPK, signs_K)
        value += weight * frontier.hypervolume(prompt_means(points_DPK), reference_K)
        resampled_B += weight * hypervolumes(resampled_means(points_DPK, counts_BP), reference_K)
    return Interval.basic(value, resampled_B)


def directional_gain(evaluation: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> list[Interval | None]:
    """Delta(v) = v . (R(v) - R(baseline)) / scale per direction: the inner product that DPA optimises, gained.

    `baseline` is an evaluation without a direction on the same prompts (the initial policy). Without a usable one the
    result is v . R(v) / scale. None for an entry that was asked without a direction.
    """
    rewards_DPK = _rewards(evaluation)
    if baseline is not None and _paired(evaluation, baseline):
        rewards_DPK = rewards_DPK - _rewards(baseline)[-1:]
    rewards_DPK = rewards_DPK / np.array([evaluation["scale"][name] for name in evaluation["objectives"]])
    counts_BP = prompt_counts(rewards_DPK.shape[1], evaluation["bootstrap"], evaluation["seed"])
    mean_DK, mean_BDK = prompt_means(rewards_DPK), resampled_means(rewards_DPK, counts_BP)
    vectors = [entry["vector"] for entry in evaluation["directions"]]
    return [
        None if vector is None else Interval.of(float(mean_DK[d] @ vector), mean_BDK[:, d] @ np.array(vector))
        for d, vector in enumerate(vectors)
    ]


def _rewards(evaluation: Mapping[str, Any]) -> FloatArray:
    return np.array(evaluation["per_prompt"]["rewards"], dtype=np.float64)  # null becomes NaN


def _paired(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return bool(a["per_prompt"]["prompts"] == b["per_prompt"]["prompts"])
