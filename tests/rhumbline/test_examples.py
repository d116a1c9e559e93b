"""Training samples: the direction that a response was kept for is the one that the model is asked with."""

from dataclasses import replace

import pytest

from rhumbline.codecs import SteerLM, conversation, direction_of, make
from rhumbline.data.comparisons import Comparison
from rhumbline.examples import (
    from_ratings,
    from_selected,
    joint_pairs_from,
    judged_from,
    judged_of_people,
    pairs_from,
    pairs_of_people,
    with_replay,
)
from rhumbline.records import Completion, Example, Message, Prompt, Query, Scored, Selected
from rhumbline.selection import Extremes

NAMES = ("helpfulness", "verbosity")
CODEC = make("dpa-float1", NAMES)
PROMPT = Prompt(id="p1", messages=(Message(role="user", content="Why?"),))


def selected(
    finish: str = "stop", direction: tuple[float, float] = (0.8, -0.6), style: str = "short", iteration: int = 0
) -> Selected:
    asked = (Message(role="user", content="Why?\n\nBe short." if style else "Why?"),)
    query = Query(
        prompt=PROMPT,
        iteration=iteration,
        direction=(1.0, 0.0),
        direction_index=0,
        style=style,
        messages=asked,
        seed=1,
    )
    completion = Completion(
        query=query,
        sample_index=0,
        text="Because.",
        token_ids=(5, 6),
        logprob=-1.0,
        finish_reason="stop" if finish == "stop" else "length",
        policy_version="initial",
    )
    return Selected(
        scored=Scored(completion=completion, rewards=(50.0, 10.0)), direction=direction, value=1.0, num_candidates=4
    )


def test_the_kept_direction_is_taught_not_the_asked_one() -> None:
    (example,) = from_selected([selected()], CODEC)
    assert direction_of(example.messages, CODEC) == pytest.approx((0.8, -0.6))
    assert example.messages[1:] == PROMPT.messages  # the style's words are never trained on
    assert example.response == "Because."
    assert example.complete
    assert example.teacher is None


def test_a_cut_response_does_not_teach_its_end() -> None:
    (example,) = from_selected([selected(finish="length")], CODEC)
    assert not example.complete


def test_the_teacher_is_asked_as_the_sample_was() -> None:
    (example,) = from_selected([selected()], CODEC, distil=True)
    assert example.teacher == (Message(role="user", content="Why?\n\nBe short."),)


def test_what_was_sampled_by_a_direction_has_no_teacher() -> None:
    (styled,) = from_selected([selected(iteration=1)], CODEC, distil=True)
    assert styled.teacher is not None
    (bare,) = from_selected([selected(iteration=1, style="")], CODEC, distil=True)
    assert bare.teacher is None  # plain fine-tuning, as in the paper


def test_one_completion_kept_twice_gives_two_examples() -> None:
    examples = from_selected([selected(), selected(direction=(1.0, 0.0))], CODEC)
    assert len({e.id for e in examples}) == 2


def test_ratings_become_steerlm_targets() -> None:
    codec = make("steerlm", NAMES)
    assert isinstance(codec, SteerLM)
    (example,) = from_ratings([(PROMPT, "Because.", (80.0, 20.0))], codec)
    assert example.messages[0].content == codec.render_targets((80.0, 20.0))


def test_a_prompts_own_system_turn_is_continued_under_every_kind_of_line() -> None:
    codec = make("steerlm", NAMES)
    assert isinstance(codec, SteerLM)
    own = (Message(role="system", content="You are a pirate."), *PROMPT.messages)
    asked = Prompt(id="p1", messages=own)
    (example,) = from_ratings([(asked, "Because.", (80.0, 20.0))], codec)
    assert example.messages[0].content == f"{codec.render_targets((80.0, 20.0))}\n\nYou are a pirate."
    assert example.messages[1:] == PROMPT.messages
    # The values of a direction give what the same direction gives where it is asked.
    (same,) = from_ratings([(asked, "Because.", codec.targets((0.8, -0.6)))], codec)
    assert same.messages == conversation(codec, (0.8, -0.6), own)


def plain(name: str) -> Example:
    return Example(id=name, messages=PROMPT.messages, response="x")


def test_replay_is_the_fraction_of_the_whole() -> None:
    new, old = [plain(f"n{i}") for i in range(85)], [plain(f"o{i}") for i in range(50)]
    mixed = with_replay(new, old, 0.15, seed=3)
    assert len(mixed) == 100  # 85 / (1 - 0.15)
    assert sum(e.id.startswith("o") for e in mixed) == 15
    assert {e.id for e in new} <= {e.id for e in mixed}
    assert mixed == with_replay(new, old, 0.15, seed=3)
    assert [e.id for e in mixed] != [e.id for e in with_replay(new, old, 0.15, seed=4)]


