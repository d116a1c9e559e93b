"""What can be steered and what came of it: objectives, presets, the score of an answer, one prompt in several directions."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from rhumbline.records import Message
from rhumbline.serving import echo, exchange
from rhumbline.serving.answers import answer, chat_text, positive, possible, scored
from rhumbline.serving.bodies import CompareBody, Json, PlainMessage, ScoreBody
from rhumbline.serving.chat import bounded_answer, conversation
from rhumbline.serving.choose import best
from rhumbline.serving.echo import weights
from rhumbline.serving.errors import ApiError, documented
from rhumbline.serving.replies import STEERED, Comparison, Objectives, Presets, Score
from rhumbline.serving.requests import SteeringRefused
from rhumbline.serving.service import Service
from rhumbline.serving.strict_route import StrictRoute
from rhumbline.serving.waiting import Deadline, together, while_wanted

UNIT = "reward, 0-100"


def routes(service: Service) -> APIRouter:
    """The routes over one service."""
    router = APIRouter(prefix="/v1/steering", route_class=StrictRoute, tags=["steering"])

    @router.get(
        "/objectives", response_model=Objectives, responses=documented(), summary="What the model can be steered by"
    )
    async def objectives() -> Any:
        return describe(service)

    @router.get("/presets", response_model=Presets, responses=documented(), summary="Directions with a name")
    async def presets() -> Any:
        served = service.served
        return {
            "presets": [
                {"name": name, "weights": dict(served.presets[name]), "effective": weights(served.names, effective)}
                for name, effective in service.preset_directions.items()
            ]
        }

    @router.post(
        "/score",
        response_model=Score,
        responses=documented(404, 408, 413, 415, 503, 504),
        summary="The reward vector of one answer, and its value in a direction",
        openapi_extra=STEERED,
    )
    async def score(body: ScoreBody, request: Request) -> Response:
        needs_rewards(service)
        deadline = Deadline(service.settings.deadline_s)
        resolved = await service.settle(request, body=body.steering)
        asked_of = plain(service, body.messages, body.response)
        (rewards,) = await while_wanted(request, scored(service, asked_of, [body.response]), deadline)
        value = best([rewards], resolved.effective, service.served.standardiser).value
        return JSONResponse(
            {
                "rewards": weights(service.served.names, rewards),
                "value": round(value, 4),
                "steering": echo.steering(resolved),
            },
            headers={echo.HEADER: echo.header(resolved)},
        )

    @router.post(
        "/compare",
        response_model=Comparison,
        responses=documented(408, 413, 415, 503, 504),
        summary="One conversation in 2 to 5 directions",
    )
    async def compare(body: CompareBody, request: Request) -> Response:
        deadline = Deadline(service.settings.deadline_s)
        service.bounded("max_tokens", body.max_tokens, service.settings.max_tokens)
        fields = bounded_answer(service, _sampling(body))
        asked = await conversation(service, request, body.messages, fields, 1, positive(body.seed))
        settled = []
        for i, one in enumerate(body.directions):
            try:  # the key's profile and headers are for requests that have one direction
                settled.append(await service.settle(request, body=one, alone=False))
            except SteeringRefused as e:
                where = f"directions.{i}{e.param.removeprefix('steering')}"
                raise SteeringRefused(f"{where}: {e.message.removeprefix(f'{e.param}: ')}", where, e.code) from None
            possible(service, settled[-1], 1, body.temperature, f"directions.{i}")
        service.allow(request, answers=sum(resolved.options.best_of for resolved in settled))
        about, name = exchange.of(request.scope), service.served.name
        replies = await while_wanted(
            request, together(*(answer(service, resolved, asked, about, name) for resolved in settled)), deadline
        )
        if about.text is not None:
            about.text["answers"] = [chat_text(reply["choices"][0]) for reply in replies]
        return JSONResponse({"results": [_result(reply) for reply in replies]})

    return router


def describe(service: Service) -> Json:
    """GET /v1/steering/objectives."""
    served = service.served
    ranges = served.ranges or {}
    return {
        "model": served.name,
        "objectives": [
            {"name": name, "sign": sign, "range": list(ranges[name]) if name in ranges else None, "unit": UNIT}
            for name, sign in zip(served.names, served.steering.signs, strict=True)
        ],
        "region": {"axis": weights(served.names, served.cone.axis), "half_angle_deg": served.cone.half_angle_deg},
        "default": weights(served.names, served.default),
        "mechanism": served.mechanism,
        "method": served.method,
        "template_version": served.template_version,
        "rewards": service.rewards is not None,
        "quiz": service.people is not None and bool(service.questions),
        "front": [
            {"direction": weights(served.names, point.direction), "rewards": weights(served.names, point.rewards)}
            for point in served.front
        ],
        "evaluated": [
            {
                "direction": weights(served.names, point.direction),
                "rewards": weights(served.names, point.rewards),
                "pareto": point.pareto,
            }
            for point in served.achieved
        ],
        "effect": {"proven": served.effect.proven, "why": served.effect.why},
    }


def needs_rewards(service: Service) -> None:
    """Raises ApiError (404) where the server has no reward model."""
    if service.rewards is None:
        raise ApiError(404, "this server has no reward model, so it cannot score", code="no_reward_model")


def plain(service: Service, messages: list[PlainMessage], response: str) -> tuple[Message, ...]:
    """A conversation that is scored. Raises ApiError where it is too long."""
    service.bounded("messages", len(messages), service.settings.max_messages)
    service.text_fits(response, *(message.content for message in messages))
    return tuple(Message(role=message.role, content=message.content) for message in messages)


def _sampling(body: CompareBody) -> Json:
    """What the engine gets: with one seed for all directions, only the direction makes them differ."""
    return {key: value for key in ("max_tokens", "temperature", "seed") if (value := getattr(body, key)) is not None}


def _result(reply: Json) -> Json:
    choice = reply["choices"][0]
    return {
        "steering": reply["steering"],
        "message": choice["message"],
        "finish_reason": choice.get("finish_reason"),
        "usage": reply["usage"],
        "words": len(chat_text(choice).split()),
    }
