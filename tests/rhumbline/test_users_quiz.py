"""The quiz as a state machine: one question at a time, each answer counted once, the same quiz after a restart."""

from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import pytest

from rhumbline.directions import Cone, angle_between_deg, angle_deg, from_angle_deg
from rhumbline.errors import DirectionError, UserError
from rhumbline.records import Message
from rhumbline.users.pool import QuizItem
from rhumbline.users.posterior import ChoiceModel
from rhumbline.users.quiz import MOST, Quiz, QuizError, wedge_deg
from rhumbline.users.simulated import MANNERS, SimulatedUser

CONE = Cone(("helpfulness", "verbosity"), from_angle_deg(-20.0), 45.0)


def items(count: int = 40, K: int = 2, seed: int = 0, per_prompt: int = 1) -> list[QuizItem]:
    rewards_N2K = np.random.default_rng(seed).normal(size=(count, 2, K))
    return [
        QuizItem(
            prompt_id=f"p{n // per_prompt}",
            prompt=(Message(role="user", content=f"Why {n}?"),),
            a=f"a{n}",
            b=f"b{n}",
            rewards_a=tuple(first.tolist()),
            rewards_b=tuple(second.tolist()),
            tokens=(30, 40),
        )
        for n, (first, second) in enumerate(rewards_N2K)
    ]


def play(quiz: Quiz, user: SimulatedUser, seed: int = 0) -> None:
    """Answers as the user would by what is shown: rewards are looked up by the texts."""
    rng = np.random.default_rng([seed, 99])
    by_text = {text: rewards for i in quiz._items for text, rewards in ((i.a, i.rewards_a), (i.b, i.rewards_b))}
    while (question := quiz.question()) is not None:
        d_K = np.subtract(by_text[question.a], by_text[question.b])
        quiz.answer(question.index, user.choose(tuple(d_K), rng))


def again(quiz: Quiz, pool: list[QuizItem]) -> Quiz:
    return Quiz.from_dict(json.loads(json.dumps(quiz.to_dict())), pool)


def refused(code: str, call: Any, *args: Any) -> QuizError:
    with pytest.raises(QuizError) as caught:
        call(*args)
    assert caught.value.code == code
    return caught.value


def test_a_simulated_person_is_found() -> None:
    """The whole quiz with the sides that it shows: an answer booked to the wrong side would end on the wrong one."""
    errors = []
    for seed in range(12):
        truth = tuple(CONE.sample(np.random.default_rng(seed), 1)[0].tolist())
        quiz = Quiz.start(CONE, items(seed=seed), seed)
        before = angle_between_deg(quiz.estimate().direction, truth)
        play(quiz, SimulatedUser(direction=truth, manner=MANNERS["with_ties"]), seed)
        assert quiz.asked <= 6
        errors.append((before, angle_between_deg(quiz.estimate().direction, truth)))
    before_, after = np.median(errors, axis=0)
    assert after < 9 < before_


def test_the_state_survives_a_restart() -> None:
    pool = items()
    quiz = Quiz.start(CONE, pool, seed=5)
    for index, choice in enumerate(("a", "tie", "b")):
        other = again(quiz, pool)
        assert other.state() == quiz.state()
        quiz.answer(index, choice)
        other.answer(index, choice)
        assert other.to_dict() == quiz.to_dict()
        assert other.estimate() == quiz.estimate()


def test_the_state_holds_no_texts_but_those_of_the_question_that_waits() -> None:
    quiz = Quiz.start(CONE, items(), seed=5)
    first = quiz.question()
    assert first is not None
    quiz.answer(0, "a")
    told = json.dumps(quiz.to_dict())
    assert f'"{first.a}"' not in told
    second = quiz.question()
    assert second is not None
    assert f'"{second.a}"' in told


def test_another_pool_goes_on_where_the_old_one_ended() -> None:
    quiz = Quiz.start(CONE, items(), seed=5)
    quiz.answer(0, "a")
    other = again(quiz, items(seed=77))  # the run was evaluated again
    assert other.question() == quiz.question()
    other.answer(1, "b")
    assert other.asked == 2
    alone = Quiz.from_dict(quiz.to_dict())  # no pool at all: readable, and finished by what waits
    assert alone.estimate() == quiz.estimate()
    alone.answer(1, "b")
    assert alone.reason in ("no_questions", "certain")


