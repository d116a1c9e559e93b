"""What a policy achieves per direction, with intervals over prompts. Between scoring and the report.

    evaluation = PolicyEvaluation.from_scored(
        scored, t=2, label="t=2", signs={"helpfulness": 1, "verbosity": -1},
        reference_point={"helpfulness": 20.0, "verbosity": 90.0}, kl=nats_by_completion, bootstrap=1000, seed=0)
    evaluation.hypervolume.low, evaluation.spearman["verbosity"].value, evaluation.length_ratio.high
    evaluation.to_json()                   # evaluation/t=2.json

D directions, P prompts, K objectives in recipe order, B resamples. Directions stand in the order of `grouping`: with
two objectives by falling angle, so the length ratio (last over first) is that at -45 degrees over that at 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rhumbline.evaluation import controllability, frontier
from rhumbline.evaluation.bootstrap import (
    Interval,
    covariance,
    finite,
    prompt_counts,
    prompt_means,
    ratio_of_means,
    resampled_means,
)
from rhumbline.evaluation.grouping import Grouped, Vector, angle_deg, group
from rhumbline.records import Scored

FloatArray = npt.NDArray[np.float64]
Statistic = Callable[[FloatArray, FloatArray], FloatArray]  # requested (D,), achieved (..., D) -> (...)


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectionResult:
    """What came back when one direction was asked for."""

    vector: Vector | None  # (K,) unit vector; None: asked without a direction
    angle_deg: float | None  # atan2(v2, v1) for K = 2
    rewards: dict[str, Interval]  # objective -> mean over prompts, 0-100
    covariance: tuple[Vector, ...]  # (K, K) of the mean reward vector under resampling
    length: Interval  # response tokens, the end token included
    kl: Interval | None  # nats per response: mean of log pi(y) - log pi_initial(y) over sampled y
    win_rate: Interval | None  # against the initial policy, 0.5: as often better as worse
    n: int  # completions
    finished_share: float  # of completions that ended by themselves
    pareto: bool  # no other direction of this policy is at least as good everywhere and better somewhere
    regret: float | None  # own-direction regret, in units of v . r / scale

    def to_json(self) -> dict[str, Any]:
        return {
            "angle_deg": self.angle_deg,
            "vector": None if self.vector is None else list(self.vector),
            "rewards": _each(self.rewards),
            "covariance": [[finite(c) for c in row] for row in self.covariance],
            "length": self.length.to_json(),
            "kl": _one(self.kl),
            "win_rate": _one(self.win_rate),
            "n": self.n,
            "finished_share": self.finished_share,
            "pareto": self.pareto,
            "regret": None if self.regret is None else finite(self.regret),
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PolicyEvaluation:
    """One policy on one set of prompts. Statistics over directions are None where fewer than two were asked for."""

    t: int | None  # iteration; None: a policy outside the loop, such as the initial one
    label: str
    signs: dict[str, int]  # objective -> +1 or -1, in recipe order
    scale: dict[str, float]  # objective -> what divides its reward in v . r / scale
    reference_point: dict[str, float]  # objective units
    directions: tuple[DirectionResult, ...]  # (D,)
    hypervolume: Interval  # over the directions; of the one point where asked without a direction
    spearman: dict[str, Interval] | None  # requested weight v_k against achieved mean R_k
    kendall: dict[str, Interval] | None
    calibration_slope: dict[str, Interval] | None  # dR_k / dv_k
    monotonicity_violations: dict[str, int] | None
    own_direction_regret: Interval | None  # mean over directions, in units of v . r / scale
    angular_error_deg: Interval | None
    length_ratio: Interval | None  # last over first direction; K = 2 only
    win_rate: Interval | None  # against the initial policy, directions weighing the same within each prompt
    win_rate_head: str | None  # the scorer's head that says which answer wins
    bootstrap: int  # B
    seed: int
    grouped: Grouped  # the arrays behind it

    @classmethod
    def from_scored(
        cls,
        scored: Sequence[Scored],
        *,
        t: int | None,
        label: str,
        signs: Mapping[str, int],
        reference_point: Mapping[str, float],
        scale: Mapping[str, float] | None = None,
        kl: Mapping[str, float] | None = None,
        wins: Mapping[str, float] | None = None,
        wins_by: str | None = None,
        bootstrap: int = 1000,
        seed: int = 0,
    ) -> PolicyEvaluation:
        """Aggregate one evaluation's answers.

        Args:
            signs: objective -> +1 or -1 in recipe order; fronts and hypervolume maximise sign * value.
            reference_point: objective -> value, in the objective's own units. scale: objective -> standard deviation
            of the standardisation that selection used; None: v . r on raw scores. kl: completion id -> nats over the
            whole response; None: not measured. wins, wins_by: `evaluation.wins.win_shares`, and the head that they are by;
            None: not measured. bootstrap, seed: resamples, and the seed that makes evaluations of the
            same prompts pair up.

        Raises ScoringError where nothing was scored or a reward vector does not fit the objectives.
        """
        names = list(signs)
        grouped = group(scored, num_objectives=len(names), kl=kl, wins=wins)
        signs_K = np.array([signs[name] for name in names], dtype=np.float64)
        scale_K = np.array([1.0 if scale is None else scale[name] for name in names])
        reference_K = frontier.maximised([reference_point[name] for name in names], signs_K)

        counts_BP = prompt_counts(len(grouped.prompts), bootstrap, seed)
        mean_DK, mean_BDK = prompt_means(grouped.rewards), resampled_means(grouped.rewards, counts_BP)
        directed = [d for d, vector in enumerate(grouped.vectors) if vector is not None]
        shown = directed or list(range(len(grouped.vectors)))  # the initial policy is one point
        points_DK = frontier.maximised(mean_DK[shown], signs_K)
        points_BDK = frontier.maximised(mean_BDK[:, shown], signs_K)
        asked_DK = np.array([v for v in grouped.vectors if v is not None], dtype=np.float64)
        got_DK, got_BDK = mean_DK[directed], mean_BDK[:, directed]
        steered = len(directed) > 1

        def per_objective(statistic: Statistic) -> dict[str, Interval] | None:
            if not steered:
                return None
            return {
                name: Interval.of(
                    float(statistic(asked_DK[:, k], got_DK[:, k])), statistic(asked_DK[:, k], got_BDK[..., k])
                )
                for k, name in enumerate(names)
            }

        def overall(statistic: Statistic, unit_K: FloatArray | float) -> Interval | None:
            if not steered:
                return None
            return Interval.of(float(statistic(asked_DK, got_DK / unit_K)), statistic(asked_DK, got_BDK / unit_K))

        violations = {
            name: controllability.monotonicity_violations(asked_DK[:, k], got_DK[:, k])
            for k, name in enumerate(names if steered else [])
        }
        # With more objectives the order of directions has no ends.
        ends = (grouped.length[directed[-1]], grouped.length[directed[0]]) if steered and len(names) == 2 else None
        return cls(
            t=t,
            label=label,
            signs=dict(signs),
            scale=dict(zip(names, scale_K.tolist(), strict=True)),
            reference_point={name: float(reference_point[name]) for name in names},
            directions=_directions(grouped, names, mean_DK, mean_BDK, counts_BP, signs_K, scale_K),
            hypervolume=Interval.basic(
                frontier.hypervolume(points_DK, reference_K), hypervolumes(points_BDK, reference_K), at_least=0.0
            ),
            spearman=per_objective(controllability.spearman),
            kendall=per_objective(controllability.kendall),
            calibration_slope=per_objective(controllability.calibration_slope),
            monotonicity_violations=violations if steered else None,
            own_direction_regret=overall(lambda v, r: controllability.regret(v, r).mean(axis=-1), scale_K),
            angular_error_deg=overall(controllability.angular_error_deg, 1.0),
            length_ratio=None if ends is None else ratio_of_means(*ends, counts_BP),
            win_rate=None if wins is None else _win_rate(grouped.wins, counts_BP),
            win_rate_head=None if wins is None else wins_by,
            bootstrap=bootstrap,
            seed=seed,
            grouped=grouped,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data for `evaluation/t=N.json` and the report; `per_prompt` lets other evaluations pair with it."""
        return {
            "t": self.t,
            "label": self.label,
            "objectives": list(self.signs),
            "signs": self.signs,
            "scale": self.scale,
            "reference_point": self.reference_point,
            "directions": [direction.to_json() for direction in self.directions],
            "hypervolume": self.hypervolume.to_json(),
            "spearman": _each(self.spearman),
            "kendall": _each(self.kendall),
            "calibration_slope": _each(self.calibration_slope),
            "monotonicity_violations": self.monotonicity_violations,
            "own_direction_regret": _one(self.own_direction_regret),
            "angular_error_deg": _one(self.angular_error_deg),
            "length_ratio": _one(self.length_ratio),
            "win_rate": _one(self.win_rate),
            "win_rate_head": self.win_rate_head,
            "neighbour_overlap": [finite(x) for x in self.grouped.neighbour_overlap],
            "own_overlap": self.grouped.own_overlap,
            "missing": self.grouped.missing,
            "bootstrap": self.bootstrap,
            "seed": self.seed,
            "per_prompt": {
                "prompts": list(self.grouped.prompts),
                "rewards": [[[finite(x) for x in cell] for cell in row] for row in self.grouped.rewards],
                "length": [[finite(x) for x in row] for row in self.grouped.length],
            },
        }


