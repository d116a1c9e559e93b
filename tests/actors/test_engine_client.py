"""What a client is told of an engine behind a handle, and how its events come back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RequestCancelledError

from actors import engine_client
from actors.coalesce import together
from actors.engine_client import HandleEngine, Target, as_engine_error
from rhumbline.serving.protocols import EngineError


class EngineDeadError(Exception):
    """vLLM's has this name."""


class Response:
    """A handle's response: one answer, or batches of events."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.cancelled = answer, False

    def cancel(self) -> None:
        self.cancelled = True

    def __await__(self) -> Any:
        async def give() -> Any:
            if isinstance(self.answer, BaseException):
                raise self.answer
            return self.answer

        return give().__await__()

    async def __aiter__(self) -> AsyncIterator[Any]:
        for batch in self.answer:
            if isinstance(batch, BaseException):
                raise batch
            yield batch


class Method:
    def __init__(self, handle: Handle) -> None:
        self.handle = handle

    def remote(self, *arguments: Any) -> Response:
        self.handle.asked.append(arguments)
        self.handle.response = Response(self.handle.answers)
        return self.handle.response


class Handle:
    """Of a policy that answers whatever it is told to."""

    def __init__(self, answers: Any) -> None:
        self.answers, self.asked, self.response = answers, list[Any](), Response(None)
        self.answer = self.stream = self.check_health = Method(self)

    def options(self, stream: bool) -> Handle:
        assert stream
        return self


def engine(monkeypatch: pytest.MonkeyPatch, answers: Any) -> tuple[HandleEngine, Handle]:
    handle = Handle(answers)
    monkeypatch.setattr(engine_client, "handle_of", lambda _name, _app: handle)
    return HandleEngine({"smol": Target(app="smol--1", model="smol-1")}), handle


async def _all(events: AsyncIterator[Any]) -> list[Any]:
    return [event async for event in events]


def test_a_request_is_for_the_versions_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    one, handle = engine(monkeypatch, {"choices": []})
    assert asyncio.run(one.chat({"model": "smol", "n": 2}, request_id="r")) == {"choices": []}
    assert handle.asked == [("chat", {"model": "smol-1", "n": 2}, "r")]
    with pytest.raises(EngineError, match="no engine serves 'other'") as refused:
        asyncio.run(one.chat({"model": "other"}, request_id="r"))
    assert refused.value.status == 404


def test_events_become_chunks_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [['data: {"a": 1}\n\n'], ['data: {"a": 2}\n\ndata: {"a": 3}\n\n', "data: [DONE]\n\n"]]
    one, handle = engine(monkeypatch, batches)
    assert asyncio.run(_all(one.stream_chat({"model": "smol"}, request_id="r"))) == [{"a": 1}, {"a": 2}, {"a": 3}]
    assert not handle.response.cancelled


def test_a_closed_stream_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    one, handle = engine(monkeypatch, [['data: {"a": 1}\n\n'], ['data: {"a": 2}\n\n']])

    async def run() -> None:
        events: Any = one.stream_chat({"model": "smol"}, request_id="r")
        assert await anext(events) == {"a": 1}
        await events.aclose()

    asyncio.run(run())
    assert handle.response.cancelled


def test_vllms_refusals_keep_their_status(monkeypatch: pytest.MonkeyPatch) -> None:
    error = {"error": {"message": "too long", "type": "BadRequestError", "param": None, "code": 400}}
    one, _ = engine(monkeypatch, error)
    with pytest.raises(EngineError, match="too long") as refused:
        asyncio.run(one.complete({"model": "smol"}, request_id="r"))
    assert refused.value.status == 400
    for batches in ([[error]], [['data: {"error": {"message": "too long", "code": 400}}\n\n']]):
        one, _ = engine(monkeypatch, batches)
        with pytest.raises(EngineError, match="too long") as refused:
            asyncio.run(_all(one.stream_chat({"model": "smol"}, request_id="r")))
        assert refused.value.status == 400


def test_an_engine_that_died_within_a_stream_may_be_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    said = 'data: {"error": {"message": "EngineCore encountered an issue. See stack trace", "code": 500}}\n\n'
    one, _ = engine(monkeypatch, [['data: {"a": 1}\n\n'], [said]])
    with pytest.raises(EngineError, match="come again") as refused:
        asyncio.run(_all(one.stream_chat({"model": "smol"}, request_id="r")))
    assert refused.value.status == 503


@pytest.mark.parametrize(
    "raised",
    [
        BackPressureError(3, 2),
        DeploymentUnavailableError(DeploymentID(name="policy", app_name="smol--1")),
        ActorDiedError(),
        RayTaskError("answer", "Traceback", EngineDeadError("dead")).as_instanceof_cause(),
    ],
)
def test_what_may_be_tried_again_is_503(monkeypatch: pytest.MonkeyPatch, raised: Exception) -> None:
    one, _ = engine(monkeypatch, raised)
    with pytest.raises(EngineError, match="come again") as refused:
        asyncio.run(one.chat({"model": "smol"}, request_id="r"))
    assert refused.value.status == 503
    one, _ = engine(monkeypatch, [['data: {"a": 1}\n\n'], raised])
    with pytest.raises(EngineError, match="come again"):
        asyncio.run(_all(one.stream_chat({"model": "smol"}, request_id="r")))


@pytest.mark.parametrize("code", [StatusCode.UNKNOWN, StatusCode.CANCELLED, StatusCode.INTERNAL])
def test_a_connection_that_breaks_is_a_replica_that_died(code: StatusCode) -> None:
    told = as_engine_error(AioRpcError(code, Metadata(), Metadata(), details="Stream removed"))
    assert isinstance(told, EngineError)
    assert (told.status, told.code) == (503, "replica_died")


def test_other_errors_are_ours_and_cancelling_stays_cancelling() -> None:
    told = as_engine_error(RayTaskError("answer", "Traceback", ValueError("x")).as_instanceof_cause())
    assert isinstance(told, EngineError)
    assert told.status == 500
    assert isinstance(as_engine_error(RequestCancelledError("r")), asyncio.CancelledError)
    assert isinstance(as_engine_error(KeyError("a")), KeyError)


def test_readiness_is_asked_of_every_policy_and_believed_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    one, handle = engine(monkeypatch, None)
    assert asyncio.run(one.ready())
    handle.answers = ActorDiedError()
    assert asyncio.run(one.ready())  # the answer of a moment ago
    monkeypatch.setattr(engine_client, "READY_S", 0.0)
    assert not asyncio.run(one.ready())


# --- the replica's side -----------------------------------------------------------------------------------------------


async def _batches(interval_s: float) -> tuple[list[list[int]], bool]:
    ended = False

    async def items() -> AsyncIterator[int]:
        nonlocal ended
        try:
            for i in range(6):
                yield i
                if i:
                    await asyncio.sleep(0)
                else:
                    await asyncio.sleep(0.02)
        finally:
            ended = True

    return [batch async for batch in together(items(), interval_s)], ended


def test_the_first_chunk_never_waits_and_later_ones_travel_together() -> None:
    batches, ended = asyncio.run(_batches(0.1))
    assert batches[0] == [0]
    assert [i for batch in batches for i in batch] == list(range(6))
    assert len(batches) < 6
    assert ended


def test_the_end_of_a_source_does_not_wait_for_the_interval() -> None:
    batches, _ = asyncio.run(asyncio.wait_for(_batches(3600.0), 60))
    assert batches == [[0], [1, 2, 3, 4, 5]]


def test_a_failing_source_fails_after_what_came_before() -> None:
    async def items() -> AsyncIterator[int]:
        yield 1
        raise ValueError("broken")

    seen: list[int] = []

    async def run() -> None:
        async for batch in together(items(), 0.0):
            seen.extend(batch)

    with pytest.raises(ValueError, match="broken"):
        asyncio.run(run())
    assert seen == [1]


def test_a_source_is_closed_when_nobody_reads_on() -> None:
    async def run() -> bool:
        closed = asyncio.Event()

        async def items() -> AsyncIterator[int]:
            try:
                while True:
                    yield 1
                    await asyncio.sleep(0.001)
            finally:
                closed.set()

        batches = together(items(), 0.0)
        await anext(batches)
        await batches.aclose()  # type: ignore[attr-defined]  # it is a generator
        await asyncio.wait_for(closed.wait(), 5)
        return closed.is_set()

    assert asyncio.run(run())