def test_an_answer_counts_once() -> None:
    quiz = Quiz.start(CONE, items(), seed=1)
    quiz.answer(0, "a")
    state = quiz.to_dict()
    quiz.answer(0, "a")  # a client that tries again
    assert quiz.to_dict() == state
    refused("answered", quiz.answer, 0, "b")
    refused("not_the_question", quiz.answer, 2, "b")
    refused("not_the_question", quiz.answer, -1, "b")
    refused("unknown_choice", quiz.answer, 1, "both")
    assert quiz.to_dict() == state


def test_without_ties_none_is_taken() -> None:
    quiz = Quiz.start(CONE, items(), seed=1, model=ChoiceModel(ties=False))
    refused("unknown_choice", quiz.answer, 0, "tie")
    assert quiz.state()["ties"] is False


def test_no_prompt_comes_twice_and_the_quiz_ends_with_them() -> None:
    pool = items(12, per_prompt=3)  # four prompts
    quiz = Quiz.start(CONE, pool, seed=3, stop_deg=0.0)
    play(quiz, SimulatedUser(direction=CONE.axis, manner=MANNERS["noisy"]))
    assert quiz.reason == "no_questions"
    assert sorted(one.prompt_id for one in quiz.log) == ["p0", "p1", "p2", "p3"]
    refused("finished", quiz.answer, 4, "a")
    refused("no_questions", quiz.more)


def test_it_stops_at_its_limit_and_more_goes_on() -> None:
    quiz = Quiz.start(Cone(tuple("abc"), (1.0, 1.0, 1.0), 45.0), items(60, 3), seed=3, stop_deg=0.0)
    user = SimulatedUser(direction=quiz.cone.axis, manner=MANNERS["noisy"])
    play(quiz, user)
    assert (quiz.asked, quiz.reason) == (9, "limit")  # max(6, 3K)
    quiz.more(2)
    assert not quiz.done
    play(again(quiz, items(60, 3)), user)
    play(quiz, user)
    assert quiz.asked == 11
    quiz.more()
    quiz.more()  # asked for twice: three and three
    play(quiz, user)
    assert quiz.asked == 17


def test_it_stops_when_it_is_certain_and_more_goes_on_all_the_same() -> None:
    quiz = Quiz.start(CONE, items(200), seed=3, stop_deg=25.0)
    user = SimulatedUser(direction=CONE.axis, manner=MANNERS["consistent"])
    play(quiz, user)
    assert quiz.reason == "certain"
    assert quiz.asked < 6
    before = quiz.asked
    quiz.more(4)
    play(quiz, user)
    assert quiz.asked == before + 4


def test_a_narrow_cone_is_not_done_before_it_begins() -> None:
    quiz = Quiz.start(Cone(CONE.names, (1.0, 0.0), 12.0), items(), seed=0)
    assert quiz.stop_deg == pytest.approx(4.0)
    assert not quiz.done
    assert Quiz.start(Cone(CONE.names, (1.0, 0.0), 90.0), items(), seed=0).stop_deg == 15.0


def test_a_quiz_has_an_end() -> None:
    quiz = Quiz.start(CONE, items(100), seed=0, stop_deg=0.0, method="random", limit=MOST - 2)
    quiz.more(1000)
    play(quiz, SimulatedUser(direction=CONE.axis, manner=MANNERS["noisy"]))
    assert (quiz.asked, quiz.reason) == (MOST, "limit")
    refused("finished", quiz.more)


def test_either_answer_may_stand_left() -> None:
    pool = items(1)
    shown = [Quiz.start(CONE, pool, seed).question() for seed in range(40)]
    left = sum(question is not None and question.a == "a0" for question in shown)
    assert 8 < left < 32


def test_equal_seeds_ask_the_same() -> None:
    assert Quiz.start(CONE, items(), 4).to_dict() == Quiz.start(CONE, items(), 4).to_dict()
    assert Quiz.start(CONE, items(), 4).to_dict() != Quiz.start(CONE, items(), 5).to_dict()


def test_a_repeated_question_counts_as_asked_but_is_no_evidence() -> None:
    def taken(repeat: bool, last: str) -> Quiz:
        quiz = Quiz.start(CONE, items(), seed=2, stop_deg=0.0, repeat_after=2 if repeat else None)
        first = quiz.question()
        quiz.answer(0, "a")
        quiz.answer(1, "b")
        question = quiz.question()
        assert first is not None
        assert question is not None
        assert ((question.a, question.b) == (first.b, first.a)) is repeat  # its sides swapped
        if repeat:
            quiz.answer(2, last)
        return quiz

    plain, consistent, torn = taken(False, ""), taken(True, "b"), taken(True, "a")
    assert (plain.estimate().consistent, consistent.estimate().consistent, torn.estimate().consistent) == (
        None,
        True,
        False,
    )
    assert (plain.asked, consistent.asked, torn.asked) == (2, 3, 3)
    assert consistent.estimate().direction == torn.estimate().direction == plain.estimate().direction
    assert again(torn, items()).estimate() == torn.estimate()


