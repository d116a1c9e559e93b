"""Routes that read JSON strictly, and say what is wrong with it by the dotted path of its key, with a did-you-mean.

router = APIRouter(route_class=StrictRoute)

    {"temperatur": 0.7}      400 "unknown field 'temperatur'. Did you mean 'temperature'? Known: ...", param "temperatur"
    {"messages": [{}]}       400 "messages.0.role is required and missing", param "messages.0.role"
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, get_args

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from rhumbline.errors import did_you_mean
from rhumbline.serving import exchange, strict_json
from rhumbline.serving.errors import ApiError
from rhumbline.serving.settings import Settings

GONE = 499  # as nginx counts a client that left before its answer; nobody is there to read it
_LISTED = 40  # known names in a message, at most


class StrictRequest(Request):
    """A request whose JSON is read by `strict_json`, within the settings' time. Raises ApiError."""

    async def body(self) -> bytes:
        settings: Settings = self.app.state.settings
        try:
            async with asyncio.timeout(settings.read_timeout_s):
                return await super().body()
        except TimeoutError:
            raise ApiError(
                408, f"the body did not arrive within {settings.read_timeout_s:g} s", code="body_timeout"
            ) from None
        except ClientDisconnect:
            exchange.of(self.scope).ended = "client_gone"
            raise ApiError(GONE, "the client left", code="client_gone") from None

    async def json(self) -> Any:
        settings: Settings = self.app.state.settings
        return strict_json.parse(
            await self.body(), max_depth=settings.max_json_depth, max_values=settings.max_json_values
        )


class StrictRoute(APIRoute):
    """An APIRoute over `StrictRequest`, whose validation errors are refusals in OpenAI's shape."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        root = self.body_field.field_info.annotation if self.body_field is not None else None

        async def strict(request: Request) -> Response:
            if root is not None and not _is_json(request.headers.get("content-type", "")):
                raise ApiError(
                    415, "the body must be JSON: send Content-Type: application/json", code="unsupported_media_type"
                )
            try:
                return await handler(StrictRequest(request.scope, request.receive))
            except RequestValidationError as e:
                raise explained(e, root) from None

        return strict


def explained(error: RequestValidationError, root: Any) -> ApiError:
    """The first fault of a request, whose body is to be a `root`, as a refusal."""
    paths = [
        (list(_keys(one["loc"][1:], error.body if one["loc"][0] == "body" else None)), one) for one in error.errors()
    ]
    keys, fault = max(paths, key=lambda path: len(path[0]))  # of a union's faults the one that came farthest
    param = ".".join(key[:100] for key in keys) or None
    if fault["type"] == "extra_forbidden":
        known = _known_at(root, keys[:-1])
        listed = f" Known: {', '.join(known)}." if 0 < len(known) <= _LISTED else ""
        return ApiError(
            400, f"unknown field {param!r}.{did_you_mean(keys[-1], known)}{listed}", param=param, code="unknown_field"
        )
    if fault["type"] == "missing":
        return ApiError(400, f"{param or 'the body'} is required and missing", param=param, code="missing_field")
    if fault["loc"][0] == "body" and isinstance(error.body, bytes):
        return ApiError(400, "the body must be a JSON object", code="invalid_json")
    return ApiError(400, f"{param or 'the body'}: {fault['msg'][:300]}", param=param, code="invalid_value")


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind.startswith("application/") and (kind == "application/json" or kind.endswith("+json"))


def _keys(loc: Sequence[str | int], body: Any) -> Iterator[str]:
    """`loc` as the request has it: pydantic's names for the members of a union stand in no body, and are left out."""
    for i, part in enumerate(loc):
        listed = isinstance(body, list) and isinstance(part, int) and part < len(body)
        if listed or (isinstance(body, Mapping) and part in body):
            body = body[part]
        elif i + 1 < len(loc) or not isinstance(body, Mapping | None):
            continue
        yield str(part)


def _known_at(root: Any, keys: Sequence[str]) -> list[str]:
    """Fields that the model at `keys` below `root` knows."""
    hint = root
    for key in keys:
        found = [model.model_fields[key].annotation for model in _models(hint) if key in model.model_fields]
        hint = found[0] if found else hint  # an index of a list: its models are those of the list's hint
    return sorted({name for model in _models(hint) for name in model.model_fields})


def _models(hint: Any) -> list[type[BaseModel]]:
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return [hint]
    return [model for member in get_args(hint) for model in _models(member)]
