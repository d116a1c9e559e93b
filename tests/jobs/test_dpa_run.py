"""The whole of jobs/dpa.py on a policy of two layers, undisturbed, killed and stopped: the same selected set, no sample twice."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rhumbline import durable
from rhumbline.records import Completion, Selected
from rhumbline.store import RunStore
from tests.jobs.dpa_runs import Driver, command, drive, recipe, run, start


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


@pytest.mark.slow
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
    store = RunStore.open(home)
    kept = list(store.read("iterations/t=3/selected", Selected))
    before = {s.scored.completion.id for s in store.read("iterations/t=1/selected", Selected)}
    fresh = len(list(store.read("iterations/t=3/scores")))
    assert store.shards("iterations/t=3/selected")[0].notes["candidates"] == fresh + len(before)  # each competes once
    assert {s.scored.completion.query.iteration for s in kept} <= {1, 3}
    assert any(s.scored.completion.query.iteration == 3 for s in kept)


# --- disturbed --------------------------------------------------------------------------------------------------------

EVERY_STEP = "learner.checkpoint_every=1"  # of training; what a run yields does not depend on it
MOMENTS: dict[str, Callable[[Path], bool]] = {
    "sampling": lambda home: (home / "iterations/t=0/rollouts/shard-00001.parquet").is_file(),
    "learning": lambda home: len(list(durable.read(home / "train/tiny-t0.steps.jsonl"))) >= 3,  # of 6; two checkpoints
    "sampling t=1": lambda home: (home / "iterations/t=1/rollouts/shard-00000.parquet").is_file(),
    "scoring t=1": lambda home: (home / "iterations/t=1/scores/shard-00000.parquet").is_file(),
}


def reach(driver: Driver, home: Path, moment: str) -> None:
    driver.until(lambda: MOMENTS[moment](home), moment)


def goes_on_as_if_nothing_had_been(undisturbed: tuple[Path, Path], runs: Path) -> None:
    """--resume: exit code 0, what was recorded is not made again, and the same set is selected."""
    finished = made_at(runs / "tiny")
    assert finished
    done = run(undisturbed[0], runs, "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    assert finished.items() <= made_at(runs / "tiny").items()
    steps = [
        (row["step"], row["learn/step"]) for row in durable.read(runs / "tiny/metrics.jsonl") if "learn/step" in row
    ]
    assert steps
    assert len(steps) == len(set(steps))  # also those that were made a second time
    ended_as(undisturbed, runs)


def made_at(home: Path) -> dict[str, int]:
    """When each shard of the ledger was written."""
    files = [str(line["file"]) for line in durable.read(home / "ledger.jsonl")]
    return {file: (home / file).stat().st_mtime_ns for file in files}


def ended_as(undisturbed: tuple[Path, Path], runs: Path) -> None:
    home = runs / "tiny"
    assert status(home)["state"] == "done"
    assert selected(runs) == selected(undisturbed[1])
    no_sample_twice(runs)
    assert list((home / "train").iterdir()) == []
    assert not list(home.rglob(f".*{durable.TEMPORARY}"))


def status(home: Path) -> dict[str, Any]:
    return json.loads((home / "status.json").read_text())


def events(home: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in durable.read(home / "events.jsonl") if event["event"] == kind]


def resumed_at(home: Path) -> int:
    """The step of t=0's training that it went on from after a kill."""
    learned = json.loads((home / "iterations" / "t=0" / "learn.json").read_text())
    return int(learned["resumed_at"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "signum", "code", "state"),
    [
        ("sampling", signal.SIGINT, 130, "stopped"),
        ("learning", signal.SIGINT, 130, "stopped"),
        ("learning", signal.SIGTERM, 143, "stopped"),
        ("learning", signal.SIGKILL, -9, "running"),
        ("scoring t=1", signal.SIGKILL, -9, "running"),
    ],
)
def test_a_stopped_or_killed_driver_loses_no_finished_work(
    undisturbed: tuple[Path, Path], tmp_path: Path, moment: str, signum: signal.Signals, code: int, state: str
) -> None:
    runs = tmp_path / "runs"
    home = runs / "tiny"
    with drive(undisturbed[0], runs, EVERY_STEP) as driver:
        reach(driver, home, moment)
        assert driver.end(signum) == code, driver.said()
        assert driver.left_behind() == []
    assert status(home)["state"] == state
    if state == "stopped":
        assert f"stopped by {signum.name}: what is finished is recorded" in driver.said()
        assert "Traceback" not in driver.said()
    if moment == "learning":  # a checkpoint that is not finished is what it leaves
        assert (home / "checkpoints" / f".t=0{durable.TEMPORARY}").is_dir()
    goes_on_as_if_nothing_had_been(undisturbed, runs)
    if moment == "learning":
        assert resumed_at(home) >= 1


@pytest.mark.slow
def test_a_run_outlives_a_killed_scorer_a_killed_worker_of_the_learner_and_a_killed_generator(
    undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    home = runs / "tiny"
    with drive(undisturbed[0], runs, EVERY_STEP) as driver:
        reach(driver, home, "sampling")
        driver.kill("ray::Scorer")
        reach(driver, home, "learning")
        driver.kill("ray::RayTrainWorker")
        reach(driver, home, "sampling t=1")  # its successor has to load t=0's weights, too
        driver.kill("ray::Generator")
        assert driver.end() == 0, driver.said()
        assert driver.left_behind() == []
    assert [event["role"] for event in events(home, "replaced")] == ["scorer", "generator"]
    assert resumed_at(home) >= 1
    ended_as(undisturbed, runs)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["sampling", "learning"])
def test_a_full_disk_ends_the_run_and_costs_no_finished_work(
    undisturbed: tuple[Path, Path], small_disk: Path, moment: str
) -> None:
    runs, ballast = small_disk / "runs", small_disk / "ballast"
    home = runs / "tiny"
    with Driver(command(undisturbed[0], runs, EVERY_STEP), small_disk.with_suffix(".log")) as driver:
        reach(driver, home, moment)
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        assert driver.end() != 0, driver.said()
        assert driver.left_behind() == []
    said = " ".join(driver.said().split())  # it comes wrapped at the width of a terminal
    assert "the disk is full" in said or "No space left on device" in said
    ballast.unlink()
    goes_on_as_if_nothing_had_been(undisturbed, runs)


@pytest.mark.slow
def test_the_quickstart_stops_its_job_goes_on_with_it_and_makes_no_run_of_another_recipe(
    undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    """`ray job submit` and `ray job stop`, on a cluster of the script's own."""
    path, runs = undisturbed[0], tmp_path / "runs"
    home = runs / "tiny"
    on_path = {"RHUMBLINE_RUNS": str(runs), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def quickstart(*arguments: str) -> Driver:
        return Driver(["cluster/quickstart.sh", str(path), *arguments], tmp_path / "quickstart.log", **on_path)

    with quickstart() as script:
        reach(script, home, "sampling")
        assert script.end(signal.SIGINT) == 130, script.said()
        assert "stopping the job" in script.said()
        assert script.left_behind() == []
    assert status(home)["state"] == "stopped"
    finished = made_at(home)
    assert finished
    with quickstart() as script:
        assert script.end() == 0, script.said()
        assert "continuing the unfinished run" in script.said()
        assert script.left_behind() == []
    assert finished.items() <= made_at(home).items()
    ended_as(undisturbed, runs)
    for arguments, code, said in (([], 0, "already finished"), (["seed=4"], 2, "seed: 3 -> 4")):
        with quickstart(*arguments) as script:
            assert script.end() == code, script.said()
            assert said in script.said()
            assert "starting Ray" not in script.said()