def test_the_state_that_the_api_shows() -> None:
    state = Quiz.start(CONE, items(), seed=0).state()
    assert state["question"] == {
        "index": 0,
        "prompt": state["question"]["prompt"],
        "a": state["question"]["a"],
        "b": state["question"]["b"],
    }
    assert state["question"]["prompt"].startswith("Why ")
    assert set(state["estimate"]) == {"direction", "half_angle_deg", "asked", "consistent"}
    assert set(state["estimate"]["direction"]) == {"helpfulness", "verbosity"}
    assert state["estimate"]["half_angle_deg"] == pytest.approx(40.5, abs=1.5)  # 90% of an even arc of +-45
    assert (state["done"], state["reason"], state["limit"]) == (False, None, 6)
    low, high = state["wedge"]
    assert -65.001 <= low < high <= 25.001
    json.dumps(state, allow_nan=False)
    three = Quiz.start(Cone(tuple("abc"), (1.0, 1.0, 1.0), 45.0), items(20, 3), seed=0).state()
    assert three["wedge"] is None


def test_the_wedge_is_cut_at_the_cones_edge() -> None:
    assert wedge_deg(CONE, from_angle_deg(-20.0), 10.0) == pytest.approx((-30.0, -10.0))
    assert wedge_deg(CONE, from_angle_deg(20.0), 10.0) == pytest.approx((10.0, 25.0))
    back = Cone(CONE.names, from_angle_deg(175.0), 30.0)  # across the seam at 180 degrees
    assert wedge_deg(back, from_angle_deg(-175.0), 5.0) == pytest.approx((180.0, 190.0))


def test_answers_pull_the_estimate_to_their_side() -> None:
    pool = items()
    low, high = Quiz.start(CONE, pool, 0), Quiz.start(CONE, pool, 0)
    for quiz, wanted in ((low, -1), (high, 1)):
        while (question := quiz.question()) is not None:
            d = quiz.log[question.index].d
            quiz.answer(question.index, "a" if np.sign(d[1]) == wanted else "b")
    assert angle_deg(low.estimate().direction) < -35
    assert angle_deg(high.estimate().direction) > -5


def test_longer_conversations_are_shown_with_their_roles() -> None:
    turns = (
        Message(role="system", content="hidden"),
        Message(role="user", content="Hi"),
        Message(role="assistant", content="Yes?"),
    )
    item = QuizItem(
        prompt_id="p",
        prompt=(*turns, Message(role="user", content="Why?")),
        a="x",
        b="y",
        rewards_a=(1.0, 0.0),
        rewards_b=(0.0, 1.0),
    )
    question = Quiz.start(CONE, [item], 0).question()
    assert question is not None
    assert question.prompt == "user: Hi\n\nassistant: Yes?\n\nuser: Why?"


def test_faults_are_named() -> None:
    with pytest.raises(DirectionError, match=r"3 rewards.*helpfulness, verbosity"):
        Quiz.start(CONE, items(3, 3), 0)
    same = QuizItem(prompt_id="p", prompt=(), a="x", b="y", rewards_a=(1.0, 2.0), rewards_b=(1.0, 2.0))
    refused("no_questions", Quiz.start, CONE, [same], 0)
    refused("no_questions", Quiz.start, CONE, [], 0)
    with pytest.raises(QuizError, match="Did you mean 'bald'"):
        Quiz.start(CONE, items(), 0, method="balt")
    refused("bad_state", Quiz.start(CONE, items(), 0).more, 0)
    good = Quiz.start(CONE, items(), 0).to_dict()
    for wrong in (
        {},
        {"format": 99},
        {**good, "cone": {}},
        {**good, "asked": [{"x": 1}]},
        {**good, "model": {"beta": -1}},
    ):
        refused("bad_state", Quiz.from_dict, wrong, items())


def test_a_refusal_crosses_process_borders() -> None:
    error = pickle.loads(pickle.dumps(QuizError("no", "answered")))
    assert (str(error), error.code) == ("no", "answered")
    assert isinstance(error, UserError)
