"""The playground in a real browser, against the real app under uvicorn; the engine and the rewards are the serving fakes.

What a browser complains about (a blocked script or style, an exception) fails every test: the content security policy of the
app is in force. PLAYGROUND_SHOTS=DIR keeps a picture of what the tests of the layout saw.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rhumbline import codecs
from rhumbline.directions import Cone, from_angle_deg, normalise
from rhumbline.serving.app import create_app
from rhumbline.serving.evidence import Achieved, Effect
from rhumbline.serving.keys import KeyRing, new_key
from rhumbline.serving.protocols import Body, EngineError
from rhumbline.serving.served import Served
from rhumbline.serving.settings import Settings
from rhumbline.steering import Steering
from rhumbline.users.store import People
from tests.rhumbline.serving_fakes import FakeEngine, FakeRewards, questions, running, served, verbosity_of

playwright = pytest.importorskip(
    "playwright.sync_api", reason="Playwright is missing: make setup installs what requirements/cpu.txt names"
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium"),
]
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
PATIENCE_MS = 20_000  # for a machine that is busy with other things


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


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
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
    return create_app(of or served(), engine or Storyteller(), rewards=FakeRewards() if rewards else None, **parts)


def evaluated(*, proven: bool = True) -> Served:
    front = tuple(
        Achieved(direction=from_angle_deg(a), rewards=(60 - abs(a - 10) / 15, 50 + a / 3), pareto=True)
        for a in range(-45, 46, 15)
    )
    return served(front=front, effect=Effect(proven=proven, why="verbosity follows its weight."))


def ask(page: Any, text: str) -> Any:
    """Send a message; the reply, measured."""
    count = page.locator(".reply").count()
    page.fill("#chat-text", text)
    page.keyboard.press("Enter")
    reply = page.locator(".reply").nth(count)
    reply.locator(".verdict, .measured > .soft").last.wait_for()
    playwright.expect(reply.locator(".measured")).not_to_have_text("Scoring…")
    return reply


def shot(page: Any, name: str) -> None:
    if folder := os.environ.get("PLAYGROUND_SHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def in_page(page: Any, module: str, expression: str, argument: Any = None) -> Any:
    """`expression` of `m`, one of the page's own modules, and `x`."""
    return page.evaluate(f"async (x) => {{ const m = await import('./{module}.js'); return {expression}; }}", argument)


# --- the arithmetic -------------------------------------------------------------------------------------------------


def test_the_pages_arithmetic_is_the_librarys(browser: Any) -> None:
    rng = np.random.default_rng(0)
    with opened(browser, make()) as page:
        for K in (2, 3, 4):
            names = [f"o{i}" for i in range(K)]
            cone = Cone(tuple(names), normalise(rng.standard_normal(K)), float(rng.uniform(20, 100)))
            wishes = [*rng.standard_normal((20, K)).tolist(), [-x for x in cone.axis]]
            found = in_page(
                page,
                "directions",
                "x.v.map((v) => m.project(v, x.cone))",
                {
                    "v": wishes,
                    "cone": {"axis": list(cone.axis), "half": cone.half_angle_deg},
                },
            )
            for wish, got in zip(wishes, found, strict=True):
                direction, projected = cone.project(wish)
                assert got["projected"] == projected
                assert got["direction"] == pytest.approx(direction, abs=1e-9)
            swept = in_page(
                page, "directions", "m.sweep(x, 5, 1)", {"axis": list(cone.axis), "half": cone.half_angle_deg}
            )
            assert all(cone.contains(v) for v in swept)
            assert (
                sorted((v[1] for v in swept[:3]), reverse=True) == [v[1] for v in swept[:3]] or cone.half_angle_deg > 60
            )
            assert in_page(
                page,
                "directions",
                "m.fromText(m.toText(x.v, x.names), x.names)",
                {
                    "v": list(cone.axis),
                    "names": names,
                },
            ) == pytest.approx(cone.axis, abs=2e-3)
        assert in_page(page, "directions", "m.fromText('o0=nonsense', ['o0', 'o1'])") is None
        # Objective 0 is released at 0.6 and 1 is locked at 0.48: what is left for 2 is sqrt(1 - 0.36 - 0.2304) = 0.64.
        linked = in_page(page, "directions", "m.relink([0.8, 0.48, -0.36], 0, 0.6, new Set([1]))")
        assert linked == pytest.approx([0.6, 0.48, -0.64], abs=1e-9)


