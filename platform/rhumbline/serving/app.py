"""The HTTP app: OpenAI's API with a direction per request, over any engine that obeys the protocols. It imports no Ray.

    app = create_app(open_served("runs/smol"), engine, rewards=rewards, keys=KeyRing("keys.json"), people=People(),
                     settings=Settings())

    Edge -> Admission -> BodyLimit -> routes: chat, completions, models, steering, rewards, quiz, health, metrics, playground

An app belongs to one event loop: its rate limits and metrics count what passes through it, and no other replica's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from rhumbline.serving import (
    chat,
    completions,
    errors,
    models,
    openapi_page,
    quiz_routes,
    reward_routes,
    steering_routes,
)
from rhumbline.serving.edge import PLAYGROUND, Admission, Edge
from rhumbline.serving.errors import ApiError, documented
from rhumbline.serving.keys import KeyRing
from rhumbline.serving.limits import BodyLimit, Limiter
from rhumbline.serving.metrics import CONTENT_TYPE, Metrics
from rhumbline.serving.prompt import Guard
from rhumbline.serving.protocols import Engine, Mixtures, Rewards
from rhumbline.serving.replies import Status
from rhumbline.serving.served import Served
from rhumbline.serving.service import Service
from rhumbline.serving.settings import Settings
from rhumbline.users.pool import QuizItem
from rhumbline.users.store import People

_PAGES = Path(__file__).parent / "playground"
_ABOUT = (
    "OpenAI's API with a direction per request: body `steering`, header X-Steering, metadata.steering, verbosity, the model "
    "alias name@direction, or a profile bound to the key, in that order. Every refusal has OpenAI's error shape."
)


def create_app(
    served: Served,
    engine: Engine,
    *,
    rewards: Rewards | None,
    keys: KeyRing | None,
    people: People | None,
    settings: Settings,
    mixtures: Mixtures | None = None,
    questions: Sequence[QuizItem] = (),
) -> FastAPI:
    """The app of one served model.

    rewards: None where there is no reward model; then nothing is scored or chosen. keys: None only where somebody said that
    the server needs none. people: None keeps no quizzes and profiles. questions: of the quiz, as users.pool finds them in a
    run. mixtures: of the engine, where steering is by weights; None: those of `served`.
    """
    metrics = Metrics(served.name)
    limiter = Limiter(
        requests_per_minute=settings.requests_per_minute, burst=settings.burst, max_concurrent=settings.max_concurrent
    )
    service = Service(
        served=served,
        engine=engine,
        rewards=rewards,
        people=people,
        mixtures=mixtures,
        settings=settings,
        limiter=limiter,
        metrics=metrics,
        guard=Guard.of(served.codec, served.tokenizer),
        questions=tuple(questions),
        created=int(time.time()),
    )
    app = FastAPI(title="Rhumbline", description=_ABOUT, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.settings = settings
    app.state.service = service
    for routes in (chat, completions, models, steering_routes, reward_routes, quiz_routes):
        app.include_router(routes.routes(service))
    app.include_router(_operations(service))
    _mount_pages(app)
    errors.install(app)
    public = frozenset({"/metrics"}) if settings.public_metrics else frozenset[str]()
    openapi_page.install(app, public)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)  # innermost first
    app.add_middleware(Admission, keys=keys, limiter=limiter, public=public)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "X-Steering", "X-Request-Id"],
            expose_headers=["X-Request-Id", "X-Steering-Effective", "Retry-After"],
        )
    app.add_middleware(Edge, metrics=metrics)
    return app


def _operations(service: Service) -> APIRouter:
    """Health, readiness and metrics."""
    router = APIRouter(tags=["operations"])
    name = service.served.name

    @router.get("/health", response_model=Status, responses=_only(500), summary="Whether the server runs")
    async def health() -> Response:
        return JSONResponse({"status": "ok", "model": name})

    @router.get(
        "/ready", response_model=Status, responses=_only(500, 503), summary="Whether the engine would answer now"
    )
    async def ready() -> Response:
        if not await service.engine.ready():
            raise ApiError(503, "the engine is not ready yet", code="not_ready", headers={"Retry-After": "5"})
        return JSONResponse({"status": "ready", "model": name})

    @router.get("/metrics", response_class=Response, responses=_metrics(), summary="For Prometheus")
    async def scrape() -> Response:
        return Response(service.metrics.page(), media_type=CONTENT_TYPE)

    return router


def _only(*statuses: int) -> dict[int | str, dict[str, Any]]:
    told = documented(*statuses)
    return {status: told[status] for status in (405, *statuses)}


def _metrics() -> dict[int | str, dict[str, Any]]:
    page: dict[str, Any] = {
        "description": "Prometheus's text format.",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    }
    told = documented()
    return {200: page, **{status: told[status] for status in (401, 405, 429, 500)}}


def _mount_pages(app: FastAPI) -> None:
    """The playground's files, and the way there from the root."""
    if not (_PAGES / "index.html").is_file():
        return
    app.mount(PLAYGROUND, StaticFiles(directory=_PAGES, html=True), name="playground")

    @app.get("/", include_in_schema=False)
    @app.get(PLAYGROUND, include_in_schema=False)
    async def root() -> Response:
        return RedirectResponse(f".{PLAYGROUND}/")
