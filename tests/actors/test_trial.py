"""Trials and their records, without Tune: a job that answers at once, run, resumed, waited for and refused."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from actors import trial
from rhumbline import config, lease
from rhumbline.config import SweepRecipe
from rhumbline.errors import ConfigError
from tests.actors.trial_fakes import BASE, changed, planned, run


def times(sweep: SweepRecipe, number: int) -> int:
    name = trial.trial_name(sweep.trial_overrides(sweep.points()[number]))
    return len((Path("sweep/trials") / name / "runs").read_text())


# --- a trial ----------------------------------------------------------------------------------------------------------


def test_a_trial_is_the_job_s_own_run_on_its_point(sweep: SweepRecipe) -> None:
    assert run(sweep, 2) == {"reward": 10.0, "kl": 50.0}
    (record,) = [one for one in trial.records(sweep, Path("sweep")) if one["state"] == "done"]
    assert record["number"] == 2
    assert record["figures"] == {"reward": 10.0, "kl": 50.0}
    assert record["point"] == {"directions.fixed": 1, "ppo.kl.coefficient": 0.02}
    asked = (Path("sweep") / record["folder"] / "asked").read_text()
    assert asked.startswith("# directions.fixed={}\n# directions.fixed={preference: 1.0, absolute: 0.0}\n")
    assert asked.endswith(BASE)


def test_a_finished_trial_is_read_back_and_a_begun_one_goes_on(sweep: SweepRecipe) -> None:
    first = run(sweep, 0)
    assert run(sweep, 0) == first
    assert times(sweep, 0) == 1
    path = next(Path("sweep/trials").glob("*.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"state": "running"}))  # its process was killed
    assert run(sweep, 0) == first
    assert times(sweep, 0) == 2


def test_what_was_finished_with_other_inputs_is_refused_and_kept(
    sweep: SweepRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(sweep, 0)
    (path,) = Path("sweep/trials").glob("*.json")
    before = path.read_text()
    assert json.loads(before)["inputs"] == {"prompts": "1"}
    with pytest.raises(ConfigError, match=r"t-.*json was finished with other prompts"):
        trial.run_trial(
            sweep,
            sweep.points()[0],
            Path("sweep").absolute(),
            Path(),
            print,
            prepare=lambda recipe: planned(recipe, "2"),
        )
    monkeypatch.setattr(trial.Plan, "make", planned)
    trial.check_records(sweep, Path("sweep"))
    monkeypatch.setattr(trial.Plan, "make", lambda recipe: planned(recipe, "2"))
    with pytest.raises(ConfigError, match="other prompts"):
        trial.check_records(sweep, Path("sweep"))
    assert path.read_text() == before


def test_a_failed_trial_says_why_and_is_tried_again(sweep: SweepRecipe) -> None:
    for attempt in (1, 2):
        with pytest.raises(ValueError, match="NaN in the loss"):
            run(sweep, 3)
        assert times(sweep, 3) == attempt
    record = trial.records(sweep, Path("sweep"))[3]
    assert (record["state"], record["reason"]) == ("failed", "ValueError: NaN in the loss")


def test_figures_on_the_way_go_to_whoever_asked_and_into_the_record(sweep: SweepRecipe) -> None:
    Path("ppo.py").write_text(
        "def run(recipe, plan, runs, resume, asked, on_evaluation):\n"
        "    on_evaluation({'reward': 1.0})\n    on_evaluation({'reward': 2.0})\n    raise RuntimeError('later')\n"
    )
    told: list[Any] = []
    with pytest.raises(RuntimeError, match="later"):
        run(sweep, 0, told)
    assert told == [{"reward": 1.0}, {"reward": 2.0}]
    assert trial.records(sweep, Path("sweep"))[0]["figures"] == {"reward": 2.0}


def test_a_trial_that_is_read_back_says_as_much_on_the_way_as_when_it_ran(sweep: SweepRecipe) -> None:
    Path("ppo.py").write_text(
        "def run(recipe, plan, runs, resume, asked, on_evaluation):\n"
        "    on_evaluation({'reward': 1.0})\n    on_evaluation({'reward': float('nan')})\n    return {'reward': 3.0}\n"
    )
    for _ in range(2):
        told: list[Any] = []
        assert run(sweep, 0, told) == {"reward": 3.0}
        assert str(told) == "[{'reward': 1.0}, {'reward': nan}]"


def test_a_job_that_reports_nothing_is_done_without_figures(sweep: SweepRecipe) -> None:
    Path("ppo.py").write_text("def run(recipe, plan, runs, resume, asked):\n    return None\n")
    assert run(sweep, 0) == {}
    assert trial.records(sweep, Path("sweep"))[0]["state"] == "done"


def test_a_figure_that_is_no_number_comes_back_as_one(sweep: SweepRecipe) -> None:
    Path("ppo.py").write_text("def run(recipe, plan, runs, resume, asked):\n    return {'kl': float('nan')}\n")
    first, again = run(sweep, 0), run(sweep, 0)
    assert first["kl"] != first["kl"]
    assert again["kl"] != again["kl"]


def test_names_are_of_the_overrides_alone(sweep: SweepRecipe) -> None:
    names = [trial.trial_name(sweep.trial_overrides(point)) for point in sweep.points()]
    assert len(set(names)) == 4
    assert names[0] != trial.trial_name(changed(["overrides.steps=3"]).trial_overrides(sweep.points()[0]))
    assert config.PpoRecipe.model_fields["name"].metadata  # a pattern, which these match:
    assert sweep.trial(sweep.points()[0], names[0]).name == names[0]


def test_a_job_that_is_not_there_or_cannot_be_a_trial_is_named(sweep: SweepRecipe) -> None:
    with pytest.raises(ConfigError, match=r"there is no job at .*/none\.py"):
        trial.job_module(Path.cwd(), "none")
    Path("ppo.py").write_text("def main():\n    pass\n")
    with pytest.raises(ConfigError, match="it cannot be a trial"):
        trial.job_module(Path.cwd(), "ppo")


def test_a_trial_waits_until_a_driver_elsewhere_counts_as_dead(
    sweep: SweepRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = trial.trial_name(sweep.trial_overrides(sweep.points()[0]))
    status = Path("sweep/trials") / name / "status.json"
    status.parent.mkdir(parents=True)
    status.write_text(
        json.dumps({"state": "running", "heartbeat": time.time(), "pid": 1, "host": f"not-{socket.gethostname()}"})
    )
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        status.write_text(
            json.dumps({"state": "running", "heartbeat": time.time() - 61, "pid": 1, "host": "elsewhere"})
        )

    monkeypatch.setattr(trial.time, "sleep", sleep)
    run(sweep, 0)
    assert len(slept) == 1
    assert trial.records(sweep, Path("sweep"))[0]["state"] == "done"


# As jobs do: the run's folder is owned while the job is at it.
SLOW_JOB = """
import time
from pathlib import Path
from rhumbline import lease