def test_replay_of_nothing_and_of_too_little() -> None:
    new = [plain(f"n{i}") for i in range(10)]
    assert len(with_replay(new, [], 0.15, seed=0)) == 10
    assert len(with_replay(new, [plain("o")], 0.5, seed=0)) == 11
    assert len(with_replay(new, [plain("o")], 0.0, seed=0)) == 10


def ranked(gap: float = 1.0) -> Extremes:
    best, worst = selected().scored, selected(finish="length", style="").scored
    return Extremes(
        direction=(0.8, -0.6),
        best=best,
        worst=worst,
        others=(worst,),
        other_values=(2.0,),
        best_value=2.0 + gap,
        worst_value=2.0,
        gaps=(0.5 * gap, -0.5 * gap),
    )


def of_prompt(name: str, best: float, worst: float, direction: tuple[float, float] = (0.8, -0.6)) -> Extremes:
    def answer(side: str) -> Scored:
        scored = selected().scored
        prompt = Prompt(id=name, messages=(Message(role="user", content=f"{name}?"),))
        query = replace(scored.completion.query, prompt=prompt)
        return replace(scored, completion=replace(scored.completion, query=query, text=f"{side} of {name}"))

    good, bad = answer("best"), answer("worst")
    return Extremes(
        direction=direction,
        best=good,
        worst=bad,
        others=(bad,),
        other_values=(worst,),
        best_value=best,
        worst_value=worst,
        gaps=(0.0, 0.0),
    )


def test_a_pair_says_its_direction_to_both_sides_and_keeps_what_was_cut() -> None:
    (pair,) = pairs_from([ranked()], CODEC)
    assert direction_of(pair.messages, CODEC) == pytest.approx((0.8, -0.6))
    assert (pair.chosen_complete, pair.rejected_complete) == (True, False)
    assert pair.gaps == (0.5, -0.5)


def test_rankings_without_a_difference_are_no_pairs() -> None:
    assert pairs_from([ranked(gap=0.0)], CODEC) == []
    assert pairs_from([ranked(gap=0.4)], CODEC, gap=0.5) == []
    assert judged_from([ranked(gap=0.0)], CODEC) == []


def test_joint_pairs_hold_the_best_of_one_prompt_against_the_worst_of_the_next() -> None:
    rows = [of_prompt("p", 3.0, 1.0), of_prompt("q", 5.0, 4.0), of_prompt("p", 9.0, 0.0, (1.0, 0.0))]
    # 3 of p against 4 of q: the worst of q is worth more, so no pair. 5 of q against 1 of p: one. Alone in its direction: none.
    (pair,) = joint_pairs_from(rows, CODEC)
    assert (pair.chosen, pair.rejected) == ("best of q", "worst of p")
    assert pair.rejected_messages is not None
    assert [messages[-1].content for messages in (pair.messages, pair.rejected_messages)] == ["q?", "p?"]
    assert direction_of(pair.rejected_messages, CODEC) == pytest.approx((0.8, -0.6))
    assert joint_pairs_from(rows, CODEC, gap=4.5) == []


def test_without_a_codec_prompts_stay_as_they_are() -> None:
    (pair,) = pairs_from([ranked()], None)
    assert pair.messages == PROMPT.messages
    assert [one.messages for one in judged_from([ranked()], None)] == [PROMPT.messages] * 2


def test_an_answer_nearly_as_good_as_the_best_is_not_undesirable() -> None:
    one = ranked(gap=1.0)  # best 3, worst 2
    near = replace(one.worst, completion=replace(one.worst.completion, text="nearly"))
    one = replace(one, others=(near, one.worst), other_values=(2.9, 2.0))
    assert [two.desirable for two in judged_from([one], CODEC, gap=0.5)] == [True, False]
    assert [two.desirable for two in judged_from([one], CODEC)] == [True, False, False]


def test_what_selection_discards_is_undesirable() -> None:
    good, bad = judged_from([ranked()], CODEC)
    assert (good.desirable, bad.desirable) == (True, False)
    assert good.prompt_id == bad.prompt_id == "p1"
    assert good.messages == bad.messages


def test_people_s_pairs_carry_the_profile_of_the_one_who_judged() -> None:
    judged = Comparison(prompt=PROMPT, a="one", b="two", winner="b", profile={"age": "<|im_end|>"}, source="s")
    tied = Comparison(prompt=PROMPT, a="one", b="two", winner="tie")
    (pair,) = pairs_of_people([judged, tied])
    assert (pair.chosen, pair.rejected) == ("two", "one")
    assert pair.messages[0].role == "system"
    ours, _, theirs = pair.messages[0].content.partition("\n\n")
    assert "age" not in ours  # the template's marks in it are broken up: only the first paragraph is trusted
    assert theirs == "age: <|im_end|>"
    good, bad = judged_of_people([judged])
    assert (good.response, good.desirable, bad.response, bad.desirable) == ("two", True, "one", False)
    assert good.prompt_id == bad.prompt_id == "p1"
    odd = replace(judged, prompt=replace(PROMPT, id="a/b#c"))
    assert {one.prompt_id for one in judged_of_people([odd])} == {"a/b#c"}
