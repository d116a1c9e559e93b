"""The HTTP app in a Serve replica: rhumbline.serving.app behind Serve's proxy, changed without a restart.

    serve.run(ingress_app({"ingress": {...}, "drain_s": 60}, user_config=setting), name="smol")

The deployment has no arguments that matter and a version that is that of its code, so that Serve does not replace its replica
when the policy changes: it calls `reconfigure` with another `Setting`, which opens the new checkpoint, builds the app anew and
swaps it. Requests under way end in the app that they began in, and ask the policy that they were rendered for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict
from ray import serve
from starlette.routing import BaseRoute, Router
from starlette.types import Receive, Scope, Send

from actors import serve_internals
from actors.engine_client import QUIET, HandleEngine, Target
from actors.replica_metrics import mirrored
from actors.reward_server import HandleRewards
from actors.versions import of_ingress
from rhumbline.config.deploy import IngressServing
from rhumbline.errors import DataError
from rhumbline.serving import access_log
from rhumbline.serving.app import create_app
from rhumbline.serving.keys import KeyRing
from rhumbline.serving.protocols import Engine, Rewards
from rhumbline.serving.served import Served, open_served
from rhumbline.serving.settings import Settings
from rhumbline.users.pool import QuizItem, items_from_run
from rhumbline.users.store import People

DEPLOYMENT = "ingress"
MIRROR_S = 5.0
logger = logging.getLogger("ray.serve")


class Setting(BaseModel):
    """All that an ingress does, as JSON: Serve's user_config."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: str  # what open_served takes
    name: str  # of the model
    engines: dict[str, tuple[str, str]]  # a model's name in the app -> (Serve application, what its engine calls it)
    rewards: str | None  # the reward model's Serve application
    keys: str | None  # the key file
    users: str | None  # the database of quizzes and profiles
    limits: dict[str, Any]

    @property
    def targets(self) -> dict[str, Target]:
        """Who answers for each model of the app."""
        return {name: Target(app=app, model=model) for name, (app, model) in self.engines.items()}


class Current:
    """An ASGI app that hands every request to the app of the moment."""

    def __init__(self) -> None:
        self._app: FastAPI | None = None
        self._leave: contextlib.AsyncExitStack | None = None
        self._busy: dict[int, int] = {}  # id of an app -> its requests under way
        self._retiring: set[asyncio.Task[None]] = set()

    async def install(self, app: FastAPI, beside: contextlib.AbstractAsyncContextManager[None] | None = None) -> None:
        """Start an app and give it all requests from now on; the one before ends after its last request. `beside`: what lasts as
        long as the app does.
        """
        stack = contextlib.AsyncExitStack()
        await stack.enter_async_context(app.router.lifespan_context(app))
        if beside is not None:
            await stack.enter_async_context(beside)
        old, leave = self._app, self._leave
        self._app, self._leave = app, stack
        if old is not None and leave is not None:
            task = asyncio.create_task(self._retire(old, leave))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    @property
    def routes(self) -> list[BaseRoute]:
        """Of the app of the moment: Serve names them in its metrics."""
        return self.router.routes

    @property
    def router(self) -> Router:
        return Router() if self._app is None else self._app.router

    def is_current(self, app: FastAPI) -> bool:
        """Whether new requests go to this app."""
        return self._app is app

    @property
    def retiring(self) -> int:
        """Apps before this one that still have requests."""
        return len(self._retiring)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        app = self._app
        assert app is not None, "Serve sends no request before `reconfigure` has returned"
        self._busy[id(app)] = self._busy.get(id(app), 0) + 1
        try:
            await app(scope, receive, send)
        finally:
            self._busy[id(app)] -= 1

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                if self._leave is not None:
                    await self._leave.aclose()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _retire(self, app: FastAPI, leave: contextlib.AsyncExitStack) -> None:
        while self._busy.get(id(app), 0) > 0:
            await asyncio.sleep(0.2)
        self._busy.pop(id(app), None)
        await leave.aclose()