def test_nothing_is_claimed_that_chance_may_explain(browser: Any) -> None:
    # Asked: more of the second objective alone. Its mean change is 4 of a range of 40, 10% of it, once +-2 and once +-20.
    objectives = [{"range": [0, 10, 20]}, {"range": [0, 20, 40]}]
    judge = "m.judge(x.objectives, [1, 0], [1, 1], x.before, x.after)"
    before = [[10.0, 20.0]] * 6
    steady, noisy = [[10.0, 20.0 + 4 + d] for d in (-2, 2) * 3], [[10.0, 20.0 + 4 + d] for d in (-20, 20) * 3]
    with opened(browser, make()) as page:

        def verdict(after: list[list[float]]) -> Any:
            return in_page(page, "verdict", judge, {"objectives": objectives, "before": before, "after": after})

        yes = verdict(steady)
        assert yes["moved"] == "yes"
        assert yes["mean"] == pytest.approx(10.0)
        # standard deviation of +-5% over 6 values is sqrt(30) = 5.477; t(5, 97.5%) = 2.571; 2.571 * 5.477 / sqrt(6) = 5.749
        assert yes["half"] == pytest.approx(5.749, abs=1e-3)
        assert verdict(noisy)["moved"] == "unclear"
        assert verdict([[10.0, 40 - a[1]] for a in steady])["moved"] == "no"
        constant = verdict([[10.0, 24.0]] * 6)  # six times one answer is one answer
        assert (constant["moved"], constant["half"]) == ("unclear", None)


# --- the direction --------------------------------------------------------------------------------------------------


def test_the_dial_by_keyboard(browser: Any) -> None:
    with opened(browser, make()) as page:
        dial = page.get_by_role("slider")
        dial.focus()

        def now() -> str:
            return str(dial.get_attribute("aria-valuenow"))

        assert now() == "0"
        for key, expected in (
            ("ArrowUp", "1"), ("ArrowLeft", "0"), ("Shift+ArrowDown", "-5"), ("PageUp", "0"), ("Home", "-45"), ("End", "45"),
        ):  # fmt: skip
            page.keyboard.press(key)
            assert now() == expected, key
        assert page.locator("#direction-warning").is_hidden()
        page.keyboard.press("ArrowUp")
        assert (
            "You ask for 46°. The model was trained for −45° to 45°" in page.locator("#direction-warning").inner_text()
        )
        assert "pulled back to 45°" in str(dial.get_attribute("aria-valuetext"))
        assert page.get_by_text("pulled back to here", exact=True).is_visible()
        page.get_by_role("button", name="concise").click()
        assert now() == "-37"
        assert page.locator("#direction-words").inner_text() == "more helpful and shorter"
        assert "helpfulness 0.80 · verbosity −0.60" in page.locator("#direction-numbers").inner_text()
        # by mouse: straight down is the second objective at its least
        box = page.locator("svg.dial").bounding_box()
        x, y = box["x"] + box["width"] * 190 / 400, box["y"] + box["height"] * 178 / 356
        page.mouse.move(x, y + box["width"] * 0.2)
        page.mouse.down()
        page.mouse.up()
        assert now() == "-90"


