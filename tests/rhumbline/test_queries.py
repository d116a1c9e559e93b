"""Queries: every prompt is asked what the recipe says, and a shard asked again is the same shard."""

import pytest

from rhumbline import config
from rhumbline.codecs import direction_of, make
from rhumbline.directions import Cone, angle_deg, from_angle_deg
from rhumbline.queries import ask, ask_all, ask_in_styles, batch_of, derive_seed, in_shards, spread_directions
from rhumbline.records import Message, Prompt

NAMES = ("helpfulness", "verbosity")
ARC = Cone(NAMES, from_angle_deg(-22.5), 22.5)
CODEC = make("dpa-int100", NAMES)


def prompts(n: int) -> list[Prompt]:
    return [Prompt(id=f"p{i}", messages=(Message(role="user", content=f"Question {i}?"),)) for i in range(n)]


def test_a_seed_depends_on_every_part_and_on_nothing_else() -> None:
    assert derive_seed(7, 1, "p1", 0) == derive_seed(7, 1, "p1", 0)
    seeds = {
        derive_seed(*parts)
        for parts in [(7, 1, "p1", 0), (7, 1, "p1", 1), (7, 2, "p1", 0), (8, 1, "p1", 0), (71, "p1", 0)]
    }
    assert len(seeds) == 5
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_the_same_prompt_is_asked_the_same_wherever_it_stands() -> None:
    settings = config.Directions(per_prompt=3)
    forward = ask(prompts(4), ARC, CODEC, settings, iteration=1, seed=7)
    backward = ask(prompts(4)[::-1], ARC, CODEC, settings, iteration=1, seed=7)
    assert len(forward) == 12
    assert {q.id: q for q in forward} == {q.id: q for q in backward}
    again = ask(prompts(4), ARC, CODEC, settings, iteration=2, seed=7)
    assert all(a.direction != b.direction and a.seed != b.seed for a, b in zip(forward, again, strict=True))


def test_the_direction_is_in_the_system_prompt_and_inside_the_cone() -> None:
    for query in ask(prompts(20), ARC, CODEC, config.Directions(per_prompt=2), iteration=1, seed=0):
        assert query.direction is not None
        assert ARC.contains(query.direction)
        assert (
            abs(angle_deg(direction_of(query.messages, CODEC)) - angle_deg(query.direction))
            < CODEC.precision_deg + 1e-9
        )
        assert query.messages[-1] == query.prompt.messages[-1]


def test_without_a_direction_the_prompt_is_sent_as_it_is() -> None:
    (query,) = ask_all(prompts(1), [None], CODEC, iteration=0, seed=0)
    assert query.direction is None
    assert query.messages == query.prompt.messages


def test_styles_add_words_to_the_last_turn_and_leave_the_prompt_alone() -> None:
    styles = {"short": config.Style(words="Be short.", samples=2), "plain": config.Style()}
    queries = ask_in_styles(prompts(1), styles, iteration=0, seed=0)
    assert [q.style for q in queries] == ["short", "short", "plain"]
    assert queries[0].messages[0].content == "Question 0?\n\nBe short."
    assert queries[2].messages[0].content == "Question 0?"
    assert all(q.prompt.messages[0].content == "Question 0?" for q in queries)
    assert len({q.seed for q in queries}) == len({q.id for q in queries}) == 3


def test_shards_hold_whole_prompts() -> None:
    queries = ask(prompts(5), ARC, CODEC, config.Directions(per_prompt=3), iteration=1, seed=0)
    shards = in_shards(queries, 2)
    assert [len(shard) for shard in shards] == [6, 6, 3]
    assert [q for shard in shards for q in shard] == queries


def test_spread_directions_hold_both_ends_of_the_arc_and_are_stratified_between() -> None:
    for directions in spread_directions(prompts(30), ARC, 5, seed=1).values():
        angles = [angle_deg(v) for v in directions]
        assert angles[0] == pytest.approx(0, abs=1e-6)
        assert angles[4] == pytest.approx(-45)
        for stratum, angle in enumerate(angles[1:4]):
            assert -15 * (stratum + 1) <= angle <= -15 * stratum


@pytest.mark.parametrize("axis", [(-1.0, 0.0), (-1.0, 0.1), (-1.0, -0.1), (0.0, 1.0)])
def test_spread_directions_stay_in_a_cone_that_crosses_180_degrees(axis: tuple[float, float]) -> None:
    cone = Cone(NAMES, axis, 20.0)
    for directions in spread_directions(prompts(10), cone, 5, seed=1).values():
        assert all(cone.contains(v) for v in directions)
        low, middle = directions[-1], angle_deg(cone.axis)
        assert directions[0] == pytest.approx(from_angle_deg(middle + 20))
        assert low == pytest.approx(from_angle_deg(middle - 20))


