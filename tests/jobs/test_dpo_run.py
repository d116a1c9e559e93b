"""jobs/dpo.py on a policy of two layers: pairs of its own samples, of another run, and of people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.jobs import dpa_runs
from tests.jobs.dpa_runs import run

DPO: dict[str, Any] = {
    "job": "dpo",
    "name": "prefer",
    "samples": 3,
    "initial": {"strategy": "none", "prompts": 3},
    "learner": {
        "num_cpus": 1, "lr": 1.0e-3, "epochs": 1, "batch_size": 4, "dtype": "float32", "lora": {"r": 2, "alpha": 4},
    },
}  # fmt: skip


def recipe(folder: Path, **changes: Any) -> Path:
    """A round of this job starts from the policy that it sampled; recipes of jobs/dpa.py choose."""
    policy = {"initial": str(folder / "policy")}
    return dpa_runs.recipe(folder, **{"policy": policy, **changes})


def losses(home: Path) -> list[float]:
    lines = [json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()]
    return [line["learn/loss"] for line in lines if "learn/loss" in line]


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs with one on-policy DPO run in it."""
    folder = tmp_path_factory.mktemp("dpo")
    done = run(recipe(folder, **DPO), folder / "runs", job="dpo")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_pairs_of_the_policy_s_own_samples(sampled: Path) -> None:
    home = sampled / "runs" / "prefer"
    assert losses(home)[0] == pytest.approx(0.6931, abs=1e-4)  # ln 2: the policy is its reference
    for name in ("checkpoints/t=1/steering.json", "evaluation/t=1.json", "report/index.html"):
        assert (home / name).is_file(), name
    learned = json.loads((home / "iterations/t=1/learn.json").read_text())
    assert learned["num_examples"] > 0
    again = run(sampled / "recipe.yaml", sampled / "runs", "--resume", job="dpo")
    assert again.returncode == 0, again.stdout + again.stderr


@pytest.mark.slow
def test_kto_on_the_samples_of_another_run(sampled: Path, tmp_path: Path) -> None:
    other = sampled / "runs" / "prefer"
    path = recipe(tmp_path, **{**DPO, "store": {"run": str(other)}, "loss": {"kind": "kto", "undesirable_weight": 0.5}})
    done = run(path, tmp_path / "runs", job="dpo")
    assert done.returncode == 0, done.stdout + done.stderr
    home = tmp_path / "runs" / "prefer"
    assert not (home / "iterations/t=1/rollouts").exists()  # nothing was sampled to learn from
    calibration = "rewards/calibration.json"
    assert (home / calibration).read_text() == (other / calibration).read_text()
    assert losses(home)


@pytest.mark.slow
def test_pairs_of_people_under_the_profile_of_who_judged(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Question {i}?", "chosen": "yes " * (1 + i % 5), "rejected": "no", "who": {"age": str(20 + i)}}
        for i in range(30)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = {"mine": {"path": str(tmp_path / "pairs.jsonl"), "profile": "who"}}
    done = run(recipe(tmp_path, **{**DPO, "pairs": pairs}), tmp_path / "runs", job="dpo")
    assert done.returncode == 0, done.stdout + done.stderr
    home = tmp_path / "runs" / "prefer"
    assert losses(home)[0] == pytest.approx(0.6931, abs=1e-4)
    assert "30 judged pairs" in (home / "report/index.html").read_text()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"loss": {"kind": "dpoo"}}, "unknown loss 'dpoo' (loss.kind). Did you mean 'dpo'"),
        pytest.param({"store": {"run": "nowhere"}}, "no run at nowhere", marks=pytest.mark.slow),
        ({"iterations": 2, "store": {"run": "x"}}, "with pairs or store it is 1"),
    ],
)
def test_what_cannot_work_is_said_at_once(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    done = run(recipe(tmp_path, **{**DPO, **changes}), tmp_path / "runs", job="dpo")
    assert done.returncode == 2
    assert says in done.stderr
    assert not (tmp_path / "runs").exists()