def test_more_objectives_have_linked_sliders_with_locks(browser: Any) -> None:
    names = ("helpfulness", "verbosity", "humor")
    contract = Steering(
        objectives=names, signs=(1, 1, 1), reward_model="rm-1", iteration=1, initial="embedded", presets={},
        calibration={"names": list(names), "mean": [50.0] * 3, "std": [10.0] * 3, "p10": [40.0] * 3, "p50": [50.0] * 3,
                     "p90": [60.0] * 3, "num_samples": 100, "standardise": True},
        codec=codecs.make("dpa-int100", names).to_dict(), region=Cone(names, normalise([2, 1, 1]), 60.0).to_dict(),
    )  # fmt: skip
    with opened(browser, make(of=Served.of(contract, name="three", folder=Path("nowhere")), rewards=False)) as page:
        values = "[...document.querySelectorAll('.slider-row input')].map((i) => Number(i.value))"
        start = page.evaluate(values)
        page.get_by_role("button", name="Lock humor").click()
        slider = page.get_by_label("verbosity", exact=True)
        # While it moves the others stay; they give way when it is let go.
        slider.evaluate("(s) => { s.value = -0.5; s.dispatchEvent(new Event('input')); }")
        assert page.evaluate(values)[0] == start[0]
        slider.evaluate("(s) => s.dispatchEvent(new Event('change'))")
        now = page.evaluate(values)
        assert now[1:] == pytest.approx([-0.5, start[2]], abs=0.011)
        assert sum(v * v for v in now) == pytest.approx(1.0, abs=0.03)
        slider.focus()
        page.keyboard.press("ArrowRight")
        assert page.evaluate(values)[1] == pytest.approx(-0.49, abs=0.011)
        assert page.get_by_label("humor", exact=True).is_disabled()
        page.get_by_role("button", name="Reset to the default").click()
        assert page.evaluate(values) == pytest.approx(start, abs=0.011)
        shot(page, "three")


def test_the_link_has_the_direction_and_never_the_key(browser: Any, tmp_path: Path) -> None:
    key = new_key(tmp_path / "keys.json", "alice")
    app = make(keys=KeyRing(tmp_path / "keys.json"))
    with opened(browser, app, at="#d=helpfulness%3D0.8,verbosity%3D0.6", ready=False) as page:
        page.get_by_text("This server needs a key").wait_for()
        assert page.evaluate("document.activeElement.id") == "api-key"
        page.keyboard.type(key)
        page.keyboard.press("Enter")
        page.wait_for_selector("#page:not([hidden])")
        dial = page.get_by_role("slider")
        assert dial.get_attribute("aria-valuenow") == "37"
        dial.focus()
        page.keyboard.press("ArrowUp")
        page.wait_for_function("decodeURIComponent(location.hash).startsWith('#d=helpfulness=0.788,verbosity=0.616')")
        for summary in page.locator("#elsewhere summary").all()[1:]:
            summary.click()
        assert key not in page.url + page.locator("#elsewhere").inner_text()
        assert page.evaluate("Object.values(localStorage).length + document.cookie.length") == 0
        assert page.evaluate("Object.values(sessionStorage)") == [key]
        page.evaluate("location.hash = 'd=helpfulness=1,verbosity=0'")
        playwright.expect(dial).to_have_attribute("aria-valuenow", "0")
        page.reload()  # the key is still there for this tab
        page.wait_for_selector("#page:not([hidden])")


def test_what_is_copied_runs(browser: Any) -> None:
    engine = Storyteller()
    with opened(browser, make(engine), permissions=["clipboard-read", "clipboard-write"]) as page:
        page.get_by_role("button", name="concise").click()
        ask(page, 'What\'s "blue"?\n$HOME `x` \\n')
        texts = {}
        for name in ("curl", "Python", "Model alias"):
            if name != "curl":
                page.locator("#elsewhere summary").filter(has_text=name).click()
            page.get_by_role("button", name=f"Copy as {name}").click()
            playwright.expect(page.get_by_role("button", name=f"Copy as {name}")).to_have_text("Copied")
            texts[name] = page.evaluate("navigator.clipboard.readText()")
        assert texts["Model alias"] == "smol@concise"
        environment = {**os.environ, "RHUMBLINE_API_KEY": "none", "no_proxy": "*"}
        for command in (["bash", "-c", texts["curl"]], [sys.executable, "-c", texts["Python"]]):
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
            assert done.returncode == 0, done.stderr
            sent = engine.requests[-1]
            assert sent["messages"][-1]["content"] == 'What\'s "blue"?\n$HOME `x` \\n'.strip()
            assert verbosity_of(sent) == pytest.approx(-0.6, abs=0.01)
            assert "Rayleigh" in done.stdout


# --- answers --------------------------------------------------------------------------------------------------------


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
        assert "answered as more helpful and shorter (−37" in reply.inner_text()
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