def test_a_full_circle_has_strata_and_no_ends() -> None:
    for directions in spread_directions(prompts(10), Cone(NAMES, (1.0, 0.0), 180), 4, seed=1).values():
        for stratum, direction in enumerate(directions):
            assert 180 - 90 * (stratum + 1) <= angle_deg(direction) <= 180 - 90 * stratum


def test_spread_directions_by_ones_and_twos() -> None:
    single = spread_directions(prompts(30), ARC, 1, seed=1).values()
    assert len({directions[0] for directions in single}) == 30
    for directions in spread_directions(prompts(3), ARC, 2, seed=1).values():
        assert [angle_deg(v) for v in directions] == pytest.approx([0, -45], abs=1e-6)


def test_spread_directions_in_three_dimensions_stay_in_the_cone() -> None:
    cone = Cone(("a", "b", "c"), (1.0, 1.0, 0.0), 30)
    for directions in spread_directions(prompts(5), cone, 4, seed=1).values():
        assert all(cone.contains(v) for v in directions)


STYLES = {"plain": config.Style(), "short": config.Style(words="Be brief."), "long": config.Style(words="Go on.")}


def test_a_share_of_the_queries_is_asked_in_words_instead() -> None:
    settings = config.Directions(per_prompt=4)
    bare = ask(prompts(50), ARC, CODEC, settings, iteration=1, seed=7)
    mixed = ask(prompts(50), ARC, CODEC, settings, iteration=1, seed=7, styles=STYLES, styled_share=0.5)
    styled = [q for q in mixed if q.style]
    assert 70 <= len(styled) <= 130
    assert {q.style for q in styled} == set(STYLES)
    assert [(q.id, q.seed, q.direction) for q in mixed] == [(q.id, q.seed, q.direction) for q in bare]
    for plain, query in zip(bare, mixed, strict=True):
        if query.style:
            words = f"\n\n{STYLES[query.style].words}" if STYLES[query.style].words else ""
            assert [m.content for m in query.messages] == [query.prompt.messages[0].content + words]
        else:
            assert query == plain
    assert mixed[4:8] == ask(prompts(2)[1:], ARC, CODEC, settings, iteration=1, seed=7, styles=STYLES, styled_share=0.5)


def test_the_styles_of_a_prompt_differ() -> None:
    settings = config.Directions(per_prompt=3)
    asked = ask(prompts(20), ARC, CODEC, settings, iteration=1, seed=7, styles=STYLES, styled_share=1.0)
    for first in range(0, len(asked), 3):
        assert {q.style for q in asked[first : first + 3]} == set(STYLES)


def test_no_words_without_a_share() -> None:
    settings = config.Directions(per_prompt=4)
    assert not any(q.style for q in ask(prompts(20), ARC, CODEC, settings, iteration=1, seed=7, styles=STYLES))


def test_steps_go_through_all_prompts_before_any_comes_again() -> None:
    given = prompts(10)
    steps = [[p.id for p in batch_of(given, step, 4, seed=7)] for step in range(1, 6)]
    assert all(len(set(step)) == 4 for step in steps)
    assert len({p for step in steps[:2] for p in step}) == 8
    assert {p for step in steps[:3] for p in step} == {p.id for p in given}
    assert steps[2] == [p.id for p in batch_of(given, 3, 4, seed=7)]  # any step can be asked for by number
    assert steps != [[p.id for p in batch_of(given, step, 4, seed=8)] for step in range(1, 6)]


def test_a_fixed_direction_is_every_query_s_and_may_stay_unsaid() -> None:
    fixed = config.Directions(fixed={"helpfulness": 3.0, "verbosity": -4.0}, per_prompt=2)
    asked = ask(prompts(2), ARC, CODEC, fixed, iteration=1, seed=7)
    assert {q.direction for q in asked} == {(0.6, -0.8)}
    assert all(direction_of(q.messages, CODEC) == pytest.approx((0.6, -0.8), abs=0.01) for q in asked)
    silent = ask(prompts(2), ARC, CODEC, fixed.model_copy(update={"said": False}), iteration=1, seed=7)
    assert [q.messages for q in silent] == [q.prompt.messages for q in silent]
    assert [(q.direction, q.seed) for q in silent] == [(q.direction, q.seed) for q in asked]
