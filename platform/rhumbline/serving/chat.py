"""POST /v1/chat/completions: OpenAI's, with a direction.

client.chat.completions.create(model="aligned-7b", messages=[...],
                               extra_body={"steering": {"weights": {"helpfulness": 0.8, "verbosity": -0.6}}})
"""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from rhumbline.serving import echo, exchange
from rhumbline.serving.answers import Asked, answer, chat_text, positive, possible
from rhumbline.serving.bodies import ChatBody, ChatMessage, Json, Sampling, for_engine
from rhumbline.serving.defuse import strings
from rhumbline.serving.errors import ApiError, documented
from rhumbline.serving.prompt import turns
from rhumbline.serving.protocols import UNNAMED, Body
from rhumbline.serving.replies import STEERED, STREAMED, ChatReply
from rhumbline.serving.service import Service
from rhumbline.serving.streams import stream
from rhumbline.serving.strict_route import StrictRoute
from rhumbline.serving.waiting import Deadline, while_wanted


def routes(service: Service) -> APIRouter:
    """The route over one service."""
    router = APIRouter(route_class=StrictRoute, tags=["completions"])

    @router.post(
        "/v1/chat/completions",
        response_model=ChatReply,
        responses={200: STREAMED, **documented(404, 408, 413, 415, 503, 504)},
        summary="Answer a conversation in a direction",
        openapi_extra=STEERED,
    )
    async def chat(body: ChatBody, request: Request) -> Response:
        deadline = Deadline(service.settings.deadline_s)
        alias = service.base(body.model)
        resolved = await service.settle(
            request, body=body.steering, metadata=body.metadata, verbosity=body.verbosity, alias=alias
        )
        fields = _fields(service, body)
        asked = await conversation(service, request, body.messages, fields, body.n or 1, positive(body.seed))
        possible(service, resolved, asked.n, body.temperature)
        service.allow(request, answers=asked.n * resolved.options.best_of)
        if body.stream:
            usage = body.stream_options is not None and body.stream_options.include_usage
            return await stream(service, resolved, asked, request, model=body.model, usage=usage, deadline=deadline)
        about = exchange.of(request.scope)
        reply = await while_wanted(request, answer(service, resolved, asked, about, body.model), deadline)
        note(about.text, reply)
        return JSONResponse(reply, headers={echo.HEADER: echo.header(resolved)})

    return router


async def conversation(
    service: Service, request: Request, messages: list[ChatMessage], fields: Json, n: int, seed: int
) -> Asked:
    """Messages as they will be asked under any line. Raises ApiError, SteeringRefused."""
    service.bounded("messages", len(messages), service.settings.max_messages)
    said = [message.turn() for message in messages]
    plain = turns(said)
    tools, calls = fields.get("tools"), [one["tool_calls"] for one in said if "tool_calls" in one]
    service.text_fits(*(message.content for message in plain), *strings([tools, calls]))
    about = exchange.of(request.scope)
    if service.settings.log_text:
        about.text = {"messages": said}

    defused = await service.defused(request, said)
    if tools is not None:
        fields = {**fields, "tools": await service.cleaned(request, tools)}

    def render(line: str | None) -> Body:
        started = time.perf_counter()
        out = {"messages": defused.under(line)}
        service.spent(request, started)
        return out

    return Asked(
        render=render,
        fields=fields,
        n=n,
        conversation=plain,
        ask=service.engine.chat,
        stream=service.engine.stream_chat,
        text=chat_text,
        seed=seed,
    )


def sampling(service: Service, body: Sampling) -> Json:
    """What the engine gets of a request's fields. Raises ApiError where they are beyond the settings."""
    service.bounded("max_tokens", body.max_tokens, service.settings.max_tokens)
    service.bounded("min_tokens", body.min_tokens, service.settings.max_tokens)
    if body.stream_options is not None and not body.stream:
        raise ApiError(
            400, "stream_options is for streams: set stream too", param="stream_options", code="invalid_value"
        )
    return {name: value for name, value in for_engine(body).items() if name != "n"}


def bounded_answer(service: Service, fields: Json) -> Json:
    """With the settings' bound where a chat names none: the engine would go on to the end of its context."""
    named = "max_tokens" in fields or "max_completion_tokens" in fields
    return fields if named else {**fields, UNNAMED: service.settings.max_tokens}


def note(text: dict[str, Any] | None, reply: Body) -> None:
    """Keep the answers for the access log, where the settings ask for text."""
    if text is not None:
        text["answers"] = [chat_text(choice) or choice.get("text", "") for choice in reply["choices"]]


def _fields(service: Service, body: ChatBody) -> Json:
    service.bounded("max_completion_tokens", body.max_completion_tokens, service.settings.max_tokens)
    return bounded_answer(service, sampling(service, body))