def run(recipe, plan, runs, resume, asked):
    folder = runs / recipe.name
    folder.mkdir(exist_ok=True)
    with lease.held(folder):
        with (folder / "runs").open("a") as file:
            file.write("x")
        while not Path("go").exists():
            time.sleep(0.01)
        if Path("fail").exists():
            Path("fail").unlink()
            raise ValueError("once")
    return {"reward": 4.0, "kl": 2.0}
"""


def at_it(sweep: SweepRecipe) -> bool:
    name = trial.trial_name(sweep.trial_overrides(sweep.points()[0]))
    return lease.is_live(lease.read_status(Path("sweep/trials") / name))


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)


def test_a_point_that_is_asked_for_twice_at_a_time_runs_once(
    sweep: SweepRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("ppo.py").write_text(SLOW_JOB)
    monkeypatch.setattr(trial, "LOOK_EVERY_S", 0.01)
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(run, sweep, 0) for _ in range(3)]  # at the same moment
        until(lambda: at_it(sweep))
        Path("go").touch()
        assert [one.result(60) for one in asked] == [{"reward": 4.0, "kl": 2.0}] * 3
    assert times(sweep, 0) == 1
    assert trial.records(sweep, Path("sweep"))[0]["state"] == "done"


def test_what_the_first_of_two_leaves_unfinished_the_second_goes_on_with(
    sweep: SweepRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("ppo.py").write_text(SLOW_JOB)
    Path("fail").touch()
    monkeypatch.setattr(trial, "LOOK_EVERY_S", 0.01)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(run, sweep, 0)
        until(lambda: at_it(sweep))
        second = pool.submit(run, sweep, 0)
        Path("go").touch()
        with pytest.raises(ValueError, match="once"):
            first.result(60)
        assert second.result(60) == {"reward": 4.0, "kl": 2.0}
    assert times(sweep, 0) == 2


# --- records ----------------------------------------------------------------------------------------------------------


def test_records_of_known_points_stand_in_their_order_and_show_what_never_began(sweep: SweepRecipe) -> None:
    run(sweep, 1)
    assert [(one["number"], one["state"]) for one in trial.records(sweep, Path("sweep"))] == [
        *[(0, "waiting"), (1, "done"), (2, "waiting"), (3, "waiting")]
    ]


def test_records_of_an_adaptive_search_stand_in_the_order_in_which_they_began(sweep: SweepRecipe) -> None:
    for number in (3, 0, 2):
        if number == 3:
            with pytest.raises(ValueError, match="NaN"):
                run(sweep, number)
        else:
            run(sweep, number)
    found = trial.records(changed(["search.algorithm=tpe"]), Path("sweep"))
    points = sweep.points()
    assert [(one["number"], one["point"]) for one in found] == [(0, points[3]), (1, points[0]), (2, points[2])]


def test_what_still_runs_when_all_is_over_was_stopped_or_lost(sweep: SweepRecipe) -> None:
    run(sweep, 0)
    path = next(Path("sweep/trials").glob("*.json"))
    running = json.loads(path.read_text()) | {"state": "running"}

    def settled(errors: dict[str, str], by_scheduler: bool) -> tuple[str, str]:
        path.write_text(json.dumps(running))
        trial.settle(Path("sweep"), errors, by_scheduler=by_scheduler)
        after = json.loads(path.read_text())
        return after["state"], after["reason"]

    assert settled({}, True) == ("stopped", "early, by the scheduler")
    assert settled({}, False) == ("failed", "its process ended")
    assert settled({path.stem: "Traceback\n  x\nActorDiedError: killed\n"}, True) == (
        "failed",
        "its process ended ActorDiedError: killed",
    )
