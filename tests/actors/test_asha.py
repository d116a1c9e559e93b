"""ASHA over two sessions of a search: Tune itself brings back trials and searcher, and of a scheduler nothing."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest

from actors.asha import Asha


def asha(file: Path) -> Asha:
    return Asha(file, metric="reward", mode="max", grace_period=1, reduction_factor=2, max_t=8)


def says(scheduler: Asha, name: str, step: int, reward: float) -> str:
    return scheduler.on_trial_result(
        None, SimpleNamespace(trial_id=name), {"training_iteration": step, "reward": reward}
    )


def add(scheduler: Asha, name: str) -> None:
    scheduler.on_trial_add(None, SimpleNamespace(trial_id=name))


def test_a_worse_trial_is_stopped_by_what_came_before_it(tmp_path: Path) -> None:
    scheduler = asha(tmp_path / "tune" / "asha.pkl")
    add(scheduler, "good")
    add(scheduler, "bad")
    assert says(scheduler, "good", 1, 2.0) == "CONTINUE"  # the first has nothing to be compared with
    assert says(scheduler, "bad", 1, 1.0) == "STOP"


@pytest.mark.parametrize("ended", [False, True], ids=["under way", "ended"])
def test_a_resumed_search_compares_with_trials_of_the_session_before(tmp_path: Path, ended: bool) -> None:
    scheduler = asha(tmp_path / "asha.pkl")
    stored = pickle.dumps(scheduler)  # as tuner.pkl has it: before the first trial
    add(scheduler, "good")
    says(scheduler, "good", 1, 2.0)
    if ended:
        scheduler.on_trial_complete(None, SimpleNamespace(trial_id="good"), {"training_iteration": 2, "reward": 3.0})
    again = pickle.loads(stored)
    add(again, "good")
    add(again, "bad")
    assert says(again, "good", 1, 0.0) == "CONTINUE"  # it was compared here before, and is not again
    assert says(again, "bad", 1, 1.0) == "STOP"
    assert [path.name for path in tmp_path.iterdir()] == ["asha.pkl"]


def test_a_search_that_was_moved_keeps_its_state_where_it_is_now(tmp_path: Path) -> None:
    first = asha(tmp_path / "asha.pkl")
    add(first, "good")
    says(first, "good", 1, 2.0)
    (tmp_path / "moved").mkdir()
    (tmp_path / "asha.pkl").rename(tmp_path / "moved" / "asha.pkl")
    moved = asha(tmp_path / "moved" / "asha.pkl")
    add(moved, "bad")
    assert says(moved, "bad", 1, 1.0) == "STOP"
    assert not (tmp_path / "asha.pkl").exists()
