"""The quiz on simulated people, many at once: how near it comes, after how many questions, and whether it knows.

    trial = take(Setting(objectives=3, method="bald", manner="consistent", persons=200))
    trial.error_deg_TU                              # (T + 1, U) angle between estimate and truth after t answers
    summary(trial, bootstrap=1000)                  # a row per t: medians with intervals, coverage of the 90% region
    paired(trial, other, at=6)                      # the same people, pools and luck under another way to choose

It runs `posterior.Particles` and `questions.CHOOSERS`, which the quiz itself runs, on pools of pairs whose differences of
standardised rewards are N(0, 2 I): two independent answers. T questions, U persons, N pairs in a pool, K objectives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rhumbline.cards.exploration import wilson
from rhumbline.cards.figures import FAINT
from rhumbline.directions import Cone
from rhumbline.evaluation.bootstrap import Interval
from rhumbline.evaluation.plots import COLOURS, MARKERS
from rhumbline.users.pool import Matching, matched
from rhumbline.users.posterior import Array, ChoiceModel, Particles, angles_deg
from rhumbline.users.questions import CHOOSERS
from rhumbline.users.quiz import STOP_DEG
from rhumbline.users.simulated import MANNERS, answer_all, draw, traits_of

TRIES = 8  # raw pairs drawn for every pair of a pool; matching drops most


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One experiment."""

    objectives: int
    method: str = "bald"  # a key of CHOOSERS
    manner: str = "consistent"  # a key of MANNERS
    law: str = "uniform"  # of directions: one of simulated.LAWS
    persons: int = 200
    questions: int | None = None  # None: max(6, 3K), where a quiz ends
    pool: int = 60  # matched pairs that each person's questions are chosen from
    particles: int = 1024
    half_angle_deg: float = 45.0
    ties: bool | None = None  # whether a tie is on offer, as the endpoint always has it; None: to those who call some
    beta_known: bool = False  # whether the quiz is told how sharply and how readily for a tie these people choose
    matching: bool = True  # whether pairs are matched on quality
    seed: int = 0

    @property
    def limit(self) -> int:
        """max(6, 3K)."""
        return max(6, 3 * self.objectives)

    @property
    def cone(self) -> Cone:
        """Around equal weights."""
        K = self.objectives
        return Cone(tuple(f"objective {k + 1}" for k in range(K)), (1.0,) * K, self.half_angle_deg)

    @property
    def model(self) -> ChoiceModel:
        """The quiz's model."""
        manner = MANNERS[self.manner]
        ties = manner.nu > 0 if self.ties is None else self.ties
        if not self.beta_known:
            return ChoiceModel(ties=ties)
        return ChoiceModel(
            beta=manner.beta,
            beta_spread=0.0,
            lapse=manner.lapse,
            ties=ties,
            nu=manner.nu or 1.0,  # not read without ties
            nu_spread=0.0,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What came of a setting. Row t is after t answers; persons are the same for equal seeds, laws and pools."""

    setting: Setting
    error_deg_TU: Array  # (T + 1, U) between the estimate and the person's direction
    half_angle_deg_TU: Array  # (T + 1, U) of the 90% credible region
    inside_TU: Array  # (T + 1, U) 1 where the region holds the person's direction

    @property
    def stops(self) -> Array:
        """(U,) after how many answers the quiz would have stopped; its limit where it was not certain before."""
        bound = min(STOP_DEG, self.setting.half_angle_deg / 3)
        last = min(self.setting.limit, len(self.error_deg_TU) - 1)
        certain_TU = self.half_angle_deg_TU[: last + 1] < bound
        certain_TU[last] = True
        return np.asarray(certain_TU.argmax(axis=0))


def pools(setting: Setting) -> Array:
    """(U, N, K) differences of the pairs that each person can be asked."""
    K, N, cone = setting.objectives, setting.pool, setting.cone
    rng = np.random.default_rng([setting.seed, 1])
    how = Matching() if setting.matching else Matching(contested=False, max_quality_gap=None)
    out = []
    for _ in range(setting.persons):
        d_NK = rng.normal(0.0, np.sqrt(2.0), (TRIES * N, K))
        over_N = matched(d_NK, np.ones((len(d_NK), 2)), cone, None, how)
        out.append(d_NK[np.argsort(over_N, kind="stable")[:N]])  # the first that satisfy all, as they were drawn
    return np.array(out)


def take(setting: Setting) -> Trial:
    """Let simulated people take the quiz. Equal settings give equal trials."""
    U, T = setting.persons, setting.limit if setting.questions is None else setting.questions
    truth_UK = draw(setting.law, setting.cone, np.random.default_rng([setting.seed, 0]), U)
    manner = MANNERS[setting.manner]
    traits = traits_of(manner, np.random.default_rng([setting.seed, 6]), U)
    d_UNK, everyone = pools(setting), np.arange(U)
    open_UN = np.ones(d_UNK.shape[:2], dtype=bool)
    person = Particles(
        setting.cone,
        np.random.default_rng([setting.seed, 2]),
        persons=U,
        particles=setting.particles,
        model=setting.model,
    )
    choose, rng = CHOOSERS[setting.method], np.random.default_rng([setting.seed, 3])
    errors, halves, inside = [], [], []
    for t in range(T + 1):
        errors.append(angles_deg(person.mean(), truth_UK))
        halves.append(person.half_angle_deg())
        inside.append(errors[-1] <= halves[-1])
        if t == T:
            break
        n_U = choose(person, d_UNK, open_UN, rng)
        open_UN[everyone, n_U] = False
        asked_UK = d_UNK[everyone, n_U]
        # Luck by person and number of the question alone, so that ways to choose are compared on the same luck.
        luck = np.random.default_rng([setting.seed, 4, t])
        person.update(asked_UK, answer_all(truth_UK, asked_UK, manner, luck, traits))
    return Trial(
        setting=setting,
        error_deg_TU=np.array(errors),
        half_angle_deg_TU=np.array(halves),
        inside_TU=np.array(inside, dtype=np.float64),
    )


def summary(trial: Trial, *, bootstrap: int = 1000) -> list[dict[str, Any]]:
    """A row per number of answers, 0 to T: the setting, and over persons medians (95% bootstrap intervals) and coverage."""
    return [
        {**_named(trial.setting), "asked": t, **_figures(trial, np.full(trial.setting.persons, t), bootstrap)}
        for t in range(len(trial.error_deg_TU))
    ]


def at_stop(trial: Trial, *, bootstrap: int = 1000) -> dict[str, Any]:
    """The same where the quiz would have stopped by its rule, with the mean number of questions."""
    stop_U = trial.stops
    return {
        **_named(trial.setting),
        "asked": "at the stop",
        **_figures(trial, stop_U, bootstrap),
        "mean_questions": float(stop_U.mean()),
    }


def paired(trial: Trial, other: Trial, at: int, *, bootstrap: int = 1000) -> dict[str, Any]:
    """Error after `at` answers, `trial` less `other`, on the same people, pools and luck: mean and median of the differences.

    Negative: `trial` is nearer. Intervals are 95% bootstrap intervals over persons.
    """
    one, two = trial.setting, other.setting
    assert (one.seed, one.persons, one.law, one.pool) == (two.seed, two.persons, two.law, two.pool), (
        "not the same people"
    )
    difference_U = trial.error_deg_TU[at] - other.error_deg_TU[at]
    draws_BU = difference_U[_resamples(one.persons, bootstrap, one.seed)]
    mean = Interval.of(float(difference_U.mean()), draws_BU.mean(axis=1))
    middle = Interval.of(float(np.median(difference_U)), np.median(draws_BU, axis=1))
    return {
        "objectives": one.objectives,
        "manner": one.manner,
        "law": one.law,
        "method": one.method,
        "less": two.method,
        "asked": at,
        **_interval("mean_difference_deg", mean),
        **_interval("median_difference_deg", middle),
        "nearer_share": float((difference_U < 0).mean()),
        "persons": one.persons,
    }


def curves_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Median angular error against the number of questions, a panel per number of objectives, a line per method."""
    counts = sorted({row["objectives"] for row in rows})
    figure = Figure(figsize=(3.1 * len(counts), 3.3), layout="constrained")
    methods = [name for name in CHOOSERS if any(row["method"] == name for row in rows)]
    first = None
    for place, K in enumerate(counts):
        axes = first = figure.add_subplot(1, len(counts), place + 1, sharey=first)
        for name, colour, marker in zip(methods, COLOURS, MARKERS, strict=False):
            mine = [row for row in rows if row["objectives"] == K and row["method"] == name]
            t = [row["asked"] for row in mine]
            axes.fill_between(
                t, [r["error_low"] for r in mine], [r["error_high"] for r in mine], color=colour, alpha=0.2
            )
            axes.plot(t, [row["error"] for row in mine], color=colour, marker=marker, markersize=3.5, label=name)
        axes.axvline(max(6, 3 * K), color=FAINT, linewidth=1.5, zorder=0)
        axes.set_title(f"K = {K}", fontsize=10)
        axes.set_xlabel("questions")
        if place == 0:
            axes.set_ylabel("median angular error, degrees")
            axes.legend(fontsize=8)
    if first is not None:
        first.set_ylim(bottom=0)  # of all panels, and once all lines are drawn: it ends the scaling
    return figure


# --- inside -----------------------------------------------------------------------------------------------------------


def _named(setting: Setting) -> dict[str, Any]:
    told = asdict(setting)
    named = ("objectives", "method", "manner", "law", "beta_known", "matching", "persons")
    return {**{name: told[name] for name in named}, "ties": setting.model.ties}


def _figures(trial: Trial, at_U: Array, bootstrap: int) -> dict[str, Any]:
    U = np.arange(trial.setting.persons)
    error_U, half_U = trial.error_deg_TU[at_U, U], trial.half_angle_deg_TU[at_U, U]
    inside_U = trial.inside_TU[at_U, U]
    middles_B = np.median(error_U[_resamples(len(U), bootstrap, trial.setting.seed)], axis=1)
    covered = wilson(float(inside_U.sum()), len(U)) or (0.0, 1.0)
    return {
        **_interval("error", Interval.of(float(np.median(error_U)), middles_B)),
        "error_p90": float(np.quantile(error_U, 0.9)),
        "half_angle": float(np.median(half_U)),
        "coverage": float(inside_U.mean()),
        "coverage_low": covered[0],
        "coverage_high": covered[1],
    }


def _interval(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _resamples(persons: int, count: int, seed: int) -> Any:
    return np.random.default_rng([seed, 5]).integers(0, persons, (count, persons))
