"""Selection against brute force over every sample, with ties, duplicates and permuted objectives."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhumbline.directions import Cone, Direction, from_angle_deg
from rhumbline.errors import DirectionError, ScoringError
from rhumbline.records import Completion, Message, Prompt, Query, Scored
from rhumbline.scalarise import SCALARISATIONS, Standardiser
from rhumbline.selection import best_of_n, drop_duplicates, extremes, pooled

PLAIN = Standardiser.identity(2)
ARC: list[Direction] = [from_angle_deg(a) for a in (0.0, -15.0, -30.0, -45.0)]


def scored(
    prompt_id: str,
    index: int,
    sample: int,
    text: str,
    rewards: Sequence[float],
    direction: Direction | None = (1.0, 0.0),
) -> Scored:
    prompt = Prompt(id=prompt_id, messages=(Message(role="user", content="Why?"),))
    query = Query(
        prompt=prompt,
        iteration=1,
        direction=direction,
        direction_index=index,
        style="",
        messages=prompt.messages,
        seed=index,
    )
    completion = Completion(
        query=query,
        sample_index=sample,
        text=text,
        token_ids=(1, 2),
        logprob=-1.0,
        finish_reason="stop",
        policy_version="t=0",
    )
    return Scored(completion=completion, rewards=tuple(float(r) for r in rewards))


@st.composite
def pools(draw: st.DrawFn) -> list[Scored]:
    """Samples of a few prompts and directions in any order; whole rewards on a small range, so that ties happen."""
    rows = []
    for prompt in range(draw(st.integers(1, 3))):
        for index in range(draw(st.integers(1, 3))):
            for sample in range(draw(st.integers(1, 6))):
                text = draw(st.sampled_from("abcdef"))
                # The same text of the same prompt has the same rewards, as a scorer that depends on nothing else gives.
                rewards = ((ord(text) * (prompt + 3)) % 5, (ord(text) * (prompt + 7)) % 4)
                rows.append(scored(f"p{prompt}", index, sample, text, rewards, ARC[index]))
    return draw(st.permutations(rows))


def test_best_of_n_by_hand() -> None:
    # v . r for (0.8, -0.6): 0.8*70-0.6*30 = 38, 0.8*60-0.6*10 = 42, 0.8*90-0.6*60 = 36; for (1, 0) the third wins.
    rewards = [(70, 30), (60, 10), (90, 60)]
    rows = [scored("p", 0, i, f"s{i}", r, (0.8, -0.6)) for i, r in enumerate(rewards)]
    rows += [scored("p", 1, i, f"s{i}", r, (1.0, 0.0)) for i, r in enumerate(rewards)]
    kept = best_of_n(rows, PLAIN)
    assert [s.scored.completion.id for s in kept.selected] == ["p/d0/s1", "p/d1/s2"]
    assert [s.value for s in kept.selected] == pytest.approx([42, 90])
    assert [s.direction for s in kept.selected] == [(0.8, -0.6), (1.0, 0.0)]
    assert [s.num_candidates for s in kept.selected] == [3, 3]
    assert (kept.groups, kept.duplicates_dropped, kept.unique) == (2, 0, 2)


def test_standardising_gives_an_angle_its_leverage() -> None:
    # At -30 degrees, raw: 0.866*60 - 0.5*4 = 50.0 against 43.3. In deviations: 0.866*0.5 - 0.5*2 = -0.57 against 1.
    rows = [scored("p", 0, 0, "wide", (60, 4), ARC[2]), scored("p", 0, 1, "narrow", (50, 0), ARC[2])]
    assert best_of_n(rows, PLAIN).selected[0].scored.completion.text == "wide"
    even = Standardiser((50.0, 2.0), (20.0, 1.0))
    kept = best_of_n(rows, even).selected[0]
    assert kept.scored.completion.text == "narrow"
    assert kept.value == pytest.approx(math.cos(math.radians(30)) * 0 - 0.5 * -2)


def test_ties_go_to_the_first() -> None:
    rows = [scored("p", 0, i, f"s{i}", (5, i)) for i in range(20)]  # direction (1, 0): all are worth 5
    assert best_of_n(rows, PLAIN).selected[0].scored is rows[0]
    assert best_of_n(rows[::-1], PLAIN).selected[0].scored is rows[-1]


def test_identical_samples_are_dropped_and_counted_within_their_group() -> None:
    rows = [scored("p", 0, i, text, (1, i)) for i, text in enumerate(["a", "b", "a", "a"])]
    rows += [scored("p", 1, 0, "a", (1, 0)), scored("q", 0, 0, "a", (1, 0))]  # another group, another prompt
    kept = best_of_n(rows, PLAIN)
    assert (kept.groups, kept.candidates, kept.duplicates_dropped) == (3, 6, 2)
    assert kept.counts(failed=1) == {"unique": 3, "candidates": 6, "duplicates_dropped": 2, "failed": 1}
    assert [s.num_candidates for s in kept.selected] == [2, 1, 1]
    pool = pooled(rows, {"p": [ARC[0]], "q": [ARC[0]]}, PLAIN)
    assert (pool.groups, pool.candidates, pool.duplicates_dropped) == (2, 6, 3)
    assert (
        pooled(rows, {"p": [ARC[0]]}, PLAIN).candidates == 5
    )  # those of a prompt that nothing is selected for are not
    assert drop_duplicates(rows[:4]) == (rows[:2], 2)


@given(pools(), st.sampled_from(sorted(SCALARISATIONS)))
@settings(deadline=None, max_examples=80)
def test_best_of_n_is_brute_force(rows: list[Scored], name: str) -> None:
    standardiser = Standardiser((2.0, 1.0), (1.5, 0.5))
    kept = best_of_n(rows, standardiser, SCALARISATIONS[name])
    queries = list(dict.fromkeys(row.completion.query.id for row in rows))
    assert [s.scored.completion.query.id for s in kept.selected] == queries
    for one in kept.selected:
        group = [row for row in rows if row.completion.query.id == one.scored.completion.query.id]
        z_NK = standardiser([row.rewards for row in group])
        values = SCALARISATIONS[name](z_NK, one.direction)
        assert one.value == pytest.approx(max(values))
        assert one.scored is group[values.tolist().index(max(values))]
        if name == "linear":  # what is logged is the scalar that was optimised
            z = [(r - m) / s for r, m, s in zip(one.scored.rewards, (2.0, 1.0), (1.5, 0.5), strict=True)]
            assert one.value == pytest.approx(sum(v * x for v, x in zip(one.direction, z, strict=True)))
        assert one.num_candidates == len({row.completion.text for row in group})
    assert kept.duplicates_dropped == len(rows) - sum(s.num_candidates for s in kept.selected)


@given(pools())
@settings(deadline=None, max_examples=60)
def test_pooled_ranks_all_samples_of_a_prompt_for_any_direction(rows: list[Scored]) -> None:
    prompts = sorted({row.completion.query.prompt.id for row in rows})
    kept = pooled(rows, dict.fromkeys(prompts, ARC), PLAIN)
    assert [(s.scored.completion.query.prompt.id, s.direction) for s in kept.selected] == [
        (p, v) for p in prompts for v in ARC
    ]
    for one in kept.selected:
        pool = [row for row in rows if row.completion.query.prompt.id == one.scored.completion.query.prompt.id]
        values = [sum(v * r for v, r in zip(one.direction, row.rewards, strict=True)) for row in pool]
        assert one.value == pytest.approx(max(values))
        assert one.scored.rewards[0] == pytest.approx(pool[values.index(max(values))].rewards[0])


@given(pools())
@settings(deadline=None, max_examples=60)
def test_pooled_never_does_worse_than_best_of_n(rows: list[Scored]) -> None:
    narrow = best_of_n(rows, PLAIN)
    for one in narrow.selected:
        wide = pooled(rows, {one.scored.completion.query.prompt.id: [one.direction]}, PLAIN).selected[0]
        assert wide.value >= one.value - 1e-12
        assert wide.num_candidates >= one.num_candidates


@given(pools())
@settings(deadline=None, max_examples=60)
def test_permuting_objectives_and_directions_keeps_the_selection(rows: list[Scored]) -> None:
    flipped = [
        scored(
            row.completion.query.prompt.id,
            row.completion.query.direction_index,
            row.completion.sample_index,
            row.completion.text,
            row.rewards[::-1],
            row.completion.query.direction[::-1] if row.completion.query.direction is not None else None,
        )
        for row in rows
    ]
    here, there = best_of_n(rows, PLAIN), best_of_n(flipped, PLAIN)
    assert [s.scored.completion.id for s in here.selected] == [s.scored.completion.id for s in there.selected]
    assert [s.value for s in here.selected] == pytest.approx([s.value for s in there.selected])
    assert [s.direction for s in here.selected] == [s.direction[::-1] for s in there.selected]


def test_unconditioned_samples_get_the_directions_that_they_are_best_for() -> None:
    rewards = {"long": (60, 50), "middle": (55, 25), "short": (35, 5), "bad": (20, 30)}
    rows = [scored("p", 0, i, text, r, None) for i, (text, r) in enumerate(rewards.items())]
    grid = [tuple(v) for v in Cone(("helpfulness", "verbosity"), from_angle_deg(-22.5), 22.5).grid(4)]
    kept = pooled(rows, {"p": grid}, PLAIN)
    # 0: 60 | 55 | 35; -15: 45.0 | 46.7 | 32.5; -30: 27.0 | 35.1 | 27.8; -45: 7.1 | 21.2 | 21.2 (exactly: 30 / sqrt 2)
    assert [s.scored.completion.text for s in kept.selected[:3]] == ["long", "middle", "middle"]
    assert kept.selected[3].value == pytest.approx(30 / math.sqrt(2))
    assert [s.direction for s in kept.selected] == [pytest.approx(v) for v in ARC]
    assert (kept.groups, kept.unique) == (1, len({s.scored.completion.text for s in kept.selected}))


def test_prompts_whose_samples_all_failed_are_left_out() -> None:
    kept = pooled([scored("p", 0, 0, "a", (1, 1))], {"gone": ARC, "p": ARC[:1]}, PLAIN)
    assert [s.scored.completion.query.prompt.id for s in kept.selected] == ["p"]
    assert best_of_n([], PLAIN).selected == ()


def test_best_of_n_needs_queries_with_a_direction() -> None:
    with pytest.raises(DirectionError, match=r"p/d0 was asked without a direction.*selection\.rule"):
        best_of_n([scored("p", 0, 0, "a", (1, 1), None)], PLAIN)


def test_a_reward_that_is_no_number_never_wins() -> None:
    rows = [scored("p", 0, 0, "a", (1, 1)), scored("p", 0, 1, "b", (math.nan, 1))]
    for select in (lambda: best_of_n(rows, PLAIN), lambda: pooled(rows, {"p": ARC}, PLAIN)):
        with pytest.raises(ScoringError, match="p/d0/s1"):
            select()


def test_extremes_are_best_and_worst_of_the_whole_pool_for_each_direction() -> None:
    pool = [
        scored("p", 0, 0, "long", (9.0, 8.0)),
        scored("p", 0, 1, "short", (6.0, 1.0)),
        scored("p", 1, 0, "bad", (1.0, 3.0)),
        scored("p", 1, 1, "short", (6.0, 1.0)),  # the same text: no candidate of its own
    ]
    helpful, brief = extremes(pool, {"p": [(1.0, 0.0), (0.6, -0.8)]}, PLAIN)
    assert (helpful.best.completion.text, helpful.worst.completion.text) == ("long", "bad")
    # 0.6 r1 - 0.8 r2: long -1.0, short 2.8, bad -1.8
    assert (brief.best.completion.text, brief.worst.completion.text) == ("short", "bad")
    assert brief.gap == pytest.approx(4.6)
    assert brief.gaps == pytest.approx((5.0, -2.0))
    assert [one.completion.text for one in brief.others] == ["long", "bad"]


def test_another_vector_may_rank_for_a_direction_that_stays() -> None:
    pool = [scored("p", 0, 0, "long", (9.0, 8.0)), scored("p", 0, 1, "short", (6.0, 1.0))]
    (found,) = extremes(pool, {"p": [(0.6, -0.8)]}, PLAIN, ranked_by=(1.0, 0.0))
    assert (found.best.completion.text, found.direction) == ("long", (0.6, -0.8))
    assert (found.best_value, found.worst_value, found.gap) == (9.0, 6.0, 3.0)


def test_equal_directions_and_answers_as_good_as_the_best_count_once() -> None:
    pool = [scored("p", 0, i, text, (r, 0.0)) for i, (text, r) in enumerate({"a": 5, "b": 5, "c": 2}.items())]
    (found,) = extremes(pool, {"p": [(1.0, 0.0)] * 3}, PLAIN)
    assert [one.completion.text for one in found.others] == ["c"]
    assert found.other_values == (found.worst_value,)


def test_a_prompt_with_one_distinct_answer_has_no_extremes() -> None:
    pool = [scored("p", 0, 0, "same", (1.0, 1.0)), scored("p", 0, 1, "same", (1.0, 1.0))]
    assert extremes(pool, {"p": [(1.0, 0.0)], "gone": [(1.0, 0.0)]}, PLAIN) == []


@given(pools())
@settings(max_examples=50)
def test_the_best_of_the_extremes_is_what_pooled_keeps(rows: list[Scored]) -> None:
    directions = dict.fromkeys(dict.fromkeys(one.completion.query.prompt.id for one in rows), ARC)
    found = {(one.best.completion.query.prompt.id, one.direction): one for one in extremes(rows, directions, PLAIN)}
    for kept in pooled(rows, directions, PLAIN).selected:
        key = (kept.scored.completion.query.prompt.id, kept.direction)
        if key in found:
            assert found[key].best == kept.scored
