"""jobs/sweep.py with Optuna's searchers and with ASHA, by Ray Tune on a policy of two layers: killed and resumed, too."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.jobs.dpa_runs import drive, run
from tests.jobs.test_online_run import PPO, online

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # several whole searches each

RUN_S = 600.0  # a search of three trials


def sweep(folder: Path, *, base: dict[str, Any], **content: Any) -> Path:
    """A search over a PPO run of two steps, with the changes of `base`."""
    settings = {**PPO, "ppo": {"kl": {"coefficient": 0.1}}, **base}
    online(folder, settings, steps=2).rename(folder / "ppo.yaml")
    path = folder / "sweep.yaml"
    path.write_text(
        yaml.safe_dump({"job": "sweep", "name": "search", "recipe": "ppo.yaml", **content}, sort_keys=False)
    )
    return path


def records(runs: Path) -> list[dict[str, Any]]:
    """Of every trial, in the order in which they began."""
    found = [json.loads(path.read_text()) for path in (runs / "search" / "trials").glob("t-*.json")]
    return sorted(found, key=lambda record: float(record["began"]))


def came_to(runs: Path) -> list[tuple[dict[str, Any], str, dict[str, float]]]:
    return [(record["point"], record["state"], record["figures"]) for record in records(runs)]


def known_to_tune(runs: Path) -> int:
    """Trials in the state that Tune would go on from; it is written every ten seconds."""
    states = sorted((runs / "search" / "tune").glob("experiment_state-*.json"))
    try:
        return len(json.loads(states[-1].read_text())["trial_data"]) if states else 0
    except json.JSONDecodeError:  # it is being written
        return 0


def ends_well(path: Path, runs: Path, *arguments: str) -> None:
    done = run(path, runs, *arguments, job="sweep", timeout=RUN_S)
    assert done.returncode == 0, done.stdout + done.stderr


def killed_at_the_second_trial(path: Path, runs: Path) -> list[dict[str, Any]]:
    """What a search had done when its driver was killed: one trial to its end, a second one begun."""
    with drive(path, runs, job="sweep") as driver:
        driver.until(lambda: len(records(runs)) == 2, "the second trial", timeout=RUN_S)
        driver.until(lambda: known_to_tune(runs) == 2, "Tune's state with the second trial")
        driver.process.kill()
        driver.process.wait(60)
    done, begun = records(runs)
    assert (done["state"], begun["state"]) == ("done", "running"), driver.said()
    return [done, begun]


# --- Optuna -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="optuna is not installed")
@pytest.mark.parametrize(
    ("algorithm", "metrics", "sampler"),
    [
        ("tpe", {"reward": "max"}, {"n_startup_trials": 1}),  # from the second trial on by what came back
        ("nsga2", {"reward": "max", "kl": "min"}, {"population_size": 2}),  # the third is a child of the first two
    ],
)
def test_a_killed_adaptive_search_resumes_to_the_same_points_and_figures(
    tmp_path: Path, algorithm: str, metrics: dict[str, str], sampler: dict[str, int]
) -> None:
    path = sweep(
        tmp_path,
        base={},
        search={"algorithm": algorithm, "trials": 3, "seed": 5},
        space={"ppo.kl.coefficient": {"loguniform": [0.01, 1.0]}, "learner.epochs": {"int": [1, 2]}},
        metrics=metrics,
        tune={"sampler": sampler},
    )
    undisturbed, runs = tmp_path / "undisturbed", tmp_path / "runs"
    ends_well(path, undisturbed)
    assert [state for _, state, _ in came_to(undisturbed)] == ["done"] * 3
    assert (undisturbed / "search" / "report" / "best.yaml").is_file()

    first, begun = killed_at_the_second_trial(path, runs)
    ends_well(path, runs, "--resume")
    assert came_to(runs) == came_to(undisturbed)
    assert records(runs)[0] == first  # read back, not computed again
    assert records(runs)[1]["folder"] == begun["folder"]  # gone on with

    before = records(runs)
    ends_well(path, runs, "--resume")
    assert records(runs) == before  # all is done


# --- ASHA -------------------------------------------------------------------------------------------------------------


def asha(folder: Path) -> Path:
    """Two trials by the length of their answers: of at most 16 tokens, and of 4, which is worse whatever is learned."""
    return sweep(
        folder,
        base={"evaluate_every": 1, "ppo": {"kl": {"coefficient": 0.1}}},
        search={"algorithm": "grid"},
        space={"evaluation.sampling.max_tokens": {"values": [16, 4]}},
        metrics={"length": "max"},
        scheduler="asha",
        tune={"scheduler": {"grace_period": 1, "reduction_factor": 2, "max_t": 10}},
    )


def states(runs: Path) -> dict[int, str]:
    return {record["point"]["evaluation.sampling.max_tokens"]: record["state"] for record in records(runs)}


def test_asha_stops_the_worse_trial_early_and_a_resumed_search_leaves_it_so(tmp_path: Path) -> None:
    path, runs = asha(tmp_path), tmp_path / "runs"
    ends_well(path, runs)
    assert states(runs) == {16: "done", 4: "stopped"}
    stopped = records(runs)[1]
    assert stopped["reason"] == "early, by the scheduler"
    assert stopped["figures"]["length"] < records(runs)[0]["figures"]["length"]
    assert not (runs / "search" / "trials" / stopped["folder"] / "report" / "index.html").exists()
    best = yaml.safe_load((runs / "search" / "report" / "best.yaml").read_text())
    assert best["evaluation"]["sampling"]["max_tokens"] == 16
    before = records(runs)
    ends_well(path, runs, "--resume")
    assert records(runs) == before


def test_a_killed_search_with_asha_still_compares_with_what_was_done_before(tmp_path: Path) -> None:
    path, runs = asha(tmp_path), tmp_path / "runs"
    first, begun = killed_at_the_second_trial(path, runs)
    ends_well(path, runs, "--resume")
    assert states(runs) == {16: "done", 4: "stopped"}
    assert records(runs)[0] == first
    assert records(runs)[1]["folder"] == begun["folder"]
