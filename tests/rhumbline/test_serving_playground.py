"""The playground's direction, and whether everybody can use it: arithmetic, dial, sliders, links, phones, keyboards."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rhumbline import codecs
from rhumbline.directions import Cone, normalise
from rhumbline.serving.keys import KeyRing, new_key
from rhumbline.serving.served import Served
from rhumbline.steering import Steering
from tests.rhumbline.playground_pages import (
    MARKS,
    Storyteller,
    ask,
    evaluated,
    in_page,
    make,
    opened,
    playwright,
    shot,
)
from tests.rhumbline.serving_fakes import verbosity_of

pytestmark = MARKS


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
        # The edge of a cone from -45 to 0 degrees as the wire tells it, with four decimals, is not outside of it.
        edge = {"requested": [0.7071, -0.7072], "region": {"axis": [0.9239, -0.3827], "half": 22.5}}
        assert in_page(page, "state", "m.aim(x).projected", edge) is False
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
        assert page.locator("#direction-words").inner_text() == "More helpful and shorter"
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
        playwright.expect(page).to_have_url(re.compile(r"#d=helpfulness=0\.788,verbosity=0\.616$"))
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


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it(browser: Any, scheme: str) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "color_scheme": scheme}
    with opened(browser, make(), **phone) as page:
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
                     ("on-accent", "accent"), ("care", "card"), ("ink", "care-wash"), ("ink", "bad-wash"),
                     ("ink", "wash")]  # fmt: skip
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
