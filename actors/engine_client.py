"""Engine (rhumbline.serving.protocols) over Serve handles: the ingress asks the policies through it.

    engine = HandleEngine({"smol": Target(app="smol--3f2a91c04d5e", model="smol-3f2a91c04d5e")})
    await engine.chat({"model": "smol", "messages": [...], "max_tokens": 64}, request_id="req-1")

A request names a model as the HTTP app knows it; the target says which application answers for it, and under which name its
engine knows its weights. An engine of other weights does not know that name and refuses, whatever else goes wrong.

Retryable (503): a replica that died under the request, one that is not there yet, and a queue that is full.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from grpc.aio import AioRpcError
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    ReplicaUnavailableError,
    RequestCancelledError,
)

from actors.serve_internals import handle_of
from rhumbline.serving.protocols import Body, EngineError

DEPLOYMENT = "policy"  # of a policy's application
QUIET = {"enable_access_log": False}  # Serve's own, of every deployment here: the app has a better one
READY_S = 2.0  # how old an answer to `ready` may be
PROBE_S = 5.0  # that a replica has for it
_DATA, _DONE = "data: ", "[DONE]"


@dataclass(frozen=True, slots=True)
class Target:
    """Who answers for a model."""

    app: str  # the Serve application
    model: str  # what its engine calls its weights


class HandleEngine:
    """Made within a Serve replica, or a process that is connected to the cluster."""

    def __init__(self, targets: Mapping[str, Target]) -> None:
        self._targets = dict(targets)
        self._handles: dict[str, Any] = {
            target.app: handle_of(DEPLOYMENT, target.app) for target in self._targets.values()
        }
        # Once: every handle with options of its own listens to Serve's controller by itself.
        self._streaming = {app: handle.options(stream=True) for app, handle in self._handles.items()}
        self._ready = (float("-inf"), False)
        self._probe: asyncio.Future[bool] | None = None

    async def chat(self, body: Body, *, request_id: str) -> Body:
        return await self._answer("chat", body, request_id)

    async def complete(self, body: Body, *, request_id: str) -> Body:
        return await self._answer("completions", body, request_id)

    def stream_chat(self, body: Body, *, request_id: str) -> AsyncIterator[Body]:
        return self._stream("chat", body, request_id)

    def stream_complete(self, body: Body, *, request_id: str) -> AsyncIterator[Body]:
        return self._stream("completions", body, request_id)

    async def ready(self) -> bool:
        """Whether a replica of every policy answers; asked at most every READY_S seconds."""
        asked, answer = self._ready
        if time.monotonic() - asked < READY_S:
            return answer
        if self._probe is None or self._probe.done():  # one for all who ask meanwhile: nobody needs a key to ask
            self._probe = asyncio.ensure_future(self._probed())
        return await asyncio.shield(self._probe)

    async def _probed(self) -> bool:
        answers = await asyncio.gather(*(_alive(handle) for handle in self._handles.values()))
        self._ready = (time.monotonic(), all(answers))
        return self._ready[1]

    async def _answer(self, kind: str, body: Body, request_id: str) -> Body:
        app, asked = self._ask(body)
        response = self._handles[app].answer.remote(kind, asked, request_id)
        try:
            answer: Body = await response
        except BaseException as e:
            response.cancel()
            raise as_engine_error(e) from e
        if "error" in answer:
            raise _refused(answer)
        return answer

    async def _stream(self, kind: str, body: Body, request_id: str) -> AsyncIterator[Body]:
        app, asked = self._ask(body)
        response = self._streaming[app].stream.remote(kind, asked, request_id)
        ended = False
        try:
            async for batch in response:
                for item in batch:
                    for chunk in _chunks(item):
                        yield chunk
            ended = True
        except Exception as e:
            raise as_engine_error(e) from e
        finally:
            if not ended:
                response.cancel()  # the replica closes the generator, and vLLM frees the slot

    def _ask(self, body: Body) -> tuple[str, Body]:
        model = str(body.get("model"))
        target = self._targets.get(model)
        if target is None:
            raise EngineError(f"no engine serves {model!r}: {', '.join(self._targets)}", 404, "model_not_found")
        return target.app, {**body, "model": target.model}


def _chunks(item: str | Body) -> list[Body]:
    """Chunks of one event, or of several in a row. Raises EngineError for a refusal."""
    if isinstance(item, dict):
        raise _refused(item)
    said = [event[len(_DATA) :] for event in item.split("\n\n") if event.startswith(_DATA)]
    chunks: list[Body] = [json.loads(data) for data in said if data.strip() != _DONE]
    for chunk in chunks:
        if "error" in chunk:
            raise _refused(chunk)
    return chunks


def _refused(answer: Body) -> EngineError:
    """vLLM's error object, whose `code` is the status."""
    error = answer["error"]
    if "EngineCore encountered an issue" in str(error.get("message")):  # vLLM's process died
        return EngineError("the engine died with this request, come again", 503, "replica_died")
    status = error.get("code")
    status = status if isinstance(status, int) and 400 <= status < 600 else 500
    return EngineError(
        str(error.get("message", "the engine refused")), status, str(error.get("type") or "engine_error")
    )


async def _alive(handle: Any) -> bool:
    response = handle.check_health.remote()
    try:
        await asyncio.wait_for(response, PROBE_S)
    except BackPressureError:
        return True  # it is busy, which only one that lives can be
    except (TimeoutError, RayError, RayServeException, AioRpcError):
        with suppress(RayError, RayServeException):
            response.cancel()
        return False
    return True


def as_engine_error(error: BaseException, what: str = "engine") -> BaseException:
    """What a client is told of whatever a handle raised. What is neither Ray's nor Serve's stays as it is."""
    if isinstance(error, BackPressureError):
        return EngineError(f"the queue of the {what} is full, come again", 503, "overloaded")
    if isinstance(error, DeploymentUnavailableError | ReplicaUnavailableError):
        return EngineError(f"the {what} is not there, come again", 503, "unavailable")
    # Of the connection itself: what a replica raises comes as a message. UNAVAILABLE is a RayActorError by then.
    if isinstance(error, RayActorError | AioRpcError):
        return EngineError(f"the replica of the {what} died with this request, come again", 503, "replica_died")
    if isinstance(error, RequestCancelledError):
        return asyncio.CancelledError()
    if "EngineDeadError" in (type(error).__name__ + str(error)):
        # vLLM's process died and its replica has not: Serve replaces it at the next health check.
        return EngineError(f"the {what} died with this request, come again", 503, "replica_died")
    if isinstance(error, RayError | RayServeException):
        return EngineError(f"the {what} failed: {error}", 500, "engine_error")
    return error
