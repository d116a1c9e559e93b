"""jobs/reward.py as one runs it: data in, a folder of heads out, faults with exit code 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rhumbline.rewards.features import Backbone
from rhumbline.rewards.regression import RegressionHeads, RegressionRewards
from tests.rhumbline.rewards_fakes import ask, tiny_backbone

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe over a tiny backbone and 60 answers whose rating is the share of the letter a in them."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(60):
        text = "".join(rng.choice(["a", "b"], p=[p := i % 5 / 4, 1 - p], size=20 + i % 3))
        split = "test" if i >= 48 else "train"
        rows.append(
            {"prompt": f"q{i // 3}", "response": text, "ratings": {"a": text.count("a") / len(text)}, "split": split}
        )
    (tmp_path / "ratings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"backbone: {tiny_backbone(tmp_path / 'backbone')}\n"
        f"ratings: {{mine: {{path: {tmp_path / 'ratings.jsonl'}, licence: CC0, heads: {{a: {{}}}}}}}}\n"
        "features: {layer: 1}\n"
        "extraction: {shard: 16, threads: 1}\n"
        "bootstrap: 50\n"
    )
    return path


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "jobs" / "reward.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}", "RAY_AUTH_MODE": "disabled"},
        timeout=800,
        check=False,
    )


def scores(out: Path, backbone: Path) -> np.ndarray:
    rewards = RegressionRewards(RegressionHeads.load(out), backbone)
    rewards.setup()
    return rewards.score(
        [(ask("q1"), "aaaaaaaaaaaaaaaa"), (ask("q1"), "abababababababab"), (ask("q1"), "bbbbbbbbbbbbbbbb")]
    )


def test_from_ratings_to_heads_that_score(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run("--recipe", recipe, "--local", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "features  64/64 answers" in done.stdout  # 60 and the 4 probes
    all_a, half, none = scores(out, recipe.parent / "backbone").ravel()
    assert all_a > half + 10 > none + 20
    card = json.loads((out / "card.json").read_text())
    assert card["command"] == "python jobs/reward.py --recipe mine.yaml"
    assert card["heads"]["a"]["test"]["spearman"]["value"] > 0.8
    assert card["data"]["mine"] == {"licence": "CC0", "train": 48, "test": 12, "dropped": 0}
    assert str(tmp_path) not in (out / "card.md").read_text().replace(str(recipe.parent / "backbone"), "")


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_actors_give_the_same_heads(recipe: Path, tmp_path: Path) -> None:
    assert run("--recipe", recipe, "--local", "--out", tmp_path / "here").returncode == 0
    done = run("--recipe", recipe, "--out", tmp_path / "ray", "extraction.replicas=2")
    assert done.returncode == 0, done.stderr
    backbone = recipe.parent / "backbone"
    np.testing.assert_allclose(scores(tmp_path / "ray", backbone), scores(tmp_path / "here", backbone), atol=0.1)


def test_a_dry_run_counts_and_writes_nothing(recipe: Path, tmp_path: Path) -> None:
    done = run("--recipe", recipe, "--dry-run", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "mine: 48 train, 12 test, 0 dropped" in done.stdout
    assert "a: 60 labels" in done.stdout
    assert not (tmp_path / "out").exists()


def test_faults_are_one_message_and_exit_code_2(recipe: Path, tmp_path: Path) -> None:
    for arguments, said in (
        (["features.layr=2"], "Did you mean 'layer'?"),
        (["ratings.mine.path=missing.jsonl"], "ratings.mine.path=FILE"),
        (["--out", tmp_path], "holds other files"),
        (["features.layer=9", "--out", tmp_path / "out"], "has 2 layers"),
    ):
        done = run("--recipe", recipe, "--local", *arguments)
        assert done.returncode == 2, done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_job_and_the_library_read_the_same_backbone(recipe: Path) -> None:
    from rhumbline.rewards import recipe as recipes
    from rhumbline.rewards.fitting import spec_of

    loaded = recipes.load(recipe)
    assert Backbone.load(loaded.backbone, spec_of(loaded)).spec.layer == 1
