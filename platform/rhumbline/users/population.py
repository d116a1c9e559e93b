"""What people chose: users x questions, with what is known about each. The analyses and predictions of users start here.

    people = people_data.read(recipe.people, seed=0)
    people.choices_UQ[u, q]                # which option; MISSING where nobody asked, PASSED where neither was wanted
    train = people.of_split("train")       # the same users, fewer questions
    people.signs()                     # what cosines are taken of

U users, Q questions, A options of the question that has most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from rhumbline.errors import DataError, did_you_mean
from rhumbline.records import Message

MISSING, PASSED = -1, -2  # in choices_UQ, instead of an option
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Something to choose at: turns, and the answers that are offered."""

    id: str
    messages: tuple[Message, ...]  # the last turn is the user's
    options: tuple[str, ...]  # (A_q,) two or more
    split: str | None = None  # the row's


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Somebody who chooses."""

    id: str
    profile: Mapping[str, str] = field(default_factory=dict)  # what a predictor may be told
    history: tuple[Message, ...] = ()  # an earlier conversation of this person, which a predictor may be shown
    group: str | None = None  # known from elsewhere, to check results with; no predictor sees it


@dataclass(frozen=True, kw_only=True, eq=False)
class Population:
    """Users, questions, and who chose what."""

    name: str
    users: tuple[User, ...]
    questions: tuple[Question, ...]
    choices_UQ: Ints  # (U, Q) index into the question's options, MISSING or PASSED
    uniform_Q: Ints | None = None  # (Q,) what a user would choose who weighs everything the same; None: nobody knows

    def __post_init__(self) -> None:
        assert self.choices_UQ.shape == (len(self.users), len(self.questions)), self.choices_UQ.shape
        assert not self.choices_UQ.size or (self.choices_UQ < self.num_options).all(), "a choice beyond the options"

    @property
    def num_options(self) -> Ints:
        """(Q,) how many answers each question offers."""
        return np.array([len(question.options) for question in self.questions], dtype=np.int64)

    @property
    def chosen(self) -> Bools:
        """(U, Q) where an option was chosen."""
        out: Bools = self.choices_UQ >= 0
        return out

    @property
    def answered(self) -> Bools:
        """(U, Q) where the user was asked, passes included."""
        out: Bools = self.choices_UQ != MISSING
        return out

    def signs(self) -> Floats:
        """(U, Q, A) each choice as its option's indicator less 1/A_q; zero where nothing was chosen.

        With two options this is the vector of +-1/2 that one would write by hand. With more, the same choice has the cosine 1
        and another one -1/(A_q - 1), so that choosing at random has the mean 0 whatever the number of options.
        """
        sizes_Q = self.num_options
        option_A = np.arange(int(sizes_Q.max(initial=0)))
        is_one_QA = option_A < sizes_Q[:, None]
        said_UQA = (self.choices_UQ[:, :, None] == option_A).astype(np.float64)
        centred_UQA = np.where(is_one_QA, said_UQA - 1.0 / np.maximum(sizes_Q, 1)[:, None], 0.0)
        out: Floats = np.where(self.chosen[:, :, None], centred_UQA, 0.0)
        return out

    def part(self, users: npt.ArrayLike | None = None, questions: npt.ArrayLike | None = None) -> Population:
        """The users and questions at these indices, in this order; None: all."""
        u = np.arange(len(self.users)) if users is None else np.asarray(users, dtype=np.int64)
        q = np.arange(len(self.questions)) if questions is None else np.asarray(questions, dtype=np.int64)
        return replace(
            self,
            users=tuple(self.users[i] for i in u),
            questions=tuple(self.questions[i] for i in q),
            choices_UQ=self.choices_UQ[np.ix_(u, q)],
            uniform_Q=None if self.uniform_Q is None else self.uniform_Q[q],
        )

    def in_split(self, split: str | None) -> Ints:
        """Indices of the questions of a split; None: all. Raises DataError where there is none."""
        found = [q for q, question in enumerate(self.questions) if split is None or question.split == split]
        if not found:
            known = sorted({str(question.split) for question in self.questions})
            near = did_you_mean(str(split), known)
            raise DataError(
                f"{self.name}: no question of split {split!r}.{near} Found: {', '.join(known) or 'no question'} "
                "(predict.split, predict.known; null takes all)"
            )
        return np.array(found, dtype=np.int64)

    def of_split(self, split: str | None) -> Population:
        """All users at the questions of a split. Raises DataError as `in_split` does."""
        return self.part(questions=self.in_split(split))

    def with_least(self, min_answers: int, min_users: int) -> Population:
        """Without users who chose less often and questions at which fewer chose: dropped by turns until all is enough.

        Raises DataError where nobody is left.
        """
        chosen_UQ = self.chosen
        users, questions = np.ones(len(self.users), bool), np.ones(len(self.questions), bool)
        while True:
            left_UQ = chosen_UQ & users[:, None] & questions
            enough = users & (left_UQ.sum(1) >= min_answers), questions & (left_UQ.sum(0) >= min_users)
            if (enough[0] == users).all() and (enough[1] == questions).all():
                break
            users, questions = enough
        if not users.any() or not questions.any():
            raise DataError(
                f"{self.name}: nobody is left of {len(self.users)} users and {len(self.questions)} questions who chose at "
                f"{min_answers} questions with {min_users} users each: lower people.min_answers or people.min_users"
            )
        return self.part(np.flatnonzero(users), np.flatnonzero(questions))

    def drawn(self, max_users: int | None, max_questions: int | None, seed: int) -> Population:
        """At most so many users and questions, drawn without replacement and left in their order."""
        rng = np.random.default_rng(seed)

        def some(count: int, most: int | None) -> Ints:
            kept = rng.permutation(count)  # also where all are kept, so that one limit does not move the other's draw
            return np.sort(kept if most is None else kept[:most])

        return self.part(some(len(self.users), max_users), some(len(self.questions), max_questions))

    def in_pairs(self, seed: int) -> Population:
        """Each question with two of its options, drawn; whoever chose another one counts as not asked."""
        rng = np.random.default_rng(seed)
        questions: list[Question] = []
        choices_UQ = np.full_like(self.choices_UQ, MISSING)
        uniform_Q = None if self.uniform_Q is None else np.full_like(self.uniform_Q, MISSING)
        for q, question in enumerate(self.questions):
            kept = rng.choice(len(question.options), size=2, replace=False)
            questions.append(replace(question, options=tuple(question.options[i] for i in kept)))
            choices_UQ[self.choices_UQ[:, q] == PASSED, q] = PASSED
            for place, option in enumerate(kept):
                choices_UQ[self.choices_UQ[:, q] == option, q] = place
                if uniform_Q is not None and self.uniform_Q is not None and self.uniform_Q[q] == option:
                    uniform_Q[q] = place
        return replace(self, questions=tuple(questions), choices_UQ=choices_UQ, uniform_Q=uniform_Q)


def of_answers(
    name: str,
    users: Sequence[User],
    questions: Sequence[Question],
    answers: Sequence[tuple[str, str, int]],
    uniform: Mapping[str, int] | None = None,
) -> Population:
    """A population of (user id, question id, choice). Raises DataError for ids that are given twice or nobody knows."""
    places: list[dict[str, int]] = []
    for what, ids in (("user", [user.id for user in users]), ("question", [question.id for question in questions])):
        at = {id_: i for i, id_ in enumerate(ids)}
        if len(at) != len(ids):
            twice = next(id_ for i, id_ in enumerate(ids) if at[id_] != i)
            raise DataError(f"{name}: the {what} {twice!r} is there twice, expected each once")
        places.append(at)
    user_at, question_at = places
    choices_UQ = np.full((len(users), len(questions)), MISSING, dtype=np.int64)
    for user, question, choice in answers:
        if user not in user_at or question not in question_at:
            raise DataError(
                f"{name}: an answer of user {user!r} to question {question!r}, one of which is not in the data"
            )
        seen = int(choices_UQ[user_at[user], question_at[question]])
        if seen not in (MISSING, choice):
            raise DataError(f"{name}: user {user!r} chose twice at question {question!r}, and differently")
        choices_UQ[user_at[user], question_at[question]] = choice
    equal = None if uniform is None else np.array([uniform[question.id] for question in questions], dtype=np.int64)
    return Population(name=name, users=tuple(users), questions=tuple(questions), choices_UQ=choices_UQ, uniform_Q=equal)
