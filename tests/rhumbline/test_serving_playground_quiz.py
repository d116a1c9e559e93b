"""A quiz that was begun before: taken up again, put away only where it can never go on; and what its result promises."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rhumbline.users.store import People
from tests.rhumbline.playground_pages import MARKS, make, opened, playwright
from tests.rhumbline.serving_fakes import questions

ONE = "**/v1/steering/quiz/**"  # a quiz that exists: reading it, and answering
OTHER_MODEL = {
    "error": {"message": "the quiz has other objectives", "type": "invalid_request_error", "code": "other_model"}
}
KEPT = "sessionStorage.getItem('rhumbline.quiz')"
pytestmark = MARKS


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Any]:
    with People(f"sqlite:///{tmp_path / 'people.sqlite'}") as people:
        yield make(people=people, questions=questions())


def begin(page: Any) -> None:
    """A quiz with one answer."""
    page.get_by_role("tab", name="Find mine").click()
    page.get_by_role("button", name="Start").click()
    page.get_by_role("button", name="I prefer A").click()
    page.get_by_text("So far, after 1 answer").wait_for()


def told(page: Any, status: int, json: Any) -> None:
    """What the server says of a quiz from now on."""
    page.unroute(ONE)
    page.route(ONE, lambda route: route.fulfill(status=status, json=json))


def come_back(page: Any) -> Any:
    page.reload()
    page.wait_for_selector("#page:not([hidden])")
    page.get_by_role("tab", name="Find mine").click()
    return page.locator("#quiz")


def test_a_quiz_of_another_model_is_put_away_and_said_so(browser: Any, app: Any) -> None:
    with opened(browser, app) as page:
        for comes_back in (True, False):
            begin(page)
            told(page, 409, OTHER_MODEL)
            if comes_back:
                come_back(page)
            else:
                page.get_by_role("button", name="I prefer A").click()
            quiz = page.locator("#quiz")
            quiz.get_by_text("The quiz that you began was about another model’s objectives").wait_for()
            assert page.evaluate(KEPT) is None
            assert quiz.get_by_role("alert").count() == 0
            page.unroute(ONE)
        quiz.get_by_role("button", name="Start").click()
        quiz.get_by_role("button", name="I prefer A").wait_for()


def test_a_quiz_that_is_gone_makes_room_for_another(browser: Any, app: Any) -> None:
    with opened(browser, app) as page:
        page.evaluate("sessionStorage.setItem('rhumbline.quiz', 'no-such-quiz')")
        quiz = come_back(page)
        quiz.get_by_text("is not there any more").wait_for()
        assert quiz.get_by_role("button", name="Start").is_visible()
        assert page.evaluate(KEPT) is None


def test_a_failure_on_coming_back_costs_no_answers(browser: Any, app: Any) -> None:
    with opened(browser, app) as page:
        begin(page)
        kept = page.evaluate(KEPT)
        told(page, 503, {"error": {"message": "cannot be read now", "type": "server_error", "code": "no_database"}})
        quiz = come_back(page)
        quiz.get_by_role("alert").wait_for()
        assert quiz.get_by_role("button", name="Start").count() == 0  # another quiz would take the place of this one
        assert page.evaluate(KEPT) == kept
        page.unroute(ONE)
        quiz.get_by_role("button", name="Try again").click()
        quiz.get_by_text("So far, after 1 answer").wait_for()
        assert page.evaluate(KEPT) == kept

        # A fault of the page itself is shown, and reaches the console.
        told(page, 200, {"id": kept})
        page.reload()
        page.wait_for_selector("#page:not([hidden])")
        page.evaluate(
            "addEventListener('unhandledrejection', (e) => { document.title = e.reason.name; e.preventDefault(); })"
        )
        page.get_by_role("tab", name="Find mine").click()
        quiz.get_by_text("This page failed").wait_for()
        playwright.expect(page).to_have_title("TypeError")
        assert quiz.get_by_role("button", name="Start").count() == 0


def test_a_result_promises_no_more_than_the_quiz_knows(browser: Any, app: Any) -> None:
    estimate = {"direction": {"helpfulness": 0.8, "verbosity": -0.6}, "half_angle_deg": 12.0, "asked": 6}
    ends = {
        "certain": "the quiz stopped because it was certain enough.",
        "limit": "the quiz stopped because the number of questions was reached.",
        "no_questions": "the quiz stopped because there are no questions left.",
    }
    with opened(browser, app) as page:
        page.evaluate("sessionStorage.setItem('rhumbline.quiz', 'mine')")
        for reason, words in ends.items():
            state = {"id": "mine", "question": None, "estimate": estimate, "done": True, "reason": reason,
                     "limit": 6, "wedge": [-49.0, -25.0]}  # fmt: skip
            told(page, 200, state)
            quiz = come_back(page)
            playwright.expect(quiz.locator("h3")).to_have_text("Your direction: more helpful and shorter")
            text = quiz.inner_text()
            assert "If you answer as consistently as the quiz assumes, it lies there nine times in ten." in text
            assert f"Found by 6 answers; {words}" in text