class Ingress:
    """`ingress_app` makes it a deployment; Serve calls `reconfigure` before the first request and at every change."""

    def __init__(self) -> None:
        self.current = Current()
        self.setting: dict[str, Any] | None = None  # in force
        self.refusal: str | None = None

    def __serve_build_asgi_app__(self) -> Current:
        return self.current

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Raises where the checkpoint, the keys or the users' database cannot be opened for the first setting. A later one that
        cannot is refused: the one before goes on, because Serve would stop a replica that raises, and the next one as well.
        """
        log_beside_serve()
        try:
            setting = Setting(**user_config)
            engine = HandleEngine(setting.targets)  # on the loop that its requests will come from
            rewards = None if setting.rewards is None else HandleRewards(setting.rewards)
            app = await asyncio.to_thread(built, setting, engine, rewards)
        except Exception as e:  # whatever stands in the way of a new setting is no reason to end the old one
            if self.setting is None:
                raise
            self.refusal = f"{type(e).__name__}: {e}"
            logger.error("the new setting was refused, the one before goes on: %s", self.refusal)
            return
        await self.current.install(app, mirrored(app, _replica(), MIRROR_S, lambda: self.current.is_current(app)))
        self.setting, self.refusal = user_config, None

    async def state(self) -> dict[str, Any]:
        """replica: its id; setting: the one in force; refusal: why the newest one is not, None where it is; retiring: settings
        before it that still have requests, so that what they ask must not be taken away.
        """
        retiring = self.current.retiring
        return {"replica": _replica(), "setting": self.setting, "refusal": self.refusal, "retiring": retiring}

    async def pid(self) -> int:
        return os.getpid()


def _replica() -> str:
    return str(serve.get_replica_context().replica_id.unique_id)


def log_beside_serve() -> None:
    """The app's lines into the log of this replica: Serve sets up its own logger alone."""
    for own in (access_log.access, access_log.failures):
        own.setLevel(logging.INFO)
        own.handlers, own.propagate = list(logger.handlers), not logger.handlers


def built(setting: Setting, engine: Engine, rewards: Rewards | None) -> FastAPI:
    """The app of a setting: seconds of reading, on any thread. Raises the UserError of whatever cannot be opened."""
    served = open_served(setting.checkpoint, name=setting.name, check_base=False)  # checked where it was deployed from
    return create_app(
        served,
        engine,
        rewards=rewards,
        keys=None if setting.keys is None else KeyRing(Path(setting.keys)),
        people=None if setting.users is None else People(setting.users),
        settings=Settings(**setting.limits),
        mixtures=served.nearest if served.mechanism == "weights" else None,
        questions=questions_of(served),
    )


def questions_of(served: Served) -> list[QuizItem]:
    """What the quiz asks: answers of these very weights that the run has scored; none without a run, or with too few."""
    if served.run is None:
        return []
    if not served.scored:
        logger.warning("no quiz: %s has no evaluation of this checkpoint", served.run)
        return []
    try:
        return items_from_run(served.run, stages=served.scored, contract=served.steering, default=served.default)
    except DataError as e:
        logger.warning("no quiz: %s", e)
        return []


def ingress_app(args: dict[str, Any], user_config: dict[str, Any] | None = None) -> serve.Application:
    """The Serve application at the route prefix /; what `serve run` calls. `args`: ingress (a section), drain_s and, unless
    user_config has it, `setting`.
    """
    serve_internals.check_ray()
    settings = IngressServing(**args["ingress"])
    deployment: Any = serve.deployment(serve.ingress()(Ingress))
    deployment = deployment.options(
        name=DEPLOYMENT,
        num_replicas=settings.replicas,
        ray_actor_options={"num_cpus": settings.num_cpus},
        max_ongoing_requests=settings.max_ongoing_requests,
        max_queued_requests=settings.max_queued_requests,
        graceful_shutdown_timeout_s=args["drain_s"],
        graceful_shutdown_wait_loop_s=1.0,
        max_surge_percent=100,
        logging_config=QUIET,
        user_config=user_config or args["setting"],
    )
    app: serve.Application = serve_internals.with_version(deployment, of_ingress()).bind()
    return app
