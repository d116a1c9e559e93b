"""Refusals in OpenAI's shape, and which statuses mean what. Every answer that is no success looks like this:

    {"error": {"message": "Unknown objective 'helpfullness'. Did you mean 'helpfulness'?", "type": "invalid_request_error",
               "param": "steering.weights.helpfullness", "code": "unknown_objective"}}

    raise ApiError(400, "n must be at most 8, got 9", param="n", code="too_many_answers")

400 says what is wrong with the request, and 404 what is not there. 401 and 403 are about keys. 408: the body did not arrive;
413: it is too large; 415: it is no JSON. 429 carries Retry-After. 500 is ours, with the request's id and nothing else. 503
is retryable; 504 says that the deadline passed, and that asking again will not help. OpenAI's clients map all of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from rhumbline.errors import UserError
from rhumbline.serving import access_log, exchange
from rhumbline.serving.protocols import EngineError

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    504: "timeout_error",
}
MEANING = {
    400: "The request is wrong: `param` says where, `message` what to do about it.",
    401: "No key, or an unknown one.",
    404: "There is no such model, route, quiz or profile.",
    405: "The route exists, but not with this method.",
    408: "The body did not arrive in time.",
    409: "The state has changed meanwhile.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    429: "Too many requests of this key: come again after Retry-After seconds.",
    500: "The server failed. The X-Request-Id header finds it in the log.",
    503: "The engine or the reward model does not answer now: come again.",
    504: "The deadline passed before the answer was complete.",
}


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every refusal."""

    error: ErrorDetail


class ApiError(HTTPException):
    """A refusal with a documented status. An HTTPException, so that FastAPI passes it on from wherever it reads a request."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.code = code
        self.param = param


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route for the OpenAPI page: what every route with a key may answer, and `statuses`."""
    return {
        status: {"model": ErrorBody, "description": MEANING[status]}
        for status in sorted({400, 401, 405, 429, 500, *statuses})
    }


def shape(status: int, message: str, *, code: str | None, param: str | None = None) -> dict[str, Any]:
    """The body of a refusal."""
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def refusal(error: ApiError) -> Response:
    """The response of a refusal. ASCII throughout: whatever a client sent can be said."""
    body = shape(error.status_code, error.detail, code=error.code, param=error.param)
    headers = dict(error.headers or {})
    if error.status_code == 504:
        headers["x-should-retry"] = "false"  # OpenAI's clients would ask for the same long answer twice more
    return Response(json.dumps(body).encode(), error.status_code, headers, media_type="application/json")


def internal() -> ApiError:
    """For whatever nobody expected: no word of the exception, which may hold a client's text."""
    return ApiError(
        500, "the server failed on this request; its X-Request-Id finds it in the log", code="internal_error"
    )


def of_engine(error: EngineError) -> ApiError:
    """What the client is told when the engine refuses: its own faults in the engine's words, ours without words."""
    if error.status == 503:
        return ApiError(503, error.message, code=error.code, headers={"Retry-After": "1"})
    if error.status == 429:
        return ApiError(429, error.message, code=error.code, headers={"Retry-After": "1"})
    if error.status in (408, 504):
        return ApiError(504, error.message, code=error.code)
    if 400 <= error.status < 500:
        return ApiError(400, error.message, code=error.code)
    return ApiError(500, "the engine failed on this request; its X-Request-Id finds it in the log", code=error.code)


def of_user(error: UserError) -> ApiError:
    """Bad input that the library found; the steering's own refusals know where in the request it stands."""
    param, code = getattr(error, "param", None), getattr(error, "code", None)
    return ApiError(400, str(error), code=code or "invalid_request", param=param)


def install(app: FastAPI) -> None:
    """Let every refusal of routing, validation and the library leave in OpenAI's shape."""

    async def refused(request: Request, error: Exception) -> Response:
        told = as_refusal(error)
        about = exchange.of(request.scope)
        about.code = told.code
        if told.status_code == 500:  # the client was told that the log has it
            access_log.failure(about, error, route="refused")
        return refusal(told)

    for kind in (HTTPException, EngineError, UserError, SQLAlchemyError):
        app.add_exception_handler(kind, refused)


def as_refusal(error: Exception) -> ApiError:
    """Any exception as what the client is told."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, EngineError):
        return of_engine(error)
    if isinstance(error, UserError):
        return of_user(error)
    if isinstance(error, SQLAlchemyError):  # no word of it: it holds the statement
        return ApiError(
            503, "quizzes and profiles cannot be read now, come again", code="no_database", headers={"Retry-After": "5"}
        )
    if isinstance(error, HTTPException):
        codes = {404: "not_found", 405: "method_not_allowed", 400: "invalid_request"}
        said = {404: "there is no such route", 405: "the route does not know this method"}
        message = said.get(error.status_code, str(error.detail))
        return ApiError(error.status_code, message, code=codes.get(error.status_code, "refused"), headers=error.headers)
    return internal()
