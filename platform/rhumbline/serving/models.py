"""GET /v1/models: the served model and one card per preset, so that a GUI's model box offers them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from rhumbline.serving.alias import model_card, model_cards
from rhumbline.serving.errors import documented
from rhumbline.serving.replies import ModelCard, Models
from rhumbline.serving.service import Service
from rhumbline.serving.strict_route import StrictRoute


def routes(service: Service) -> APIRouter:
    """The routes over one service."""
    router = APIRouter(route_class=StrictRoute, tags=["models"])

    @router.get("/v1/models", response_model=Models, responses=documented(), summary="The model and its presets")
    async def models() -> Any:
        return {"object": "list", "data": model_cards(service.served, service.created)}

    @router.get(
        "/v1/models/{id:path}",
        response_model=ModelCard,
        responses=documented(404),
        summary="One model, also as name@direction",
    )
    async def model(id: str, request: Request) -> Any:
        alias = service.base(id)
        if alias is not None:
            await service.settle(request, alias=alias, alone=False)  # refuses what no request could ask for
        return model_card(service.served, id, service.created)

    return router
