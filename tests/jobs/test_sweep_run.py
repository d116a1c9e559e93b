"""jobs/sweep.py on a policy of two layers, by Ray Tune: what a search leaves; a killed trial or driver changes no figure."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from rhumbline import config
from tests.jobs import test_dpo_run as dpo
from tests.jobs.dpa_runs import drive, run
from tests.jobs.test_online_run import PPO, online

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # several whole runs each

KEY = "ppo.kl.coefficient"
POINTS = {0.05, 0.4}


def sweep(folder: Path, **changes: Any) -> Path:
    """A search over two KL coefficients of a PPO run of two steps."""
    online(folder, {**PPO, "ppo": {"kl": {"coefficient": 0.1}}}, steps=2).rename(folder / "ppo.yaml")
    content = {
        "job": "sweep",
        "name": "search",
        "recipe": "ppo.yaml",
        "search": {"algorithm": "grid"},
        "space": {KEY: {"values": sorted(POINTS)}},
        "metrics": {"reward": "max", "kl": "min"},
        "max_concurrent": 1,
        **changes,
    }
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def records(runs: Path) -> dict[float, dict[str, Any]]:
    """Of every trial by its KL coefficient, once it has said what came of it."""
    found = [json.loads(path.read_text()) for path in (runs / "search" / "trials").glob("t-*.json")]
    return {record["point"][KEY]: record for record in found}


def figures(runs: Path) -> dict[float, dict[str, float]]:
    return {point: record["figures"] for point, record in records(runs).items()}


def done(runs: Path) -> list[float]:
    return [point for point, record in records(runs).items() if record["state"] == "done"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(recipe, runs) of a search that nobody disturbed."""
    folder = tmp_path_factory.mktemp("sweep")
    path = sweep(folder)
    ended = run(path, folder / "runs", job="sweep", timeout=480)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return path, folder / "runs"


def test_a_search_leaves_a_table_a_front_and_a_recipe_that_loads(undisturbed: tuple[Path, Path]) -> None:
    runs = undisturbed[1]
    home = runs / "search"
    assert set(done(runs)) == POINTS
    for name in (
        "index.md",
        "trials.csv",
        "front.csv",
        "front.png",
        "parallel.png",
        "curves.png",
        "spread.png",
        "best.yaml",
    ):
        assert (home / "report" / name).is_file(), name
    with (home / "report" / "trials.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(POINTS)
    best = config.load(home / "report" / "best.yaml", [], kind=config.PpoRecipe)
    assert best.ppo.kl.coefficient in POINTS
    for record in records(runs).values():
        status = json.loads((home / "trials" / record["folder"] / "status.json").read_text())
        assert status["state"] == "done"


def test_a_finished_search_runs_nothing_again(undisturbed: tuple[Path, Path]) -> None:
    path, runs = undisturbed
    before = records(runs)
    again = run(path, runs, "--resume", job="sweep", timeout=480)
    assert again.returncode == 0, again.stdout + again.stderr
    assert records(runs) == before


def test_a_killed_trial_is_said_and_resumes_to_the_same_figures(undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    path, undisturbed_runs = undisturbed
    runs = tmp_path / "runs"
    with drive(path, runs, job="sweep") as driver:
        driver.until(lambda: list((runs / "search/trials").glob("t-*/iterations/t=1/learn.json")), "step 1 of a trial")
        driver.kill("ray::ImplicitFunc")
        driver.end(timeout=480)
    states = {record["state"]: record["reason"] for record in records(runs).values()}
    assert set(states) == {"done", "failed"}, driver.said()
    assert "its process ended" in states["failed"]
    again = run(path, runs, "--resume", job="sweep", timeout=480)
    assert again.returncode == 0, again.stdout + again.stderr
    assert figures(runs) == figures(undisturbed_runs)


def test_a_killed_driver_of_a_search_resumes_to_the_same_figures(
    undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    path, undisturbed_runs = undisturbed
    runs = tmp_path / "runs"
    with drive(path, runs, job="sweep") as driver:
        driver.until(lambda: len(records(runs)) == len(POINTS), "the second trial", timeout=480)
        driver.process.kill()
        driver.process.wait(60)
    first = {point: record for point, record in records(runs).items() if record["state"] == "done"}
    assert len(first) == 1
    again = run(path, runs, "--resume", job="sweep", timeout=480)
    assert again.returncode == 0, again.stdout + again.stderr
    assert figures(runs) == figures(undisturbed_runs)
    assert {point: records(runs)[point] for point in first} == first  # what was finished was not computed again


def test_a_search_over_a_job_whose_learner_is_ray_train_s(tmp_path: Path) -> None:
    """Ray Train's placement group lies beside the trial's, and one trial after the other finds room for both."""
    dpo.recipe(tmp_path, **dpo.DPO).rename(tmp_path / "dpo.yaml")
    space = {"loss.beta": {"values": [0.1, 1.0]}}
    path = sweep(tmp_path, recipe="dpo.yaml", space=space, metrics={"hypervolume": "max", "length": "min"})
    runs = tmp_path / "runs"
    ended = run(path, runs, job="sweep", timeout=480)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    trials = [json.loads(file.read_text()) for file in sorted((runs / "search" / "trials").glob("t-*.json"))]
    assert {trial["point"]["loss.beta"]: trial["state"] for trial in trials} == {0.1: "done", 1.0: "done"}
    learned = [dpo.losses(runs / "search" / "trials" / trial["folder"]) for trial in trials]
    assert [losses[0] for losses in learned] == [pytest.approx(0.6931, abs=1e-4)] * 2  # ln 2 whatever beta is
    assert learned[0] != learned[1]
    best = config.load(runs / "search" / "report" / "best.yaml", [], kind=config.DpoRecipe)
    assert best.loss.beta in (0.1, 1.0)
