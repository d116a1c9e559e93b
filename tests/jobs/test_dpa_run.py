"""The whole of jobs/dpa.py on a policy of two layers, undisturbed and killed: the same selected set, no sample twice."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from rhumbline.records import Completion, Selected
from rhumbline.store import RunStore
from tests.jobs.dpa_runs import kill_when, recipe, run, start


def selected(runs: Path) -> dict[str, list[tuple[str, tuple[float, ...], str]]]:
    """What a run kept, by iteration."""
    store = RunStore.open(runs / "tiny")
    return {
        stage: [
            (s.scored.completion.id, s.direction, s.scored.completion.text)
            for s in store.read(f"{stage}/selected", Selected)
        ]
        for stage in ("iterations/t=0", "iterations/t=1")
    }


def no_sample_twice(runs: Path) -> None:
    store = RunStore.open(runs / "tiny")
    lines = [json.loads(line) for line in (runs / "tiny" / "ledger.jsonl").read_text().splitlines()]
    assert len({(line["stage"], line["index"]) for line in lines}) == len(lines)
    for stage in ("iterations/t=0", "iterations/t=1", "evaluation/t=1"):
        ids = [c.id for c in store.read(f"{stage}/rollouts", Completion)]
        assert len(ids) == len(set(ids)) > 0


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(recipe, runs) of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("dpa")
    path = recipe(folder)
    done = run(path, folder / "runs")
    assert done.returncode == 0, done.stdout + done.stderr
    return path, folder / "runs"


def test_a_run_leaves_what_the_contract_says(undisturbed: tuple[Path, Path]) -> None:
    _, runs = undisturbed
    home = runs / "tiny"
    for name in (
        "recipe.yaml",
        "recipe.resolved.yaml",
        "env.json",
        "metrics.jsonl",
        "events.jsonl",
        "ledger.jsonl",
        "README.md",
        "report/index.html",
        "report/summary.json",
        "rewards/calibration.json",
        "evaluation/initial.json",
        "evaluation/t=1.json",
        "checkpoints/t=1/model.safetensors",
        "checkpoints/t=1/steering.json",
        "checkpoints/t=1/tokenizer.json",
        "checkpoints/t=1/adapter/adapter_model.safetensors",
    ):
        assert (home / name).is_file(), name
    assert json.loads((home / "status.json").read_text())["state"] == "done"
    assert not list(home.rglob("*.bin"))  # no pickled weights
    summary = json.loads((home / "report" / "summary.json").read_text())
    assert summary["objectives"] == ["helpfulness", "verbosity"]
    assert [entry["t"] for entry in summary["iterations"]] == [0, 1]
    assert all(len(entry["directions"]) == 2 for entry in summary["iterations"])
    assert all(d["kl"]["value"] is not None for d in summary["iterations"][1]["directions"])
    assert summary["selected"]["failed"] == 0
    assert summary["selected"]["unique"] > 0
    assert {s["name"] for s in summary["stages"]} >= {"iterations/t=0", "iterations/t=1/learn", "evaluation/t=1"}
    no_sample_twice(runs)


def test_the_checkpoint_loads_as_it_is(undisturbed: tuple[Path, Path]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = undisturbed[1] / "tiny" / "checkpoints" / "t=1"
    assert AutoModelForCausalLM.from_pretrained(folder).config.num_hidden_layers == 2
    assert AutoTokenizer.from_pretrained(folder).chat_template


def test_a_finished_run_resumes_to_the_same_end_at_once(undisturbed: tuple[Path, Path]) -> None:
    path, runs = undisturbed
    before, kept = (runs / "tiny" / "ledger.jsonl").read_text(), selected(runs)
    done = run(path, runs, "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (runs / "tiny" / "ledger.jsonl").read_text() == before
    assert selected(runs) == kept


def test_the_front_of_a_checkpoint_and_of_its_adapter(undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    path, runs = undisturbed
    checkpoint = runs / "tiny" / "checkpoints" / "t=1"
    done = start("jobs/frontier.py", str(checkpoint), "--recipe", str(path), "--runs", str(tmp_path), "--name", "front")
    assert done.returncode == 0, done.stdout + done.stderr
    again = json.loads((tmp_path / "front" / "report" / "summary.json").read_text())["iterations"][0]
    before = json.loads((runs / "tiny" / "report" / "summary.json").read_text())["iterations"][1]
    assert again["hypervolume"] == before["hypervolume"]  # same weights, prompts, seeds and reference point
    done = start(
        "jobs/frontier.py",
        str(checkpoint),
        "--recipe",
        str(path),
        "--runs",
        str(tmp_path),
        "directions.codec=dpa-int100",
    )
    assert done.returncode == 2
    assert "directions.codec" in done.stderr


@pytest.mark.slow
def test_t0_by_steerlm_and_iterations_that_let_the_best_compete_again(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Question {i}?", "response": "word " * (1 + i % 7), "ratings": {"helpfulness": i % 5}}
        for i in range(40)
    ]
    (tmp_path / "rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = recipe(
        tmp_path,
        iterations=3,
        initial={"strategy": "steerlm", "labelled": str(tmp_path / "rated.jsonl")},
        selection={"rule": "pooled", "keep_best": True},
    )
    done = run(path, tmp_path / "runs")
    assert done.returncode == 0, done.stdout + done.stderr
    home = tmp_path / "runs" / "tiny"
    steering = [json.loads((home / "checkpoints" / f"t={t}" / "steering.json").read_text()) for t in (0, 1)]
    assert [s["codec"]["name"] for s in steering] == ["steerlm", "dpa-float1"]
    kept = list(RunStore.open(home).read("iterations/t=3/selected", Selected))
    assert {s.scored.completion.query.iteration for s in kept} <= {1, 3}
    assert any(s.scored.completion.query.iteration == 3 for s in kept)


WHEN: dict[str, Callable[[Path], Path]] = {
    "while t=0 is sampled": lambda home: home / "iterations" / "t=0" / "rollouts" / "shard-00001.parquet",
    "while t=0 is learned": lambda home: home / "iterations" / "t=0" / "selected" / "shard-00000.parquet",
    "while t=1 is scored": lambda home: home / "iterations" / "t=1" / "scores" / "shard-00000.parquet",
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", list(WHEN))
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_driver_loses_no_finished_work(
    undisturbed: tuple[Path, Path], tmp_path: Path, moment: str, signum: int
) -> None:
    path, runs = undisturbed[0], tmp_path / "runs"
    kill_when(path, runs, WHEN[moment](runs / "tiny"), signum)
    finished = {f: f.stat().st_mtime_ns for f in (runs / "tiny").rglob("shard-*.parquet")}
    assert finished
    done = run(path, runs, "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {f: f.stat().st_mtime_ns for f in finished} == finished  # what was there was not made again
    assert selected(runs) == selected(undisturbed[1])
    no_sample_twice(runs)
