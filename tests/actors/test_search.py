"""What Tune is told of a search, and its folder, without Tune running: a job that answers at once, and Ray's classes that need
no cluster.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ray import tune
from ray.tune.trainable import wrap_function

from actors import search, trial
from rhumbline import config
from rhumbline.config import SweepRecipe
from rhumbline.errors import ConfigError, ResourceError, RunError, TrainingError
from tests.actors.trial_fakes import BASE, changed, planned, run

JOBS = Path(__file__).parents[2] / "jobs"
STOPPING = ["metrics={}", "metrics={reward: max}", "scheduler=asha", "overrides={evaluate_every: 1}"]

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


def test_a_search_that_chooses_by_itself_fits_wherever_it_may_go(sweep: SweepRecipe) -> None:
    space = "space={learner.num_workers: {values: [1, 4, 2]}, ppo.kl.coefficient: {loguniform: [0.01, 1.0]}}"
    adaptive = changed(["search={algorithm: tpe}", "space={}", space])
    with pytest.raises(ResourceError, match="CPU: wanted 5, the cluster has 3"):
        search.check_room(adaptive, {"CPU": 3.0})
    both = "space={learner.num_workers: {int: [1, 3]}, generator.replicas: {int: [1, 3]}}"
    with pytest.raises(ResourceError, match="CPU: wanted 5"):
        search.check_room(changed(["search={algorithm: tpe}", "space={}", both]), {"CPU": 4.0})


# --- inputs -----------------------------------------------------------------------------------------------------------


def test_what_the_trials_read_is_looked_for_before_the_first(
    sweep: SweepRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "check", lambda plan, have: None)  # no policy is needed
    network = "overrides={rewards.sources: [{kind: network, path: rewards/liked}]}"
    with pytest.raises(ConfigError, match=r"two: space, at \{.*\}: .*rewards/liked"):
        search.check_inputs(changed([network]), {"CPU": 4.0})
    with pytest.raises(ConfigError, match=r"space, at \{prompts\.path: 'gone\.jsonl'\}: .*gone\.jsonl"):
        search.check_inputs(
            changed(["space={}", "space={prompts.path: {values: [embedded, gone.jsonl]}}"]), {"CPU": 4.0}
        )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"rewards/liked"):  # whole, and nothing is left behind
        search.search(changed([network]), Path("runs"), JOBS, resume=False, asked="", have={"CPU": 4.0})
    assert not Path("runs").exists()


def test_what_trials_share_is_looked_for_once(sweep: SweepRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = list[str]()
    monkeypatch.setattr(search, "check", lambda plan, have: looked.append(plan.recipe.name))
    search.check_inputs(changed(["space={}", "space={learner.lr: {values: [1.0e-5, 1.0e-4]}}"]), {"CPU": 4.0})
    assert looked == ["probe"]
    search.check_inputs(changed(["space={}", "space={prompts.limit: {values: [null, 200]}}"]), {"CPU": 4.0})
    assert looked == ["probe"] * 3


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


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["search.algorithm=tpe", "tune.sampler={population_size: 6}"], r"tune\.sampler: TPESampler .*population_size"),
        (["search.algorithm=nsga2", "tune.sampler={population_size: 1}"], r"tune\.sampler: NSGAIISampler"),
        ([*STOPPING, "tune.scheduler={grace: 2}"], r"tune\.scheduler: Asha .*grace"),
        ([*STOPPING, "tune.scheduler={grace_period: 9, max_t: 3}"], r"tune\.scheduler: Asha"),
        (["tune.config={num_samples: 2}"], r"tune\.config\.num_samples: .*search\.trials"),
        (["tune.config={tries: 2}"], r"tune\.config: TuneConfig .*tries"),
    ],
)
def test_settings_that_tune_does_not_take_are_named_before_a_folder_is_made(
    sweep: SweepRecipe, tmp_path: Path, overrides: list[str], says: str
) -> None:
    if "search.algorithm" in overrides[0]:
        pytest.importorskip("optuna")
    with pytest.raises(ConfigError, match=says):
        search._tune_config(changed(overrides), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_asha_leaves_a_trial_alone_at_its_last_evaluation(sweep: SweepRecipe, tmp_path: Path) -> None:
    scheduler = search._tune_config(changed([*STOPPING, "tune.scheduler={max_t: 2}"]), tmp_path).scheduler
    one = SimpleNamespace(trial_id="one")
    scheduler.on_trial_add(None, one)
    told = [scheduler.on_trial_result(None, one, {"training_iteration": t, "reward": 1.0}) for t in (1, 2)]
    assert told == ["CONTINUE", "CONTINUE"]  # its end, with a record that says done, is its own


def test_asha_needs_a_job_that_reports_on_the_way(sweep: SweepRecipe) -> None:
    stopping = changed(STOPPING)
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
        search._same(folder, changed([]), True)


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
