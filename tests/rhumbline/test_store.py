"""The run directory: what a kill, a full disk, a second driver and another recipe may do to it, and may not."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rhumbline import durable
from rhumbline.config import GrpoRecipe, validate
from rhumbline.errors import RunError, StoreError
from rhumbline.records import Prompt, Query, Scored
from rhumbline.store import FREE_KEYS, RunStore
from tests.rhumbline.store_runs import STAGE, kill, prompts, recipe, resume


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore.create(tmp_path, recipe(), resume=False)


# --- shards


def test_shards_come_back_in_index_order(store: RunStore) -> None:
    assert store.publish(STAGE, 1, prompts("c", "d"), {"seconds": 2.5, "failed": 1})
    assert store.publish(STAGE, 0, prompts("a", "b"))
    assert store.publish(STAGE, 2, [])  # every sample of it failed: done, with nothing in it
    assert store.publish("iterations/t=1/scores", 0, prompts("z"))
    assert store.done(STAGE) == {0, 1, 2}
    assert list(store.read(STAGE)) == prompts("a", "b", "c", "d")
    assert [shard.rows for shard in store.shards(STAGE)] == [2, 2, 0]
    assert store.shards(STAGE)[1].notes == {"seconds": 2.5, "failed": 1}
    assert (store.path / "iterations/t=1/rollouts/shard-00001.parquet").is_file()
    assert store.done("iterations/t=2/rollouts") == set()


def test_reading_asks_for_a_kind(store: RunStore) -> None:
    store.publish(STAGE, 0, prompts("a"))
    assert [prompt.id for prompt in store.read(STAGE, Prompt)] == ["a"]
    with pytest.raises(StoreError, match="holds Prompt records, expected Scored"):
        list(store.read(STAGE, Scored))


def test_publishing_twice_counts_once(store: RunStore) -> None:
    assert store.publish(STAGE, 0, prompts("a"))
    ledger, file = store.path / "ledger.jsonl", store.path / store.shards(STAGE)[0].file
    before = ledger.read_bytes(), file.stat().st_mtime_ns
    assert not store.publish(STAGE, 0, prompts("a", "b"))
    assert (ledger.read_bytes(), file.stat().st_mtime_ns) == before
    assert list(store.read(STAGE)) == prompts("a")


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_broken_shard_is_missing_and_made_again(store: RunStore, damage: str) -> None:
    store.publish(STAGE, 0, prompts("a"))
    store.publish(STAGE, 1, prompts("b"))
    file = store.path / store.shards(STAGE)[0].file
    data = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(data[:-10] if damage == "cut" else data[:50] + b"?" + data[51:])
    assert store.done(STAGE) == {1}
    assert list(store.read(STAGE)) == prompts("b")
    assert store.publish(STAGE, 0, prompts("a"))
    assert list(store.read(STAGE)) == prompts("a", "b")
    kill(store)
    assert resume(store).done(STAGE) == {0, 1}  # the later of the two lines counts


def test_a_torn_ledger_loses_its_last_line_only(store: RunStore) -> None:
    for index in range(3):
        store.publish(STAGE, index, prompts(f"p{index}"))
    ledger = store.path / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes()[:-25])
    kill(store)
    again = resume(store)
    assert again.done(STAGE) == {0, 1}
    assert again.publish(STAGE, 2, prompts("p2"))
    assert list(again.read(STAGE)) == prompts("p0", "p1", "p2")
    assert list(RunStore.open(store.path).read(STAGE)) == prompts("p0", "p1", "p2")


def test_a_file_that_never_reached_the_ledger_is_made_again(store: RunStore) -> None:
    store.publish(STAGE, 0, prompts("a"))
    (store.path / "ledger.jsonl").unlink()  # killed between the rename and the ledger's line
    assert store.done(STAGE) == set()
    assert store.publish(STAGE, 0, prompts("a"))
    assert list(store.read(STAGE)) == prompts("a")


def test_unfinished_files_are_swept_when_a_run_goes_on(store: RunStore) -> None:
    store.publish(STAGE, 0, prompts("a"))
    leftover = store.path / STAGE / f".shard-00001.parquet.0{durable.TEMPORARY}"
    leftover.write_bytes(b"half")
    mine = store.path / STAGE / "notes.tmp"
    mine.write_text("a person's own file")
    kill(store)
    resume(store)
    assert not leftover.exists()
    assert mine.exists()


@pytest.mark.parametrize("when", ["shard", "ledger"])
def test_a_full_disk_harms_nothing(store: RunStore, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    store.publish(STAGE, 0, prompts("a"))
    ledger = (store.path / "ledger.jsonl").read_bytes()
    calls = iter([when == "shard", True])

    def full(descriptor: int) -> None:
        if next(calls):
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        # The folder's own sync may fail silently; only the files' count.
        patch.setattr(durable, "_sync_folder", lambda folder: None)
        with pytest.raises(StoreError) as error:
            store.publish(STAGE, 1, prompts("b"))
    assert "iterations/t=1/rollouts shard 1" in str(error.value)
    assert "the disk is full" in str(error.value)
    assert "safe" in str(error.value)
    assert "--resume" in str(error.value)
    assert (store.path / "ledger.jsonl").read_bytes() == ledger
    assert [p.name for p in store.path.rglob(f"*{durable.TEMPORARY}")] == []
    assert store.done(STAGE) == {0}
    assert store.publish(STAGE, 1, prompts("b"))  # once there is room again
    assert list(store.read(STAGE)) == prompts("a", "b")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_disk_that_really_is_full(store: RunStore) -> None:
    events = store.path / "events.jsonl"  # written only: reading /dev/full never ends
    events.unlink()
    events.symlink_to("/dev/full")
    with pytest.raises(StoreError, match="the disk is full"):
        store.event("quarantined")


@pytest.mark.parametrize("name", ["../other/rollouts", "/tmp/rollouts", "a//b", "", "a/../b", ".hidden", "a b"])
def test_stages_stay_inside_the_run(store: RunStore, name: str) -> None:
    with pytest.raises(StoreError, match="look like iterations/t=1/rollouts"):
        store.publish(name, 0, prompts("a"))
    with pytest.raises(StoreError):
        store.mark(name, {})


# --- marks, events


def test_marks_are_small_json_documents(store: RunStore) -> None:
    assert store.marked("evaluation/t=1") is None
    store.mark("evaluation/t=1", {"rewards": [61.5, float("nan")], "path": Path("checkpoints/t=1")})
    assert store.marked("evaluation/t=1") == {"rewards": [61.5, None], "path": "checkpoints/t=1"}
    assert (store.path / "evaluation" / "t=1.json").is_file()
    store.mark("evaluation/t=1", {"rewards": []})
    assert store.marked("evaluation/t=1") == {"rewards": []}
    with pytest.raises(StoreError, match=r"keeps its own status\.json"):
        store.mark("status", {})
    assert store.checkpoint_dir(2) == store.path / "checkpoints" / "t=2"
    assert store.checkpoint_dir(2).parent.is_dir()


def test_events_are_told_in_order(store: RunStore) -> None:
    store.event("quarantined", prompt="p1", attempts=3)
    kill(store)
    resume(store, generator={"replicas": 2})
    events = list(durable.read(store.path / "events.jsonl"))
    assert [event["event"] for event in events] == ["created", "quarantined", "resumed"]
    assert events[2]["changes"] == ["generator.replicas: 1 -> 2"]


# --- whose run it is


def test_a_new_run_holds_what_it_promises(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "runs", recipe(), resume=False, asked="extends: dpa.yaml\n")
    status = store.status()
    assert (status["state"], status["pid"], status["host"]) == ("running", os.getpid(), socket.gethostname())
    assert abs(status["heartbeat"] - time.time()) < 30
    assert (store.path / "recipe.yaml").read_text() == "extends: dpa.yaml\n"
    environment = json.loads((store.path / "env.json").read_text())
    assert environment["python"] == sys.version.split()[0]
    assert {"rhumbline", "numpy", "pyarrow"} <= set(environment["versions"])


def test_an_existing_run_is_left_alone(store: RunStore) -> None:
    store.publish(STAGE, 0, prompts("a"))
    store.close("done")
    before = {path: path.stat().st_mtime_ns for path in store.path.rglob("*")}
    with pytest.raises(RunError, match=r"holds a run already: add --resume.*or --name"):
        RunStore.create(store.path.parent, recipe(), resume=False)
    with pytest.raises(RunError, match="run of another recipe") as error:
        resume(store, seed=7, samples=3)
    assert "samples: 16 -> 3" in str(error.value)
    assert "seed: 0 -> 7" in str(error.value)
    assert {path: path.stat().st_mtime_ns for path in store.path.rglob("*")} == before


def test_where_the_work_is_done_may_change_but_not_what_it_yields(store: RunStore) -> None:
    online = validate(
        {**recipe().model_dump(exclude={"job", "iterations", "selection"}), "job": "grpo"}, "x", kind=GrpoRecipe
    )
    known = set(flat(recipe().model_dump())) | set(flat(online.model_dump()))
    assert known >= FREE_KEYS, FREE_KEYS - known  # a key that is renamed must be renamed there
    store.close("failed")
    moved = {"generator": {"replicas": 4, "num_cpus": 2, "threads": 2, "deadline_s": 5, "max_attempts": 1}}
    again = resume(store, scorer={"replicas": 2, "num_gpus": 1}, learner={"max_failures": 0}, **moved)
    again.close("failed")
    for frozen in ({"learner": {"num_workers": 2}}, {"generator": {**moved["generator"], "backend": "transformers"}}):
        with pytest.raises(RunError, match="another recipe"):
            resume(store, **frozen)


def flat(value: Any, prefix: str = "") -> list[str]:
    if not isinstance(value, dict):
        return [prefix]
    return [path for key, sub in value.items() for path in flat(sub, f"{prefix}.{key}" if prefix else key)]


def test_resuming_what_is_not_there_yet_starts_it(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path, recipe(), resume=True)
    assert store.publish(STAGE, 0, prompts("a"))


def test_a_folder_that_is_no_run_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    for resumed in (False, True):
        with pytest.raises(RunError):
            RunStore.create(tmp_path, recipe(), resume=resumed)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be made"):
        RunStore.create(tmp_path, recipe(name="file"), resume=False)
    RunStore.create(tmp_path, recipe(name="run1"), resume=False).close("done")
    with pytest.raises(RunError, match="Did you mean 'run1'"):
        RunStore.open(tmp_path / "run2")


def test_a_run_killed_in_its_first_moments_can_be_resumed(store: RunStore) -> None:
    kill(store)
    (store.path / "recipe.resolved.yaml").unlink()
    (store.path / "events.jsonl").unlink()
    assert resume(store).publish(STAGE, 0, prompts("a"))


def test_a_store_opened_for_reading_does_not_write(store: RunStore) -> None:
    store.publish(STAGE, 0, prompts("a"))
    reader = RunStore.open(store.path)
    assert list(reader.read(STAGE)) == prompts("a")
    store.publish(STAGE, 1, prompts("b"))
    assert reader.done(STAGE) == {0, 1}  # it follows a run that goes on
    with pytest.raises(RunError, match="opened for reading"):
        reader.publish(STAGE, 2, prompts("c"))
    reader.close("done")
    assert store.status()["state"] == "running"


DRIVER = """
import sys
sys.path.insert(0, sys.argv[2])
from tests.rhumbline.store_runs import STAGE, prompts, recipe
from rhumbline.store import RunStore
with RunStore.create(sys.argv[1], recipe(), resume=True) as store:
    for index in sorted(set(range(40)) - store.done(STAGE)):
        store.publish(STAGE, index, prompts(f"{index}a", f"{index}b"))
        print(index, flush=True)
