"""jobs/soups.py on a policy of two layers: a policy per objective, one mixture per direction."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.jobs.dpa_runs import recipe, run
from tests.jobs.test_online_run import GRPO


@pytest.mark.slow
def test_a_soup_of_two_policies_is_evaluated_over_the_grid(tmp_path: Path) -> None:
    train = recipe(tmp_path, **{**GRPO, "steps": 2}).rename(tmp_path / "grpo.yaml")
    path = recipe(
        tmp_path,
        job="soups",
        name="soup",
        iterations=None,
        policy={"initial": str(tmp_path / "policy")},
        train=str(train),
        initial={"strategy": "none", "prompts": 3},
        directions={"angle_deg": [-90, 0], "codec": "dpa-float1"},
        evaluation={**yaml.safe_load(train.read_text())["evaluation"], "angles_deg": [0, -45, -90]},
    )
    done = run(path, tmp_path / "runs", job="soups", timeout=480)
    assert done.returncode == 0, done.stdout + done.stderr
    home = tmp_path / "runs" / "soup"
    points = json.loads((home / "evaluation/soup.json").read_text())["directions"]
    assert [point["angle_deg"] for point in points] == pytest.approx([0, -45, -90])
    mixed = [json.loads((home / f"checkpoints/t={t}/soup.json").read_text())["weights"] for t in (1, 2, 3)]
    assert [weights["helpfulness"] for weights in mixed] == pytest.approx([1.0, 0.5, 0.0], abs=1e-6)
    assert (home / "report/index.html").is_file()
    again = run(path, tmp_path / "runs", "--resume", job="soups", timeout=480)
    assert again.returncode == 0, again.stdout + again.stderr


def test_an_objective_without_a_policy_is_named(tmp_path: Path) -> None:
    path = recipe(tmp_path, job="soups", iterations=None, initial={"strategy": "none"}, policies={"verbosity": "x"})
    done = run(path, tmp_path / "runs", job="soups")
    assert done.returncode == 2
    assert "policies names none for helpfulness" in done.stderr
