"""jobs/reward.py as one runs it: data in, a folder of heads out, faults with exit code 2."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rhumbline.rewards.comparer import ComparerRewards
from rhumbline.rewards.features import Backbone
from rhumbline.rewards.regression import RegressionHeads, RegressionRewards
from rhumbline.rewards.trained import TrainedRewards
from tests.rhumbline.rewards_fakes import ask, tiny_backbone

ROOT = Path(__file__).parents[2]
NETWORKS = ("regression", "absolute", "preference", "comparer")


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
    from rhumbline.fitting import recipe as recipes
    from rhumbline.fitting.frozen import spec_of

    loaded = recipes.load(recipe)
    assert Backbone.load(loaded.backbone, spec_of(loaded)).spec.layer == 1


# --- networks ---------------------------------------------------------------------------------------------------------


def job(recipe: Path, *overrides: str, **options: Any) -> None:
    """The job's own function in this process: a second torch takes longer to load than a network of two layers to train."""
    spec = importlib.util.spec_from_file_location("reward_job", ROOT / "jobs" / "reward.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(list(overrides), recipe, **{"out": None, "local": True, "dry_run": False, **options})


def network_recipe(tmp_path: Path, kind: str, **sections: Any) -> Path:
    """40 conversations with answers of a and b letters: more a is better."""
    rows: list[dict[str, Any]] = []
    for i in range(40):
        common = {"prompt": f"q{i}", "split": "test" if i >= 32 else "train"}
        good, poor = "a" * (10 + i % 3), "b" * (8 + i % 4)
        if kind in ("regression", "absolute"):
            rows += [
                {**common, "response": text, "ratings": {"a": 0.9 - i % 3 / 10 if text == good else i % 4 / 10}}
                for text in (good, poor)
            ]
        elif kind == "preference":
            rows.append({**common, "chosen": good, "rejected": poor})
        else:
            a, b, winner = [(good, poor, "a"), (poor, good, "b"), (good, "a" * 9, "tie")][i % 3]
            rows.append({**common, "response_a": a, "response_b": b, "winner": winner})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"path": str(tmp_path / "rows.jsonl"), "licence": "CC0"}
    rated = {"ratings": {"mine": {**data, "heads": {"a": {}}}}}
    own = rated if kind in ("regression", "absolute") else {"comparisons": {"mine": data}}
    document = {
        "kind": kind,
        "backbone": str(tiny_backbone(tmp_path / "backbone")),
        **own,
        **({"absolute": {"label": "a"}} if kind == "absolute" else {}),
        "network": {"max_tokens": 320, "max_response_tokens": 60},
        "learner": {
            "lora": {"r": 4, "alpha": 8},
            "lr": 0.01,
            "epochs": 6,
            "batch_size": 8,
            "dtype": "float32",
            "checkpoint_every": 4,
            "warmup_steps": 2,
        },
        "validation": 0.25,
        "bootstrap": 20,
        **sections,
    }
    path = tmp_path / "net.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_network_from_data_to_scores(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sections = {"folds": 2, "early_stopping": {"every": 5}} if kind == "comparer" else {}
    recipe, out = network_recipe(tmp_path, kind, **sections), tmp_path / "out"
    job(recipe, out=out)
    said = capsys.readouterr().out
    assert "net learn  " in said
    assert f"reward model: {out}" in said
    names = {path.name for path in out.iterdir()}
    assert {"model.safetensors", "adapter", "schema.json", "card.json", "card.md", "metrics.jsonl"} <= names
    assert not {"steps", "best.safetensors"} & names
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "net.yaml", "backbone", "out"}
    card = json.loads((out / "card.json").read_text())
    assert card["data"]["mine"]["licence"] == "CC0"
    assert str(tmp_path) not in json.dumps({**card, "recipe": {}, "facts": {}})
    pairs = [(ask("q1", "a" * 10), "a" * 11), (ask("q1", "a" * 10), "b" * 11)]
    rewards = ComparerRewards(out) if kind == "comparer" else TrainedRewards(out)
    rewards.setup()
    better, worse = rewards.score(pairs)[:, 0]
    assert better > worse
    section = {"preference": "pairs", "comparer": "classes"}.get(kind, "ratings")
    assert card[section]
    if kind == "comparer":
        assert card["cross_validation"]["classes"]["all"]["n"] == 32
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert {line.get("learn/fold") for line in lines} == {None, 0, 1}
        assert any("validate/log_loss" in line for line in lines)
    # The same command finds it; another recipe trains anew.
    job(recipe, out=out)
    assert "finished before" in capsys.readouterr().out


def test_the_same_command_goes_on_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rhumbline.fitting import training

    recipe = network_recipe(tmp_path, "preference")
    job(recipe, out=tmp_path / "calm")
    real, calls = training._accumulate, 0

    def killed(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 11:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(training, "_accumulate", killed)
    with pytest.raises(KeyboardInterrupt):
        job(recipe, out=tmp_path / "cut")
    assert not (tmp_path / "cut").exists()
    job(recipe, out=tmp_path / "cut")
    result = json.loads((tmp_path / "cut" / "training.json").read_text())
    assert result["resumed_at"] == 8
    calm, cut = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("calm", "cut"))
    assert calm == cut


@pytest.mark.parametrize("when", ["finish", "publish"])
def test_a_kill_after_training_costs_no_training(when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rhumbline.fitting import results

    stopping = {"every": 4, "patience": 50}
    recipe, out = network_recipe(tmp_path, "preference", early_stopping=stopping), tmp_path / "cut"
    job(recipe, "name=manifold-folded", out=tmp_path / "calm")

    def killed(*args: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if when == "finish":
            patched.setattr(results, "finish", killed)
        else:
            patched.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            job(recipe, "name=manifold-folded", out=out)
    job(recipe, "name=manifold-folded", out=out)
    calm, cut = (json.loads((tmp_path / name / "training.json").read_text()) for name in ("calm", "cut"))
    steps = calm["steps_planned"]
    assert cut["resumed_at"] == ((steps - 1) // 4 * 4 if when == "finish" else 0)
    assert not {"checkpoint", "adapter"} & cut.keys()  # paths that the last rename made wrong
    assert (cut["kept_step"], cut["kept_value"]) == (calm["kept_step"], calm["kept_value"])
    calm_weights, cut_weights = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("calm", "cut"))
    assert calm_weights == cut_weights
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, calm["steps"] + 1))  # each once
    assert not (out / "steps").exists()


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_dry_run_of_a_network_writes_nothing(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = network_recipe(tmp_path, kind)
    job(recipe, out=tmp_path / "out", dry_run=True)
    said = capsys.readouterr().out
    assert "mine: " in said
    assert "would train" in said
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out-training").exists()


def test_faults_of_a_network_are_messages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = network_recipe(tmp_path, "preference")
    for overrides, said in (
        (["features.layer=2"], "features is not read by the kind preference"),
        (["learner.num_workers=2"], "--local is one worker"),
        (["comparisons.mine.winner=nobody"], "nobody"),
        (["comparisons.mine.path=missing.jsonl"], "comparisons.mine.path=FILE"),
    ):
        with pytest.raises(SystemExit) as raised:
            job(recipe, *overrides, out=tmp_path / "out")
        assert raised.value.code == 2
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit) as raised:  # no fault of the recipe's form: it stopped at work
        job(recipe, "learner.lr=1e30", out=tmp_path / "out")
    assert raised.value.code == 1
    assert "Lower learner.lr" in capsys.readouterr().err
