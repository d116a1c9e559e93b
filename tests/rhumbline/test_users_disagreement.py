"""Users per answer, and how often every two of them differ."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rhumbline.users import disagreement
from rhumbline.users.population import MISSING, PASSED
from tests.rhumbline.users_fakes import population

# q0: 3 to 1; q1: 2 to 2; q2: one chose, one passed, two were not asked.
PEOPLE = population([[0, 0, MISSING], [0, 1, 1], [0, 0, PASSED], [1, 1, MISSING]])


def test_users_per_answer() -> None:
    assert disagreement.counts(PEOPLE).tolist() == [[3, 1], [2, 2], [0, 1]]


def test_questions_are_listed_from_the_most_divided() -> None:
    lines = disagreement.division(PEOPLE)
    assert [line["question"] for line in lines] == ["q1", "q0", "q2"]
    assert lines[0]["entropy"] == pytest.approx(math.log(2))
    assert lines[1]["entropy"] == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert lines[1]["minority"] == pytest.approx(0.25)
    assert (lines[2]["chose"], lines[2]["passed"], lines[2]["entropy"]) == (1, 1, 0.0)


def test_every_two_users_are_compared_where_both_chose() -> None:
    differed, compared = disagreement.disagreements(PEOPLE)
    assert compared.tolist() == [[2, 2, 2, 2], [2, 3, 2, 2], [2, 2, 2, 2], [2, 2, 2, 2]]
    assert differed.tolist() == [[0, 1, 0, 2], [1, 0, 1, 1], [0, 1, 0, 2], [2, 1, 2, 0]]


def test_summary_by_hand() -> None:
    """Pairs differ in 1 + 0 + 2 + 1 + 1 + 2 = 7 of 12; minorities 1/4 and 1/2 where two or more chose."""
    told = disagreement.summary(PEOPLE)
    assert told["differed"] == pytest.approx(7 / 12)
    assert told["minority"] == pytest.approx(3 / 8)
    assert (told["choices"], told["passes"]) == (9, 1)
    assert told["asked_share"] == pytest.approx(10 / 12)
    assert told["first_answer_share"] == pytest.approx(5 / 9)


def test_permuting_users_permutes_the_map() -> None:
    order = np.array([2, 0, 3, 1])
    moved, _ = disagreement.disagreements(PEOPLE.part(users=order))
    assert np.array_equal(moved, disagreement.disagreements(PEOPLE)[0][np.ix_(order, order)])


def test_questions_may_have_different_numbers_of_options() -> None:
    three = population([[0, 2], [1, 2]], options=3)
    assert disagreement.counts(three).tolist() == [[1, 1, 0], [0, 0, 2]]
