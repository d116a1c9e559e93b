"""POST /v1/rewards: the run's reward model over HTTP, a vector per answer."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from rhumbline.records import Message
from rhumbline.serving.bodies import RewardsBody
from rhumbline.serving.errors import documented
from rhumbline.serving.protocols import EngineError
from rhumbline.serving.replies import RewardTable
from rhumbline.serving.service import Service
from rhumbline.serving.steering_routes import needs_rewards, plain
from rhumbline.serving.strict_route import StrictRoute
from rhumbline.serving.waiting import Deadline, while_wanted


def routes(service: Service) -> APIRouter:
    """The route over one service."""
    router = APIRouter(route_class=StrictRoute, tags=["rewards"])

    @router.post(
        "/v1/rewards",
        response_model=RewardTable,
        responses=documented(404, 408, 413, 415, 503, 504),
        summary="Reward vectors of answers",
    )
    async def rewards(body: RewardsBody, request: Request) -> Response:
        needs_rewards(service)
        deadline = Deadline(service.settings.deadline_s)
        service.bounded("items", len(body.items), service.settings.max_items)
        items = [(plain(service, item.messages, item.response), item.response) for item in body.items]
        service.text_fits(*(text for asked_of, response in items for text in (response, *_texts(asked_of))))
        service.charge(request, answers=len(items))
        assert service.rewards is not None, "needs_rewards refuses"
        table = await while_wanted(request, service.rewards.score(items), deadline)
        if len(table) != len(items):
            raise EngineError(
                f"the reward model gave {len(table)} rows for {len(items)} answers", code="reward_model_error"
            )
        rows = [[round(float(value), 4) for value in row] for row in table]
        return JSONResponse({"objectives": list(service.served.names), "rewards": rows})

    return router


def _texts(messages: tuple[Message, ...]) -> list[str]:
    return [message.content for message in messages]
