"""Searches: which points they try, what those points set, and whether a fault is named before anything starts."""

from __future__ import annotations

import math
import pickle
import re
from pathlib import Path

import pytest
import yaml

from rhumbline.config import GrpoRecipe, PpoRecipe, SweepRecipe, dump, load_sweep, try_space
from rhumbline.errors import ConfigError
from rhumbline.plan import check
from tests.rhumbline.sweep_fakes import BASE

SWEEP = """
job: sweep
recipe: ../base.yaml
overrides: {steps: 3}
space:
  directions.fixed: {simplex: [preference, absolute], values: [0, 0.25, 0.5, 0.75, 1]}
  ppo.kl.coefficient: {values: [0.02, 1.0e-5]}
"""


@pytest.fixture
def sweep_file(tmp_path: Path) -> Path:
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "base.yaml").write_text(BASE)
    path = tmp_path / "sweeps" / "two.yaml"
    path.write_text(SWEEP)
    return path


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_sweep(path, overrides)
    return str(error.value)


# --- points -----------------------------------------------------------------------------------------------------------


def test_a_grid_is_every_combination_and_the_last_dimension_changes_fastest(sweep_file: Path) -> None:
    sweep = load_sweep(sweep_file)
    points = [tuple(point.values()) for point in sweep.points()]
    assert points == [(w, kl) for w in (0, 0.25, 0.5, 0.75, 1) for kl in (0.02, 1e-5)]
    assert sweep.points() == load_sweep(sweep_file).points()


def test_a_point_sets_what_its_trial_differs_in(sweep_file: Path) -> None:
    sweep = load_sweep(sweep_file)
    assert sweep.name == "two"  # after its file
    assert sweep.trial_overrides({"directions.fixed": 0.75, "ppo.kl.coefficient": 1e-5}) == [
        "steps=3",
        "directions.fixed={}",
        "directions.fixed={preference: 0.75, absolute: 0.25}",
        "ppo.kl.coefficient=1.0e-05",
    ]


def test_a_simplex_is_called_by_the_objective_that_it_weighs(sweep_file: Path) -> None:
    headings = load_sweep(sweep_file).headings()
    assert headings == {"directions.fixed": "weight of preference", "ppo.kl.coefficient": "ppo.kl.coefficient"}


def test_a_trial_is_built_as_its_job_builds_it(sweep_file: Path) -> None:
    trial = load_sweep(sweep_file).trial({"directions.fixed": 1, "ppo.kl.coefficient": 1e-5}, "t-1")
    assert isinstance(trial, PpoRecipe)
    assert (trial.name, trial.steps, trial.ppo.kl.coefficient) == ("t-1", 3, 1e-5)
    assert trial.directions.fixed == {"preference": 1.0, "absolute": 0.0}
    assert trial.directions.axis == trial.directions.fixed


def test_a_simplex_leaves_nothing_of_a_third_objective(sweep_file: Path) -> None:
    base = sweep_file.parents[1] / "base.yaml"
    third = BASE.replace(
        "    absolute: {heads: {length: 1.0}}", "    absolute: {heads: {length: 1.0}}\n    c: {heads: {words: 1}}"
    )
    base.write_text(third.replace("absolute: 0.5}}", "absolute: 0.5, c: 1.0}}"))
    trial = load_sweep(sweep_file).trial({"directions.fixed": 0.25, "ppo.kl.coefficient": 0.1}, "t")
    assert trial.directions.fixed == {"preference": 0.25, "absolute": 0.75}


def test_a_direction_of_the_space_is_all_of_it(sweep_file: Path) -> None:
    listed = "directions.fixed: {values: [{preference: 1}, {absolute: -1}]}"
    sweep_file.write_text(re.sub(r"directions.fixed: .*", listed, SWEEP))
    sweep = load_sweep(sweep_file)
    for value in ({"preference": 1}, {"absolute": -1}):
        point = {"directions.fixed": value, "ppo.kl.coefficient": 0.1}
        assert sweep.trial(point, "t").directions.fixed == value  # the recipe has both


def test_the_job_of_the_trials_is_their_recipe_s(sweep_file: Path) -> None:
    (sweep_file.parents[1] / "base.yaml").write_text(BASE.replace("job: ppo", "job: grpo"))
    sweep_file.write_text(SWEEP.replace("ppo.kl", "grpo.kl"))
    assert isinstance(load_sweep(sweep_file).base(), GrpoRecipe)


