"""People's choices out of data files, one reader per `people.kind` of a recipe of jobs/users.py. Under `population`.

    people = read(recipe.people, seed=recipe.seed)
    len(people.users), len(people.questions), people.chosen.mean()

Every reader says in its docstring what it makes a user, a question and a choice of. No reader gives a predictor what was
computed from the choices themselves (Polis' opinion groups): that goes to `User.group`.
"""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from rhumbline.config import users as config
from rhumbline.data.comparisons import Filter, load_comparisons
from rhumbline.data.load import Row, rows
from rhumbline.data.turns import turns
from rhumbline.errors import DataError
from rhumbline.records import Message
from rhumbline.users.population import PASSED, Population, Question, User, of_answers
from rhumbline.users.tastes import simulated

logger = logging.getLogger(__name__)

JUDGES = {"human": "a person", "model": "a language model"}  # of two-objective pairs, by the columns' first word


def read(people: config.Source, seed: int) -> Population:
    """The population of a recipe: read, reduced to pairs where it says so, thinned out and drawn. Raises DataError."""
    found = _READERS[people.kind](people) if not isinstance(people, config.Simulated) else _simulated(people, seed)
    if people.pairs:
        found = found.in_pairs(seed)
    return found.with_least(people.min_answers, people.min_users).drawn(people.max_users, people.max_questions, seed)


def votes(people: config.Votes) -> Population:
    """Users vote on statements: a question is 'do you agree', a pass is PASSED. The opinion group is for checks alone."""
    items = {str(_cell(row, "item_id", people.items)): row for row in rows(people.items)}
    keep = Filter(people.where, {key for row in items.values() for key in row}, people.items)
    items = {id_: row for id_, row in items.items() if keep(row)}
    keep.refuse_if_none()
    known = {str(row.get("user_id")): row for row in rows(people.users)} if people.users is not None else {}
    answers = []
    for row in rows(people.path):
        item, score = str(_cell(row, "item_id", people.path)), _cell(row, "score", people.path)
        if item in items:
            if score not in (1, 0, -1):
                raise DataError(f"{people.path}: a score of {score!r}, expected 1 (agree), 0 (pass) or -1 (disagree)")
            answers.append((str(_cell(row, "user_id", people.path)), item, {1: 0, -1: 1, 0: PASSED}[score]))
    ids = dict.fromkeys(user for user, _, _ in answers)
    users = [User(id=id_, group=_group(known.get(id_, {}))) for id_ in ids]
    questions = [
        _question(id_, _statement(row, people.items), ("I agree.", "I disagree."), row) for id_, row in items.items()
    ]
    return of_answers(people.path, users, questions, answers)


def statements(people: config.Statements) -> Population:
    """Personas say Yes or No to statements. Most statements were put to one persona only."""
    users: dict[str, User] = {}
    questions: dict[str, Question] = {}
    answers = []
    for row in rows(people.path):
        prompt, chosen = str(_cell(row, "prompt", people.path)), _cell(row, "chosen", people.path)
        options = ("Yes", "No")
        if chosen not in options:
            raise DataError(f"{people.path}: chosen is {chosen!r}, expected Yes or No")
        user = _user(row, people.path)
        users.setdefault(user.id, user)
        question = _question(_hash(prompt), prompt, options, row)
        questions.setdefault(question.id, question)
        answers.append((user.id, question.id, options.index(chosen)))
    return of_answers(people.path, list(users.values()), list(questions.values()), answers)


def domains(people: config.Domains) -> Population:
    """A reader per style, who always prefers the answer in that style: by construction no two ever agree."""
    found = [row for row in rows(people.path) if isinstance(row.get("responses"), Mapping)]
    if not found:
        raise DataError(f"{people.path}: no row has responses, expected a mapping of style to text")
    styles = list(found[0]["responses"])
    users = [User(id=style, profile={"domain": style}) for style in styles]
    questions, answers = [], []
    for row in found:
        if list(row["responses"]) != styles:
            raise DataError(
                f"{people.path}: responses {', '.join(row['responses'])}, expected {', '.join(styles)} as in the first row"
            )
        id_ = str(_cell(row, "id", people.path))
        texts = tuple(map(str, row["responses"].values()))
        questions.append(_question(id_, str(_cell(row, "prompt", people.path)), texts, row))
        answers += [(style, id_, place) for place, style in enumerate(styles)]
    return of_answers(people.path, users, questions, answers)


def two_objectives(people: config.TwoObjectives) -> Population:
    """A user is a judge under an objective, such as human:helpful; two of them judged each pair of answers."""
    users: dict[str, User] = {}
    questions: dict[str, Question] = {}
    answers = []
    for row in rows(people.path):
        pair = tuple(str(_cell(row, key, people.path)) for key in ("response_a", "response_b"))
        id_ = str(_cell(row, "id", people.path))
        if pair[0] == pair[1]:
            continue  # nothing to choose
        questions[id_] = _question(id_, row.get("messages", row.get("prompt")), pair, row)
        for judge, said in JUDGES.items():
            objective, winner = (_cell(row, f"{judge}_{what}", people.path) for what in ("objective", "winner"))
            if winner not in ("a", "b"):
                raise DataError(f"{people.path}: {judge}_winner is {winner!r}, expected a or b")
            user = User(id=f"{judge}:{objective}", profile={"judge": said, "objective": str(objective)})
            users.setdefault(user.id, user)
            answers.append((user.id, id_, "ab".index(winner)))
    return of_answers(people.path, [users[id_] for id_ in sorted(users)], list(questions.values()), answers)


