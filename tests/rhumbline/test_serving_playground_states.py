"""What the playground says of the server's states: each by its own name, and a page that loads says so until it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rhumbline.serving.keys import KeyRing, new_key
from rhumbline.serving.protocols import EngineError
from rhumbline.users.store import People
from tests.rhumbline.playground_pages import MARKS, Storyteller, make, opened, playwright
from tests.rhumbline.serving_fakes import questions

TITLES = {
    "not_ready": "The model is not ready yet",
    "overloaded": "The server has more requests than it can take",
    "replica_died": "A process of the server died with this request",
    "unavailable": "The server cannot answer now",
    "of a newer server": "The server cannot answer now",
}
pytestmark = MARKS


def test_every_503_has_its_own_name(browser: Any, tmp_path: Path) -> None:
    engine = Storyteller()
    people = People(f"sqlite:///{tmp_path / 'people.sqlite'}")
    with people, opened(browser, make(engine, people=people, questions=questions())) as page:
        seen = []
        for code in [*TITLES, "in the middle"]:
            engine.fails = EngineError("come again", status=503, code="replica_died" if " middle" in code else code)
            engine.fails_after = 3 if " middle" in code else None
            page.fill("#chat-text", f"What is {code}?")
            page.keyboard.press("Enter")
            title = page.locator(".reply").last.locator(".note-title")
            title.wait_for()
            seen.append(title.inner_text())
        assert seen == [*TITLES.values(), TITLES["replica_died"]]

        told = {"error": {"message": "quizzes cannot be read now", "code": "no_database", "type": "server_error"}}
        page.route("**/v1/steering/quiz", lambda route: route.fulfill(status=503, json=told))
        page.get_by_role("tab", name="Find mine").click()
        page.get_by_role("button", name="Start").click()
        title = page.locator("#quiz .note-title")
        playwright.expect(title).to_have_text("The server’s database does not answer")


def test_a_page_that_opens_before_the_model_says_so_until_it_is_ready(browser: Any) -> None:
    engine = Storyteller()
    engine.up = False
    with opened(browser, make(engine)) as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url) if request.url.endswith("/ready") else None)
        loading = page.locator("#readiness .note")
        loading.wait_for()
        assert "The model is not ready yet" in loading.inner_text()
        assert page.get_by_role("slider").is_visible()  # the direction can be set meanwhile
        with page.expect_request("**/ready"):
            pass  # it asks again
        engine.up = True
        loading.wait_for(state="detached")
        playwright.expect(page.locator("#announcer")).to_have_text("The model is ready.")
        count = len(asked)
        page.wait_for_timeout(5_000)  # longer than between two of its questions
        assert len(asked) == count > 0


def test_a_key_that_no_header_can_carry_is_told_from_a_server_that_is_away(browser: Any, tmp_path: Path) -> None:
    key = new_key(tmp_path / "keys.json", "alice")
    with opened(browser, make(keys=KeyRing(tmp_path / "keys.json")), ready=False) as page:
        page.get_by_text("This server needs a key").wait_for()
        for wrong, code in ((f"{key[:3]}\u200b{key[3:]}", "200B"), (f"{key[:3]}\u2011{key[3:]}", "2011")):
            page.fill("#api-key", wrong)
            page.keyboard.press("Enter")
            told = page.locator("#key-state")
            playwright.expect(told).to_contain_text(f"character 4 of this key is U+{code}")
            assert page.get_by_label("API key").get_attribute("aria-invalid") == "true"
            assert page.evaluate("document.activeElement.id") == "api-key"
            assert page.evaluate("sessionStorage.length") == 0
        assert page.get_by_text("The server cannot be reached").count() == 0
        page.fill("#api-key", f"  {key}\ufeff")  # blanks around it are no part of it
        page.keyboard.press("Enter")
        page.wait_for_selector("#page:not([hidden])")
        assert page.get_by_label("API key").get_attribute("aria-invalid") == "false"
        assert page.evaluate("Object.values(sessionStorage)") == [key]
