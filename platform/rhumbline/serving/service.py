"""What the routes share: the served model, its engine, and how one request's direction is settled.

resolved = await service.settle(request, body=body.steering, alias=alias, ...)
service.allow(request, answers=4)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, TypeVar

from fastapi import Request
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from rhumbline.directions import Direction
from rhumbline.errors import did_you_mean
from rhumbline.serving import access_log, exchange, metrics
from rhumbline.serving.alias import split
from rhumbline.serving.defuse import strings
from rhumbline.serving.echo import weights
from rhumbline.serving.errors import ApiError
from rhumbline.serving.limits import Limiter
from rhumbline.serving.metrics import Metrics
from rhumbline.serving.prompt import Defused, Guard
from rhumbline.serving.protocols import Engine, Mixtures, Rewards
from rhumbline.serving.requests import Sources, SteeringBody
from rhumbline.serving.resolve import Resolved, resolve, say
from rhumbline.serving.served import Served
from rhumbline.serving.settings import Settings
from rhumbline.users.pool import QuizItem
from rhumbline.users.store import People, PeopleError, Profile

LONG_CHARS = 20_000  # of a conversation that is made harmless in a thread: milliseconds
T = TypeVar("T")
BOUND_FRESH_S = 5.0  # how long a key's binding is believed; another replica may have changed it


@dataclass(frozen=True, kw_only=True)
class Service:
    """One app's parts. Frozen; what changes are the limiter, the metrics and the cache of bindings."""

    served: Served
    engine: Engine
    rewards: Rewards | None
    people: People | None
    mixtures: Mixtures | None
    settings: Settings
    limiter: Limiter
    metrics: Metrics
    guard: Guard
    questions: tuple[QuizItem, ...]
    created: int  # seconds since 1970, of the model's card
    clock: Callable[[], float] = time.monotonic
    bound: dict[str, tuple[float, Profile | None]] = field(
        default_factory=dict
    )  # owner -> when it was read, what it was

    async def settle(
        self,
        request: Request,
        *,
        body: SteeringBody | None = None,
        metadata: Mapping[str, str] | None = None,
        verbosity: str | None = None,
        alias: str | None = None,
        alone: bool = True,
    ) -> Resolved:
        """The direction of a request, noted for the log and the metrics. Raises SteeringRefused, ApiError.

        alone: False for one of several directions of a request; then the body alone says it, without header and bound profile.
        """
        about = exchange.of(request.scope)
        said = request.headers.getlist("x-steering") if alone else []
        if len(said) > 1:
            raise ApiError(
                400,
                "X-Steering is given more than once: give one direction",
                param="X-Steering",
                code="ambiguous_direction",
            )
        profile = await self.bound_profile(about.owner) if alone else None
        profiles = {} if profile is None else {profile.name: profile.weights}
        if body is not None and body.profile is not None and body.profile not in profiles:
            profiles |= await self._profile(about.owner, body.profile)
        sources = Sources(
            body=body,
            header=said[0] if said else None,
            metadata=(metadata or {}).get("steering"),
            verbosity=verbosity,
            alias=alias,
            profile=None if profile is None else profile.name,
        )
        started = time.perf_counter()
        resolved = resolve(sources, self.served, profiles.get, mixtures=self.mixtures)
        self.spent(request, started)
        about.steering = weights(resolved.names, resolved.effective)
        about.source = resolved.source
        about.bucket = self._presets.get(resolved.effective) or metrics.bucket(resolved.effective, self.served.cone)
        return resolved

    def spent(self, request: Request, started: float) -> None:
        """Count the time since `started` (perf_counter) as steering's."""
        about = exchange.of(request.scope)
        about.steering_s = (about.steering_s or 0.0) + time.perf_counter() - started

    async def defused(self, request: Request, messages: Sequence[Mapping[str, Any]]) -> Defused:
        """A conversation made harmless."""
        return await self._aside(request, messages, partial(Defused.of, messages, self.guard))

    async def cleaned(self, request: Request, tools: list[Any]) -> list[Any]:
        """Tools made harmless, which chat templates write into the system message."""
        return await self._aside(request, tools, partial(self.guard.clean_all, tools))

    async def _aside(self, request: Request, said: Sequence[Any], work: Callable[[], T]) -> T:
        """Work on what a client said; on much of it beside the loop that everybody else waits for."""
        started = time.perf_counter()
        long = sum(map(len, strings(list(said)))) > LONG_CHARS
        out = await run_in_threadpool(work) if long else work()
        self.spent(request, started)
        return out

    def base(self, model: str) -> str | None:
        """What a request's `model` says of a direction. Raises ApiError (404) where it is not the served one."""
        name, alias = split(model)
        if name != self.served.name:
            raise ApiError(
                404,
                f"there is no model {name[:100]!r}.{did_you_mean(name, [self.served.name])} Served: {self.served.name}",
                param="model",
                code="model_not_found",
            )
        return alias

    def allow(self, request: Request, *, answers: int) -> None:
        """Charge a request's key for all answers that are generated. Raises ApiError for more than one request may ask."""
        if answers > self.settings.max_answers:
            raise ApiError(
                400,
                f"the request asks for {answers} answers (n x best_of x directions x prompts), at most "
                f"{self.settings.max_answers} are allowed",
                param="n",
                code="too_many_answers",
            )
        self.charge(request, answers=answers)

    def charge(self, request: Request, *, answers: int) -> None:
        """Take what a request costs beyond the one that it has paid for by entering."""
        self.limiter.charge(exchange.of(request.scope).owner, answers - 1)

    def bounded(self, param: str, asked: int | None, most: int) -> None:
        """Raises ApiError where a number, or the length of a list, is larger than the settings allow."""
        if asked is not None and asked > most:
            raise ApiError(400, f"{param}: at most {most} allowed here, got {asked}", param=param, code="too_large")

    def text_fits(self, *texts: str) -> None:
        """Raises ApiError where the texts of a request are longer together than the settings allow."""
        size = sum(map(len, texts))
        if size > self.settings.max_text_chars:
            raise ApiError(
                400,
                f"the texts of the request have {size} characters, at most {self.settings.max_text_chars} are allowed",
                code="too_long",
            )

    # --- who asks -----------------------------------------------------------------------------------------------------

    def needs_people(self) -> People:
        """Raises ApiError (404) where the server keeps nothing of people."""
        if self.people is None:
            raise ApiError(404, "this server keeps no quizzes and no profiles", code="no_people")
        return self.people

    async def bound_profile(self, owner: str) -> Profile | None:
        """The profile that is bound to a key, at most some seconds old."""
        if self.people is None:
            return None
        read, profile = self.bound.get(owner, (-BOUND_FRESH_S, None))
        if self.clock() - read >= BOUND_FRESH_S:
            try:
                profile = await run_in_threadpool(self.people.bound, owner)
            except SQLAlchemyError as e:  # the profile as it was last known: chats go on without the database
                access_log.failure(exchange.Exchange(request_id="-", owner=owner), e, route="profiles")
            self.bound[owner] = (self.clock(), profile)
        return profile

    async def _profile(self, owner: str, name: str) -> dict[str, dict[str, float]]:
        if self.people is None:
            return {}
        try:
            return {name: (await run_in_threadpool(self.people.get_profile, owner, name)).weights}
        except PeopleError:
            return {}  # resolve says it, with the place in the request

    # --- names for metrics --------------------------------------------------------------------------------------------

    @cached_property
    def _presets(self) -> dict[Direction, str]:
        """What each preset comes to -> its name: the server's own words, so a label may hold them."""
        return {effective: f"preset:{name}" for name, effective in self.preset_directions.items()}

    @cached_property
    def preset_directions(self) -> dict[str, Direction]:
        """Preset -> the direction that a request for it gets."""
        body = {name: SteeringBody(preset=name) for name in self.served.presets}
        return {
            name: resolve(Sources(body=one), self.served, None, mixtures=self.mixtures).effective
            for name, one in body.items()
        }

    def words(self, direction: Direction) -> tuple[str | None, str]:
        """What opens the system message for a direction of the cone, and the engine's model."""
        said = say(self.served, direction, self.mixtures)
        return said.line, said.model
