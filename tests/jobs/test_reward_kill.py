"""jobs/reward.py killed on a real Ray cluster: the same command again ends with the same weights, nothing counted twice."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rhumbline import durable
from rhumbline.rewards.trained import Schema
from tests.jobs.dpa_runs import Driver, start
from tests.rhumbline.rewards_fakes import tiny_backbone

pytestmark = pytest.mark.slow

# Of a result: what a stopped training cannot have in common with a calm one.
OWN = {"checkpoint", "adapter", "seconds", "tokens_per_s", "resumed_at"}


def recipe(folder: Path, kind: str, **sections: Any) -> Path:
    """32 comparisons to train on, 8 to test on; more of the letter a is better. A checkpoint after each of a dozen steps."""
    folder.mkdir(exist_ok=True)
    rows = []
    for i in range(40):
        common = {"prompt": f"q{i}", "split": "test" if i >= 32 else "train"}
        good, poor = "a" * (10 + i % 3), "b" * (8 + i % 4)
        if kind == "preference":
            rows.append({**common, "chosen": good, "rejected": poor})
        else:
            a, b, winner = [(good, poor, "a"), (poor, good, "b"), (good, "a" * 9, "tie")][i % 3]
            rows.append({**common, "response_a": a, "response_b": b, "winner": winner})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    document = {
        "name": "tiny",
        "kind": kind,
        "backbone": str(tiny_backbone(folder / "backbone")),
        "comparisons": {"mine": {"path": str(folder / "rows.jsonl"), "licence": "CC0"}},
        "network": {"max_tokens": 320, "max_response_tokens": 60},
        "learner": {
            "lora": {"r": 4, "alpha": 8},
            "lr": 0.01,
            "epochs": 5,
            "batch_size": 8,
            "dtype": "float32",
            "checkpoint_every": 1,
            "warmup_steps": 2,
            "num_cpus": 1,
            "threads": 1,
        },
        "validation": 0.25,
        "bootstrap": 20,
        **sections,
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def command(path: Path, out: Path) -> list[str]:
    return ["jobs/reward.py", "--recipe", str(path), "--out", str(out)]


def drive(path: Path, out: Path) -> Driver:
    return Driver([sys.executable, *command(path, out)], out.with_suffix(".log"))


def train(path: Path, out: Path) -> None:
    done = start(*command(path, out), timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def steps_made(out: Path, training: str) -> int:
    """Steps that the worker has written for `training`, in the folder that the job works in."""
    files = list(out.with_name(f".{out.name}-training").glob(f"{training}-*.steps.jsonl"))
    return sum(1 for file in files for _ in durable.read(file))


def result(out: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((out / "training.json").read_text())
    return told


def metrics(out: Path) -> list[dict[str, Any]]:
    return list(durable.read(out / "metrics.jsonl"))


def ended_as(calm: Path, out: Path) -> None:
    """The same bytes and figures as a training that nobody disturbed; nothing of the work is left."""
    for weights in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert (out / weights).read_bytes() == (calm / weights).read_bytes()
    assert Schema.load(out).id == Schema.load(calm).id  # scales, calibration, probes, hashes
    ours, theirs = ({key: value for key, value in result(at).items() if key not in OWN} for at in (out, calm))
    assert ours == theirs  # steps, tokens, losses: what was made a second time counts once
    ours, theirs = (json.loads((at / "card.json").read_text()) for at in (out, calm))
    assert {**ours, "training": None} == {**theirs, "training": None}
    # A step that came twice came out the same.
    once = {(line.get("learn/fold"), line["step"]): line for line in metrics(calm)}
    for line in metrics(out):
        same = once[line.get("learn/fold"), line["step"]]
        for key in ("learn/loss", "learn/tokens", "learn/grad_norm"):
            assert line[key] == same[key]
    assert metrics(out)[-1]["learn/step"] == result(calm)["steps"]
    assert not list(out.parent.glob(".*-training"))
    assert not list(out.parent.rglob(f".*{durable.TEMPORARY}"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(recipe, reward model) of a training that nobody disturbed."""
    folder = tmp_path_factory.mktemp("calm")
    path = recipe(folder, "preference", early_stopping={"every": 2, "patience": 99})
    train(path, folder / "calm")
    told = result(folder / "calm")
    assert told["steps"] >= 10
    assert told["resumed_at"] == 0
    assert [line["learn/step"] for line in metrics(folder / "calm")] == list(range(1, told["steps"] + 1))
    return path, folder / "calm"


def test_a_killed_driver_loses_no_finished_step(undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    path, calm = undisturbed
    out = tmp_path / "killed"
    with drive(path, out) as driver:
        # A step's line comes after its predecessor's checkpoint was taken over: at the fourth there are two at least.
        driver.until(lambda: steps_made(out, "tiny") >= 4, "the fourth step")
        assert driver.end(signal.SIGKILL) == -signal.SIGKILL
        assert driver.left_behind() == []
    assert not out.exists()  # nothing looks finished that is not
    train(path, out)
    assert 1 <= result(out)["resumed_at"] < result(calm)["steps"]
    ended_as(calm, out)
    weights = (out / "model.safetensors").stat().st_mtime_ns
    done = start(*command(path, out), timeout=600)  # and once more: there is nothing left to do
    assert done.returncode == 0, done.stderr
    assert "finished before" in done.stdout
    assert (out / "model.safetensors").stat().st_mtime_ns == weights


def test_a_killed_worker_is_replaced_and_goes_on(undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    path, calm = undisturbed
    out = tmp_path / "killed"
    with drive(path, out) as driver:
        driver.until(lambda: steps_made(out, "tiny") >= 4, "the fourth step")
        driver.kill("ray::RayTrainWorker")
        assert driver.end() == 0, driver.said()
        assert driver.left_behind() == []
    assert 1 <= result(out)["resumed_at"] < result(calm)["steps"]
    ended_as(calm, out)


def test_a_cross_validation_trains_no_finished_fold_again(tmp_path: Path) -> None:
    """Killed in the second fold: the first one is found, the second goes on, the network for use comes after both."""
    path = recipe(tmp_path / "data", "comparer", folds=2)
    calm, out = tmp_path / "calm", tmp_path / "killed"
    train(path, calm)
    with drive(path, out) as driver:
        driver.until(lambda: steps_made(out, "tiny-fold1") >= 3, "the third step of the second fold")
        assert driver.end(signal.SIGKILL) == -signal.SIGKILL
        assert driver.left_behind() == []
    train(path, out)
    ended_as(calm, out)
    first = [line["step"] for line in metrics(out) if line.get("learn/fold") == 0]
    assert first == sorted(set(first)) == [line["step"] for line in metrics(calm) if line.get("learn/fold") == 0]
