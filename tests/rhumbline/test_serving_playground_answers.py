"""The playground's answers: chat, comparison, what is claimed of them, the quiz, and what the page says of trouble."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rhumbline.serving.protocols import EngineError
from rhumbline.serving.settings import Settings
from rhumbline.users.pool import QuizItem
from rhumbline.users.store import People
from tests.rhumbline.playground_pages import (
    MARKS,
    PATIENCE_MS,
    Storyteller,
    ask,
    evaluated,
    make,
    opened,
    playwright,
    shot,
)
from tests.rhumbline.serving_fakes import questions, verbosity_of

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
pytestmark = MARKS


def test_chat_streams_measures_and_claims_only_what_it_checked(browser: Any) -> None:
    engine = Storyteller()
    with opened(browser, make(engine, of=evaluated())) as page:
        page.get_by_role("button", name="concise").click()
        reply = ask(page, "Why is the sky blue?")
        sent = engine.requests[0]
        assert sent["stream"] is True
        assert verbosity_of(sent) == pytest.approx(-0.6, abs=0.01)
        words = len(reply.locator(".text").inner_text().split())
        assert f"{words} words" in reply.inner_text()
        assert "answered as more helpful and shorter (−36.9°)" in reply.inner_text()
        meter = reply.get_by_role("meter", name="verbosity")
        assert f"{2 * words}.0, below usual (30 to 70)" in str(meter.get_attribute("aria-valuetext"))
        assert "Moved in the asked direction: unclear from one answer." in reply.inner_text()
        reply.get_by_role("button", name="Check with 6 answers").click()
        reply.locator("[data-moved=yes]").wait_for()
        assert "95% interval +" in reply.locator(".verdict").inner_text()
        seeds = [body["seed"] for body in engine.requests[1:]]
        assert seeds == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]  # in pairs: neutral and asked
        ask(page, "And at night?")
        assert [m["role"] for m in engine.requests[-1]["messages"]] == ["system", "user", "assistant", "user"]
        assert page.locator(".front-answer").count() == 1
        page.get_by_text("How answers are sampled").click()
        page.get_by_label("Best of").fill("3")  # a choice needs whole answers: nothing is streamed then
        reply = ask(page, "In short?")
        assert (engine.requests[-1]["n"], engine.requests[-1]["stream"]) == (3, False)
        assert "words" in reply.locator(".facts").inner_text()
        shot(page, "chat")


def test_a_direction_that_does_nothing_or_the_opposite_is_told(browser: Any) -> None:
    for gain, moved in ((0.0, "unclear"), (-8.0, "no")):
        with opened(browser, make(Storyteller(gain=gain))) as page:
            page.get_by_role("button", name="concise").click()
            reply = ask(page, "Why?")
            reply.get_by_role("button", name="Check with 6 answers").click()
            reply.locator(f"[data-moved={moved}]").wait_for()


def test_what_a_model_writes_is_text(browser: Any) -> None:
    with opened(browser, make(Storyteller(text=HOSTILE))) as page:
        reply = ask(page, HOSTILE)
        assert "<img src=x" in reply.locator(".text").inner_text()
        page.get_by_role("tab", name="Compare").click()
        page.fill("#compare-text", HOSTILE)
        page.get_by_role("button", name="Compare", exact=True).click()
        page.locator("#compare-results .facts").first.wait_for()
        assert page.locator("#work img, #work script, .aside img").count() == 0
        assert "owned" not in page.title()


def test_stop_frees_the_engine(browser: Any) -> None:
    engine = Storyteller(words_delay_s=0.2)
    with opened(browser, make(engine)) as page:
        page.fill("#chat-text", "Tell me everything.")
        page.keyboard.press("Enter")
        page.get_by_text("Rayleigh").wait_for()
        page.get_by_role("button", name="Stop").click()
        page.get_by_text("stopped before its end").wait_for()
        assert page.get_by_role("button", name="Send").is_enabled()
        for _ in range(600):
            if engine.cancelled:
                break
            page.wait_for_timeout(100)
        assert (engine.cancelled, engine.running) == (1, 0)


def test_compare_asks_once_for_all_directions(browser: Any) -> None:
    engine = Storyteller()
    with opened(browser, make(engine, of=evaluated())) as page:
        page.get_by_role("tab", name="Compare").click()
        page.get_by_role("button", name="Sweep the trained range").click()
        assert page.locator("#compare-directions li").count() == 5
        page.get_by_role("button", name="Remove direction 2").click()
        page.fill("#compare-text", "Why is the sky blue?")
        page.get_by_role("button", name="Compare", exact=True).click()
        columns = page.locator("#compare-results .column")
        playwright.expect(columns.locator(".verdict")).to_have_count(4)
        assert {body["seed"] for body in engine.requests} == {0}
        lengths = [len(text.split()) for text in columns.locator(".text").all_inner_texts()]
        assert lengths == sorted(lengths, reverse=True)
        assert page.locator(".front-answer").count() == 4
        texts = columns.locator(".verdict").all_inner_texts()
        assert sum("unclear from one answer" in text for text in texts) == 3
        assert sum("measured against this one" in text for text in texts) == 1
        page.get_by_role("button", name="Check with 6 answers each").click()
        playwright.expect(columns.locator("[data-moved=yes]")).to_have_count(3)
        shot(page, "compare")


def test_without_a_reward_model_and_without_proof_the_page_says_so(browser: Any) -> None:
    with opened(browser, make(of=evaluated(proven=False), rewards=False)) as page:
        notes = page.locator("#model-notes").inner_text()
        assert "Steering has not been shown to work for this model" in notes
        assert "No reward model is served here" in notes
        reply = ask(page, "Why?")
        assert reply.get_by_role("meter").count() == 0
        assert "only their length is known" in reply.inner_text()
        page.get_by_role("tab", name="Find mine").click()
        assert "There is no quiz here" in page.locator("#quiz").inner_text()


def test_errors_are_explained_and_can_be_tried_again(browser: Any) -> None:
    engine = Storyteller()
    with opened(browser, make(engine)) as page:
        engine.fails = EngineError("the engine is starting", status=503, code="not_ready")
        page.fill("#chat-text", "Why?")
        page.keyboard.press("Enter")
        alert = page.locator(".reply").get_by_role("alert")
        alert.wait_for()
        assert "The model is not ready yet" in alert.inner_text()
        engine.fails_after = 3  # next: it breaks off in the middle
        again = page.get_by_role("button", name="Try again", exact=True)
        again.click()
        page.get_by_text("Something failed on the server").wait_for()
        engine.fails = None
        again.click()
        page.locator(".reply .meters").wait_for()
        assert page.get_by_role("alert").count() == 0
        assert [m["content"] for m in engine.requests[-1]["messages"][1:]] == ["Why?"]


def test_a_busy_server_says_how_long_to_wait(browser: Any) -> None:
    limits = Settings(requests_per_minute=6, burst=4)  # two for the page, one each ten seconds after that
    with opened(browser, make(settings=limits)) as page:
        ask(page, "One?")
        alert = page.get_by_role("alert").last
        for count in range(2, 12):
            page.fill("#chat-text", f"Number {count}?")
            page.keyboard.press("Enter")
            playwright.expect(page.locator("#chat-send")).to_be_enabled(timeout=PATIENCE_MS)
            if alert.count():
                break
        assert "Too many requests for this key" in alert.inner_text()
        assert "The server asks to wait" in alert.inner_text()
        waiting = alert.get_by_role("button")
        assert waiting.is_disabled()
        playwright.expect(waiting).to_have_text("Try again", timeout=PATIENCE_MS)
        assert waiting.is_enabled()


def lengths_that_tell() -> tuple[QuizItem, ...]:
    """Questions whose answer with more verbosity is the longer one, so that who likes it short contradicts himself nowhere."""
    texts = ("Short.", "Longer, in more words than the other one.")
    return tuple(replace(one, a=texts[one.difference[1] > 0], b=texts[one.difference[1] < 0]) for one in questions())


def test_the_quiz_narrows_the_wedge_and_saves_a_profile(browser: Any, tmp_path: Path) -> None:
    people = People(f"sqlite:///{tmp_path / 'people.sqlite'}")
    with people, opened(browser, make(people=people, questions=lengths_that_tell())) as page:
        page.get_by_role("tab", name="Find mine").click()
        assert page.locator(".wedge-fill").count() == 0
        page.get_by_role("button", name="Start").click()
        quiz = page.locator("#quiz")
        quiz.get_by_role("button", name="I prefer A").wait_for()
        halves = []
        while True:
            heading = quiz.locator("h3").inner_text()
            if heading.startswith("Your direction"):
                break
            assert heading.startswith(f"Question {len(halves) + 1} of at most")
            if len(halves) == 1:
                page.reload()  # a quiz outlives the page
                page.get_by_role("tab", name="Find mine").click()
                quiz.get_by_text("So far, after 1 answer").wait_for()
            # This person likes it short: of every pair the answer with fewer words.
            a, b = quiz.locator(".pair .text").all_inner_texts()
            quiz.get_by_role("button", name="I prefer A" if len(a) < len(b) else "I prefer B").click()
            playwright.expect(quiz.locator("h3")).not_to_have_text(heading)
            halves.append(wedge(page))
        shot(page, "quiz")
        assert halves[-1] < halves[0] < 90
        assert len(halves) >= 3
        page.get_by_role("button", name="Use this direction").click()
        found = int(str(page.get_by_role("slider").get_attribute("aria-valuenow")))
        page.get_by_label("Save it as a profile").fill("short one")  # a blank is in no name: the browser says so
        page.get_by_role("button", name="Save").click()
        assert page.evaluate("document.querySelector('#profile-name').validity.patternMismatch")
        page.get_by_label("Save it as a profile").fill("brief")
        page.get_by_label("Answer this key in it").check()
        page.get_by_role("button", name="Save").click()
        quiz.get_by_text("Saved as brief").wait_for()
        profile = page.evaluate("fetch('../v1/steering/profiles/brief').then((r) => r.json())")
        assert profile["bound"] is True
        weights = profile["weights"]
        assert np.degrees(np.arctan2(weights["verbosity"], weights["helpfulness"])) == pytest.approx(found, abs=1)
        page.get_by_role("button", name="Keep asking").click()
        quiz.get_by_role("button", name="About the same").wait_for()
        page.get_by_role("button", name="set it by hand").click()
        assert page.evaluate("document.activeElement.getAttribute('role')") == "slider"


def wedge(page: Any) -> float:
    """Degrees between the edges of the drawn wedge."""
    path = page.locator(".wedge-fill").get_attribute("d").split()
    (x0, y0), (x1, y1), (x2, y2) = ([float(x) for x in path[i : i + 2]] for i in (1, 4, -3))
    ends = [np.arctan2(y0 - y, x - x0) for x, y in ((x1, y1), (x2, y2))]
    return float(np.degrees(ends[1] - ends[0]) % 360)
