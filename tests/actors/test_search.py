"""Trials and what Tune is told, without Tune running: a job that answers at once, and Ray's classes that need no cluster."""

from __future__ import annotations

import importlib.util
import json
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ray import tune
from ray.tune.trainable import wrap_function

from actors import search, trial
from rhumbline import config, lease
from rhumbline.config import Run, SweepRecipe, load_sweep
from rhumbline.errors import ConfigError, ResourceError, RunError, TrainingError
from rhumbline.plan import Plan
from tests.rhumbline.sweep_fakes import BASE as TWO_OBJECTIVES

ACTORS = """
initial: {strategy: none}
generator: {num_cpus: 0.5}
scorer: {num_cpus: 0.25}
learner: {num_workers: 2, num_cpus: 1}
"""
BASE = TWO_OBJECTIVES + ACTORS
SWEEP = """
job: sweep
recipe: base.yaml
space:
  directions.fixed: {simplex: [preference, absolute], values: [0, 1]}
  ppo.kl.coefficient: {values: [0.02, 0.2]}
"""
# As jobs/ppo.py: it counts how often it ran, and its figures follow from the recipe.
JOB = """
def run(recipe, plan, runs, resume, asked):
    assert resume
    folder = runs / recipe.name
    folder.mkdir(exist_ok=True)
    with (folder / "runs").open("a") as file:
        file.write("x")
    (folder / "asked").write_text(asked)
    if recipe.ppo.kl.coefficient == 0.2 and recipe.directions.fixed["preference"] == 1.0:
        raise ValueError("NaN in the loss")
    return {"reward": recipe.directions.fixed["preference"] * 10, "kl": 1 / recipe.ppo.kl.coefficient}
"""


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepRecipe:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search, "nodes", lambda: [{"CPU": 4.0}])
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "ppo.py").write_text(JOB)
    (tmp_path / "two.yaml").write_text(SWEEP)
    return load_sweep("two.yaml")


def changed(overrides: list[str]) -> SweepRecipe:
    return load_sweep("two.yaml", overrides)


def run(sweep: SweepRecipe, number: int, told: list[Any] | None = None) -> dict[str, float]:
    folder = Path("sweep").absolute()
    heard = told if told is not None else []
    point = sweep.points()[number]
    return trial.run_trial(sweep, point, folder, Path(), heard.append, prepare=planned)


def planned(recipe: Run, prompts: str = "1") -> Plan:
    plan: Any = SimpleNamespace(inputs=lambda: {"prompts": prompts})
    return plan


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


# --- room -------------------------------------------------------------------------------------------------------------


def test_a_trial_of_an_online_job_holds_all_its_actors(sweep: SweepRecipe) -> None:
    # A generator, a scorer, two learners and the reference; the trial itself takes nothing.
    held = search.bundles(sweep.base())
    assert [bundle.get("CPU") for bundle in held] == [None, 0.5, 0.25, 1.0, 1.0, 0.25]
    assert search.bundle_numbers(sweep.base()) == {"generator": [0], "scorer": [1], "learner": [2, 3], "reference": [4]}
    group = tune.PlacementGroupFactory(held)
    assert group.head_bundle_is_empty
    assert group.required_resources == {"CPU": 3.0}


def test_learners_of_ray_train_are_beside_the_group(sweep: SweepRecipe) -> None:
    learned = changed(["overrides={initial.strategy: relabel}"]).base()
    assert [want.role for want in search.room(learned)[0]] == ["generator", "scorer", "learner", "reference"]
    assert [want.role for want in search.room(learned)[1]] == ["learner"]
    dpa = yaml.safe_load(BASE) | {"job": "dpa"}
    offline = config.validate(dpa | {"directions": {}, "initial": {}}, "x")
    assert [want.role for want in search.room(offline)[0]] == ["generator", "scorer", "reference"]
    assert [want.role for want in search.room(offline)[1]] == ["learner"]
    assert sum(bundle.get("CPU", 0.0) for bundle in search.bundles(offline)) == 1.0


