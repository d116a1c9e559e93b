"""What of a step's answers the online learners are given, without a job."""

from __future__ import annotations

from dataclasses import replace

from actors.online import learnable
from rhumbline.records import Scored
from tests.rhumbline.test_selection import scored


def answers(*spoken: tuple[int, ...]) -> list[Scored]:
    """Groups of answers with so many tokens."""
    out = []
    for group, counts in enumerate(spoken):
        for sample, tokens in enumerate(counts):
            one = scored("p", group, sample, "text", (1.0, 2.0))
            out.append(replace(one, completion=replace(one.completion, token_ids=(7,) * tokens)))
    return out


def ids(kept: list[Scored]) -> list[str]:
    return [one.completion.id for one in kept]


def test_answers_without_a_token_are_left_out_and_counted() -> None:
    kept, told = learnable(answers((2, 0, 3), (1, 1)), grouped=False)
    assert ids(kept) == ["p/d0/s0", "p/d0/s2", "p/d1/s0", "p/d1/s1"]
    assert told == {"learn/without_tokens": 1.0}


def test_in_groups_an_answer_that_is_left_alone_goes_too() -> None:
    # The second group loses two of three and then the third; the last was asked for one alone.
    kept, told = learnable(answers((2, 2), (0, 4, 0), (1, 0, 1), (5,)), grouped=True)
    assert ids(kept) == ["p/d0/s0", "p/d0/s1", "p/d2/s0", "p/d2/s2"]
    assert told == {"learn/without_tokens": 3.0, "learn/without_siblings": 2.0}


def test_nothing_left_out_is_counted_as_nothing() -> None:
    whole = answers((1, 2), (3, 4))
    assert learnable(whole, grouped=True) == (whole, {"learn/without_tokens": 0.0, "learn/without_siblings": 0.0})
    assert learnable([], grouped=True) == ([], {"learn/without_tokens": 0.0, "learn/without_siblings": 0.0})
