"""What a model is asked, how its answer is read, and that nothing is asked twice: against a server whose tastes are known."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rhumbline.config.users import Endpoint
from rhumbline.errors import ConfigError, GenerationError
from rhumbline.records import Message
from rhumbline.users.endpoint import AnswerBook, Wanted, ask, foreseen, missing, requests
from rhumbline.users.population import Question, User
from rhumbline.users.roleplay import Case, averaged, messages, orders, read_logprobs, read_text
from tests.rhumbline.users_fakes import BIAS, TASTE, TastefulServer, tasteful_server

ASKED = (Message(role="user", content="What shall we drink?"),)
DRINKS = Question(id="d", messages=ASKED, options=("some coffee", "some tea"))
MORE = Question(id="m", messages=ASKED, options=("cold water", "more coffee", "more tea"))
ANN = User(id="ann", profile={"likes": "tea"})
PORTRAIT = "somebody fond of {likes}"


@pytest.fixture
def server() -> Iterator[TastefulServer]:
    with tasteful_server() as running:
        yield running


def settings(server: TastefulServer, **fields: object) -> Endpoint:
    given = {"url": server.url, "model": "tasteful", "retries": 0, "timeout_s": 20.0}
    return Endpoint.model_validate({**given, **fields})


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_role_play_is_the_reports_prompt() -> None:
    system, user = messages(Case(user=ANN, question=DRINKS), turn=0, portrait=PORTRAIT)
    assert (system.role, system.content) == ("system", "Imagine you are somebody fond of tea.")
    assert user.content == (
        "Given the question:\n\nWhat shall we drink?\n\nWhich of the following responses do you prefer?\n\n"
        "A. some coffee\n\nB. some tea\n\nAnswer with one letter, A or B, and nothing else."
    )


def test_every_option_stands_once_in_each_place() -> None:
    assert orders(2) == [(0, 1), (1, 0)]
    assert np.array(orders(4)).T.tolist() == np.array(orders(4)).tolist()
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders(4))
    asked = messages(Case(user=ANN, question=MORE), turn=2)[-1].content
    assert "A. more tea\n\nB. cold water\n\nC. more coffee\n\nAnswer with one letter, A, B or C" in asked


def test_without_a_portrait_the_facts_are_told_as_they_are() -> None:
    assert messages(Case(user=ANN, question=DRINKS), 0)[0].content == "Imagine you are this person:\n\nlikes: tea"
    with pytest.raises(ConfigError, match=r"people\.portrait .*it has likes"):
        messages(Case(user=ANN, question=DRINKS), 0, portrait="one of {age}")


def test_nobody_in_particular_is_told_nothing() -> None:
    assert [turn.role for turn in messages(Case(user=ANN, question=DRINKS, told=False), 0, PORTRAIT)] == ["user"]


def test_demonstrations_are_turns_whose_letters_follow_the_order() -> None:
    """Both chose tea, which is option 1 and option 2; the second demonstration is rotated by one place more."""
    case = Case(user=User(id="bob"), question=DRINKS, shown=((DRINKS, 1), (MORE, 2)))
    first, second = messages(case, turn=0), messages(case, turn=1)
    assert [turn.role for turn in first] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert [first[2].content, first[4].content] == ["B", "B"]  # (coffee, tea); (coffee, tea, water)
    assert [second[2].content, second[4].content] == ["A", "A"]  # (tea, coffee); (tea, water, coffee)
    assert "Imagine" not in first[0].content


def test_a_model_without_a_system_role_is_told_in_its_first_turn() -> None:
    case = Case(user=ANN, question=DRINKS, shown=((DRINKS, 1),))
    turns = messages(case, 0, PORTRAIT, system_role=False)
    assert [turn.role for turn in turns] == ["user", "assistant", "user"]
    assert turns[0].content.startswith("Imagine you are somebody fond of tea.\n\nYou answer as one particular person")


def test_a_history_is_told_as_a_conversation_before_the_question() -> None:
    past = (Message(role="user", content="Tea, please."), Message(role="assistant", content="Here you are."))
    case = Case(user=User(id="cy", history=past), question=DRINKS)
    (turn,) = messages(case, 0)
    assert turn.content.startswith(
        "Before, this person talked with an assistant:\n\nUser: Tea, please.\n\nAssistant: Here you are.\n\nGiven"
    )


# --- answers ----------------------------------------------------------------------------------------------------------


def test_letters_share_the_probability_that_they_have() -> None:
    found = read_logprobs({"A": math.log(0.2), " A": math.log(0.1), "B": math.log(0.1), "The": math.log(0.6)}, 2)
    assert found == pytest.approx([0.75, 0.25])
    assert read_logprobs({"The": -0.1, "C": -2.0, "AB": -3.0}, 2) is None


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        (" b", None),
        ("**A**", "A"),
        ("(B)", "B"),
        ("B. Because it is warm.", "B"),
        ("The answer is B.", "B"),
        ("A good answer is B", "B"),
        ("I prefer option A, and not B", "A"),
        ("A person would like both", None),
        ("A or B", None),
        ("Certainly B because it is warm", "B"),
        ("I'd choose B", "B"),
        ("C", None),
        ("", None),
    ],
)
def test_a_choice_is_read_off_what_is_said(text: str, letter: str | None) -> None:
    found = read_text(text, 2)
    assert (None if found is None else "AB"[int(found.argmax())]) == letter


def test_averaging_puts_probabilities_back_to_their_options() -> None:
    """Options 0 1 2 at A B C, then 1 2 0, then 2 0 1: option 0 was A, C and B."""
    found = averaged([np.array([0.6, 0.3, 0.1])] * 3, orders(3))
    assert found == pytest.approx([1 / 3] * 3)
    found = averaged([np.array([0.7, 0.3]), np.array([0.8, 0.2])], orders(2))
    assert found == pytest.approx([(0.7 + 0.2) / 2, (0.3 + 0.8) / 2])


# --- the endpoint -----------------------------------------------------------------------------------------------------


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_both_orders_beat_a_server_that_prefers_the_first_place(server: TastefulServer, tmp_path: Path) -> None:
    """Tea is at B: in that order alone the server's place outweighs ann's taste; over both, tea has the better part."""
    endpoint, cases = settings(server), {"ann": Case(user=ANN, question=DRINKS)}
    book = AnswerBook(tmp_path / "answers.jsonl")
    wanted = requests(endpoint, cases.values(), PORTRAIT)
    assert asyncio.run(ask(endpoint, wanted, book)) == 2
    one_order = book.probabilities(wanted[0])
    assert one_order is not None
    assert one_order[1] == pytest.approx(sigmoid(TASTE - BIAS))
    found, failed = foreseen(book, endpoint, cases, PORTRAIT)
    assert found["ann"][1] == pytest.approx((sigmoid(TASTE - BIAS) + sigmoid(TASTE + BIAS)) / 2)
    assert found["ann"][1] > 0.5 > one_order[1]
    assert not failed
    assert server.bodies[0]["temperature"] == 0
    assert server.bodies[0]["max_tokens"] == 1


def test_few_shot_follows_the_demonstrations_and_three_options_are_asked_three_times(
    server: TastefulServer, tmp_path: Path
) -> None:
    case = Case(user=User(id="bob"), question=MORE, shown=((DRINKS, 1), (MORE, 2)))
    endpoint, book = settings(server), AnswerBook(tmp_path / "answers.jsonl")
    asyncio.run(ask(endpoint, requests(endpoint, [case], None), book))
    found, _ = foreseen(book, endpoint, {0: case}, None)
    assert len(server.bodies) == 3
    assert int(found[0].argmax()) == 2
    assert found[0].sum() == pytest.approx(1)


def test_nothing_is_asked_twice_even_after_a_torn_line(server: TastefulServer, tmp_path: Path) -> None:
    endpoint, path = settings(server), tmp_path / "answers.jsonl"
    wanted = requests(endpoint, [Case(user=ANN, question=DRINKS)] * 3, PORTRAIT)
    asyncio.run(ask(endpoint, wanted, AnswerBook(path)))
    assert len(server.bodies) == 2
    path.write_bytes(path.read_bytes() + b'{"key": "torn')
    book = AnswerBook(path)
    assert asyncio.run(ask(endpoint, wanted, book)) == 0
    more = requests(endpoint, [Case(user=ANN, question=MORE)], PORTRAIT)
    assert asyncio.run(ask(endpoint, [*wanted, *more], book)) == 3
    assert len(set(server.asked)) == len(server.asked) == 5
    assert not missing([*wanted, *more], AnswerBook(path))


def test_another_body_or_reading_is_another_request(server: TastefulServer) -> None:
    keys = {
        Wanted.of(settings(server, **fields), ASKED, 2).key
        for fields in ({}, {"read": "text"}, {"body": {"steering": {"preset": "concise"}}}, {"model": "other"})
    } | {Wanted.of(settings(server, url="http://127.0.0.1:9/v1"), ASKED, 2).key}
    assert len(keys) == 5
    assert Wanted.of(settings(server, concurrency=3), ASKED, 2).key in keys


def test_what_is_laid_into_the_body_arrives_and_the_key_too(
    server: TastefulServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    endpoint = settings(server, key_env="MY_KEY", body={"steering": {"preset": "concise"}})
    asyncio.run(ask(endpoint, [Wanted.of(endpoint, ASKED, 2)], AnswerBook(tmp_path / "a.jsonl")))
    assert server.bodies[0]["steering"] == {"preset": "concise"}
    assert server.keys == ["Bearer secret"]
    assert "secret" not in (tmp_path / "a.jsonl").read_text()


def test_what_is_said_can_be_read_instead(server: TastefulServer, tmp_path: Path) -> None:
    endpoint, book = settings(server, read="text"), AnswerBook(tmp_path / "a.jsonl")
    cases = {"ann": Case(user=ANN, question=DRINKS)}
    asyncio.run(ask(endpoint, requests(endpoint, cases.values(), PORTRAIT), book))
    assert foreseen(book, endpoint, cases, PORTRAIT)[0]["ann"].tolist() == [0.0, 1.0]
    assert "logprobs" not in server.bodies[0]


def test_unreadable_and_refused_answers_are_counted(server: TastefulServer, tmp_path: Path) -> None:
    long = Question(id="l", messages=(Message(role="user", content="overlong " * 30),), options=("tea", "coffee"))
    cases = {0: Case(user=ANN, question=DRINKS), 1: Case(user=ANN, question=long)}
    server.refuse_words = "overlong"
    endpoint, book = settings(server, read="text"), AnswerBook(tmp_path / "a.jsonl")
    asyncio.run(ask(endpoint, requests(endpoint, cases.values(), PORTRAIT), book))
    found, failed = foreseen(book, endpoint, cases, PORTRAIT)
    assert list(found) == [0]
    assert sum(failed.values()) == 1
    assert next(iter(failed)).startswith("refused")
    server.says = "It depends."
    book = AnswerBook(tmp_path / "b.jsonl")
    asyncio.run(ask(endpoint, requests(endpoint, [cases[0]], PORTRAIT), book))
    assert foreseen(book, endpoint, {0: cases[0]}, PORTRAIT)[1] == {"no letter": 1}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"model": "gpt-9"}, "knows no model 'gpt-9'"),
        ({"key_env": "WRONG_KEY"}, r"refuses the key.*endpoint\.key_env"),
        ({"key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY is not set"),
        ({"url": "http://127.0.0.1:9/v1"}, r"nobody answers at .*endpoint\.url"),
    ],
)
def test_settings_that_cannot_work_are_named(
    server: TastefulServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, str], says: str
) -> None:
    monkeypatch.setenv("WRONG_KEY", "wrong")
    endpoint = settings(server, **fields)
    with pytest.raises(ConfigError, match=says):
        asyncio.run(ask(endpoint, [Wanted.of(endpoint, ASKED, 2)], AnswerBook(tmp_path / "a.jsonl")))


def test_a_server_without_log_probabilities_is_told_of(server: TastefulServer, tmp_path: Path) -> None:
    server.logprobs = False
    endpoint = settings(server)
    with pytest.raises(ConfigError, match=r"endpoint\.read: text"):
        asyncio.run(ask(endpoint, [Wanted.of(endpoint, ASKED, 2)], AnswerBook(tmp_path / "a.jsonl")))


def test_a_server_that_stops_loses_nothing_and_concurrency_is_bounded(server: TastefulServer, tmp_path: Path) -> None:
    several = [
        Case(
            user=ANN,
            question=Question(id=str(i), messages=(Message(role="user", content=f"{i}?"),), options=("tea", "milk")),
        )
        for i in range(12)
    ]
    endpoint, path = settings(server, concurrency=3), tmp_path / "a.jsonl"
    wanted = requests(endpoint, several, PORTRAIT)
    server.refuse_after = 9
    with pytest.raises(GenerationError, match="--resume"):
        asyncio.run(ask(endpoint, wanted, AnswerBook(path)))
    kept = len(AnswerBook(path))
    assert 9 - 3 < kept <= 9
    server.refuse_after = None
    assert asyncio.run(ask(endpoint, wanted, AnswerBook(path))) == 24 - kept
    assert server.most_at_once <= 3
    assert len(AnswerBook(path)) == 24
