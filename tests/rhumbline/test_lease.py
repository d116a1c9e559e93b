"""One driver per run: who is refused, who takes over, and what the last state says."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import pytest

from rhumbline import lease
from rhumbline.errors import RunError, StoreError
from rhumbline.store import RunStore
from tests.rhumbline.store_runs import STAGE, kill, prompts, recipe, resume, set_status


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore.create(tmp_path, recipe(), resume=False)


def test_a_run_in_use_is_refused(store: RunStore) -> None:
    with pytest.raises(RunError, match=rf"in use by process {os.getpid()} on {socket.gethostname()}"):
        resume(store)
    store.publish(STAGE, 0, prompts("a"))  # and its owner notices nothing


def test_a_run_in_use_on_another_machine_is_refused_while_its_heart_beats(store: RunStore) -> None:
    set_status(store, host="elsewhere", pid=1)
    with pytest.raises(RunError, match="in use by process 1 on elsewhere"):
        resume(store)
    set_status(store, heartbeat=time.time() - lease.STALE_AFTER_S - 1)
    resume(store)


@pytest.mark.parametrize("why", ["its process is gone", "it fell silent", "it ended"])
def test_a_dead_drivers_run_is_taken_over(store: RunStore, why: str) -> None:
    store.publish(STAGE, 0, prompts("a"))
    if why == "its process is gone":
        kill(store)
    elif why == "it fell silent":
        set_status(store, heartbeat=time.time() - lease.STALE_AFTER_S - 1)
    else:
        store.close("stopped")
    again = resume(store)
    assert again.done(STAGE) == {0}
    assert again.status()["state"] == "running"
    assert again.status()["pid"] == os.getpid()


def test_a_driver_that_wakes_up_late_does_not_write_into_the_new_ones_run(store: RunStore) -> None:
    set_status(store, heartbeat=time.time() - lease.STALE_AFTER_S - 1)
    again = resume(store)
    for write in (lambda: store.publish(STAGE, 0, prompts("a")), store.heartbeat, lambda: store.mark("x", {})):
        with pytest.raises(RunError, match="was taken over by process"):
            write()
    store.close("failed")
    assert again.status()["state"] == "running"


def test_one_of_many_wins_a_dead_drivers_run(store: RunStore) -> None:
    kill(store)
    barrier, won, lost = threading.Barrier(8), [], []

    def contend() -> None:
        barrier.wait()
        try:
            won.append(lease.take(store.path))
        except RunError as e:
            lost.append(e)

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 7)


def test_the_heart_beats_while_the_driver_is_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_EVERY_S", 0.01)
    with RunStore.create(tmp_path, recipe(), resume=False) as store:
        store.heartbeat("iterations/t=1/rollouts", done=3, total=10)
        first = store.status()["heartbeat"]
        for _ in range(1000):
            if store.status()["heartbeat"] > first:
                break
            time.sleep(0.01)
        status = store.status()
        assert status["heartbeat"] > first
        assert (status["stage"], status["progress"]) == ("iterations/t=1/rollouts", {"done": 3, "total": 10})
    assert store.status()["state"] == "done"
    with pytest.raises(RunError, match="was closed"):
        store.publish(STAGE, 0, prompts("a"))


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (KeyboardInterrupt(), "stopped", "on request"),
        (SystemExit(2), "stopped", "on request"),
        (StoreError("full"), "failed", "StoreError: full"),
    ],
)
def test_the_last_state_says_how_it_ended(tmp_path: Path, error: BaseException, state: str, reason: str) -> None:
    with pytest.raises(type(error)), RunStore.create(tmp_path, recipe(), resume=False) as store:
        raise error
    assert store.status()["state"] == state
    assert reason in store.status()["reason"]