def test_random_points_are_the_same_for_the_same_seed_and_lie_within_their_ranges(sweep_file: Path) -> None:
    ranges = {
        "learner.lr": {"loguniform": [1e-6, 1e-3]},
        "ppo.lam": {"uniform": [0.5, 1.0]},
        "samples": {"int": [1, 3]},
    }
    sweep_file.write_text(
        yaml.safe_dump(
            {"recipe": "../base.yaml", "space": ranges, "search": {"algorithm": "random", "trials": 200, "seed": 5}}
        )
    )
    points = load_sweep(sweep_file).points()
    assert points == load_sweep(sweep_file).points()
    assert points != load_sweep(sweep_file, ["search.seed=6"]).points()
    assert len(points) == 200
    assert all(1e-6 <= p["learner.lr"] <= 1e-3 and 0.5 <= p["ppo.lam"] <= 1 for p in points)
    assert {p["samples"] for p in points} == {1, 2, 3}
    # On a logarithmic scale half of them lie below the geometric mean: 100 +- 7 (one standard deviation).
    assert 70 < sum(math.log10(p["learner.lr"]) < -4.5 for p in points) < 130


def test_a_random_search_of_a_finite_space_tries_nothing_twice(sweep_file: Path) -> None:
    points = load_sweep(sweep_file, ["search={algorithm: random, trials: 8, seed: 1}"]).points()
    assert len({tuple(p.values()) for p in points}) == 8
    everything = load_sweep(sweep_file, ["search={algorithm: random, trials: 99}"]).points()
    assert len(everything) == 10


def test_a_space_that_no_list_holds_is_drawn_from(sweep_file: Path) -> None:
    space = "space={seed: {int: [0, 2000000000]}, learner.epochs: {int: [1, 4]}}"
    sweep = load_sweep(sweep_file, ["space={}", space, "search={algorithm: random, trials: 5}"])
    assert len({point["seed"] for point in sweep.points()}) == 5
    assert sweep.points() == sweep.points()
    assert {point["learner.epochs"] for point in sweep.points()} <= {1, 2, 3, 4}
    few = load_sweep(sweep_file, ["search={algorithm: random, trials: 99, seed: 2}"])
    assert sorted(map(str, few.points())) == sorted(map(str, few.grid()))  # every place is a point, and another one


def test_numbers_that_yaml_takes_for_text_are_numbers(sweep_file: Path) -> None:
    sweep = load_sweep(sweep_file, ["space={}", "space={learner.lr: {values: [1e-5, 1e-4, 1.0e-3]}}"])
    assert [point["learner.lr"] for point in sweep.points()] == [1e-5, 1e-4, 1e-3]
    assert load_sweep(sweep_file, ["space={}", "space={directions.codec: {values: [dpa-int100]}}"]).points()


def test_an_int_range_is_a_grid_with_both_ends(sweep_file: Path) -> None:
    sweep = load_sweep(sweep_file, ["space={}", "space={samples: {int: [2, 4]}}"])
    assert [p["samples"] for p in sweep.points()] == [2, 3, 4]


def test_an_adaptive_search_knows_no_point_before_it_starts(sweep_file: Path) -> None:
    sweep = load_sweep(sweep_file, ["search.algorithm=tpe", "max_concurrent=2"])
    assert sweep.adaptive
    assert sweep.points() == []


def test_values_may_be_anything_that_yaml_says(sweep_file: Path) -> None:
    sweep = load_sweep(sweep_file, ["space={}", "space={learner.lora: {values: [null, {r: 4}]}}"])
    (plain, lora) = (sweep.trial(point, "t").learner.lora for point in sweep.points())
    assert plain is None
    assert lora is not None
    assert lora.r == 4


def test_a_dumped_search_loads_again(sweep_file: Path) -> None:
    sweep = load_sweep(sweep_file)
    again = SweepRecipe.model_validate(yaml.safe_load(dump(sweep)))
    assert again.model_dump() == sweep.model_dump()
    assert again.trial(again.points()[3], "t") == sweep.trial(sweep.points()[3], "t")


def test_a_recipe_that_is_edited_meanwhile_is_of_the_next_search(sweep_file: Path) -> None:
    sweep = load_sweep(sweep_file)
    before = sweep.trial(sweep.points()[0], "t")
    (sweep_file.parents[1] / "base.yaml").write_text("not: [a recipe")
    sent = pickle.loads(pickle.dumps(sweep))  # as Ray sends it to a trial
    assert sweep.trial(sweep.points()[0], "t") == sent.trial(sent.points()[0], "t") == before
    assert sweep.base() == sent.base()


