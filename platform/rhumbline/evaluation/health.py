"""Rules that notice what goes wrong in preference training before a person does. From figures to plain sentences.

    check_health([t0, t1, t2], initial=initial, selected={"candidates": 4000, "duplicates_dropped": 40, "failed": 0})
    # [Finding(level='warning', message='t=2: 31% of answers under −45° were cut at the token limit ...')]

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
MAX_CONSTANT_SHARE = 0.5  # of groups: more of the answers are sampled for nothing than not


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


def check_health(
    evaluations: Sequence[JSON],
    *,
    initial: JSON | None = None,
    selected: JSON | None = None,
    losses: Sequence[float | None] = (),
    steps: Sequence[JSON] = (),
    kl_target: float | None = None,
) -> list[Finding]:
    """Run every rule; errors first, then warnings, then notes. `steps` and `kl_target` are of online training."""
    signals = Signals(
        evaluations=evaluations,
        initial=initial,
        selected=selected or {},
        losses=losses,
        steps=steps,
        kl_target=kl_target,
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


def kl_off_target(signals: Signals) -> Iterator[Finding]:
    """A KL that its controller has not brought to the target by the last quarter of the steps."""
    kls, target = _late(signals, "learn/kl"), signals.kl_target
    if target is None or not kls:
        return
    kl = sum(kls) / len(kls)
    if abs(kl / target - 1) > MAX_KL_MISS:
        yield Finding(
            "warning",
            f"KL ended at {kl:.3g} nats per answer, the target is {target:g}: more steps, a shorter kl.horizon or another "
            "kl.coefficient",
        )


def objectives_without_a_say(signals: Signals) -> Iterator[Finding]:
    """Rewards that are the same for all answers that are compared, in the last quarter of the steps."""
    constant = _late(signals, "learn/constant_objectives")
    if any(constant):
        yield Finding(
            "warning",
            f"in {sum(count > 0 for count in constant)} of the last {len(constant)} steps an objective was the same for all "
            "answers that are compared, up to "
            f"{max(constant):g} objectives at once: whatever it weighs, nothing was learned about it. Look at its rule or reward "
            "model, and ask for more answers per step (prompts_per_step, samples)",
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
    kl_off_target,
    objectives_without_a_say,
    groups_that_teach_nothing,
)


def _late(signals: Signals, name: str) -> list[float]:
    """A metric in the last quarter of the steps, at least in the last one; what is no number is left out."""
    last = signals.steps[-max(1, len(signals.steps) // 4) :]
    return [float(row[name]) for row in last if row.get(name) is not None and math.isfinite(row[name])]


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