def stated(people: config.StatedPreferences) -> Population:
    """A user who stated a preference, or whose conversation shows it, and the questions with options put to that user.

    Rows of one user_id with different preferences are different people (PrefEval's ids are hashes, and a few collide). A
    person whose conversation is not certain, because several have the id and none the preference, is left out and logged.
    """
    past: dict[str, list[Row]] = defaultdict(list)
    for row in rows(people.history) if people.history is not None else ():
        past[str(row.get("user_id"))].append(row)
    users: dict[tuple[str, str], User] = {}
    questions, answers, uncertain = [], [], 0
    for row in rows(people.path):
        options = tuple(map(str, _cell(row, "options", people.path)))
        choice = int(_cell(row, "aligned_option", people.path))
        if not 0 <= choice < len(options):
            raise DataError(f"{people.path}: aligned_option is {choice}, expected 0 to {len(options) - 1}")
        user, id_ = _user(row, people.path), str(_cell(row, "id", people.path))
        key = (user.id, str(user.profile.get("preference")))
        if key not in users:
            namesakes = sum(1 for known, _ in users if known == user.id)
            user = replace(user, id=f"{user.id}-{namesakes + 1}") if namesakes else user
            if people.history is not None:
                said = _conversation(past[key[0]], key, people.history)
                if said is None:
                    uncertain += 1
                    continue
                user = User(id=user.id, history=said)  # and not the preference itself
            users[key] = user
        questions.append(_question(id_, str(_cell(row, "prompt", people.path)), options, row))
        answers.append((users[key].id, id_, choice))
    if uncertain:
        logger.info("%s: %d questions left out, whose person's conversation is not certain", people.path, uncertain)
    return of_answers(people.path, list(users.values()), questions, answers)


def _conversation(found: Sequence[Row], key: tuple[str, str], where: str) -> tuple[Message, ...] | None:
    """The turns of a person's conversation; None where several could be meant. Raises DataError where there is none."""
    if not found:
        raise DataError(f"{where}: no conversation of user {key[0]!r} (people.history)")
    same = [row for row in found if (row.get("profile") or {}).get("preference") == key[1]]
    sure = same[:1] or (found if len(found) == 1 else [])
    return turns(sure[0].get("messages"), where) if sure else None


def judges(people: config.Judges) -> Population:
    """Named judges of comparisons; a tie is PASSED. Comparisons without a name are left out."""
    found = load_comparisons(people.path, winner=people.winner, profile=people.profile, where=people.where)
    users: dict[str, User] = {}
    questions: dict[str, Question] = {}
    answers = []
    for one in found.rows:
        if one.user is None:
            continue
        users.setdefault(one.user, User(id=one.user, profile=one.profile))
        first, second = sorted((one.a, one.b))
        id_ = _hash(one.prompt.id, first, second)
        questions.setdefault(
            id_, Question(id=id_, messages=one.prompt.messages, options=(first, second), split=one.split)
        )
        winner = {"a": one.a, "b": one.b, "tie": None}[one.winner]
        answers.append((one.user, id_, PASSED if winner is None else (first, second).index(winner)))
    if not users:
        raise DataError(f"{people.path}: no comparison says who judged it (user_id, user, annotator or judge)")
    # One judge may see a pair twice and change their mind: the first time counts.
    first_time = {(user, question): choice for user, question, choice in reversed(answers)}
    kept = [(user, question, choice) for (user, question), choice in first_time.items()]
    return of_answers(people.path, list(users.values()), list(questions.values()), kept)


def _simulated(people: config.Simulated, seed: int) -> Population:
    return simulated(
        people.path,
        ratings=people.ratings,
        law=people.law,
        num_users=people.num_users,
        options=people.options,
        seed=seed,
    )


_READERS: dict[str, Callable[[Any], Population]] = {
    "votes": votes,
    "statements": statements,
    "domains": domains,
    "objectives": two_objectives,
    "preferences": stated,
    "comparisons": judges,
}


def _cell(row: Row, column: str, where: str) -> Any:
    """Raises DataError where it is not there."""
    if row.get(column) is None:
        raise DataError(f"{where}: a row has no {column!r}, it has: {', '.join(row)} (people.path, people.kind)")
    return row[column]


def _user(row: Row, where: str) -> User:
    profile = row.get("profile") or {}
    if not isinstance(profile, Mapping):
        raise DataError(f"{where}: a profile is {type(profile).__name__}, expected an object of names and facts")
    return User(id=str(_cell(row, "user_id", where)), profile={str(key): str(value) for key, value in profile.items()})


def _group(row: Mapping[str, Any]) -> str | None:
    found = (row.get("profile") or {}).get("opinion_group")
    return None if found is None else str(found)


def _statement(row: Row, where: str) -> str:
    topic = row.get("topic")
    about = f"This is about: {topic}\n\n" if topic else ""
    return f"{about}Do you agree with this statement?\n\n{_cell(row, 'response', where)}"


def _question(id_: str, asked: Any, options: tuple[str, ...], row: Row) -> Question:
    messages: tuple[Message, ...] = turns(asked, f"question {id_}")
    if not messages:
        raise DataError(f"question {id_} asks nothing: expected a prompt, or messages")
    split = cast(str | None, row.get("split"))
    return Question(id=id_, messages=messages, options=options, split=split)


def _hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode("utf-8", "replace")).hexdigest()[:16]