# --- faults -----------------------------------------------------------------------------------------------------------


# What stands in SWEEP -> what stands there instead -> what the message says.
FAULTS = {
    "ppo.kl.coefficient:": {
        "ppo.kl.coeficient:": "unknown key ppo.kl.coeficient. Did you mean 'coefficient'?",
        "pppo.kl.coefficient:": "unknown key pppo. Did you mean 'ppo'?",
    },
    "values: [0.02, 1.0e-5]": {
        "values: [0.02, -1]": "space, at {directions.fixed: 0, ppo.kl.coefficient: -1}: ",
        "values: [0.02, 0.02]": "values has one twice",
        "values: []": "space.ppo.kl.coefficient.values: List should have at least 1 item",
        "values: [1], int: [1, 2]": "expected one of values, uniform, loguniform, int, found",
        "": "expected one of values, uniform, loguniform, int, found none",
        "valuse: [1]": "unknown key space.ppo.kl.coefficient.valuse. Did you mean 'values'?",
        "uniform: [0, 1]": "search.algorithm grid needs values or int in every dimension",
        "loguniform: [0, 1]": "loguniform needs a low end above 0",
        "int: [3, 3]": "int must rise from low to high",
    },
    "simplex: [preference, absolute]": {
        "simplex: [preference, absolut]": "absolut: unknown objective. Did you mean 'absolute'?",
        "simplex: [preference, preference]": "simplex needs two objectives",
    },
    "[0, 0.25, 0.5, 0.75, 1]": {
        "[0, 1.5]": "simplex: a weight lies in 0..1, got 1.5",
    },
    "overrides: {steps: 3}": {
        "overrides: {stepss: 3}": "unknown key stepss. Did you mean 'steps'?",
        "overrides: {ppo.kl.coefficient: 3}": "stands in overrides and in space",
        "overrides: {ppo: {kl: {coefficient: 3}}}": "stands in overrides and in space",
        "overrides: {ppo.kl: {}}": "ppo.kl holds ppo.kl.coefficient in space",
        "overrides: {directions.fixed: {preference: 1}}": "directions.fixed in space holds directions.fixed.preference",
        "overrides: {name: x}": "name is no key to search or override",
    },
    "recipe: ../base.yaml": {
        "recipe: ../bass.yaml": "recipe not found: ",
    },
    "job: sweep": {
        "job: ppo": "is a recipe of jobs/ppo.py (its key job), not of jobs/sweep.py",
        "job: sweep\nscheduler: asha": "scheduler asha compares trials by one figure, metrics names 2 (reward, kl)",
        "job: sweep\nmetrics: {}": "metrics: Dictionary should have at least 1 item",
        "job: sweep\nmetrics: {reward: up}": "metrics.reward: Input should be 'max' or 'min', got 'up'",
    },
}


@pytest.mark.parametrize(
    ("old", "new", "says"), [(old, new, says) for old, changes in FAULTS.items() for new, says in changes.items()]
)
def test_faults_are_named_before_anything_starts(sweep_file: Path, old: str, new: str, says: str) -> None:
    assert old in SWEEP
    sweep_file.write_text(SWEEP.replace(old, new))
    message = refusal(sweep_file)
    assert says in message
    assert str(sweep_file) in message or "recipe not found" in message


def test_an_empty_space_is_refused(sweep_file: Path) -> None:
    sweep_file.write_text("recipe: ../base.yaml\nspace: {}\n")
    assert "space: Dictionary should have at least 1 item" in refusal(sweep_file)


def test_only_jobs_with_runs_can_be_trials(sweep_file: Path) -> None:
    (sweep_file.parents[1] / "base.yaml").write_text("job: swep\n")
    assert "which trials cannot run" in refusal(sweep_file)


def test_asha_takes_one_figure(sweep_file: Path) -> None:
    sweep_file.write_text(SWEEP + "metrics: {hypervolume: max}\nscheduler: asha\n")
    assert load_sweep(sweep_file, ["overrides.evaluate_every=1"]).scheduler == "asha"


def test_asha_needs_figures_on_the_way_of_every_trial(sweep_file: Path) -> None:
    sweep_file.write_text(SWEEP + "metrics: {hypervolume: max}\nscheduler: asha\n")
    assert "evaluate_every is 0" in refusal(sweep_file)
    assert "evaluate_every is 0" in refusal(sweep_file, "space={}", "space={evaluate_every: {values: [2, 0]}}")


