"""What is kept of people: restarts, rivals for one question, owners apart, bounds, and databases of other ages.

RHUMBLINE_TEST_USERS_URL=postgresql+psycopg://ME@HOST/EMPTY: the same on a server, in a database whose tables may be dropped.
"""

from __future__ import annotations

import os
import pickle
import sqlite3
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from rhumbline.directions import Cone
from rhumbline.errors import StoreError
from rhumbline.records import Message
from rhumbline.users.pool import QuizItem
from rhumbline.users.quiz import Quiz, QuizError
from rhumbline.users.store import MIGRATIONS, Limits, People, PeopleError, _with_password

SERVER = os.environ.get("RHUMBLINE_TEST_USERS_URL")
ON_A_FILE = pytest.mark.skipif(SERVER is not None, reason="of SQLite alone")
CONE = Cone(("helpfulness", "verbosity"), (1.0, -0.4), 45.0)
WEIGHTS = {"helpfulness": 0.8, "verbosity": -0.6}
ITEMS = [
    QuizItem(
        prompt_id=f"p{n}",
        prompt=(Message(role="user", content="Why?"),),
        a=f"a{n}",
        b=f"b{n}",
        rewards_a=tuple(first),
        rewards_b=tuple(second),
    )
    for n, (first, second) in enumerate(np.random.default_rng(0).normal(size=(12, 2, 2)).tolist())
]


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Of a database without tables."""
    if SERVER is None:
        return f"sqlite:///{tmp_path / 'data' / 'people.sqlite'}"  # its folder is made
    engine = sa.create_engine(SERVER)
    tables = sa.MetaData()
    tables.reflect(engine, only=lambda name, _: name.startswith("people_"))
    tables.drop_all(engine)
    engine.dispose()
    return SERVER


@pytest.fixture
def people(url: str) -> Iterator[People]:
    with People(url, limits=Limits(quizzes=3, profiles=3, objectives=4, state_bytes=20_000)) as people:
        yield people


def refused(code: str, call: Any, *args: Any, **named: Any) -> PeopleError:
    with pytest.raises(PeopleError) as caught:
        call(*args, **named)
    assert caught.value.code == code
    return caught.value


def answer(index: int, choice: str) -> Any:
    def change(state: dict[str, Any]) -> dict[str, Any]:
        quiz = Quiz.from_dict(state, ITEMS)
        quiz.answer(index, choice)
        return quiz.to_dict()

    return change


def test_a_quiz_survives_a_restart(url: str) -> None:
    quiz = Quiz.start(CONE, ITEMS, 7)
    with People(url) as people:
        assert people.save_quiz("key1", "q", quiz.to_dict()) == 1
        people.change_quiz("key1", "q", answer(0, "a"))
    with People(url) as people:  # another process, later
        state, version = people.load_quiz("key1", "q")
        quiz.answer(0, "a")
        assert version == 2
        assert state == quiz.to_dict()
        assert Quiz.from_dict(state, ITEMS).estimate() == quiz.estimate()


def test_rival_answers_to_one_question_count_once(url: str) -> None:
    with People(url) as people, People(url) as elsewhere:  # a second server on the same file
        people.save_quiz("key1", "q", Quiz.start(CONE, ITEMS, 7).to_dict())
        gate = threading.Barrier(8)

        def press(number: int) -> str:
            gate.wait(timeout=30)
            choice = "ab"[number % 2]
            try:
                (people, elsewhere)[number % 2].change_quiz("key1", "q", answer(0, choice))
            except QuizError as e:
                return e.code
            return choice

        with ThreadPoolExecutor(8) as pool:
            told = list(pool.map(press, range(8)))
        state, _ = people.load_quiz("key1", "q")
    quiz = Quiz.from_dict(state, ITEMS)
    counted = quiz.log[0].choice
    assert quiz.asked == 1
    assert [one for one in told if one != "answered"] == [counted] * 4  # those who said the same are content
    assert told.count("answered") == 4


def test_a_state_that_has_changed_is_not_overwritten(people: People) -> None:
    people.save_quiz("key1", "q", {"n": 0})
    assert people.save_quiz("key1", "q", {"n": 1}, version=1) == 2
    refused("conflict", people.save_quiz, "key1", "q", {"n": 9}, version=1)
    refused("conflict", people.save_quiz, "key1", "q", {"n": 9})
    assert people.load_quiz("key1", "q") == ({"n": 1}, 2)


def test_a_change_that_fails_saves_nothing(people: People) -> None:
    people.save_quiz("key1", "q", Quiz.start(CONE, ITEMS, 7).to_dict())
    with pytest.raises(QuizError):
        people.change_quiz("key1", "q", answer(5, "a"))
    assert people.load_quiz("key1", "q")[1] == 1


def test_a_change_that_always_loses_gives_up(people: People) -> None:
    people.save_quiz("key1", "q", {"n": 0})

    def overtaken(state: dict[str, Any]) -> dict[str, Any]:
        people.save_quiz("key1", "q", {"n": state["n"] + 1}, version=people.load_quiz("key1", "q")[1])
        return {"n": -1}

    refused("conflict", people.change_quiz, "key1", "q", overtaken)
    assert people.load_quiz("key1", "q")[0]["n"] > 0


def test_owners_do_not_see_each_other(people: People) -> None:
    people.save_quiz("key1", "q", {"n": 0})
    people.save_profile("key1", "me", WEIGHTS)
    people.bind("key1", "me")
    refused("unknown_quiz", people.load_quiz, "key2", "q")
    refused("unknown_quiz", people.save_quiz, "key2", "q", {}, version=1)
    refused("unknown_profile", people.get_profile, "key2", "me")
    refused("unknown_profile", people.delete_profile, "key2", "me")
    refused("unknown_profile", people.bind, "key2", "me")
    assert people.profiles("key2") == []
    assert people.bound("key2") is None
    people.save_quiz("key2", "q", {"n": 5})  # the same id is another quiz
    assert people.load_quiz("key1", "q")[0] == {"n": 0}


def test_the_quiz_that_was_longest_untouched_makes_room(people: People) -> None:
    for name in "abc":
        people.save_quiz("key1", name, {"name": name})
    people.save_quiz("other", "a", {})
    people.save_quiz("key1", "a", {"name": "a"}, version=1)  # touched again
    people.save_quiz("key1", "d", {})
    refused("unknown_quiz", people.load_quiz, "key1", "b")
    for name in "acd":
        people.load_quiz("key1", name)
    people.load_quiz("other", "a")


def test_a_quiz_has_a_size(people: People) -> None:
    refused("too_large", people.save_quiz, "key1", "q", {"text": "x" * 20_000})
    refused("unknown_quiz", people.load_quiz, "key1", "q")


def test_profiles_are_saved_replaced_listed_and_forgotten(people: People) -> None:
    people.save_profile("key1", "work", {"helpfulness": 1})
    saved = people.save_profile("key1", "me", WEIGHTS, source="quiz", half_angle_deg=9.5)
    assert people.get_profile("key1", "me") == saved
    assert saved.to_dict() == {
        "name": "me",
        "weights": WEIGHTS,
        "source": "quiz",
        "half_angle_deg": 9.5,
        "updated": saved.updated,
    }
    people.save_profile("key1", "me", {"helpfulness": 0.5})
    assert people.get_profile("key1", "me").weights == {"helpfulness": 0.5}
    assert (people.get_profile("key1", "me").source, people.get_profile("key1", "me").half_angle_deg) == ("hand", None)
    assert [profile.name for profile in people.profiles("key1")] == ["me", "work"]
    people.delete_profile("key1", "me")
    error = refused("unknown_profile", people.get_profile, "key1", "wrk")
    assert "Did you mean 'work'" in str(error)


def test_letters_of_any_kind_are_kept_apart(people: People) -> None:
    for name, weight in (("me", 1.0), ("Me", 0.5)):
        people.save_profile("key1", name, {f"höflich 🙂 {name}": weight})
    assert sorted(str(profile.weights) for profile in people.profiles("key1")) == [
        "{'höflich 🙂 Me': 0.5}",
        "{'höflich 🙂 me': 1.0}",
    ]
    people.bind("key1", "me")
    people.delete_profile("key1", "Me")
    bound = people.bound("key1")
    assert bound is not None
    assert bound.name == "me"
    people.save_quiz("key1", "q", {"prompt": "Grüße 🙂\n\x00"})
    people.save_quiz("key1", "Q", {})
    assert people.load_quiz("key1", "q")[0] == {"prompt": "Grüße 🙂\n\x00"}


def test_profiles_are_bounded_and_replacing_needs_no_room(people: People) -> None:
    for name in ("a", "b", "c"):
        people.save_profile("key1", name, WEIGHTS)
    refused("too_many", people.save_profile, "key1", "d", WEIGHTS)
    people.save_profile("key1", "c", {"helpfulness": 1.0})
    people.save_profile("key2", "d", WEIGHTS)


def test_rivals_do_not_pass_the_bound(people: People) -> None:
    def save(number: int) -> str:
        try:
            people.save_profile("key1", f"p{number}", WEIGHTS)
        except PeopleError as e:
            return e.code
        return "saved"

    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(save, range(8)))
    assert told.count("saved") == len(people.profiles("key1")) == 3


def test_a_key_is_bound_to_one_profile(people: People, url: str) -> None:
    assert people.bound("key1") is None
    people.save_profile("key1", "me", WEIGHTS)
    people.save_profile("key1", "work", {"helpfulness": 1.0})
    assert people.bind("key1", "work").name == "work"
    people.bind("key1", "me")
    with People(url) as later:
        bound = later.bound("key1")
        assert bound is not None
        assert bound.weights == WEIGHTS
    people.unbind("key1")
    people.unbind("key1")
    assert people.bound("key1") is None
    people.bind("key1", "me")
    people.delete_profile("key1", "me")
    assert people.bound("key1") is None
    people.save_profile("key1", "me", WEIGHTS)
    assert people.bound("key1") is None  # a new profile of an old name is not bound by itself


@pytest.mark.parametrize(
    "weights",
    [
        {},
        {"a": 0.0},
        {"a": float("nan")},
        {"a": float("inf")},
        {"a": True},
        {"": 1.0},
        {"a" * 200: 1.0},
        dict.fromkeys("abcde", 1.0),
    ],
)
def test_weights_that_are_no_direction_are_refused(people: People, weights: dict[str, float]) -> None:
    refused("invalid_profile", people.save_profile, "key1", "me", weights)
    assert people.profiles("key1") == []


@pytest.mark.parametrize("name", ["", "a b", "../x", "a" * 65, ".hidden", "a\n", "ä"])
def test_names_are_plain(people: People, name: str) -> None:
    refused("invalid_name", people.save_profile, "key1", name, WEIGHTS)


@ON_A_FILE
def test_sqlite_runs_with_a_write_ahead_log(people: People, url: str) -> None:
    with sqlite3.connect(url.removeprefix("sqlite:///")) as raw:
        assert raw.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert raw.execute("SELECT max(version) FROM people_schema").fetchone() == (len(MIGRATIONS),)
    raw.close()


def test_a_database_of_a_newer_version_is_left_alone(url: str) -> None:
    People(url).close()
    engine = sa.create_engine(url)
    with engine.begin() as raw:
        raw.exec_driver_sql("INSERT INTO people_schema VALUES (99)")
    engine.dispose()
    with pytest.raises(StoreError, match=r"newer Rhumbline.*tables 99"):
        People(url)


def test_rival_servers_may_start_at_once(url: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        opened = list(pool.map(lambda _: People(url), range(6)))
    opened[0].save_profile("key1", "me", WEIGHTS)
    assert opened[5].get_profile("key1", "me").weights == WEIGHTS
    for one in opened:
        one.close()


def test_a_new_file_that_another_server_turns_to_its_log_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "people.sqlite"
    rival = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    rival.execute("BEGIN IMMEDIATE")  # SQLite refuses journal_mode=WAL at once here, whatever its busy_timeout
    ending = threading.Timer(0.3, lambda: rival.execute("COMMIT"))
    ending.start()
    people = People(f"sqlite:///{file}")
    ending.join()
    people.save_profile("key1", "me", WEIGHTS)
    assert rival.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    people.close()
    rival.close()


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ("sqlite://", "survive a restart"),
        ("sqlite:///:memory:", "survive a restart"),
        ("people.sqlite", "no database URL"),
        ("nosuchbase://x/y", "no database URL"),
        ("sqlite:////proc/nothing/people.sqlite", "cannot be made"),
    ],
)
def test_urls_that_cannot_be_used_are_named(wrong: str, match: str) -> None:
    with pytest.raises(StoreError, match=match):
        People(wrong)


def test_nobody_else_may_read_a_new_file(tmp_path: Path) -> None:
    file = tmp_path / "new" / "people.sqlite"
    before = os.umask(0o022)
    try:
        with People(f"sqlite:///{file}") as people:
            people.save_profile("key1", "me", WEIGHTS)
            modes = {one.name: stat.S_IMODE(one.stat().st_mode) for one in [file.parent, *file.parent.iterdir()]}
    finally:
        os.umask(before)
    assert modes.pop("new") == 0o700
    assert "people.sqlite-wal" in modes
    assert set(modes.values()) == {0o600}


def test_a_password_may_be_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RHUMBLINE_USERS_PASSWORD", "secret")
    asked = [_with_password(sa.make_url(one)).password for one in ("a+b://me@h/x", "a+b://me:own@h/x", "sqlite:///x")]
    assert asked == ["secret", "own", None]


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "people.sqlite").write_text("no database at all, but long enough to be taken for a broken one" * 20)
    with pytest.raises(StoreError, match=r"people.sqlite cannot be opened"):
        People(f"sqlite:///{tmp_path / 'people.sqlite'}")


def test_a_refusal_crosses_process_borders() -> None:
    error = pickle.loads(pickle.dumps(PeopleError("no", "too_many")))
    assert (str(error), error.code) == ("no", "too_many")
