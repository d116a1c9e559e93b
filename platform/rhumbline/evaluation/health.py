"""Rules that notice what goes wrong in preference training before a person does. From figures to plain sentences.

    check_health([t0, t1, t2], initial=initial, selected={"candidates": 4000, "duplicates_dropped": 40, "failed": 0})
    # [Finding(level='warning', message='t=2: 31% of answers under −45° were cut at the token limit ...')]

    watch = Watch(objectives=("helpfulness", "verbosity"), kl_target=6.0, section="ppo")
    watch.look({"learn/kl": 17.2, "learn/kl_coefficient": 0.15, ...})    # ["ppo.kl.target is 6 ..."]: after every step

`evaluations` and `initial` are JSON of `PolicyEvaluation`. An error says that the figures cannot be trusted, a
warning that a known failure shows, a note that something is worth knowing. No finding at all is the good case.
Thresholds are constants below.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from rhumbline.evaluation.gains import directional_gain
from rhumbline.evaluation.headline import say_direction

JSON = Mapping[str, Any]

MAX_CUT_SHARE = 0.1  # answers that met the token limit: their length and rewards say little
MAX_DUPLICATE_SHARE = 0.5  # of candidates: sampling lacks variety, best-of-n has little to choose from
MAX_FAILED_SHARE = 0.02
MAX_LENGTH_DRIFT = 1.3  # growth of the mean length over all directions, which nobody asked for
MAX_KL_PER_TOKEN = 1.0  # nats per response token
MAX_KL_GROWTH = 2.0  # from one iteration to the next
MIN_SPEARMAN = 0.5
MAX_OVERLAP = 0.9  # Jaccard of words; independent answers to one prompt share about a quarter
MAX_KL_MISS = 0.2  # of the target: an adaptive controller that is further off at the end has not settled
REACH_STEPS = 10  # off its target on one side, before a KL can count as out of reach: it starts at 0 and has to rise
REACH_FACTOR = 10.0  # by which the coefficient has moved meanwhile; in runs that settled it was up to fourfold
FAR_ABOVE = 10.0  # times the target: out of reach however far the coefficient has moved
MIN_APPROACH = 0.05  # of the distance, from five steps to the next five: less is no approach
MAX_ENGINE_GAP = 0.03  # of probabilities of sampled tokens; sound runs that mix fp32 and bf16 on CPUs came to 0.022
MAX_CONSTANT_SHARE = 0.5  # of groups: more of the answers are sampled for nothing than not
MAX_CLIPPED_SHARE = (
    0.9  # of answers whose reward is beyond its clip, and so the same; a clip that ends training comes near it
)
_SILENT_REMEDY = "Look at its rule or reward model, and ask for more answers per step (prompts_per_step, samples)"


class Finding(NamedTuple):
    """One thing that a reader must know."""

    level: Literal["error", "warning", "note"]
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """What the rules look at. Empty parts are skipped."""

    evaluations: Sequence[JSON] = ()  # by iteration
    initial: JSON | None = None
    selected: JSON = field(default_factory=dict)  # candidates, duplicates_dropped, failed: `Selection.counts`, summed
    losses: Sequence[float | None] = ()  # of every optimiser step, as metrics.jsonl has it: None is not a number
    steps: Sequence[JSON] = ()  # metrics of every step of online training, in order
    kl_target: float | None = None  # of the adaptive controller, nats per answer
    section: str = "ppo"  # the recipe's, with the keys of what `steps` come from
    overlap: bool = False  # the engine samples with the version before
    objectives: Sequence[str] = ()  # of `steps`, in recipe order


def check_health(
    evaluations: Sequence[JSON],
    *,
    initial: JSON | None = None,
    selected: JSON | None = None,
    losses: Sequence[float | None] = (),
    steps: Sequence[JSON] = (),
    kl_target: float | None = None,
    section: str = "ppo",
    overlap: bool = False,
    objectives: Sequence[str] = (),
) -> list[Finding]:
    """Run every rule; errors first, then warnings, then notes. `steps` and what follows them are of online training."""
    signals = Signals(
        evaluations=evaluations,
        initial=initial,
        selected=selected or {},
        losses=losses,
        steps=steps,
        kl_target=kl_target,
        section=section,
        overlap=overlap,
        objectives=objectives,
    )
    findings = [finding for rule in RULES for finding in rule(signals)]
    return sorted(findings, key=lambda finding: ("error", "warning", "note").index(finding.level))


def not_a_number(signals: Signals) -> Iterator[Finding]:
    """NaN or infinite losses and means."""
    bad = [step for step, loss in enumerate(signals.losses) if loss is None or not math.isfinite(loss)]
    if bad:
        yield Finding(
            "error", f"the loss was not finite at {len(bad)} of {len(signals.losses)} steps, first at {bad[0]}"
        )
    for evaluation in _all(signals):
        for entry in evaluation["directions"]:
            empty = [name for name, interval in entry["rewards"].items() if interval["value"] is None]
            if empty or entry["length"]["value"] is None:
                what = ", ".join(empty or ["length"])
                yield Finding("error", f"{evaluation['label']}: {what} under {say_direction(entry)} is not a number")


def identical_rewards(signals: Signals) -> Iterator[Finding]:
    """An objective with the same score for every prompt: a broken scorer, or a head that does not look at the
    text."""
    for evaluation in _all(signals):
        for k, name in enumerate(evaluation["objectives"]):
            seen = {cell[k] for row in evaluation["per_prompt"]["rewards"] for cell in row if cell[k] is not None}
            if len(seen) == 1 and len(evaluation["per_prompt"]["prompts"]) > 1:
                yield Finding("error", f"{evaluation['label']}: every answer scores {seen.pop():.4g} in {name}")


def reward_up_while_kl_explodes(signals: Signals) -> Iterator[Finding]:
    """Over-optimisation: the proxy improves while the policy leaves the initial one behind (Gao et al. 2022)."""
    drifts = [(e, _mean_kl_per_token(e), _mean_gain(e, signals.initial)) for e in signals.evaluations]
    for (_, kl_before, gain_before), (evaluation, kl, gain) in pairwise(drifts):
        if kl_before is None or kl is None or gain_before is None or gain is None:
            continue
        if kl > MAX_KL_PER_TOKEN and kl > MAX_KL_GROWTH * kl_before and gain > gain_before:
            yield Finding(
                "warning",
                f"{evaluation['label']}: rewards rose while KL grew from {kl_before:.2f} to {kl:.2f} nats per token: "
                "read the samples before trusting the scores, or train fewer steps (learner.epochs, learner.lr)",
            )
    for evaluation, kl, _ in drifts:
        if kl is not None and kl > MAX_KL_PER_TOKEN:
            yield Finding(
                "note", f"{evaluation['label']}: {kl:.2f} nats of KL per token is far from the initial policy"
            )


def length_drift(signals: Signals) -> Iterator[Finding]:
    """Answers that grow in every direction at once, which no direction asks for (reward models like length)."""
    lengths = [(e["label"], _mean_length(e)) for e in signals.evaluations]
    if not lengths:
        return
    first, before = lengths[0]
    if before is None or before == 0:
        return
    for label, length in lengths[1:]:
        if length is not None and length > MAX_LENGTH_DRIFT * before:
            yield Finding(
                "warning",
                f"{label}: answers are {length / before:.2f} times as long as at {first}, averaged over all "
                "directions: check that no objective merely counts words",
            )


def cut_answers(signals: Signals) -> Iterator[Finding]:
    """Answers that met max_tokens."""
    for evaluation in _all(signals):
        worst = min(evaluation["directions"], key=lambda entry: entry["finished_share"])
        cut = 1 - worst["finished_share"]
        if cut > MAX_CUT_SHARE:
            level: Literal["warning", "note"] = "note" if evaluation is signals.initial else "warning"
            yield Finding(
                level,
                f"{evaluation['label']}: {cut:.0%} of answers under {say_direction(worst)} were cut at the token limit, "
                "so lengths there are lower bounds (evaluation.sampling.max_tokens)",
            )


def duplicates_and_failures(signals: Signals) -> Iterator[Finding]:
    """Candidates that were the same, or never came."""
    counts = (signals.selected.get(key) or 0 for key in ("candidates", "duplicates_dropped", "failed"))
    candidates, dropped, failed = counts
    if candidates and dropped / candidates > MAX_DUPLICATE_SHARE:
        yield Finding(
            "warning",
            f"{dropped / candidates:.0%} of the candidates were duplicates: sample warmer (sampling.temperature)",
        )
    if failed:
        share = failed / (candidates + failed)
        level: Literal["warning", "note"] = "warning" if share > MAX_FAILED_SHARE else "note"
        yield Finding(level, f"{failed} candidates failed ({share:.1%}) and were left out; see events.jsonl")


def direction_collapse(signals: Signals) -> Iterator[Finding]:
    """A policy that does not listen: the answers are the same whatever is asked for."""
    for evaluation in signals.evaluations:
        if evaluation["spearman"] is None:
            continue
        label, names = evaluation["label"], evaluation["objectives"]
        if all(_flat(evaluation, name) for name in names):
            yield Finding(
                "warning", f"{label}: no objective moves with the direction beyond its intervals: not steered"
            )
            continue
        for name in names:
            rho = evaluation["spearman"][name]["value"]
            if rho is None or rho < MIN_SPEARMAN:
                shown = "undefined" if rho is None else f"{rho:.2f}"
                yield Finding("note", f"{label}: {name} hardly follows its requested weight (Spearman {shown})")


def same_words(signals: Signals) -> Iterator[Finding]:
    """All neighbouring directions answer with nearly the same words."""
    for evaluation in signals.evaluations:
        overlaps = [x for x in evaluation["neighbour_overlap"] if x is not None]
        if overlaps and min(overlaps) > MAX_OVERLAP:
            yield Finding(
                "warning",
                f"{evaluation['label']}: neighbouring directions share {min(overlaps):.0%} of their words or more: "
                "the answers hardly differ",
            )


def shrinking_front(signals: Signals) -> Iterator[Finding]:
    """A later iteration that is clearly worse than an earlier one."""
    for before, after in pairwise(signals.evaluations):
        low, high = before["hypervolume"]["low"], after["hypervolume"]["high"]
        if low is not None and high is not None and high < low:
            yield Finding(
                "warning", f"{after['label']}: hypervolume fell below that of {before['label']}, beyond both intervals"
            )


class Watch:
    """Online training while it goes on: what stands in its way, each thing once, at the first step that it holds."""

    def __init__(
        self,
        steps: Sequence[JSON] = (),
        *,
        objectives: Sequence[str],
        kl_target: float | None,
        section: str,
        overlap: bool = False,
    ) -> None:
        """steps: those that an earlier session has looked at."""
        self._steps: list[JSON] = []
        self._signals = Signals(
            steps=self._steps, kl_target=kl_target, section=section, overlap=overlap, objectives=objectives
        )
        self._told: set[str] = set()
        for metrics in steps:
            self.look(metrics)

    def look(self, metrics: JSON) -> list[str]:
        """What the metrics of the next step show for the first time."""
        self._steps.append(metrics)
        found = [("KL", finding.message) for finding in kl_out_of_reach(self._signals)]
        found += [("engine", finding.message) for finding in engine_apart(self._signals)]
        found += [("clip", finding.message) for finding in rewards_clipped_alike(self._signals)]
        for name in _silent(metrics, self._signals.objectives):
            said = "is the same for all answers that are compared: whatever it weighs, nothing is learned about it now"
            found.append((f"objective {name}", f"{name} {said}. {_SILENT_REMEDY}"))
        new = [message for what, message in found if what not in self._told]
        self._told |= {what for what, _ in found}
        return new


def kl_out_of_reach(signals: Signals) -> Iterator[Finding]:
    """A KL that stays on one side of its target and comes no closer, although its coefficient has gone far, or to its end."""
    target, key = signals.kl_target, f"{signals.section}.kl"
    if target is None:
        return
    rows = _off_target(signals.steps, target)
    if len(rows) < REACH_STEPS:
        return
    kls = [float(row["learn/kl"]) for row in rows]
    before, now = (sum(part) / len(part) for part in (kls[-REACH_STEPS : -REACH_STEPS // 2], kls[-REACH_STEPS // 2 :]))
    if abs(now - target) < (1 - MIN_APPROACH) * abs(before - target):
        return
    first, last = (float(row.get("learn/kl_coefficient") or 0) for row in (rows[0], rows[-1]))
    moved = first > 0 and last > 0 and abs(math.log(last / first)) >= math.log(REACH_FACTOR)
    at_end = any((rows[-1].get(f"learn/kl_stuck_{end}") or 0) >= REACH_STEPS for end in ("high", "low"))
    above = now > target
    if not (moved or at_end or min(kls[-REACH_STEPS:]) > FAR_ABOVE * target):
        return
    remedy = (
        f"lower learner.lr, raise {key}.target, or start from a higher {key}.coefficient"
        if above
        else f"the reward does not draw the policy so far: lower {key}.target, or raise learner.lr or steps"
    )
    yield Finding(
        "warning",
        f"{key}.target is {target:g} nats per answer and out of reach: KL is {now:.3g}, {'above' if above else 'below'} it for "
        f"{len(rows)} steps and no closer than before, while the coefficient went from {first:.3g} to {last:.3g}: {remedy}",
    )


def kl_off_target(signals: Signals) -> Iterator[Finding]:
    """A KL that its controller has not brought to the target by the last quarter of the steps, but might have."""
    kls, target, key = _late(signals, "learn/kl"), signals.kl_target, f"{signals.section}.kl"
    if target is None or not kls or any(kl_out_of_reach(signals)):
        return
    kl = sum(kls) / len(kls)
    if abs(kl / target - 1) > MAX_KL_MISS:
        yield Finding(
            "warning",
            f"KL ended at {kl:.3g} nats per answer, the target is {target:g} ({key}.target): give more steps, a shorter "
            f"{key}.horizon, another {key}.coefficient to start from, or a target nearer to what was reached",
        )


def engine_apart(signals: Signals) -> Iterator[Finding]:
    """A learner and an engine that give the tokens of the last step other probabilities, although both have one version."""
    gap = signals.steps[-1].get("learn/engine_gap") if signals.steps and not signals.overlap else None
    if gap is not None and gap > MAX_ENGINE_GAP:
        yield Finding(
            "warning",
            f"learner and engine give the sampled tokens probabilities that are {gap:.3g} apart (learn/engine_gap), more than "
            "rounding explains: compare learner.dtype with generator.engine.dtype, and look at learn/rounding",
        )


def objectives_without_a_say(signals: Signals) -> Iterator[Finding]:
    """Rewards that are the same for all answers that are compared, in the last quarter of the steps."""
    last = _last(signals)
    for name in signals.objectives:
        count = sum(name in _silent(row, signals.objectives) for row in last)
        if count:
            yield Finding(
                "warning",
                f"in {count} of the last {len(last)} steps {name} was the same for all answers that are compared: whatever it "
                f"weighs, nothing was learned about it. {_SILENT_REMEDY}",
            )


def groups_that_teach_nothing(signals: Signals) -> Iterator[Finding]:
    """Groups of answers that all score the same, in the last quarter of the steps."""
    constant, groups = _late(signals, "learn/constant_groups"), _late(signals, "learn/groups")
    if sum(groups) > 0 and sum(constant) / sum(groups) > MAX_CONSTANT_SHARE:
        yield Finding(
            "warning",
            f"{sum(constant) / sum(groups):.0%} of the groups of the last {len(groups)} steps had answers that all score the "
            "same, which teaches nothing: take prompts whose answers differ, or more answers to each (samples)",
        )


def rewards_clipped_alike(signals: Signals) -> Iterator[Finding]:
    """Rewards that their clip makes the same for most answers, in the last quarter of the steps."""
    clipped = _late(signals, "learn/score_clipped")
    share = sum(clipped) / len(clipped) if clipped else 0.0
    if share > MAX_CLIPPED_SHARE:
        yield Finding(
            "warning",
            f"{share:.0%} of the answers of the last {len(clipped)} steps scored beyond {signals.section}.score_clip, which "
            f"makes their rewards the same: standardise them (rewards.standardise), or give another {signals.section}.score_clip",
        )


RULES: tuple[Callable[[Signals], Iterator[Finding]], ...] = (
    not_a_number,
    identical_rewards,
    reward_up_while_kl_explodes,
    length_drift,
    cut_answers,
    duplicates_and_failures,
    direction_collapse,
    same_words,
    shrinking_front,
    kl_out_of_reach,
    kl_off_target,
    engine_apart,
    objectives_without_a_say,
    groups_that_teach_nothing,
    rewards_clipped_alike,
)


def _last(signals: Signals) -> Sequence[JSON]:
    """The last quarter of the steps, at least the last one."""
    return signals.steps[-max(1, len(signals.steps) // 4) :]


def _late(signals: Signals, name: str) -> list[float]:
    """A metric in the last quarter of the steps; what is no number is left out."""
    return [float(row[name]) for row in _last(signals) if row.get(name) is not None and math.isfinite(row[name])]


def _silent(row: JSON, objectives: Sequence[str]) -> list[str]:
    """Objectives without a say in a step: `learning.credit`."""
    return [name for k, name in enumerate(objectives) if row.get(f"learn/constant_objectives/{k}")]


def _off_target(steps: Sequence[JSON], target: float) -> Sequence[JSON]:
    """The last steps, as long as KL was off its target all the time, and on one side of it."""
    count, side = 0, 0.0
    for row in reversed(steps):
        kl = row.get("learn/kl")
        miss = math.nan if kl is None else kl / target - 1
        if not abs(miss) > MAX_KL_MISS or miss * side < 0:
            break
        count, side = count + 1, miss
    return steps[len(steps) - count :]


def _all(signals: Signals) -> list[JSON]:
    return [*signals.evaluations, *([] if signals.initial is None else [signals.initial])]


def _steered(evaluation: JSON) -> list[JSON]:
    return [entry for entry in evaluation["directions"] if entry["vector"] is not None]


def _mean_length(evaluation: JSON) -> float | None:
    lengths = [entry["length"]["value"] for entry in _steered(evaluation)]
    return sum(lengths) / len(lengths) if lengths and None not in lengths else None


def _mean_kl_per_token(evaluation: JSON) -> float | None:
    kls = [entry["kl"]["value"] for entry in _steered(evaluation) if entry["kl"] is not None]
    length = _mean_length(evaluation)
    return sum(kls) / len(kls) / length if kls and length else None


def _mean_gain(evaluation: JSON, initial: JSON | None) -> float | None:
    gains = [gain.value for gain in directional_gain(evaluation, initial) if gain is not None]
    return sum(gains) / len(gains) if gains else None


def _flat(evaluation: JSON, name: str) -> bool:
    """All directions' intervals of an objective share a value."""
    intervals = [entry["rewards"][name] for entry in _steered(evaluation)]
    if any(interval["value"] is None or interval["low"] is None for interval in intervals):
        return False
    return bool(max(i["low"] for i in intervals) <= min(i["high"] for i in intervals))
