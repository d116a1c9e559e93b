"""Waiting for an engine, for as long as somebody waits for us: the client, and the deadline.

answer = await while_wanted(request, engine.chat(body, request_id=...), deadline)     # ApiError 504, ClientGone
return EventStream(events)                                                           # closes `events` when the client leaves

Both cancel the work and wait until it has let go, so that its slot in the engine is free again before the request counts as
ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from rhumbline.serving import exchange
from rhumbline.serving.errors import ApiError
from rhumbline.serving.strict_route import GONE

T = TypeVar("T")
_LETTING_GO_S = 10.0  # for cancelled work: one that holds on longer is left behind, the client is not


def deadline_passed(seconds: float) -> ApiError:
    return ApiError(
        504,
        f"the answer was not complete within {seconds:g} s: ask for fewer tokens or answers (max_tokens, n, steering.best_of)",
        code="deadline_exceeded",
    )


def client_gone() -> ApiError:
    """Nobody reads it; the log and the metrics count it."""
    return ApiError(GONE, "the client left", code="client_gone")


class Deadline:
    """Seconds that a request has, from when it is made."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._until = asyncio.get_running_loop().time() + seconds

    @property
    def left_s(self) -> float:
        return max(0.0, self._until - asyncio.get_running_loop().time())


async def while_wanted(request: Request, work: Coroutine[Any, Any, T], deadline: Deadline) -> T:
    """What `work` gives. Cancels it and raises ApiError where the client leaves (499) or the deadline passes (504)."""
    about = exchange.of(request.scope)
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait({task, gone}, timeout=deadline.left_s, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        about.ended = "client_gone" if gone.done() else "deadline"
        raise client_gone() if gone.done() else deadline_passed(deadline.seconds)
    finally:
        await _let_go(task, gone)


async def next_within(events: AsyncIterator[T], deadline: Deadline) -> T | None:
    """The next event, or None at the end. Raises ApiError (504) where the deadline passes."""
    return await within(anext(events, None), deadline)


async def within(work: Awaitable[T], deadline: Deadline) -> T:
    """What `work` gives. Raises ApiError (504) where the deadline passes."""
    try:
        async with asyncio.timeout(deadline.left_s):
            return await work
    except TimeoutError:
        raise deadline_passed(deadline.seconds) from None


class EventStream(StreamingResponse):
    """Server-sent events, closed as soon as the client leaves, whatever the server says about when it tells us."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], headers: dict[str, str]) -> None:
        # X-Accel-Buffering: nginx would hold events back.
        super().__init__(events, headers={"X-Accel-Buffering": "no", **headers})
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.ensure_future(self.stream_response(send))
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
            else:
                exchange.of(scope).ended = "client_gone"
        finally:
            await _let_go(task, gone)
            close = getattr(self._events, "aclose", None)
            if close is not None:
                await close()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _let_go(*tasks: asyncio.Future[Any]) -> None:
    """Cancel what still runs and wait for it. Exceptions that nobody asked for any more are fetched, so none is logged."""
    running = {task for task in tasks if not task.done()}
    for task in running:
        task.cancel()
    if running:
        await asyncio.wait(running, timeout=_LETTING_GO_S)
    for task in tasks:
        if task.done() and not task.cancelled():
            task.exception()


async def together(*work: Awaitable[T]) -> list[T]:
    """All results in order; where one fails, the others are cancelled and its own exception is raised."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await _let_go(*tasks)
