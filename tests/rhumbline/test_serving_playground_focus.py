"""Where the keyboard is after what it was on is gone: on what took its place, never nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rhumbline.serving.protocols import EngineError
from rhumbline.users.store import People
from tests.rhumbline.playground_pages import (
    MARKS,
    PATIENCE_MS,
    Storyteller,
    ask,
    make,
    opened,
    playwright,
)
from tests.rhumbline.serving_fakes import questions

pytestmark = MARKS


def focused(place: Any) -> None:
    """Waits until the keyboard is there."""
    playwright.expect(place).to_be_focused(timeout=PATIENCE_MS)


def test_in_the_chat(browser: Any) -> None:
    engine = Storyteller(gain=0.0, words_delay_s=0.4)
    with opened(browser, make(engine)) as page:
        page.get_by_role("button", name="concise").click()
        page.fill("#chat-text", "Why?")
        page.locator("#chat-send").press("Enter")
        reply = page.locator(".reply").last
        focused(reply)
        page.get_by_text("Rayleigh").wait_for()
        page.locator("#chat-stop").press("Enter")
        focused(page.locator("#chat-text"))
        page.get_by_text("stopped before its end").wait_for()
        focused(page.locator("#chat-text"))

        page.fill("#chat-text", "And then?")
        page.keyboard.press("Enter")
        page.locator("#chat-stop").focus()
        focused(page.locator("#chat-text"))  # the answer came to its end while the keyboard was on Stop

        engine.fails = EngineError("the engine is not there, come again", status=503, code="unavailable")
        page.fill("#chat-text", "And at night?")
        page.keyboard.press("Enter")
        reply = page.locator(".reply").last
        again = reply.get_by_role("button", name="Try again", exact=True)
        playwright.expect(again).to_be_enabled(timeout=PATIENCE_MS)
        engine.fails = None
        engine.words_delay_s = 0.0
        again.press("Enter")
        focused(reply)
        reply.get_by_role("button", name="Check with 6 answers").wait_for()
        focused(reply)


def test_at_the_check(browser: Any) -> None:
    engine = Storyteller()
    with opened(browser, make(engine)) as page:
        page.get_by_role("button", name="concise").click()
        reply = ask(page, "Why?")
        engine.delay_s = 2.0
        check, verdict = reply.get_by_role("button", name="Check with 6 answers"), reply.locator(".verdict")
        check.press("Enter")
        focused(verdict)
        reply.get_by_role("button", name="Stop").press("Enter")
        check.wait_for()
        focused(verdict)
        engine.delay_s = 0.0
        check.press("Enter")
        reply.locator("[data-moved=yes]").wait_for()
        focused(verdict)


def test_in_the_comparison(browser: Any) -> None:
    engine = Storyteller()
    with opened(browser, make(engine)) as page:
        page.get_by_role("tab", name="Compare").click()
        second = page.get_by_role("button", name="Remove direction 2")
        second.press("Enter")
        assert page.locator("#compare-directions li").count() == 2
        focused(second)  # what was the third one's
        second.press("Enter")
        focused(page.locator("#compare-title"))
        page.get_by_role("button", name="Sweep the trained range").click()

        engine.delay_s = 3.0
        page.fill("#compare-text", "Why?")
        page.locator("#compare-go").press("Enter")
        focused(page.locator("#compare-results"))
        page.locator("#compare-stop").press("Enter")
        focused(page.locator("#compare-text"))
        engine.delay_s = 0.0
        page.locator("#compare-results").get_by_role("button", name="Try again").press("Enter")
        focused(page.locator("#compare-results"))
        page.get_by_role("button", name="Check with 6 answers each").press("Enter")
        page.locator("#compare-results [data-moved=yes]").first.wait_for()
        focused(page.locator("#compare-results"))


def test_in_the_quiz(browser: Any, tmp_path: Path) -> None:
    people = People(f"sqlite:///{tmp_path / 'people.sqlite'}")
    with people, opened(browser, make(people=people, questions=questions())) as page:
        page.get_by_role("tab", name="Find mine").click()
        page.get_by_role("button", name="Start").press("Enter")
        heading = page.locator("#quiz h3")
        playwright.expect(heading).to_contain_text("Question 1 of at most", timeout=PATIENCE_MS)
        focused(heading)
        page.route("**/answer", lambda route: route.abort())
        page.get_by_role("button", name="I prefer A").press("Enter")
        focused(page.locator("#quiz [role=alert]"))
        page.unroute("**/answer")
        page.get_by_role("button", name="Try again").press("Enter")
        playwright.expect(heading).to_contain_text("Question 2", timeout=PATIENCE_MS)
        focused(heading)

        # A quiz that comes back with its tab leaves the keyboard on the tab, whose arrows it may be walking with.
        page.reload()
        page.wait_for_selector("#page:not([hidden])")
        page.locator("#tab-compare").click()
        page.keyboard.press("ArrowRight")
        playwright.expect(heading).to_contain_text("Question 2", timeout=PATIENCE_MS)
        focused(page.locator("#tab-quiz"))

        while not heading.inner_text().startswith("Your direction"):
            before = heading.inner_text()
            page.get_by_role("button", name="About the same").press("Enter")
            playwright.expect(heading).not_to_have_text(before, timeout=PATIENCE_MS)
        focused(heading)
        page.get_by_label("Save it as a profile").fill("brief")
        save = page.get_by_role("button", name="Save")
        save.press("Enter")
        page.get_by_text("Saved.").wait_for()
        focused(save)