def test_actors_that_ask_for_nothing_need_no_bundle(sweep: SweepRecipe) -> None:
    nothing = {f"{role}.num_cpus": 0 for role in ("generator", "scorer", "learner")}
    held = search.bundles(changed([f"overrides={json.dumps(nothing)}"]).base())
    tune.PlacementGroupFactory(held)  # Ray refuses a group of nothing
    assert held == [{"CPU": 0.01}]


def test_trials_that_do_not_fit_side_by_side_are_refused(sweep: SweepRecipe) -> None:
    search.check_room(sweep, {"CPU": 3.0})
    with pytest.raises(ResourceError, match=r"2 trials at a time ask for: CPU: wanted 6, the cluster has 4"):
        search.check_room(changed(["max_concurrent=2"]), {"CPU": 4.0})


def test_every_point_s_own_demand_is_looked_at(sweep: SweepRecipe) -> None:
    wide = changed(["space={}", "space={learner.num_workers: {values: [1, 4]}}"])
    with pytest.raises(ResourceError, match="CPU: wanted 5, the cluster has 3"):
        search.check_room(wide, {"CPU": 3.0})


# --- what Tune is told ------------------------------------------------------------------------------------------------


def test_tune_reads_the_group_of_each_point_off_the_trainable(sweep: SweepRecipe) -> None:
    wide = changed(["space={}", "space={learner.num_workers: {values: [1, 4]}}"])
    trainable = wrap_function(search._trainable(wide, Path("sweep"), Path()))
    one, four = (trainable.default_resource_request({"number": number}) for number in (0, 1))
    assert (one.required_resources["CPU"], one.strategy) == (2.0, "STRICT_PACK")  # a node has 4
    assert (four.required_resources["CPU"], four.strategy) == (5.0, "PACK")


def test_the_last_line_of_every_trial_is_a_report_also_of_a_finished_one(
    sweep: SweepRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, float]] = []
    monkeypatch.setattr(trial, "_prepared", planned)
    monkeypatch.setattr(trial.Plan, "make", planned)
    monkeypatch.setattr(search.tune, "report", told.append)
    call = search._trainable(sweep, Path("sweep").absolute(), Path.cwd())
    monkeypatch.chdir("/")  # as Tune does: paths still start where the search was started
    call({"number": 0})
    call({"number": 0})
    assert told == [{"reward": 0.0, "kl": 50.0, "finished": 1}] * 2
    assert Path("base.yaml").is_file()


def test_a_trial_that_cannot_be_compared_has_failed_for_a_searcher(sweep: SweepRecipe) -> None:
    adaptive = changed(["search.algorithm=tpe"])
    search._comparable({"reward": 1.0, "kl": 2.0}, adaptive)
    with pytest.raises(TrainingError, match="kl is nan"):
        search._comparable({"reward": 1.0, "kl": float("nan")}, adaptive)


def test_settings_of_tune_come_back_as_points(sweep: SweepRecipe) -> None:
    assert search._space(sweep) == {"number": {"grid_search": [0, 1, 2, 3]}}
    assert search.point_of(sweep, {"number": 3}) == {"directions.fixed": 1, "ppo.kl.coefficient": 0.2}
    adaptive = changed(
        [
            "search.algorithm=tpe",
            "space={}",
            "space={samples: {int: [1, 3]}, learner.lora: {values: [null, {r: 4}]}, learner.lr: {loguniform: [1.0e-6, 1.0e-4]}}",
        ]
    )
    space = search._space(adaptive)
    assert (space["samples"].lower, space["samples"].upper) == (1, 4)  # Tune leaves the upper end out
    assert space["learner.lora"].categories == [0, 1]
    settings = {"samples": 3, "learner.lora": 1, "learner.lr": 1e-5}
    assert search.point_of(adaptive, settings) == {"samples": 3, "learner.lora": {"r": 4}, "learner.lr": 1e-5}