def test_figures_are_those_that_trials_report(sweep_file: Path) -> None:
    sweep_file.write_text(SWEEP + "metrics: {objective/preference: max, length: min}\n")
    assert list(load_sweep(sweep_file).metrics) == ["objective/preference", "length"]
    sweep_file.write_text(SWEEP + "metrics: {objective/preferense: max}\n")
    assert "no trial reports that figure. Did you mean 'objective/preference'?" in refusal(sweep_file)


def test_kl_is_no_figure_of_trials_that_do_not_measure_it(sweep_file: Path) -> None:
    assert "metrics names kl, and evaluation.kl is false" in refusal(sweep_file, "overrides={evaluation.kl: false}")
    sweep_file.write_text(SWEEP + "metrics: {reward: max}\n")
    load_sweep(sweep_file, ["overrides={evaluation.kl: false}"])


def test_a_win_rate_is_a_figure_of_trials_that_have_a_judge(sweep_file: Path) -> None:
    sweep_file.write_text(SWEEP + "metrics: {win_rate: max, kl: min}\n")
    assert "metrics names win_rate, and the recipe has no evaluation.win_rate" in refusal(sweep_file)
    judged = "overrides={evaluation.win_rate.head: words}"
    assert list(load_sweep(sweep_file, [judged]).metrics) == ["win_rate", "kl"]
    assert "evaluation.initial_policy is false" in refusal(
        sweep_file, judged, "overrides.evaluation.initial_policy=false"
    )


def test_a_soup_that_trains_its_policies_is_no_trial(sweep_file: Path) -> None:
    base = BASE.replace("job: ppo", "job: soups").replace("directions: {fixed: {preference: 0.5, absolute: 0.5}}", "")
    (sweep_file.parents[1] / "base.yaml").write_text(base + "train: x.yaml\ninitial: {strategy: none}\n")
    sweep_file.write_text("recipe: ../base.yaml\nspace: {evaluation.samples: {values: [1, 2]}}\n")
    assert "train is x.yaml" in refusal(sweep_file)


# What a probe is looked at with beside its recipe: job -> space -> what the message says.
UNKNOWN = {
    "grpo": {
        "grpo.advantage: {values: [standardised, centered]}": (
            r"two\.yaml: space, at \{grpo\.advantage: 'centered'\}: unknown advantage 'centered' \(grpo\.advantage\)\. "
            "Did you mean 'centred'"
        ),
        "grpo.kl.estimator: {values: [k3_k2, k4]}": "unknown KL estimator 'k4'",
        "grpo.kl.controller: {values: [fixed, fixd]}": "unknown KL controller 'fixd'",
        "directions.codec: {values: [dpa-int100, dpa-int]}": "space, at .*dpa-int",
    },
    "dpo": {"loss.kind: {values: [dpo, dpoo]}": r"unknown loss 'dpoo' \(loss\.kind\)\. Did you mean 'dpo'"},
}


@pytest.mark.parametrize(
    ("job", "space", "says"), [(job, space, says) for job, spaces in UNKNOWN.items() for space, says in spaces.items()]
)
def test_names_in_a_space_are_looked_up_as_those_of_a_recipe(sweep_file: Path, job: str, space: str, says: str) -> None:
    base = BASE if job == "grpo" else BASE.replace("absolute: 0.5}}", "absolute: 0.5}, said: false}")
    (sweep_file.parents[1] / "base.yaml").write_text(base.replace("job: ppo", f"job: {job}"))
    sweep_file.write_text(f"recipe: ../base.yaml\nspace: {{{space}}}\n")
    sweep = load_sweep(sweep_file)
    with pytest.raises(ConfigError, match=says):
        try_space(sweep, lambda trial: check(trial, dry_run=True), str(sweep_file))


def test_a_space_is_shown_at_every_value_and_both_ends(sweep_file: Path) -> None:
    sweep_file.write_text(
        "recipe: ../base.yaml\nspace: {seed: {values: [1, 2, 3]}, steps: {int: [4, 9]}}\nsearch: {trials: 2}\n"
    )
    sweep, seen = load_sweep(sweep_file), list[tuple[int, int]]()
    try_space(sweep, lambda trial: seen.append((trial.seed, trial.model_dump()["steps"])), "two")
    assert seen == [(1, 4), (2, 4), (3, 4), (1, 4), (1, 9)]


SHIPPED = sorted((Path(__file__).parents[2] / "jobs" / "recipes" / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])
def test_every_shipped_search_loads(path: Path) -> None:
    sweep = load_sweep(path)
    assert sweep.adaptive or sweep.points()
