"""Every health rule fires on its failure, and a good run raises none."""

import copy
from typing import Any

import pytest

from rhumbline.evaluation.health import Finding, check_health
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


def steps(count: int, **figures: list[float | None]) -> list[dict[str, Any]]:
    """Metrics of `count` steps; the figures given are of the last ones."""
    rows: list[dict[str, Any]] = [{"step": float(t), "learn/kl": 0.0} for t in range(1, count + 1)]
    for name, values in figures.items():
        for row, value in zip(rows[-len(values) :], values, strict=True):
            row[f"learn/{name}"] = value
    return rows


def test_a_kl_that_ends_off_its_target() -> None:
    # Twelve steps: the last three count. Means of 3.7 and 5.1 at a target of 6 are 38% and 15% off.
    off = check_health([], steps=steps(12, kl=[99.0, 3.0, 4.0, 4.1]), kl_target=6.0)
    assert "KL ended at 3.7 nats per answer, the target is 6: more steps, a shorter kl.horizon" in messages(
        off, "warning"
    )
    assert check_health([], steps=steps(12, kl=[99.0, 5.0, 5.1, 5.2]), kl_target=6.0) == []
    assert "KL ended at 9 nats" in messages(check_health([], steps=steps(1, kl=[9.0]), kl_target=6.0), "warning")
    assert check_health([], steps=steps(12, kl=[3.0] * 4)) == []  # a fixed coefficient has no target
    assert check_health([], kl_target=6.0) == []


def test_objectives_that_are_the_same_for_all_answers() -> None:
    late = check_health([], steps=steps(8, constant_objectives=[0.0, 1.0]))
    assert "in 1 of the last 2 steps an objective was the same" in messages(late, "warning")
    assert check_health([], steps=steps(8, constant_objectives=[2.0, 0.0, 0.0])) == []  # that was before
    assert check_health([], steps=steps(8, constant_objectives=[None, 0.0])) == []


def test_groups_that_teach_nothing() -> None:
    # 9 of 16 groups in the last two steps; 8 are half, which is not more than half.
    some = steps(8, constant_groups=[4.0, 5.0], groups=[8.0, 8.0])
    assert "56% of the groups of the last 2 steps" in messages(check_health([], steps=some), "warning")
    assert check_health([], steps=steps(8, constant_groups=[4.0, 4.0], groups=[8.0, 8.0])) == []


def test_errors_come_first() -> None:
    same = GOOD[1] | {"neighbour_overlap": [0.95, 0.97, 1.0]}
    findings = check_health([GOOD[0], same], selected={"failed": 1, "candidates": 99}, losses=[float("nan")])
    assert [finding.level for finding in findings] == ["error", "warning", "note"]


@pytest.mark.parametrize("evaluations", [[], [INITIAL]])
def test_little_input_is_no_trouble(evaluations: list[dict[str, Any]]) -> None:
    assert check_health(evaluations) == []
