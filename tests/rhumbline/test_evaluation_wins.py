"""Win rates over the initial policy: pairs counted by hand, per direction and over all, and what is left out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from rhumbline.evaluation.evaluate import PolicyEvaluation
from rhumbline.evaluation.headline import headlines
from rhumbline.evaluation.wins import win_shares
from rhumbline.records import Completion, Scored
from tests.rhumbline.evaluation_fakes import REFERENCE, SIGNS, answer, arc

NEAR, FAR = arc([0.0, -45.0])
INITIAL = [("a", 1.0), ("a", 2.0), ("b", 5.0)]  # prompt, score


def initial() -> list[tuple[Completion, float]]:
    return [(answer(p, None, (0, 0), sample=i).completion, score) for i, (p, score) in enumerate(INITIAL)]


def own() -> list[tuple[Scored, float]]:
    """At 0 degrees: prompt a scores 3 and 1, b 5; at -45: a 0, b 6."""
    return [
        (answer("a", NEAR, (50, 50)), 3.0),
        (answer("a", NEAR, (50, 50), sample=1), 1.0),
        (answer("b", NEAR, (50, 50)), 5.0),
        (answer("a", FAR, (50, 50), index=1), 0.0),
        (answer("b", FAR, (50, 50), index=1), 6.0),
    ]


def shares(answers: Sequence[tuple[Scored, float]]) -> dict[str, float]:
    return win_shares([(one.completion, score) for one, score in answers], initial())


def evaluated(answers: Sequence[tuple[Scored, float]], bootstrap: int = 400) -> PolicyEvaluation:
    return PolicyEvaluation.from_scored(
        [one for one, _ in answers],
        t=1,
        label="t=1",
        signs=SIGNS,
        reference_point=REFERENCE,
        wins=shares(answers),
        wins_by="helpfulness",
        bootstrap=bootstrap,
    )


def test_every_pair_of_answers_to_a_prompt_counts_and_a_tie_is_half_a_win() -> None:
    # 3 beats 1 and 2; 1 ties with 1 and loses to 2: (0.5 + 0) / 2; 5 ties with 5; 0 loses twice; 6 beats 5
    assert shares(own()) == {"a/d0/s0": 1.0, "a/d0/s1": 0.25, "b/d0/s0": 0.5, "a/d1/s0": 0.0, "b/d1/s0": 1.0}


def test_prompts_weigh_the_same_and_so_do_directions() -> None:
    result = evaluated(own())
    near, far = result.directions
    assert near.win_rate is not None
    assert far.win_rate is not None
    assert result.win_rate is not None
    assert near.win_rate.value == pytest.approx((0.625 + 0.5) / 2)  # a: (1 + 0.25) / 2, over its 4 pairs
    assert far.win_rate.value == pytest.approx((0.0 + 1.0) / 2)
    # by prompt over both directions: a (0.625 + 0) / 2, b (0.5 + 1) / 2
    assert result.win_rate.value == pytest.approx((0.3125 + 0.75) / 2)
    # a resample is twice a, twice b, or both: the interval ends at the two prompts' own rates
    assert (result.win_rate.low, result.win_rate.high) == pytest.approx((0.3125, 0.75))
    assert (far.win_rate.low, far.win_rate.high) == (0.0, 1.0)


def test_a_policy_against_itself_wins_half() -> None:
    same = [(answer(p, NEAR, (50, 50), sample=i), score) for i, (p, score) in enumerate(INITIAL)]
    result = evaluated(same)
    assert result.win_rate is not None
    assert result.win_rate.value == 0.5


def test_prompts_that_the_initial_policy_did_not_answer_are_left_out() -> None:
    more = [*own(), (answer("c", NEAR, (50, 50)), 9.0)]
    assert shares(more) == shares(own())
    with_c, without = evaluated(more), evaluated(own())
    assert with_c.win_rate is not None
    assert without.win_rate is not None
    assert with_c.win_rate.value == without.win_rate.value


def test_a_cell_that_is_missing_leaves_the_others_alone() -> None:
    result = evaluated(own()[:-1])  # b at -45 degrees is gone
    assert result.win_rate is not None
    assert result.win_rate.value == pytest.approx((0.3125 + 0.5) / 2)


def test_json_and_headline_say_the_rate_and_by_whom() -> None:
    data = evaluated(own()).to_json()
    assert data["win_rate"]["value"] == pytest.approx(0.53125)
    assert data["win_rate_head"] == "helpfulness"
    assert [entry["win_rate"]["value"] for entry in data["directions"]] == [0.5625, 0.5]
    said = {one.title: one for one in headlines([data], None)}["Win rate over the initial policy"]
    assert said.value == "53%"
    assert said.details[0].startswith("by helpfulness")


def test_without_a_scorer_there_is_no_rate_and_with_broken_ones_it_is_not_defined() -> None:
    scored = [one for one, _ in own()]
    plain = PolicyEvaluation.from_scored(scored, t=1, label="t=1", signs=SIGNS, reference_point=REFERENCE, bootstrap=10)
    assert (plain.win_rate, plain.win_rate_head) == (None, None)
    assert plain.to_json()["win_rate"] is None
    broken = PolicyEvaluation.from_scored(
        scored,
        t=1,
        label="t=1",
        signs=SIGNS,
        reference_point=REFERENCE,
        wins={},
        wins_by="helpfulness",
        bootstrap=10,
    )
    assert broken.win_rate is not None
    assert math.isnan(broken.win_rate.value)
    assert broken.directions[0].win_rate is None
