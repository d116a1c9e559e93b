"""The playground in a real browser, for its tests: Chromium, the real app under uvicorn, and an engine that tells stories.

    with launched() as browser, opened(browser, make(Storyteller())) as page:
        reply = ask(page, "Why is the sky blue?")

What a browser complains about (a blocked script or style, an exception) fails every test: the content security policy of the
app is in force. PLAYGROUND_SHOTS=DIR keeps pictures of what some tests saw.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rhumbline.directions import from_angle_deg
from rhumbline.serving.app import create_app
from rhumbline.serving.evidence import Achieved, Effect
from rhumbline.serving.protocols import Body
from rhumbline.serving.served import Served
from rhumbline.serving.settings import Settings
from tests.rhumbline.serving_fakes import FakeEngine, FakeRewards, running, served, verbosity_of

playwright = pytest.importorskip(
    "playwright.sync_api", reason="Playwright is missing: make setup installs what requirements/cpu.txt names"
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MARKS = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium"),
]
PATIENCE_MS = 60_000  # for a machine that is busy with other things
RANGES = {"helpfulness": (40.0, 50.0, 60.0), "verbosity": (30.0, 50.0, 70.0)}


class Storyteller(FakeEngine):
    """Answers of a length that follows `gain` times the verbosity asked for, with noise that the seed decides."""

    def __init__(
        self,
        gain: float = 8.0,
        text: str = "Rayleigh scattering sends the blue light of the sun everywhere.",
        **more: Any,
    ):
        super().__init__(**more)
        self.gain = gain
        self.words = text.split(" ")

    def _text(self, body: Body, index: int) -> str:
        v = verbosity_of(body)
        noise = random.Random(f"{body.get('seed')} {v:.2f} {index}").randint(0, 2)
        return " ".join(self.words[i % len(self.words)] for i in range(max(1, round(10 + self.gain * v) + noise)))


@contextlib.contextmanager
def launched() -> Iterator[Any]:
    """A browser without a window."""
    with playwright.sync_playwright() as driver:
        # Chromium's sandbox needs a user that is not root.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        made = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield made
        made.close()


@contextlib.contextmanager
def opened(browser: Any, app: Any, *, at: str = "", ready: bool = True, **context: Any) -> Iterator[Any]:
    """The playground of an app. Whatever the browser's console says fails the test; refused requests it only mentions."""
    context = {"viewport": {"width": 1440, "height": 900}, "reduced_motion": "reduce"} | context
    with running(app) as url, contextlib.closing(browser.new_context(**context)) as made:
        made.set_default_timeout(PATIENCE_MS)
        page = made.new_page()
        said: list[str] = []
        page.on("console", lambda m: said.append(m.text) if not m.text.startswith("Failed to load resource") else None)
        page.on("pageerror", lambda e: said.append(str(e)))
        page.goto(f"{url}/playground/{at}")
        if ready:
            page.wait_for_selector("#page:not([hidden])")
        yield page
        assert said == []


def make(engine: FakeEngine | None = None, *, of: Served | None = None, rewards: bool = True, **more: Any) -> Any:
    parts = {"keys": None, "people": None, "settings": Settings()} | more
    return create_app(of or evaluated(), engine or Storyteller(), rewards=FakeRewards() if rewards else None, **parts)


def evaluated(*, proven: bool = True) -> Served:
    front = tuple(
        Achieved(direction=from_angle_deg(a), rewards=(60 - abs(a - 10) / 15, 50 + a / 3), pareto=True)
        for a in range(-45, 46, 15)
    )
    return served(
        achieved=front, front=front, ranges=RANGES, effect=Effect(proven=proven, why="verbosity follows its weight.")
    )


def ask(page: Any, text: str) -> Any:
    """Send a message; the reply, measured."""
    count = page.locator(".reply").count()
    page.fill("#chat-text", text)
    page.keyboard.press("Enter")
    reply = page.locator(".reply").nth(count)
    reply.locator(".verdict, .measured > .soft, [role=alert]").last.wait_for()
    assert reply.get_by_role("alert").all_inner_texts() == []
    playwright.expect(reply.locator(".measured")).not_to_have_text("Scoring…")
    return reply


def shot(page: Any, name: str) -> None:
    if folder := os.environ.get("PLAYGROUND_SHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def in_page(page: Any, module: str, expression: str, argument: Any = None) -> Any:
    """`expression` of `m`, one of the page's own modules, and `x`."""
    return page.evaluate(f"async (x) => {{ const m = await import('./{module}.js'); return {expression}; }}", argument)
