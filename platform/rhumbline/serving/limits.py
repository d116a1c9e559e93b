"""How much one key may ask: a token bucket, a number of requests in flight, and bodies of a bounded size.

limiter = Limiter(requests_per_minute=600, burst=60, max_concurrent=32)
limiter.enter("key-1")                 # takes one; LimitedError with a number of seconds where there is none
limiter.charge("key-1", 15)            # a request for 16 answers owes 15 more: the next one waits for them
limiter.leave("key-1")
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rhumbline.serving import exchange
from rhumbline.serving.errors import ApiError, refusal


class LimitedError(ApiError):
    """429, with Retry-After in whole seconds."""

    def __init__(self, message: str, *, code: str, retry_after_s: float) -> None:
        seconds = max(1, math.ceil(retry_after_s))
        super().__init__(429, f"{message}; come again in {seconds} s", code=code, headers={"Retry-After": str(seconds)})


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled: float  # when `tokens` was true
    in_flight: int = 0


class Limiter:
    """Token buckets by owner. Owners are ids of keys, so that there are never more buckets than keys. One thread."""

    def __init__(
        self,
        *,
        requests_per_minute: float,
        burst: int,
        max_concurrent: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate = requests_per_minute / 60
        self._burst = burst
        self._max_concurrent = max_concurrent
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}

    def enter(self, owner: str) -> None:
        """Begin a request. Raises LimitedError; then there is nothing to leave."""
        bucket = self._filled(owner)
        if bucket.in_flight >= self._max_concurrent:
            raise LimitedError(
                f"{bucket.in_flight} requests of this key are in flight, the most there may be",
                code="too_many_concurrent_requests",
                retry_after_s=1,
            )
        if bucket.tokens < 1:
            raise LimitedError(
                f"this key may ask {self._rate * 60:g} times per minute",
                code="rate_limit_exceeded",
                retry_after_s=(1 - bucket.tokens) / self._rate,
            )
        bucket.tokens -= 1
        bucket.in_flight += 1

    def charge(self, owner: str, extra: int) -> None:
        """Take `extra` tokens more for a request that has entered: into debt where need be, which later ones wait for."""
        self._filled(owner).tokens -= extra

    def leave(self, owner: str) -> None:
        """End a request that has entered."""
        self._buckets[owner].in_flight -= 1

    def _filled(self, owner: str) -> _Bucket:
        now = self._clock()
        bucket = self._buckets.setdefault(owner, _Bucket(float(self._burst), now))
        bucket.tokens = min(float(self._burst), bucket.tokens + (now - bucket.filled) * self._rate)
        bucket.filled = now
        return bucket


class BodyLimit:
    """ASGI: refuse bodies of more than `max_bytes` with 413, by what they announce and, where they say nothing, by count."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = [value for name, value in scope["headers"] if name == b"content-length"]
        if any(not length.isdigit() for length in announced) or len(set(announced)) > 1:
            wrong = ApiError(400, "Content-Length must be one whole number", code="invalid_content_length")
            await _refuse(wrong, scope, receive, send)
            return
        if announced and (len(announced[0]) > 18 or int(announced[0]) > self.max_bytes):
            await _refuse(self._too_large(), scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.max_bytes:
                raise self._too_large()  # out of whoever reads the body: the app's handlers make the response of it
            return message

        await self.app(scope, counted, send)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self.max_bytes} bytes", code="body_too_large")


async def _refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    exchange.of(scope).code = error.code
    await refusal(error)(scope, receive, send)