@pytest.mark.skipif(importlib.util.find_spec("optuna") is not None, reason="optuna is installed")
def test_without_optuna_the_remedy_is_named(sweep: SweepRecipe) -> None:
    with pytest.raises(ConfigError, match=r"search\.algorithm tpe needs the package optuna"):
        search._searcher(changed(["search.algorithm=tpe"]))


@pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="optuna is not installed")
@pytest.mark.parametrize("algorithm", ["tpe", "nsga2"])
def test_optuna_suggests_points_and_takes_their_figures(sweep: SweepRecipe, algorithm: str) -> None:
    adaptive = changed([f"search={{algorithm: {algorithm}, trials: 8, seed: 3}}"])

    def suggested() -> list[dict[str, Any]]:
        searcher = search._searcher(adaptive)
        searcher.set_search_properties(None, None, search._space(adaptive))
        found = []
        for number in range(8):
            found.append(search.point_of(adaptive, searcher.suggest(f"t{number}")))
            searcher.on_trial_complete(f"t{number}", {"reward": float(number), "kl": 1.0})
        return found

    assert suggested() == suggested()  # by the seed


def test_asha_needs_a_job_that_reports_on_the_way(sweep: SweepRecipe) -> None:
    stopping = changed(["metrics={}", "metrics={reward: max}", "scheduler=asha", "overrides={evaluate_every: 1}"])
    with pytest.raises(ConfigError, match=r"jobs/ppo\.py reports none before its end"):
        search.search(stopping, Path("runs"), Path(), resume=False, asked="", have={"CPU": 4.0})


# --- the sweep's folder -----------------------------------------------------------------------------------------------


def kept(sweep: SweepRecipe, folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "sweep.resolved.yaml").write_text(config.dump(sweep))
    (folder / "base.resolved.yaml").write_text(config.dump(sweep.base()))
    return folder


def test_another_search_in_the_same_folder_is_refused_with_what_differs(sweep: SweepRecipe, tmp_path: Path) -> None:
    folder = kept(sweep, tmp_path / "runs" / "two")
    with pytest.raises(RunError, match="holds a search already: add --resume"):
        search._same(folder, sweep, False)
    assert search._same(folder, sweep, True)
    with pytest.raises(RunError, match=r"(?s)another search.*overrides\.steps: None -> 3"):
        search._same(folder, changed(["overrides.steps=3"]), True)
    Path("base.yaml").write_text(BASE + "samples: 2\n")
    with pytest.raises(RunError, match=r"base\.yaml: samples: 1 -> 2"):
        search._same(folder, sweep, True)


def test_what_changes_no_known_point_may_change(sweep: SweepRecipe, tmp_path: Path) -> None:
    folder = kept(sweep, tmp_path / "runs" / "two")
    assert not search._same(folder, changed(["metrics={}", "metrics={reward: max}", "max_concurrent=2"]), True)
    adaptive = changed(["search.algorithm=tpe"])
    folder = kept(adaptive, tmp_path / "runs" / "tpe")
    with pytest.raises(RunError, match="max_concurrent: 1 -> 2"):
        search._same(folder, changed(["search.algorithm=tpe", "max_concurrent=2"]), True)


def test_a_folder_of_something_else_is_left_alone(sweep: SweepRecipe, tmp_path: Path) -> None:
    (tmp_path / "runs/two").mkdir(parents=True)
    (tmp_path / "runs/two/thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="is not a search"):
        search._same(tmp_path / "runs/two", sweep, True)


def test_the_report_gives_a_recipe_that_loads(sweep: SweepRecipe) -> None:
    for number in (0, 1, 2):
        run(sweep, number)
    page = search.report(sweep, Path("sweep"), "python jobs/sweep.py")
    best = config.load(page.parent / "best.yaml", kind=config.PpoRecipe)
    assert best.name == "two-best"
    assert best == sweep.trial(json.loads((page.parent / "summary.json").read_text())["trials"][2]["point"], "two-best")
    assert "- 3 (weight of preference 1, ppo.kl.coefficient 0.2): waiting" in page.read_text()