# --- honest states --------------------------------------------------------------------------------------------------


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
    limits = Settings(requests_per_minute=30, burst=4)  # two for the page, one each two seconds after that
    with opened(browser, make(settings=limits)) as page:
        ask(page, "One?")
        ask(page, "Two?") if page.locator(".reply").count() < 1 else None
        for text in ("Two?", "Three?", "Four?"):
            page.fill("#chat-text", text)
            page.keyboard.press("Enter")
            playwright.expect(page.locator("#chat-send")).to_be_enabled()
        alert = page.get_by_role("alert").first
        alert.wait_for()
        assert "Too many requests for this key" in alert.inner_text()
        assert "The server asks to wait" in alert.inner_text()
        waiting = alert.get_by_role("button")
        playwright.expect(waiting).to_have_text("Try again")
        assert waiting.is_enabled()


# --- the quiz -------------------------------------------------------------------------------------------------------


def test_the_quiz_narrows_the_wedge_and_saves_a_profile(browser: Any, tmp_path: Path) -> None:
    people = People(f"sqlite:///{tmp_path / 'people.sqlite'}")
    with people, opened(browser, make(people=people, questions=questions())) as page:
        page.get_by_role("tab", name="Find mine").click()
        assert page.locator(".wedge-fill").count() == 0
        page.get_by_role("button", name="Start").click()
        quiz = page.locator("#quiz")
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


# --- everybody ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it(browser: Any, scheme: str) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "color_scheme": scheme}
    with opened(browser, make(of=evaluated()), **phone) as page:
        ask(page, "Why is the sky blue? " + "x" * 80)
        shot(page, f"phone-{scheme}")
        for tab in ("Chat", "Compare", "Find mine"):
            page.get_by_role("tab", name=tab).tap()
            assert page.evaluate("document.documentElement.scrollWidth") == 390, tab
        small = page.evaluate(
            "[...document.querySelectorAll('button, input, select, textarea, summary')].filter((e) => e.offsetParent)"
            ".map((e) => [e.id || e.textContent, e.getBoundingClientRect()]).filter(([, r]) => r.height < 24 || r.width < 24)"
            ".map(([name]) => name)"
        )
        assert small == []


def test_every_control_has_a_name_and_the_keyboard_reaches_it(browser: Any) -> None:
    with opened(browser, make(of=evaluated())) as page:
        tree = page.locator("body").aria_snapshot()
        for line in tree.splitlines():
            role, _, rest = line.strip().removeprefix("- ").partition(" ")
            assert role not in ("button", "textbox", "slider", "tab", "spinbutton", "combobox", "img") or '"' in rest, (
                line
            )
        seen = []
        page.locator("body").press("Tab")
        for _ in range(60):
            seen.append(page.evaluate("(document.activeElement.id || document.activeElement.textContent).trim()"))
            page.keyboard.press("Tab")
        for wanted in (
            "Skip to the conversation",
            "api-key",
            "concise",
            "tab-chat",
            "chat-text",
            "chat-send",
            "The same as a table",
        ):
            assert any(wanted in one for one in seen), (wanted, seen)
        page.locator("#tab-chat").focus()
        page.keyboard.press("ArrowRight")
        assert page.locator("#panel-compare").is_visible()
        # Contrast of the words against what is behind them, as WCAG 2.2 defines it; 4.5 is level AA.
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            colours = json.loads(page.evaluate(COLOURS))
            pairs = [("ink", "paper"), ("ink", "card"), ("soft", "paper"), ("soft", "card"), ("accent", "card"),
                     ("on-accent", "accent"), ("care", "card"), ("ink", "care-wash"), ("ink", "bad-wash"), ("ink", "wash")]  # fmt: skip
            for front, back in pairs:
                assert contrast(colours[front], colours[back]) >= 4.5, (scheme, front, back)


COLOURS = """JSON.stringify(Object.fromEntries(
  ['ink', 'paper', 'card', 'soft', 'accent', 'on-accent', 'care', 'care-wash', 'bad-wash', 'wash'].map(
    (name) => [name, getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim()])))"""


def contrast(a: str, b: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
