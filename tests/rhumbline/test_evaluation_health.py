"""Every health rule fires on its failure, and a good run raises none."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest

from rhumbline.evaluation.health import Finding, Watch, check_health
from tests.rhumbline.evaluation_fakes import ANGLES, answer, arc, evaluation, obedient

INITIAL = evaluation(None, obedient(angles_deg=None, quality=45.0)).to_json()
GOOD = [evaluation(t, obedient(1 + 0.1 * t, quality=50 + t)).to_json() for t in (0, 1)]


def messages(findings: list[Finding], level: str) -> str:
    return "\n".join(finding.message for finding in findings if finding.level == level)


def changed(evaluation: dict[str, Any], **entries: Any) -> dict[str, Any]:
    """A copy with keys of every direction replaced."""
    out = copy.deepcopy(evaluation)
    for entry in out["directions"]:
        entry.update(copy.deepcopy(entries))
    return out


def test_a_good_run_has_no_finding() -> None:
    selected = {"unique": 90, "candidates": 900, "duplicates_dropped": 400, "failed": 0}  # 90 of 500 texts were kept
    assert check_health(GOOD, initial=INITIAL, selected=selected, losses=[1.0, 0.7]) == []


def test_nan_losses_and_means_are_errors() -> None:
    broken = changed(GOOD[1], length={"value": None, "low": None, "high": None})
    errors = messages(check_health([GOOD[0], broken], losses=[1.0, None, float("inf")]), "error")
    assert "not finite at 2 of 3 steps, first at 1" in errors
    assert "t=1: length under 0° is not a number" in errors


def test_identical_rewards_are_an_error() -> None:
    constant = [answer(f"p{i}", v, (50, 10 + i), index=d) for i in range(4) for d, v in enumerate(arc(ANGLES))]
    findings = check_health([evaluation(1, constant).to_json()])
    assert "t=1: every answer scores 50 in helpfulness" in messages(findings, "error")
    assert "scores 10 in verbosity" not in messages(findings, "error")


def test_reward_up_while_kl_explodes() -> None:
    length = GOOD[1]["directions"][0]["length"]["value"]
    far = changed(GOOD[1], kl={"value": 3 * length, "low": None, "high": None})
    assert "rewards rose while KL grew" in messages(check_health([GOOD[0], far], initial=INITIAL), "warning")
    worse = evaluation(1, obedient(1.0, quality=40.0)).to_json()
    far_and_worse = changed(worse, kl={"value": 3 * length, "low": None, "high": None})
    assert "rewards rose" not in messages(check_health([GOOD[0], far_and_worse], initial=INITIAL), "warning")


def test_length_drift_in_all_directions() -> None:
    longer = changed(GOOD[1], length={"value": 140.0, "low": 130.0, "high": 150.0})
    assert "times as long as at t=0" in messages(check_health([GOOD[0], longer]), "warning")


def test_cut_answers_are_a_warning_of_a_trained_policy_and_a_note_of_the_initial_one() -> None:
    findings = check_health([changed(GOOD[0], finished_share=0.7)], initial=changed(INITIAL, finished_share=0.2))
    assert "t=0: 30% of answers under 0° were cut" in messages(findings, "warning")
    assert "initial policy: 80% of answers under no direction were cut" in messages(findings, "note")


def test_duplicates_and_failures() -> None:
    findings = check_health(GOOD, selected={"unique": 40, "candidates": 400, "duplicates_dropped": 300, "failed": 100})
    assert "75% of the candidates were duplicates" in messages(findings, "warning")
    assert "100 candidates failed (20.0%)" in messages(findings, "warning")
    few = check_health(GOOD, selected={"unique": 10, "candidates": 999, "duplicates_dropped": 0, "failed": 1})
    assert messages(few, "note") == "1 candidates failed (0.1%) and were left out; see events.jsonl"


def test_direction_collapse() -> None:
    deaf = evaluation(1, obedient(0.0)).to_json()
    assert "t=1: no objective moves with the direction" in messages(check_health([deaf]), "warning")
    backwards = evaluation(1, obedient(-1.0)).to_json()
    assert "verbosity hardly follows its requested weight (Spearman -1.00)" in messages(
        check_health([backwards]), "note"
    )


def test_same_words_in_every_direction() -> None:
    same = GOOD[1] | {"neighbour_overlap": [0.95, 0.97, 1.0]}
    assert "share 95% of their words" in messages(check_health([same]), "warning")
    one = GOOD[1] | {"neighbour_overlap": [0.95, 0.3, 1.0]}
    assert "share" not in messages(check_health([one]), "warning")


def test_shrinking_front() -> None:
    worse = evaluation(1, obedient(1.0, quality=35.0)).to_json()
    assert "t=1: hypervolume fell below that of t=0" in messages(check_health([GOOD[0], worse]), "warning")


def steps(count: int, **figures: Sequence[float | None]) -> list[dict[str, Any]]:
    """Metrics of `count` steps; the figures given are of the last ones."""
    rows: list[dict[str, Any]] = [{"step": float(t), "learn/kl": 0.0} for t in range(1, count + 1)]
    for name, values in figures.items():
        for row, value in zip(rows[-len(values) :], values, strict=True):
            row[f"learn/{name}"] = value
    return rows


def test_a_kl_that_ends_off_its_target() -> None:
    # Twelve steps: the last three count. Means of 3.7 and 5.1 at a target of 6 are 38% and 15% off.
    off = check_health([], steps=steps(12, kl=[99.0, 3.0, 4.0, 4.1]), kl_target=6.0)
    said = "KL ended at 3.7 nats per answer, the target is 6 (ppo.kl.target): give more steps, a shorter ppo.kl.horizon"
    assert said in messages(off, "warning")
    assert check_health([], steps=steps(12, kl=[99.0, 5.0, 5.1, 5.2]), kl_target=6.0) == []
    assert "KL ended at 9 nats" in messages(check_health([], steps=steps(1, kl=[9.0]), kl_target=6.0), "warning")
    assert check_health([], steps=steps(12, kl=[3.0] * 4)) == []  # a fixed coefficient has no target
    assert check_health([], kl_target=6.0) == []


def kl_steps(
    kls: Sequence[float], coefficients: Sequence[float], **figures: Sequence[float | None]
) -> list[dict[str, Any]]:
    return steps(len(kls), kl=[*kls], kl_coefficient=[*coefficients], **figures)


def grown(first: float, factor: float, count: int) -> list[float]:
    return [first * factor**i for i in range(count)]


def test_a_target_that_the_kl_does_not_come_closer_to_is_out_of_reach() -> None:
    # As a real run went: the coefficient has risen from 0.01 to 0.114, by 1.16 a step, while KL stayed about 17.
    kls = [4.0, 7.0, 9.0, 12.0, 15.0, *[17.0, 17.5, 16.8, 17.2, 17.1] * 3]
    rows = kl_steps(kls, [0.02, *grown(0.01, 1.16, 19)])
    (finding,) = check_health([], steps=rows, kl_target=6.0, section="grpo")
    assert finding.level == "warning"
    assert finding.message.startswith(
        "grpo.kl.target is 6 nats per answer and out of reach: KL is 17.1, above it for 18 steps"
    )
    assert "from 0.0116 to 0.145: lower learner.lr, raise grpo.kl.target" in finding.message
    falling = kl_steps([*kls[:-5], 16.0, 15.5, 15.0, 14.5, 14.0], [0.02, *grown(0.01, 1.16, 19)])
    assert "out of reach" not in messages(check_health([], steps=falling, kl_target=6.0), "warning")


def test_a_target_that_the_policy_does_not_drift_to_is_out_of_reach_below() -> None:
    rows = kl_steps([1.0, 1.2, 1.1, 0.9, 1.0] * 4, grown(0.1, 1 / 1.2, 20))
    (finding,) = check_health([], steps=rows, kl_target=6.0)
    assert "KL is 1.04, below it for 20 steps" in finding.message
    assert "lower ppo.kl.target, or raise learner.lr or steps" in finding.message
    slowly = kl_steps([1.0, 1.2, 1.1, 0.9, 1.0] * 4, grown(0.1, 0.99, 20))  # the coefficient has hardly been tried
    assert "KL ended at" in check_health([], steps=slowly, kl_target=6.0)[0].message
    at_bound = kl_steps([1.0] * 20, [1e-6] * 20, kl_stuck_low=[float(i) for i in range(20)])
    assert "out of reach" in check_health([], steps=at_bound, kl_target=6.0)[0].message


def test_a_kl_far_above_its_target_is_out_of_reach_whatever_the_coefficient_did() -> None:
    rows = kl_steps([0.5] * 10, [0.1] * 10)
    assert "target is 1e-06 nats" in check_health([], steps=rows, kl_target=1e-6)[0].message
    assert "KL ended at" in check_health([], steps=rows[1:], kl_target=1e-6)[0].message  # too early to say
    assert "KL ended at" in check_health([], steps=rows, kl_target=0.1)[0].message  # five times as high only


def test_a_run_that_settles_on_its_target_is_never_said_to_miss_it() -> None:
    # The steps of a shipped recipe, as measured: KL overshoots, the coefficient turns, KL comes back.
    kls = [
        0.0,
        0.02,
        0.35,
        0.69,
        0.25,
        0.97,
        3.81,
        4.23,
        7.64,
        8.31,
        9.16,
        10.45,
        9.22,
        10.09,
        8.85,
        9.07,
        9.9,
        9.4,
        8.35,
        8.28,
    ]
    kls += [7.3, 7.35, 8.02, 6.86, 5.29, 4.46, 4.77, 4.46, 5.83, 6.65]
    coefficient = grown(0.1, 0.84, 9) + grown(0.0288, 1.16, 15) + grown(0.256, 0.85, 6)
    watch = Watch(objectives=(), kl_target=6.0, section="ppo")
    assert [watch.look(row) for row in kl_steps(kls, coefficient)] == [[]] * 30


def test_a_watch_tells_each_thing_once_and_not_again_after_a_resume() -> None:
    rows = kl_steps([0.5] * 14, [0.1] * 14, **{"constant_objectives/1": [0.0, 1.0, 0.0, 1.0]})
    given: dict[str, Any] = {"objectives": ("helpfulness", "verbosity"), "kl_target": 1e-6, "section": "grpo"}
    watch = Watch(**given)
    told = [watch.look(row) for row in rows]
    assert [t for t, found in enumerate(told, start=1) if found] == [10, 12]
    assert told[9][0].startswith("grpo.kl.target is 1e-06")
    assert told[11][0].startswith("verbosity is the same for all answers that are compared")
    resumed = Watch(rows[:11], **given)
    assert [resumed.look(row) for row in rows[11:]] == told[11:]


def test_an_engine_that_is_far_from_its_learner_is_named_unless_it_samples_with_the_version_before() -> None:
    rows = steps(8, engine_gap=[0.022, 0.035])
    (said,) = check_health([], steps=rows)
    assert "0.035 apart (learn/engine_gap)" in said.message
    assert check_health([], steps=rows, overlap=True) == []
    watch = Watch(objectives=(), kl_target=None, section="grpo")
    told = [watch.look(row) for row in rows]
    assert [bool(found) for found in told] == [False] * 7 + [True]
    assert watch.look(rows[-1]) == []  # once


def test_objectives_that_are_the_same_for_all_answers_are_named() -> None:
    named: dict[str, Any] = {"objectives": ("helpfulness", "verbosity")}
    rows = steps(8, **{"constant_objectives/0": [0.0, 0.0], "constant_objectives/1": [0.0, 1.0]})
    (late,) = check_health([], steps=rows, **named)
    assert late.message.startswith("in 1 of the last 2 steps verbosity was the same for all answers that are compared")
    assert (
        check_health([], steps=steps(8, **{"constant_objectives/1": [1.0, 0.0, 0.0]}), **named) == []
    )  # that was before
    assert check_health([], steps=steps(8, **{"constant_objectives/1": [None, 0.0]}), **named) == []


def test_groups_that_teach_nothing() -> None:
    # 9 of 16 groups in the last two steps; 8 are half, which is not more than half.
    some = steps(8, constant_groups=[4.0, 5.0], groups=[8.0, 8.0])
    assert "56% of the groups of the last 2 steps" in messages(check_health([], steps=some), "warning")
    assert check_health([], steps=steps(8, constant_groups=[4.0, 4.0], groups=[8.0, 8.0])) == []


def test_rewards_that_their_clip_makes_the_same() -> None:
    most = steps(8, score_clipped=[0.2, 1.0, 0.9])  # 95% in the last two
    assert "95% of the answers of the last 2 steps scored beyond ppo.score_clip" in messages(
        check_health([], steps=most), "warning"
    )
    assert check_health([], steps=steps(8, score_clipped=[1.0, 0.9, 0.9])) == []
    watch = Watch(objectives=("helpfulness",), kl_target=None, section="ppo")
    assert [len(watch.look(row)) for row in most[-3:]] == [0, 1, 0]  # said once, at the first step that shows it


def test_errors_come_first() -> None:
    same = GOOD[1] | {"neighbour_overlap": [0.95, 0.97, 1.0]}
    findings = check_health([GOOD[0], same], selected={"failed": 1, "candidates": 99}, losses=[float("nan")])
    assert [finding.level for finding in findings] == ["error", "warning", "note"]


@pytest.mark.parametrize("evaluations", [[], [INITIAL]])
def test_little_input_is_no_trouble(evaluations: list[dict[str, Any]]) -> None:
    assert check_health(evaluations) == []
