"""The group of learners without Ray: whom it blames for a failed call, and when it is started anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayTaskError

from actors import ranks
from actors.ranks import Ranks, culprit
from rhumbline import config
from rhumbline.data.chat import Encoded
from rhumbline.errors import ConfigError, ResourceError, TrainingError
from rhumbline.learning.trajectories import Trajectory, read

CLOSED = RuntimeError("Connection closed by peer [127.0.0.1]:4711")
BATCH = [
    Trajectory(
        id="a",
        group="g",
        prompt_ids=(1,),
        response_ids=(2,),
        engine_logprobs=(),
        rewards=(1.0,),
        direction=(1.0,),
        truncated=False,
    )
]


def failed(cause: Exception) -> RayTaskError:
    """As `ray.get` raises what a method raised."""
    make: Any = RayTaskError  # untyped
    error: RayTaskError = make("update", "a traceback", cause).as_instanceof_cause()
    return error


class FakeRay:
    """Calls answer at once, with what `script` says for (method, rank): a value, an error, or LATE."""

    LATE = object()
    util = SimpleNamespace()

    def __init__(self, script: Callable[[str, int], Any]) -> None:
        self.script, self.alive, self.made = script, 0, 0

    def remote(self, _actor: type[Any]) -> Any:
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self._make))

    def _make(self, rank: int, _size: int, _arguments: Any) -> Any:
        self.alive, self.made = self.alive + 1, self.made + 1
        ray = self

        class Handle:
            def __getattr__(self, method: str) -> Any:
                return SimpleNamespace(remote=lambda *_: [ray.script(method, rank)])

        return Handle()

    def put(self, value: Any) -> Any:
        return value

    def wait(self, refs: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        assert num_returns == 1
        assert timeout >= 0
        ready = [ref for ref in refs if ref[0] is not self.LATE][:1]
        return ready, [ref for ref in refs if not any(ref is one for one in ready)]

    def get(self, refs: list[Any]) -> list[Any]:
        for (value,) in refs:
            if isinstance(value, BaseException):
                raise value
        return [value for (value,) in refs]

    def kill(self, _handle: Any) -> None:
        self.alive -= 1


def group(
    monkeypatch: pytest.MonkeyPatch, folder: Path, script: Callable[[str, int], Any], **learner: Any
) -> tuple[Ranks, FakeRay, list[dict[str, Any]]]:
    fake, events = FakeRay(script), []
    monkeypatch.setattr(ranks, "ray", fake)
    made = Ranks(
        {},
        config.Learner(num_workers=2, **learner),
        batch_of=lambda _: BATCH,
        states=folder / "states",
        deadline_s=5,
        failed_batch=folder / "failed.parquet",
        on_event=lambda _, fields: events.append(fields),
    )
    return made, fake, events


def test_a_foreign_error_is_the_fault_of_the_rank_that_died() -> None:
    died, closed = RayActorError(error_msg="rank 1 was killed"), failed(CLOSED)
    assert culprit(closed, [failed(CLOSED), died]) is died
    assert culprit(closed, [failed(CLOSED)]) is closed
    assert culprit(closed, []) is closed


def test_what_a_rank_raised_on_purpose_is_raised_as_it_was_and_nobody_is_waited_for() -> None:
    def never() -> Any:
        raise AssertionError("somebody was waited for")
        yield

    for cause in (TrainingError("step 3: the loss of 3 answers is nan"), ConfigError("set generator.sync to full")):
        told = culprit(failed(cause), never())
        assert type(told) is type(cause)
        assert told.args == cause.args
    told = culprit(failed(CLOSED), [failed(TrainingError("no room"))])
    assert isinstance(told, TrainingError)


def test_a_group_whose_rank_dies_makes_the_update_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    updates: list[int] = []

    def script(method: str, rank: int) -> Any:
        if method != "update":
            return "tcp://here" if method == "address" else None
        updates.append(rank)
        # The survivor notices first, and in its own words.
        return (
            {0: failed(CLOSED), 1: RayActorError(error_msg="killed")}[rank]
            if len(updates) <= 2
            else {"learn/loss": 1.0}
        )

    made, fake, events = group(monkeypatch, tmp_path, script)
    with made as learners:
        assert learners.update(1) == {"learn/loss": 1.0}
        assert learners.at == 1
    assert (fake.made, fake.alive, len(updates)) == (4, 0, 4)
    assert [(event["method"], event["reason"].split(":")[0]) for event in events] == [("update", "RayActorError")]


def test_a_foreign_error_without_a_death_stops_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made, fake, events = group(
        monkeypatch, tmp_path, lambda method, rank: failed(CLOSED) if (method, rank) == ("update", 0) else FakeRay.LATE
    )
    made._actors = [fake.remote(object).options().remote(rank, 2, {}) for rank in (0, 1)]
    with pytest.raises(RuntimeError) as error:
        made.update(1)
    assert error.value.cause is CLOSED  # type: ignore[attr-defined]  # Ray's, on the error that it makes
    assert events == []


def test_a_rank_that_is_lost_while_the_group_starts_is_started_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tried: list[str] = []

    def script(method: str, _rank: int) -> Any:
        tried.append(method)
        return (
            RayActorError(error_msg="its machine went")
            if tried.count("setup") in (1, 2) and method == "setup"
            else None
        )

    made, fake, events = group(monkeypatch, tmp_path, script, max_failures=1)
    with made as learners:
        assert len(learners._actors) == 2
    assert [event["method"] for event in events] == ["setup"]
    made, fake, _ = group(monkeypatch, tmp_path, lambda *_: RayActorError(error_msg="its machine went"), max_failures=1)
    with pytest.raises(TrainingError, match=r"died or were late 2 times \(learner\.max_failures is 1\), last in setup"):
        made.__enter__()
    assert fake.alive == 0


def test_a_group_that_the_cluster_has_no_room_for_says_so_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made, fake, _ = group(monkeypatch, tmp_path, lambda *_: FakeRay.LATE, num_cpus=8)
    with pytest.raises(ResourceError, match=r"address gave no answer within 900 s\. Are 2 x 8 CPUs.*num_workers"):
        made.__enter__()
    assert (fake.made, fake.alive) == (2, 0)


def test_a_late_update_names_its_deadline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made, _, _ = group(
        monkeypatch,
        tmp_path,
        lambda method, _: FakeRay.LATE if method == "update" else None,
        max_failures=0,
    )
    with (
        made as learners,
        pytest.raises(TrainingError, match=r"died or were late 1 times.*within 5 s \(deadline_s\)"),
    ):
        learners.update(1)


def test_a_batch_that_an_update_failed_on_is_left_to_look_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    error = TrainingError("step 1: the loss of 1 answers is nan")
    made, _, _ = group(monkeypatch, tmp_path, lambda method, _: failed(error) if method == "update" else None)
    file = tmp_path / "failed.parquet"
    with made as learners, pytest.raises(TrainingError, match=rf"step 1: the loss.*nan\. The batch is in {file}"):
        learners.update(1)
    assert read(file) == BATCH


def test_a_failure_of_saving_leaves_no_batch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    error = TrainingError("no room")
    replies = {"publish": failed(error), "update": {"learn/loss": 1.0}}
    made, _, _ = group(monkeypatch, tmp_path, lambda method, _: replies.get(method))
    case = Encoded(token_ids=(1, 2), loss_mask=(False, True))
    with made as learners:
        learners.update(1)
        with pytest.raises(TrainingError, match=r"^no room$"):
            learners.publish(tmp_path / "t=1", full=True, stored=True, cases=[case])
    assert not (tmp_path / "failed.parquet").exists()
