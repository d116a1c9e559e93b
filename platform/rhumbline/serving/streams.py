"""Streams: the engine's chunks as server-sent events, unchanged but for the model's name, and `steering` in the last one.

    data: {"choices": [{"delta": {"content": "Blue"}}], ...}
    data: {"choices": [], "usage": {...}, "steering": {"effective": ..., "rewards": ...}}
    data: [DONE]

The last chunk is the one with the usage where the client asked for it (stream_options.include_usage), and the one that ends
the answer where it did not: some old clients trip over a chunk without choices. An engine that fails on the way sends one
`data: {"error": ...}`, as OpenAI's clients expect; before the first chunk it is an ordinary refusal with its status.

Streams carry one answer per choice: best_of > 1 is refused, because a choice among answers needs them whole.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import Request

from rhumbline.errors import UserError
from rhumbline.serving import access_log, echo, exchange
from rhumbline.serving.answers import Asked, said, scored
from rhumbline.serving.errors import ApiError, as_refusal, shape
from rhumbline.serving.exchange import Exchange
from rhumbline.serving.protocols import Body, EngineError
from rhumbline.serving.resolve import Resolved
from rhumbline.serving.service import Service
from rhumbline.serving.waiting import Deadline, EventStream, next_within, while_wanted, within

DONE = b"data: [DONE]\n\n"


async def stream(
    service: Service, resolved: Resolved, asked: Asked, request: Request, *, model: str, usage: bool, deadline: Deadline
) -> EventStream:
    """Start the engine, wait for its first chunk, and hand the rest to the response. Raises EngineError, ApiError."""
    if resolved.options.best_of > 1:
        raise ApiError(
            400,
            "steering.best_of chooses among whole answers, which cannot be streamed: leave stream out, or best_of at 1",
            param="steering.best_of",
            code="best_of_cannot_stream",
        )
    about = exchange.of(request.scope)
    body = {
        **asked.fields,
        **asked.render(resolved.line),
        "model": resolved.model,
        "n": asked.n,
        "stream": True,
        "stream_options": {"include_usage": True},  # always: the log and the metrics count tokens
    }
    chunks = aiter(asked.stream(body, request_id=about.engine_id))
    try:
        first = await while_wanted(request, _first(chunks), deadline)
    except BaseException:
        await _close(chunks)
        raise
    about.first_chunk_s = time.perf_counter() - about.started
    events = _events(service, resolved, asked, about, chunks, first, model=model, usage=usage, deadline=deadline)
    return EventStream(events, {echo.HEADER: echo.header(resolved)})


def event(data: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n\n"


async def _first(chunks: AsyncIterator[Body]) -> Body:
    first = await anext(chunks, None)
    if first is None:
        raise EngineError("the engine ended the stream before it began")
    return first


async def _events(
    service: Service,
    resolved: Resolved,
    asked: Asked,
    about: Exchange,
    chunks: AsyncIterator[Body],
    first: Body,
    *,
    model: str,
    usage: bool,
    deadline: Deadline,
) -> AsyncIterator[bytes]:
    texts: dict[int, list[str]] = defaultdict(list)
    keep = resolved.options.return_rewards or about.text is not None
    held: Body | None = None  # a chunk that may be the last one: nothing else waits, so the first token is not late
    chunk: Body | None = first
    try:
        while chunk is not None:
            about.count(chunk.get("usage"))
            if chunk.get("choices") or usage:
                if held is not None:
                    yield event(held)
                held = None
                told = {**chunk, "model": model}
                if not usage:
                    told.pop("usage", None)
                if keep:
                    _collect(texts, chunk)
                if _ends(chunk):
                    held = told
                else:
                    yield event(told)
            chunk = await next_within(chunks, deadline)
        answers = ["".join(texts[i]) for i in range(asked.n)]
        if about.text is not None:
            about.text["answers"] = answers
        rewards = None
        if resolved.options.return_rewards:
            rewards = await within(scored(service, asked.conversation, answers), deadline)
        last = held or {"id": first.get("id"), "object": first.get("object"), "model": model, "choices": []}
        yield event(echo.with_steering(last, said(resolved, rewards, None)))
        yield DONE
    except (ApiError, EngineError, UserError) as e:
        refused = as_refusal(e)
        if refused.status_code == 500:
            access_log.failure(about, e, route="stream")
        about.ended = "deadline" if refused.status_code == 504 else "engine"
        yield _broken(about, refused)
        yield DONE
    except Exception as e:
        access_log.failure(about, e, route="stream")
        about.ended = "engine"
        yield _broken(about, as_refusal(e))
        yield DONE
    finally:
        await _close(chunks)


def _ends(chunk: Body) -> bool:
    choices = chunk.get("choices") or ()
    return not choices or any(choice.get("finish_reason") for choice in choices)


def _collect(texts: dict[int, list[str]], chunk: Body) -> None:
    for choice in chunk.get("choices") or ():
        delta = choice.get("delta")
        text = choice.get("text") if delta is None else delta.get("content")
        if text:
            texts[int(choice.get("index", 0))].append(str(text))


def _broken(about: Exchange, refused: ApiError) -> bytes:
    about.code = refused.code
    return event(shape(refused.status_code, refused.detail, code=refused.code, param=refused.param))


async def _close(chunks: AsyncIterator[Body]) -> None:
    close = getattr(chunks, "aclose", None)  # an iterator that is no generator may have none
    if close is not None:
        await close()