def hypervolumes(points_BDK: FloatArray, reference_K: FloatArray) -> FloatArray:
    """(B,) in maximised coordinates; a direction that a resample lost entirely (NaN) is left out of it."""
    return np.array([frontier.hypervolume(p[np.all(np.isfinite(p), axis=1)], reference_K) for p in points_BDK])


def _win_rate(wins_DP: FloatArray, counts_BP: FloatArray) -> Interval:
    """Over all directions: their mean within each prompt first, so that a cell that is missing leaves the others alone."""
    per_prompt_1P = prompt_means(wins_DP.T)[None]  # prompt_means averages over axis 1, here the directions
    return Interval.of(float(prompt_means(per_prompt_1P)[0]), resampled_means(per_prompt_1P, counts_BP)[:, 0])


def _directions(
    grouped: Grouped,
    names: Sequence[str],
    mean_DK: FloatArray,
    mean_BDK: FloatArray,
    counts_BP: FloatArray,
    signs_K: FloatArray,
    scale_K: FloatArray,
) -> tuple[DirectionResult, ...]:
    length_D, length_BD = prompt_means(grouped.length), resampled_means(grouped.length, counts_BP)
    kl_D, kl_BD = prompt_means(grouped.kl), resampled_means(grouped.kl, counts_BP)
    win_D, win_BD = prompt_means(grouped.wins), resampled_means(grouped.wins, counts_BP)
    directed = [d for d, vector in enumerate(grouped.vectors) if vector is not None]
    shown = directed or list(range(len(grouped.vectors)))
    pareto = dict(zip(shown, frontier.pareto_set(frontier.maximised(mean_DK[shown], signs_K)).tolist(), strict=True))
    asked_DK = np.array([v for v in grouped.vectors if v is not None], dtype=np.float64)
    regrets = controllability.regret(asked_DK, mean_DK[directed] / scale_K).tolist() if directed else []
    regret = dict(zip(directed, regrets, strict=True))
    return tuple(
        DirectionResult(
            vector=vector,
            angle_deg=angle_deg(vector),
            rewards={name: Interval.of(mean_DK[d, k], mean_BDK[:, d, k]) for k, name in enumerate(names)},
            covariance=tuple(tuple(row) for row in covariance(mean_BDK[:, d]).tolist()),
            length=Interval.of(length_D[d], length_BD[:, d]),
            kl=Interval.of(kl_D[d], kl_BD[:, d]) if np.isfinite(kl_D[d]) else None,
            win_rate=Interval.of(win_D[d], win_BD[:, d]) if np.isfinite(win_D[d]) else None,
            n=grouped.num_answers[d],
            finished_share=grouped.finished_share[d],
            pareto=pareto.get(d, False),
            regret=regret.get(d),
        )
        for d, vector in enumerate(grouped.vectors)
    )


def _each(intervals: dict[str, Interval] | None) -> dict[str, Any] | None:
    return None if intervals is None else {name: interval.to_json() for name, interval in intervals.items()}


def _one(interval: Interval | None) -> dict[str, Any] | None:
    return None if interval is None else interval.to_json()
