"""jobs/ppo.py and jobs/grpo.py on a policy of two layers: what a run leaves, and that a kill changes no figure of it."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from rhumbline.records import Completion
from rhumbline.store import RunStore
from tests.jobs.dpa_runs import drive, recipe, run

STEPS = 4
PPO: dict[str, Any] = {
    "job": "ppo",
    "iterations": None,
    "steps": STEPS,
    "prompts_per_step": 4,
    "samples": 2,
    "directions": {"angle_deg": [-45, 0], "per_prompt": 1, "codec": "dpa-float1"},
    "initial": {"strategy": "none", "prompts": 3},
    "learner": {
        "num_cpus": 1, "lr": 3.0e-3, "epochs": 2, "batch_size": 4, "warmup_steps": 0, "dtype": "float32",
        "lora": {"r": 2, "alpha": 4},
    },
    "ppo": {"kl": {"controller": "adaptive", "coefficient": 0.1, "target": 0.5, "horizon": 100}},
}  # fmt: skip
GRPO = {
    **PPO,
    "job": "grpo",
    "ppo": None,
    "samples": 3,
    "directions": {"fixed": {"helpfulness": 0.0, "verbosity": -1.0}, "said": False, "per_prompt": 1},
    "grpo": {"kl": {"place": "loss", "coefficient": 0.01}},
}


def online(folder: Path, settings: dict[str, Any], **changes: Any) -> Path:
    """A recipe: without `policy.restart_from`, which is of jobs/dpa.py."""
    return recipe(folder, **{**settings, "policy": {"initial": str(folder / "policy")}, **changes})


def told(runs: Path) -> list[dict[str, float]]:
    """Metrics of every step, but for what is a time."""
    marks = [json.loads((runs / "tiny" / f"iterations/t={t}/learn.json").read_text()) for t in range(1, STEPS + 1)]
    return [{k: v for k, v in mark["metrics"].items() if not k.endswith("per_s")} for mark in marks]


def sampled(runs: Path, t: int) -> list[Completion]:
    return list(RunStore.open(runs / "tiny").read(f"iterations/t={t}/rollouts", Completion))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(recipe, runs) of a PPO run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("ppo")
    path = online(folder, PPO)
    done = run(path, folder / "runs", job="ppo")
    assert done.returncode == 0, done.stdout + done.stderr
    return path, folder / "runs"


def test_a_ppo_run_leaves_what_the_contract_says(undisturbed: tuple[Path, Path]) -> None:
    home = undisturbed[1] / "tiny"
    for name in (
        "report/index.html",
        "report/figures/learning.png",
        "report/summary.json",
        "README.md",
        f"checkpoints/t={STEPS}/model.safetensors",
        f"checkpoints/t={STEPS}/steering.json",
        f"checkpoints/t={STEPS}/adapter/adapter_model.safetensors",
        f"evaluation/t={STEPS}.json",
        "evaluation/initial.json",
        "rewards/calibration.json",
    ):
        assert (home / name).is_file(), name
    assert json.loads((home / "status.json").read_text())["state"] == "done"
    kept = sorted(folder.name for folder in (home / "checkpoints").iterdir())
    assert kept == [f"t={STEPS - 1}", f"t={STEPS}"]  # keep_checkpoints
    assert sorted(path.name for path in (home / "train" / "online").iterdir()) == [f"{STEPS:06d}", "probe.json"]
    batches = [json.loads((home / f"iterations/t={t}/batch.json").read_text()) for t in range(1, STEPS + 1)]
    assert batches == [{"samples": 8, "failed": 0}] * STEPS
    with (home / "report" / "data" / "learning.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(float(row["step"])) for row in rows] == [1, 2, 3, 4]


def test_the_first_step_is_on_policy_and_the_controller_answers(undisturbed: tuple[Path, Path]) -> None:
    steps = told(undisturbed[1])
    assert steps[0]["learn/kl"] == pytest.approx(0.0, abs=1e-6)  # the policy is its reference
    assert steps[0]["learn/kl_coefficient"] == 0.1
    for before, after in itertools.pairwise(steps):
        error = max(-0.2, min(0.2, before["learn/kl"] / 0.5 - 1))  # Ziegler et al., section 2.2
        expected = before["learn/kl_coefficient"] * (1 + error * 8 / 100)
        assert after["learn/kl_coefficient"] == pytest.approx(expected, rel=1e-9)
    assert all(step["learn/engine_gap"] < 0.01 for step in steps)  # engine and learner give the same probabilities


def test_every_step_is_sampled_by_the_version_before_it(undisturbed: tuple[Path, Path]) -> None:
    runs = undisturbed[1]
    versions = [{one.policy_version for one in sampled(runs, t)} for t in range(1, STEPS + 1)]
    assert versions == [{"initial"}, {"t=1"}, {"t=2"}, {"t=3"}]
    prompts = [[one.query.prompt.id for one in sampled(runs, t)] for t in range(1, STEPS + 1)]
    assert all(len(set(step)) == 4 and len(step) == 8 for step in prompts)
    assert all(len(one.token_logprobs) == len(one.token_ids) for one in sampled(runs, 2))


@pytest.mark.slow
def test_grpo_for_one_unsaid_direction(tmp_path: Path) -> None:
    done = run(online(tmp_path, GRPO), tmp_path / "runs", job="grpo")
    assert done.returncode == 0, done.stdout + done.stderr
    home = tmp_path / "runs" / "tiny"
    assert not (home / f"checkpoints/t={STEPS}/steering.json").exists()  # no prompt steers it
    (point,) = json.loads((home / f"evaluation/t={STEPS}.json").read_text())["directions"]
    assert point["vector"] is None
    queries = [one.query for one in sampled(tmp_path / "runs", 1)]
    assert all(query.messages == query.prompt.messages and query.direction == (0.0, -1.0) for query in queries)


def test_a_recipe_of_another_job_is_refused(undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    done = run(undisturbed[0], tmp_path / "runs", job="grpo")
    assert done.returncode == 2
    assert "is a recipe of jobs/ppo.py" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_overlap_samples_one_version_behind(tmp_path: Path) -> None:
    done = run(online(tmp_path, PPO, overlap=True), tmp_path / "runs", job="ppo")
    assert done.returncode == 0, done.stdout + done.stderr
    versions = [{one.policy_version for one in sampled(tmp_path / "runs", t)} for t in range(1, STEPS + 1)]
    assert versions == [{"initial"}, {"initial"}, {"t=1"}, {"t=2"}]
    steps = told(tmp_path / "runs")
    assert abs(steps[1]["learn/importance_mean"] - 1) > 5e-4  # the probabilities of another version, corrected for
    assert steps[1]["learn/engine_gap"] > steps[0]["learn/engine_gap"]


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["ray::Rank", "ray::Generator", "ray::Scorer"])
def test_a_killed_actor_changes_no_figure(undisturbed: tuple[Path, Path], tmp_path: Path, victim: str) -> None:
    path, runs = undisturbed
    with drive(path, tmp_path / "runs", job="ppo") as driver:
        driver.until(lambda: (tmp_path / "runs/tiny/iterations/t=1/learn.json").is_file(), "step 1")
        driver.kill(victim)
        assert driver.end() == 0, driver.said()
    assert told(tmp_path / "runs") == told(runs)
    events = [json.loads(line) for line in (tmp_path / "runs/tiny/events.jsonl").read_text().splitlines()]
    assert any(event["event"] == "replaced" for event in events)


@pytest.mark.slow
def test_a_killed_rank_of_two_changes_no_figure(tmp_path: Path) -> None:
    two = {**PPO, "learner": {**PPO["learner"], "num_workers": 2, "num_cpus": 0.5}}
    path = online(tmp_path, two)
    done = run(path, tmp_path / "undisturbed", job="ppo")
    assert done.returncode == 0, done.stdout + done.stderr
    with drive(path, tmp_path / "runs", job="ppo") as driver:
        driver.until(lambda: (tmp_path / "runs/tiny/iterations/t=1/learn.json").is_file(), "step 1")
        driver.kill("ray::Rank")
        assert driver.end() == 0, driver.said()
    assert told(tmp_path / "runs") == told(tmp_path / "undisturbed")
    events = [json.loads(line) for line in (tmp_path / "runs/tiny/events.jsonl").read_text().splitlines()]
    assert [event["role"] for event in events if event["event"] == "replaced"] == ["learner"]


@pytest.mark.slow
def test_a_step_that_was_learned_from_asks_for_nothing_that_was_given_up(tmp_path: Path) -> None:
    path, home = online(tmp_path, PPO, shard_prompts=2), tmp_path / "runs" / "tiny"
    with drive(path, tmp_path / "runs", job="ppo") as driver:
        driver.until(lambda: (home / "train/online/000002/ranks.json").is_file(), "the state of step 2")
        driver.process.kill()
        driver.process.wait(60)
    mark, first = home / "iterations/t=1/batch.json", home / "iterations/t=1/scores/shard-00000.parquet"
    first.unlink()  # as if it had been quarantined: the ledger has none either, once it is found missing
    before = json.loads(mark.read_text())
    done = run(path, tmp_path / "runs", "--resume", job="ppo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not first.exists()
    assert json.loads(mark.read_text()) == before


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["iterations/t=2/scores/shard-00000.parquet", "train/online/000002/ranks.json"])
def test_a_killed_driver_resumes_to_the_same_figures(
    undisturbed: tuple[Path, Path], tmp_path: Path, moment: str
) -> None:
    path, runs = undisturbed
    with drive(path, tmp_path / "runs", job="ppo") as driver:
        driver.until(lambda: (tmp_path / "runs/tiny" / moment).is_file(), moment)
        driver.process.kill()
        driver.process.wait(60)
    done = run(path, tmp_path / "runs", "--resume", job="ppo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert told(tmp_path / "runs") == told(runs)
    assert [sampled(tmp_path / "runs", t) for t in (1, 2, 3)] == [sampled(runs, t) for t in (1, 2, 3)]
    again = json.loads((tmp_path / "runs/tiny/report/summary.json").read_text())["iterations"]
    assert again == json.loads((runs / "tiny/report/summary.json").read_text())["iterations"]
