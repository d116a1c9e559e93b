"""What is in the playground's conversation and what is not: clearing, trying again, and answers that were cut."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from rhumbline.serving.protocols import Body, EngineError
from tests.rhumbline.playground_pages import MARKS, Storyteller, ask, make, opened, playwright

AWAY = EngineError("the engine is not there, come again", status=503, code="unavailable")
TWICE = "(button) => { button.click(); button.click(); }"
pytestmark = MARKS


class Cut(Storyteller):
    """Every answer to an even seed, or to none, is cut at the most tokens that the request allows."""

    async def chat(self, body: Body, *, request_id: str) -> Body:
        return self._cut(body, await super().chat(body, request_id=request_id))

    async def stream_chat(self, body: Body, *, request_id: str) -> AsyncIterator[Body]:
        async for chunk in super().stream_chat(body, request_id=request_id):
            yield self._cut(body, chunk)

    def _cut(self, body: Body, said: Body) -> Body:
        if body.get("seed", 0) % 2:
            return said
        choices = [{**one, "finish_reason": one["finish_reason"] and "length"} for one in said["choices"]]
        usage = said["usage"] and {**said["usage"], "completion_tokens": body["max_tokens"]}
        return {**said, "choices": choices, "usage": usage}


def send(page: Any, text: str) -> None:
    page.fill("#chat-text", text)
    page.keyboard.press("Enter")


def test_clear_during_an_answer_takes_its_question_out_of_everything(browser: Any) -> None:
    engine = Storyteller(words_delay_s=0.4)
    with opened(browser, make(engine)) as page:
        scored: list[str] = []
        page.on("request", lambda request: scored.append(request.url) if "/score" in request.url else None)
        send(page, "My secret is 4711.")
        page.get_by_text("Rayleigh").wait_for()
        page.get_by_role("button", name="Clear").click()
        assert page.locator(".front-answer").count() == 0
        engine.words_delay_s = 0.0
        ask(page, "Hello?")
        assert [m["content"] for m in engine.requests[-1]["messages"][1:]] == ["Hello?"]
        ask(page, "And now?")
        assert "4711" not in str(engine.requests[-1])
        assert page.locator("#chat-log .turn").count() == 4
        assert scored == []  # what is there brought its rewards; the cleared half would have to be scored by itself
        send(page, "Another secret, 0815.")
        page.get_by_role("button", name="Clear").click()
        assert "0815" not in page.content()  # the requests to copy hold what was asked last


def test_only_the_last_turn_can_be_tried_again_and_only_once_at_a_time(browser: Any) -> None:
    engine = Storyteller()
    with opened(browser, make(engine)) as page:
        again = page.locator("#chat-log").get_by_role("button", name="Try again")
        engine.fails = AWAY
        send(page, "One?")
        playwright.expect(again).to_have_count(1)
        send(page, "Two?")
        playwright.expect(page.locator(".reply").nth(1).get_by_role("button")).to_have_text("Try again")
        assert again.count() == 1  # an answer to "One?" would now come after "Two?"
        assert "not part of the conversation" in page.locator(".reply").first.inner_text()
        engine.fails = None
        before = len(engine.requests)
        again.evaluate(TWICE)
        page.locator(".reply .meters").wait_for()
        assert len(engine.requests) == before + 1
        ask(page, "Three?")
        asked = [m["content"] for m in engine.requests[-1]["messages"] if m["role"] == "user"]
        assert asked == ["Two?", "Three?"]


def test_a_comparison_is_tried_again_once_at_a_time(browser: Any) -> None:
    engine = Storyteller()
    with opened(browser, make(engine)) as page:
        page.get_by_role("tab", name="Compare").click()
        page.fill("#compare-text", "Why is the sky blue?")
        engine.fails = AWAY
        page.get_by_role("button", name="Compare", exact=True).click()
        again = page.locator("#compare-results").get_by_role("button", name="Try again", exact=True)
        again.wait_for()
        engine.fails = None
        before = len(engine.requests)
        again.evaluate(TWICE)
        check = page.get_by_role("button", name="Check with 6 answers each")
        check.wait_for()
        assert len(engine.requests) == before + 3  # one per direction
        engine.fails = AWAY
        check.click()
        again.wait_for()
        engine.fails = None
        engine.delay_s = 2.0
        before = len(engine.requests)
        check.click()
        page.get_by_text("Answers 1 of 6").wait_for()
        assert again.count() == 0  # it would begin the same check a second time
        assert check.is_disabled()
        engine.delay_s = 0.0
        playwright.expect(page.locator("#compare-results [data-moved]")).to_have_count(2, timeout=60_000)
        assert len(engine.requests) == before + 18


def test_an_answer_that_was_cut_says_that_it_would_have_been_longer(browser: Any) -> None:
    with opened(browser, make(Cut())) as page:
        page.get_by_role("button", name="concise").click()
        for best_of in ("1", "2"):
            page.get_by_label("Best of").evaluate("(box, value) => { box.value = value; }", best_of)
            reply = ask(page, "Why is the sky blue?")
            assert "cut at 256 tokens: its length is a lower bound" in reply.locator(".facts").inner_text()
        reply.get_by_role("button", name="Check with 6 answers").click()
        reply.locator("[data-moved]").wait_for()
        text = "6 of 12 answers (256 tokens at most) were cut: their lengths are lower bounds."
        assert text in reply.locator(".verdict").inner_text()  # seeds 0, 2 and 4 in two directions
        page.get_by_role("tab", name="Compare").click()
        page.fill("#compare-text", "Why is the sky blue?")
        page.get_by_role("button", name="Compare", exact=True).click()
        flags = page.locator("#compare-results .facts .flag")
        playwright.expect(flags).to_have_text(["cut at 256 tokens: its length is a lower bound"] * 3)
        page.get_by_role("button", name="Check with 6 answers each").click()
        means = page.get_by_text("3 of 6 answers (256 tokens at most) were cut: their lengths are lower bounds.")
        playwright.expect(means).to_have_count(3)
    with opened(browser, make()) as page:
        assert "cut" not in ask(page, "Why is the sky blue?").inner_text()
