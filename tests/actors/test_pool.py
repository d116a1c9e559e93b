"""The pool over a real Ray cluster, with real kills."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.pool import Failed, Pool
from rhumbline.errors import ConfigError, GenerationError, ResourceError
from tests.actors.pool_fakes import Worker

pytestmark = pytest.mark.usefixtures("cluster")


def pool(folder: Path, **options: Any) -> Pool:
    arguments = {"folder": str(folder), "setup": options.pop("setup", "fine")}
    return Pool(Worker, arguments, **{"role": "worker", "num_cpus": 0.5, "deadline_s": 60.0, **options})


def units(numbers: range) -> Iterator[tuple[int, tuple[Any, ...]]]:
    return ((number, (number,)) for number in numbers)


def calls(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir()}


def test_results_come_in_order_though_later_units_finish_first(tmp_path: Path) -> None:
    with pool(tmp_path, replicas=2) as workers:
        slow_first = ((n, (n, 1.0 if n == 0 else 0.0)) for n in range(6))
        assert list(workers.map("double", slow_first)) == [(n, 2 * n) for n in range(6)]


def test_units_are_fetched_only_as_results_are_taken(tmp_path: Path) -> None:
    fetched: list[int] = []

    def source() -> Iterator[tuple[int, tuple[int]]]:
        for number in range(100):
            fetched.append(number)
            yield number, (number,)

    with pool(tmp_path, queue_length=2) as workers:
        results = workers.map("double", source())
        assert fetched == []
        assert next(results) == (0, 0)
        assert len(fetched) <= 4  # two at the replica, one more in the window, one that was yielded
        assert [next(results)[1] for _ in range(9)] == [2 * n for n in range(1, 10)]
        assert len(fetched) <= 13


def test_a_second_pool_works_while_the_first_makes_the_next_unit(tmp_path: Path) -> None:
    """Chained pools: the first result leaves the second pool before the first pool has done its last unit."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with pool(first) as generators, pool(second) as scorers:
        made = generators.map("double", ((n, (n, 0.2)) for n in range(8)))
        scored = scorers.map("double", ((n, (value,)) for n, value in made))
        assert next(scored) == (0, 0)
        assert not (first / "call-7").exists()
        assert list(scored) == [(n, 4 * n) for n in range(1, 8)]


def test_a_killed_replica_loses_nothing_and_yields_each_unit_once(tmp_path: Path) -> None:
    events: list[str] = []
    with pool(tmp_path, replicas=2, on_event=lambda kind, fields: events.append(kind)) as workers:
        assert list(workers.map("die_once", units(range(8)))) == [(n, 2 * n) for n in range(8)]
    assert events == ["replaced"]
    assert calls(tmp_path)["setup"] == 3


def test_a_replica_killed_from_outside_is_replaced(tmp_path: Path) -> None:
    with pool(tmp_path) as workers:
        results = workers.map("double", ((n, (n, 0.3)) for n in range(5)))
        assert next(results) == (0, 0)
        pid = _pid(workers)
        os.kill(pid, signal.SIGKILL)
        assert list(results) == [(n, 2 * n) for n in range(1, 5)]
        assert _pid(workers) != pid


def test_a_poison_unit_is_given_up_and_the_others_are_done(tmp_path: Path) -> None:
    events: list[tuple[str, Any]] = []
    with pool(tmp_path, max_attempts=2, on_event=lambda kind, fields: events.append((kind, fields))) as workers:
        results = dict(workers.map("die_at_3", units(range(6))))
    failed = results.pop(3)
    assert isinstance(failed, Failed)
    assert failed.attempts == 2
    assert "died" in failed.error
    assert results == {n: 2 * n for n in (0, 1, 2, 4, 5)}
    assert [kind for kind, _ in events] == ["replaced", "replaced", "quarantined"]


