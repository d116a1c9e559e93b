"""What the playground says a model can reach: measured where it was measured, and nothing invented elsewhere."""

from __future__ import annotations

from typing import Any

from rhumbline.directions import from_angle_deg
from rhumbline.serving.evidence import Achieved, Effect
from rhumbline.serving.served import Served
from tests.rhumbline.playground_pages import MARKS, RANGES, in_page, make, opened, shot
from tests.rhumbline.serving_fakes import served

pytestmark = MARKS
# Degrees -> mean rewards, and whether nothing dominates them: 15 degrees is better than 0 in both.
POINTS = {-30: ((60.0, 40.0), True), 0: ((58.0, 45.0), False), 15: ((59.0, 50.0), True), 30: ((50.0, 60.0), True)}


def reached(points: dict[int, tuple[tuple[float, float], bool]]) -> Served:
    found = tuple(Achieved(direction=from_angle_deg(a), rewards=r, pareto=best) for a, (r, best) in points.items())
    front = tuple(one for one in found if one.pareto)
    return served(achieved=found, front=front, ranges=RANGES, effect=Effect(proven=True, why="It was measured."))


def test_a_direction_stands_where_it_was_measured_or_between_its_neighbours(browser: Any) -> None:
    with opened(browser, make(of=reached(POINTS))) as page:
        where, dial = page.locator(".front-where"), page.get_by_role("slider")
        measured = "the model averaged helpfulness 58.0, verbosity 45.0 on its test prompts."
        assert where.inner_text() == f"In the current direction {measured}"  # 0 degrees is dominated, and measured
        dial.press("ArrowUp")
        assert where.inner_text() == f"In the current direction (evaluated 1° away) {measured}"
        for _ in range(5):
            dial.press("ArrowUp")
        # 6 of the 15 degrees from 0 to 15: 58 + 0.4 * 1 and 45 + 0.4 * 5
        assert "would average about helpfulness 58.4, verbosity 47.0" in where.inner_text()
        assert "interpolated between 0° and 15°" in where.inner_text()
        assert page.locator(".front-here.between").count() == 1
        assert "your direction, interpolated" in page.locator(".legend").inner_text()
        shot(page, "front")
        dial.press("End")
        assert "was not evaluated. The nearest one that was, 15° away, averaged helpfulness 50.0" in where.inner_text()
        assert (page.locator(".front-here").count(), page.locator(".front-near").count()) == (0, 1)
        # Of three objectives there is no line between two neighbours.
        points = [{"direction": [0, 1, 0], "rewards": [1, 2, 3]}, {"direction": [1, 0, 0], "rewards": [4, 5, 6]}]
        known = in_page(page, "front", "m.known(x, [0.6, 0.8, 0])", points)
        assert (known["how"], known["rewards"]) == ("nearest", [1, 2, 3])
        # Between two mixtures nothing is interpolated: the nearer one answers.
        two = [{"direction": [1, 0], "rewards": [1, 2]}, {"direction": [0.8, -0.6], "rewards": [3, 4]}]
        known = in_page(page, "front", "m.known(x, [0.96, -0.28], true)", two)
        assert (known["how"], known["rewards"]) == ("mixture", [1, 2])


def test_dominated_directions_are_hollow_and_told_and_off_the_line(browser: Any) -> None:
    with opened(browser, make(of=reached(POINTS))) as page:
        picture = page.locator("svg.front")
        assert picture.locator(".front-point").count() == 4
        assert len(picture.locator(".front-line").get_attribute("points").split()) == 3
        fill = "(point) => getComputedStyle(point).fill"
        hollow = picture.locator(".front-point.dominated")
        assert hollow.count() == 1
        assert hollow.evaluate(fill) == page.evaluate(
            "(() => { const card = document.querySelector('.card'); return getComputedStyle(card).backgroundColor; })()"
        )
        assert picture.locator(".front-point:not(.dominated)").first.evaluate(fill) != hollow.evaluate(fill)
        assert "(dominated)" in str(hollow.locator("title").text_content())
        label = str(picture.get_attribute("aria-label"))
        assert label.startswith("4 evaluated directions: 3 on the front, 1 dominated, drawn hollow")
        assert "the model averaged helpfulness 58.0" in label
        page.get_by_text("The same as a table").click()
        assert [row.split("\t")[-1] for row in page.locator("#front tbody tr").all_inner_texts()] == [
            "yes", "no, dominated", "yes", "yes"
        ]  # fmt: skip


def test_where_one_direction_is_best_in_everything_there_is_no_trade_off(browser: Any) -> None:
    points = {a: (rewards, a == 15) for a, (rewards, _) in POINTS.items()} | {15: ((61.0, 62.0), True)}
    with opened(browser, make(of=reached(points))) as page:
        text = page.locator("#front").inner_text()
        assert "One direction, more helpful, a little more detailed (15°), is best in every objective" in text
        assert "there is no trade-off to steer" in text
        assert "without an evaluation" not in text
        assert page.locator(".front-point.dominated").count() == 3
        assert page.locator(".front-line").count() == 0
    with opened(browser, make(of=served())) as page:
        assert "comes without an evaluation over directions" in page.locator("#front").inner_text()
