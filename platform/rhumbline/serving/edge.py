"""The outer layers of the HTTP app, as plain ASGI so that streams, cancelling and every refusal pass through them alike.

client -> Edge (request id, headers, log, metrics, unexpected exceptions)
            -> Admission (key, rate, concurrency)
                 -> BodyLimit -> routes
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from starlette._utils import get_route_path  # the router's own: what needs no key must be the path that it will match
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rhumbline.serving import access_log, exchange
from rhumbline.serving.errors import ApiError, internal, refusal
from rhumbline.serving.exchange import Exchange
from rhumbline.serving.keys import KeyRing
from rhumbline.serving.limits import Limiter
from rhumbline.serving.metrics import METHODS, Metrics
from rhumbline.serving.strict_route import GONE

PLAYGROUND = "/playground"
OPEN = frozenset({"/", "/health", "/ready", "/openapi.json", "/docs", PLAYGROUND})  # what needs no key
UNMATCHED = "unmatched"

_EVERYWHERE = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_NOTHING = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
_OWN_FILES = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; connect-src 'self'; "
    "manifest-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


class Edge:
    """What every request has, whatever becomes of it."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        about = exchange.begin(scope)
        path = get_route_path(scope)  # now: a mount changes the scope on the way
        status: int | None = None

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _complete(MutableHeaders(raw=message["headers"]), about, path)
            await send(message)

        self.metrics.begin()
        try:
            await self.app(scope, receive, sent)
        except asyncio.CancelledError:
            about.ended = about.ended or "client_gone"  # the server ends a request so, when nobody waits for it
            raise
        except Exception as e:  # the last place where it can be said without its words
            access_log.failure(about, e, route=_route(scope, path))
            about.code = "internal_error"
            if status is None:
                await refusal(internal())(scope, receive, sent)
        finally:
            method, route, told = _method(scope), _route(scope, path), GONE if status is None else status
            self.metrics.observe(about, method=method, route=route, status=told)
            access_log.record(about, method=method, route=route, status=told)


class Admission:
    """Who asks, and whether they may now. Everything needs a key but what `OPEN` names and the playground's files."""

    def __init__(self, app: ASGIApp, *, keys: KeyRing | None, limiter: Limiter, public: frozenset[str]) -> None:
        self.app = app
        self.keys = keys
        self.limiter = limiter
        self.public = OPEN | public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = get_route_path(scope) if scope["type"] == "http" else ""
        if scope["type"] != "http" or path in self.public or path.startswith(f"{PLAYGROUND}/"):
            await self.app(scope, receive, send)
            return
        about = exchange.of(scope)
        try:
            about.owner = self._owner(scope)
            self.limiter.enter(about.owner)
        except ApiError as refused:
            about.code = refused.code
            await refusal(refused)(scope, receive, send)
            return
        try:
            await self.app(scope, receive, send)
        finally:
            self.limiter.leave(about.owner)

    def _owner(self, scope: Scope) -> str:
        if self.keys is None:
            return exchange.ANONYMOUS
        given = [value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"]
        kind, _, key = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        if kind.lower() != "bearer" or not key.strip():
            raise _unknown("send your key as 'Authorization: Bearer rl-...'", "missing_api_key")
        owner = self.keys.owner(key.strip())
        if owner is None:
            raise _unknown("this key is unknown, or was taken away", "invalid_api_key")
        return owner


def _unknown(message: str, code: str) -> ApiError:
    return ApiError(401, message, code=code, headers={"WWW-Authenticate": "Bearer"})


def _complete(headers: MutableHeaders, about: Exchange, path: str) -> None:
    fixed: Mapping[str, str] = _EVERYWHERE
    for name, value in fixed.items():
        headers[name] = value
    headers["X-Request-Id"] = about.request_id
    pages = path in ("/docs", PLAYGROUND) or path.startswith(f"{PLAYGROUND}/")
    headers["Content-Security-Policy"] = _OWN_FILES if pages else _NOTHING
    headers.setdefault("Cache-Control", "no-cache" if pages else "no-store")


def _route(scope: Scope, path: str) -> str:
    """The template that matched. Never a path: that is a client's word."""
    template = getattr(scope.get("route"), "path", None)
    if isinstance(template, str):
        return template
    return PLAYGROUND if path == PLAYGROUND or path.startswith(f"{PLAYGROUND}/") else UNMATCHED


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in METHODS else "other"
