"""What a search found: the front and the best by hand, and that what failed is shown and never counted."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from rhumbline.evaluation.search import best, configuration, counted, fault, front, table
from rhumbline.evaluation.search_plots import draw_grid, draw_parallel
from rhumbline.evaluation.search_report import Held, Steps, write_report
from tests.rhumbline.evaluation_fakes import evaluation, obedient

METRICS = {"reward": "max", "kl": "min"}
HEADINGS = {"directions.fixed": "weight of preference"}


def trial(number: int, reward: float | None = None, kl: float | None = None, **fields: Any) -> dict[str, Any]:
    figures = {name: value for name, value in (("reward", reward), ("kl", kl)) if value is not None}
    base = {
        "number": number,
        "state": "done",
        "reason": "",
        "point": {"directions.fixed": number / 4, "ppo.kl.coefficient": 10.0**-number},
        "overrides": [f"ppo.kl.coefficient={10.0**-number}"],
        "figures": figures | {"length": 20.0},
        "folder": f"trials/t-{number}",
    }
    return base | fields


# 0, 1 and 2 are the front; 3 is dominated by 1 (less reward for more KL); 4 failed with the best figures of all.
TRIALS = [
    trial(0, 0.0, 0.0),
    trial(1, 8.0, 2.0),
    trial(2, 10.0, 10.0),
    trial(3, 7.0, 3.0),
    trial(4, 99.0, 0.0, state="failed", reason="NaN in the loss\nat step 3"),
]


def test_the_front_is_what_no_counted_trial_dominates() -> None:
    assert front(TRIALS, METRICS) == [0, 1, 2]
    assert front(TRIALS[::-1], METRICS) == [2, 1, 0]
    assert front([TRIALS[4]], METRICS) == []


def test_equals_share_the_front() -> None:
    assert front([trial(0, 1.0, 1.0), trial(1, 1.0, 1.0), trial(2, 1.0, 2.0)], METRICS) == [0, 1]


def test_the_best_of_two_figures_is_the_bend_of_the_front() -> None:
    # Scaled: (0, 1), (0.8, 0.8), (1, 0); distances to (1, 1): 1, 0.28, 1.
    chosen, rule = best(TRIALS, METRICS)
    assert chosen is TRIALS[1]
    assert "nearest to the best reward and kl" in rule


def test_the_first_figure_decides_between_equals() -> None:
    ends = [TRIALS[0], TRIALS[2]]  # both at distance 1
    assert best(ends, METRICS)[0] is TRIALS[2]
    assert best(ends, {"kl": "min", "reward": "max"})[0] is TRIALS[0]


def test_the_best_of_one_figure_is_its_best() -> None:
    assert best(TRIALS, {"reward": "max"})[0] is TRIALS[2]
    assert best(TRIALS, {"kl": "min"}) == (TRIALS[0], "the lowest kl")
    assert front(TRIALS, {"kl": "min"}) == [0]


def test_a_front_of_one_trial_is_the_best() -> None:
    assert best([trial(0, 1.0, 1.0)], METRICS)[0] is not None
    assert best([trial(0, 1.0, 1.0), trial(1, 1.0, 1.0)], METRICS)[0] == trial(0, 1.0, 1.0)


def test_what_does_not_count_says_why() -> None:
    assert fault(TRIALS[4], METRICS) == "failed: NaN in the loss\nat step 3"
    assert fault(trial(5, 1.0, 1.0, state="stopped"), METRICS) == "stopped"
    assert fault(trial(5, 1.0), METRICS).startswith("reports no figure 'kl' (metrics).")
    assert "Did you mean 'reward'?" in fault(trial(5, 1.0, 1.0), {"rewards": "max"})
    assert fault(trial(5, math.nan, 1.0), METRICS) == "reward is nan, expected a finite number"
    assert fault(trial(5, 1.0, 1.0, figures={"reward": None, "kl": 1.0}), METRICS).startswith("reward is None")
    assert counted(TRIALS, METRICS) == TRIALS[:4]
    assert best([TRIALS[4]], METRICS) == (None, "no trial counts")


def test_the_table_has_every_trial_once_in_order() -> None:
    rows = table(TRIALS[::-1], METRICS)
    assert [row["number"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["front"] for row in rows] == [True, True, True, False, False]
    assert rows[1]["ppo.kl.coefficient"] == 0.1
    assert rows[1]["folder"] == "trials/t-1"
    assert rows[4]["not counted"].startswith("failed")


def test_a_configuration_is_said_by_short_names() -> None:
    assert configuration(TRIALS[1], HEADINGS) == "weight of preference 0.25, ppo.kl.coefficient 0.1"


def test_metrics_that_are_minimised_point_up_in_parallel_coordinates() -> None:
    figure = draw_parallel(TRIALS, METRICS, HEADINGS)
    lines = [line.get_ydata() for line in figure.axes[0].lines if len(line.get_xdata()) == 4]
    assert len(lines) == 4
    assert [line[3] for line in lines] == pytest.approx([1.0, 0.8, 0.0, 0.7])  # KL 0, 2, 10, 3
    assert [line[1] for line in lines] == pytest.approx([1.0, 2 / 3, 1 / 3, 0.0])  # 1, 0.1, 0.01, 0.001: by logarithm


def test_settings_that_are_no_numbers_are_drawn_by_rank() -> None:
    trials = [trial(i, 1.0, 1.0, point={"a": value, "b": True}) for i, value in enumerate(("x", None, {"r": 4}))]
    figure = draw_parallel(trials, METRICS, {})
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert {"x", "None", '{"r": 4}', "True"} <= texts


# --- the report -------------------------------------------------------------------------------------------------------


def written(
    folder: Path, trials: list[dict[str, Any]], metrics: dict[str, str] = METRICS, **more: Any
) -> dict[str, bytes]:
    page = write_report(
        folder,
        name="mini",
        trials=trials,
        metrics=metrics,
        headings=HEADINGS,
        recipe_of=lambda one: f"name: best\nseed: {one['number']}\n",
        command="python jobs/sweep.py --recipe mini.yaml",
        **more,
    )
    assert page == folder / "index.md"
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_trials_that_learn_online_are_drawn_step_by_step(tmp_path: Path) -> None:
    def steps_of(one: Any) -> Steps | None:
        rows = [{"step": 1.0, "learn/kl": 0.5}, {"step": 2.0, "learn/kl": float(one["number"])}]
        return None if one["number"] == 1 else Steps(rows, 6.0)

    files = written(tmp_path / "report", TRIALS, steps_of=steps_of)
    assert files["curves.png"][:4] == b"\x89PNG"
    assert "![curves](curves.png)" in files["index.md"].decode()
    rows = list(csv.DictReader(io.StringIO(files["curves.csv"].decode())))
    last = {row["run"]: float(row["learn/kl"]) for row in rows if row["step"] == "2.0"}
    assert last == {configuration(TRIALS[n], HEADINGS): float(n) for n in (0, 2, 3)}  # 4 failed, 1 has no steps
    assert "curves.csv" not in written(tmp_path / "report", TRIALS)  # nor is an earlier figure left

    # Two points that look the same once rounded are two lines.
    near = [trial(i, 1.0, 1.0 + i, point={"lr": 1.00001 + i * 1e-6}) for i in (0, 2)]
    assert "curves.png" in written(tmp_path / "near", near, steps_of=steps_of)


def test_objectives_are_drawn_over_prompts_with_a_box_for_every_trial(tmp_path: Path) -> None:
    start = evaluation(None, obedient(angles_deg=None, quality=45.0)).to_json()
    other = evaluation(None, obedient(angles_deg=None, quality=46.0)).to_json()

    def said(files: dict[str, bytes]) -> dict[str, float]:
        rows = csv.DictReader(io.StringIO(files["spread.csv"].decode()))
        return {r["label"]: float(r["mean"]) for r in rows if r["objective"] == "helpfulness" and r["asked"] != "least"}

    def held_of(one: Any, initial: Any = start) -> Held | None:
        quality = 50.0 + one["number"]
        return None if one["number"] == 1 else Held(evaluation(1, obedient(quality=quality)).to_json(), initial)

    files = written(tmp_path / "report", TRIALS, held_of=held_of)
    assert files["spread.png"][:4] == b"\x89PNG"
    assert "![spread](spread.png)" in files["index.md"].decode()
    means = said(files)
    assert means.keys() == {"initial policy", "0", "2", "3"}  # 4 failed, 1 was not evaluated
    assert [means[n] - means["0"] for n in "23"] == pytest.approx([2.0, 3.0])

    # Initial policies that said other things are not one.
    mixed = written(
        tmp_path / "report", TRIALS, held_of=lambda one: held_of(one, start if one["number"] == 0 else other)
    )
    assert said(mixed).keys() == {"0", "2", "3"}
    assert not {"spread.png", "spread.csv"} & written(tmp_path / "report", TRIALS).keys()


def test_the_report_has_table_front_coordinates_and_a_ready_recipe(tmp_path: Path) -> None:
    files = written(tmp_path / "report", TRIALS)
    assert files.keys() == {
        *("trials.csv", "front.csv", "front.png", "parallel.png", "best.yaml", "summary.json", "index.md")
    }
    assert len(list(csv.DictReader(io.StringIO(files["trials.csv"].decode())))) == 5
    assert [row["number"] for row in csv.DictReader(io.StringIO(files["front.csv"].decode()))] == ["0", "1", "2"]
    assert files["front.png"][:4] == files["parallel.png"][:4] == b"\x89PNG"
    recipe = files["best.yaml"].decode()
    assert recipe.startswith("# Trial 1 of the search mini: of the front, the one nearest")
    assert recipe.endswith("name: best\nseed: 1\n")
    summary = json.loads(files["summary.json"])
    assert (summary["front"], summary["best"], summary["counted"]) == ([0, 1, 2], 1, 4)
    page = files["index.md"].decode()
    assert "| 1* | 0.25 | 0.1 | 8 | 2 | 20 | trials/t-1 |" in page  # every figure, the metrics first
    assert "- 4 (weight of preference 1.0, ppo.kl.coefficient 0.0001): failed: NaN in the loss at step 3" in page


def test_a_search_without_a_trial_that_counts_still_reports(tmp_path: Path) -> None:
    written(tmp_path, TRIALS)
    files = written(tmp_path, [TRIALS[4]])
    assert files.keys() == {"trials.csv", "summary.json", "index.md"}  # nothing stale either
    assert "1 trials, 0 count" in files["index.md"].decode()


@pytest.mark.parametrize("metrics", [{"reward": "max"}, {"reward": "max", "kl": "min", "length": "min"}])
def test_one_figure_and_three_are_drawn_too(tmp_path: Path, metrics: dict[str, str]) -> None:
    assert "front.png" in written(tmp_path, TRIALS, metrics)


def test_one_trial_is_drawn_too(tmp_path: Path) -> None:
    assert "parallel.png" in written(tmp_path, TRIALS[:1])


def test_figures_of_a_grid_follow_the_number_that_was_varied_most() -> None:
    points = [{"w": w, "kl": kl} for kl in (0.1, 0.2) for w in (1.0, 0.0, 0.5)]
    trials = [trial(n, 2.0 * p["w"] + p["kl"], p["kl"], point=p) for n, p in enumerate(points)]
    figure = draw_grid(trials, METRICS, {"w": "weight"})
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes] == ["reward", "kl", "length"]
    drawn = {line.get_label(): list(line.get_xydata()[:, 1]) for line in figure.axes[0].lines}  # type: ignore[index]  # an array
    assert drawn == {"kl 0.1": [0.1, 1.1, 2.1], "kl 0.2": [0.2, 1.2, 2.2]}


def test_a_search_without_a_varied_number_has_no_such_figure() -> None:
    assert draw_grid([trial(n, 1.0, 1.0, point={"w": n % 2}) for n in range(4)], METRICS, {}) is None
    assert draw_grid([trial(n, 1.0, 1.0, point={"codec": str(n)}) for n in range(4)], METRICS, {}) is None
    assert draw_grid([], METRICS, {}) is None
    assert (
        draw_grid([trial(n, 1.0, 1.0, point={"w": n, "x": -n}) for n in range(9)], METRICS, {}) is None
    )  # nine lines of one