"""


def test_a_driver_killed_again_and_again_ends_with_every_sample_once(tmp_path: Path) -> None:
    finished = False
    for attempt in range(4):
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, tmp_path, Path(__file__).parents[2]], stdout=subprocess.PIPE, text=True
        )
        assert driver.stdout is not None
        for line in driver.stdout:
            if attempt < 3 and int(line) >= 10 * (attempt + 1):
                driver.send_signal(signal.SIGKILL)
        driver.stdout.close()
        finished = driver.wait() == 0
    assert finished
    store = RunStore.open(tmp_path / "run")
    assert store.status()["state"] == "done"
    ids = [prompt.id for prompt in store.read(STAGE, Prompt)]
    assert ids == [f"{index}{half}" for index in range(40) for half in "ab"]


def test_a_query_of_any_direction_is_kept(store: RunStore) -> None:
    (prompt,) = prompts("a")
    queries = [
        Query(
            prompt=prompt,
            iteration=0,
            direction=direction,
            direction_index=0,
            style="Be brief.",
            messages=prompt.messages,
            seed=2**62,
        )
        for direction in (None, (0.6, -0.8))
    ]
    store.publish("iterations/t=0/queries", 0, queries)
    assert list(store.read("iterations/t=0/queries")) == queries


def test_an_unfinished_checkpoint_is_swept_too(store: RunStore) -> None:
    half = store.checkpoint_dir(1).with_name(f".t=1{durable.TEMPORARY}")
    (half / "steps").mkdir(parents=True)
    (half / "steps" / "state.json").write_text("{}")
    kill(store)
    resume(store)
    assert not half.exists()


def test_other_inputs_are_not_mixed_into_a_run(tmp_path: Path) -> None:
    inputs = {"prompts": "aa", "reward model": "bb"}
    with RunStore.create(tmp_path, recipe(), resume=False, inputs=inputs):
        pass
    with RunStore.create(tmp_path, recipe(), resume=True, inputs=inputs):
        pass
    with pytest.raises(RunError, match="other reward model"):
        RunStore.create(tmp_path, recipe(), resume=True, inputs=inputs | {"reward model": "cc"})
    with RunStore.create(tmp_path, recipe(), resume=True, inputs=inputs):  # the refusal harmed nothing
        pass


def test_a_run_is_not_made_where_ray_throws_it_away(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="absolute path"):
        RunStore.create(tmp_path / "working_dir_files" / "_ray_pkg_1" / "runs", recipe(), resume=False)
