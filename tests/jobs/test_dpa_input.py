"""Bad input to jobs/dpa.py: one clear message, exit code 2, nothing made and nothing harmed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from rhumbline import config
from rhumbline.errors import UserError
from rhumbline.plan import Plan
from tests.jobs.dpa_runs import recipe, run


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["lerner.lr=1"], "Did you mean 'learner'"),
        (["samples=-1"], "samples"),
        (["learner.lr=fast"], "learner.lr"),
        (["rewards.objectives.verbosity.heads={verbostiy: 1.0}"], "Did you mean 'verbosity'"),
        (["directions.codec=dpa-int99"], "Did you mean 'dpa-int100'"),
        (["directions.codec=signs", "directions.codec_options={low.helpfulness: 0.9}"], "cannot be said|outside"),
        (["directions.presets={short: {verbosty: -1}}"], "directions.presets.short.verbosty"),
        (["prompts.path=no/such/file.jsonl"], "no/such/file.jsonl"),
        (["prompts.evaluation=1000"], "prompts.evaluation"),
        (["rewards.sources=[{kind: regression, path: nowhere}]"], "nowhere"),
        (["initial.strategy=adapter", "initial.adapter=nowhere"], "steering.json"),
    ],
)
def test_a_recipe_that_cannot_run_is_refused_before_anything_starts(
    tmp_path: Path, overrides: list[str], said: str
) -> None:
    path = recipe(tmp_path)
    with pytest.raises(UserError, match=said):
        Plan.make(config.load(path, overrides))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", r"prompts\.jsonl: empty"),
        ('{"prompt": "a"}\n{"prompt": \n', r"prompts\.jsonl:2: not JSON"),
        ('{"prompt": "a"}\n{"prompt": ""}\n', r"prompts\.jsonl: row 2 has no prompt"),
    ],
)
def test_a_data_file_that_cannot_be_used_is_named(tmp_path: Path, content: str, said: str) -> None:
    data = tmp_path / "prompts.jsonl"
    data.write_text(content)
    with pytest.raises(UserError, match=said):
        Plan.make(config.load(recipe(tmp_path), [f"prompts.path={data}"]))


def test_the_process_ends_with_2_and_one_message(tmp_path: Path) -> None:
    done = run(recipe(tmp_path), tmp_path / "runs", "samples=0")
    assert done.returncode == 2
    assert "samples" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_too_long_prompts_and_too_few_resources_end_before_a_run_is_made(tmp_path: Path) -> None:
    done = run(recipe(tmp_path), tmp_path / "runs", "prompts.max_prompt_tokens=10")
    assert done.returncode == 2
    assert "prompts.max_prompt_tokens" in done.stderr
    done = run(recipe(tmp_path), tmp_path / "runs", "generator.replicas=4000")
    assert done.returncode == 2
    assert "CPU" in done.stderr
    assert "generator" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_shows_the_plan_and_makes_nothing(tmp_path: Path) -> None:
    done = run(recipe(tmp_path), tmp_path / "runs", "--dry-run")
    assert done.returncode == 0, done.stderr
    shown = done.stdout
    assert yaml.safe_load(shown.split("\n\n")[0])["samples"] == 2  # the resolved recipe, as YAML
    assert shown.count("training sample") == 3
    assert "maximize weighted rating" in shown  # the direction, as the policy reads it
    assert "generator" in shown
    assert not (tmp_path / "runs").exists()


def test_a_run_of_another_recipe_is_not_resumed_and_not_touched(tmp_path: Path) -> None:
    path, runs = recipe(tmp_path), tmp_path / "runs"
    from rhumbline.store import RunStore

    with RunStore.create(runs, config.load(path), resume=False) as store:
        store.mark("stages", {"t=0": {"seconds": 1.0}})
    before = {f: f.read_bytes() for f in (runs / "tiny").rglob("*") if f.is_file()}
    done = run(path, runs, "seed=4", "--resume")
    assert done.returncode == 2
    assert "seed: 3 -> 4" in done.stderr
    with pytest.raises(UserError, match="--resume"):
        RunStore.create(runs, config.load(path), resume=False)
    assert {f: f.read_bytes() for f in (runs / "tiny").rglob("*") if f.is_file()} == before
    assert json.loads((runs / "tiny" / "status.json").read_text())["state"] == "done"