def test_a_unit_that_a_method_refuses_is_tried_again_and_given_up(tmp_path: Path) -> None:
    with pool(tmp_path, max_attempts=3) as workers:
        results = dict(workers.map("refuse_3", units(range(5))))
    assert results[3] == Failed(error="prompt p3 has 9000 tokens", attempts=3)
    assert calls(tmp_path) == {"setup": 1, "call-0": 1, "call-1": 1, "call-2": 1, "call-3": 3, "call-4": 1}


def test_an_error_that_every_unit_meets_stops_the_run(tmp_path: Path) -> None:
    with (
        pool(tmp_path, max_attempts=2) as workers,
        pytest.raises(GenerationError, match=r"units in a row.*the engine is broken"),
    ):
        list(workers.map("refuse_all", units(range(1000))))
    assert len(calls(tmp_path)) < 10


def test_any_other_error_stops_the_run_at_once(tmp_path: Path) -> None:
    with pool(tmp_path) as workers, pytest.raises(ValueError, match="a bug at 0"):
        list(workers.map("wrong", units(range(3))))


def test_a_unit_that_outlives_its_deadline_is_done_by_another_replica(tmp_path: Path) -> None:
    with pool(tmp_path, deadline_s=3.0) as workers:
        before = _pid(workers)
        assert list(workers.map("hang_once", units(range(6)))) == [(n, 2 * n) for n in range(6)]
        assert _pid(workers) != before


def test_an_answer_that_is_there_is_not_late_however_long_its_reader_was_away(tmp_path: Path) -> None:
    events: list[str] = []
    with pool(tmp_path, replicas=2, deadline_s=2.0, on_event=lambda kind, fields: events.append(kind)) as workers:
        results = workers.map("double", units(range(8)))
        first = next(results)  # three more are done at the two replicas by then
        time.sleep(5.0)  # longer than the deadline of the second in a queue
        assert [first, *results] == [(n, 2 * n) for n in range(8)]
    assert events == []
    assert calls(tmp_path) == {"setup": 2, **{f"call-{n}": 1 for n in range(8)}}


def test_a_newcomer_hears_what_was_broadcast(tmp_path: Path) -> None:
    with pool(tmp_path, replicas=2) as workers:
        assert workers.broadcast("load", "t=1") == ["t=1", "t=1"]
        assert workers.broadcast("load", "t=2") == ["t=2", "t=2"]
        for pid in workers.pids():
            os.kill(pid, signal.SIGKILL)
        assert [result for _, result in workers.map("loaded", units(range(4)))] == [(n, "t=2") for n in range(4)]


def test_a_replica_that_dies_in_a_broadcast_is_asked_again(tmp_path: Path) -> None:
    with pool(tmp_path, replicas=2) as workers:
        os.kill(workers.pids()[1], signal.SIGKILL)
        assert workers.broadcast("load", "t=1") == ["t=1", "t=1"]
        assert len(set(workers.pids())) == 2


def test_a_broken_setup_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_model_length: unknown to vLLM"), pool(tmp_path, setup="broken"):
        pass


def test_a_setup_that_kills_its_process_is_not_tried_for_ever(tmp_path: Path) -> None:
    with pytest.raises(GenerationError, match=r"worker.*died"), pool(tmp_path, setup="fatal"):
        pass


def test_a_replica_that_fits_nowhere_is_an_error_with_what_was_wanted(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="worker"), pool(tmp_path, num_cpus=64, setup_deadline_s=3.0):
        pass


def test_a_map_that_is_left_early_leaves_a_pool_that_works(tmp_path: Path) -> None:
    with pool(tmp_path) as workers:
        results = workers.map("double", ((n, (n, 0.2)) for n in range(50)))
        next(results)
        results.close()  # type: ignore[attr-defined]  # a generator, which its type does not say
        assert list(workers.map("double", units(range(3)))) == [(n, 2 * n) for n in range(3)]


def test_closing_ends_the_processes(tmp_path: Path) -> None:
    with pool(tmp_path, replicas=2) as workers:
        pids = workers.pids()
    until = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < until:
        time.sleep(0.1)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def _pid(workers: Pool) -> int:
    (pid,) = workers.pids()
    return pid
