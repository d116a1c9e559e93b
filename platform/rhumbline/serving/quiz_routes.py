"""The quiz and a key's profiles over HTTP: a few comparisons find a direction, which then is that key's own.

    POST /v1/steering/quiz {}                                   -> {"id", "question", "estimate", "done", "wedge"}
    POST /v1/steering/quiz/{id}/answer {"question": 0, "choice": "a"}
    POST /v1/steering/quiz/{id}/save {"profile": "me", "bind": true}
    GET, PUT, DELETE /v1/steering/profiles[/{name}]

A quiz and a profile belong to the key that made them; without keys, to everybody who reaches the server. Choosing a question
and the database take milliseconds of work: they run in threads, off the event loop that carries other people's streams.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from rhumbline.directions import parse
from rhumbline.errors import DirectionError, did_you_mean
from rhumbline.serving import exchange
from rhumbline.serving.bodies import AnswerBody, Json, ProfileBody, QuizBody, SaveBody
from rhumbline.serving.errors import ApiError, documented
from rhumbline.serving.replies import ProfileCard, Profiles, QuizState
from rhumbline.serving.service import Service
from rhumbline.serving.strict_route import StrictRoute
from rhumbline.users.quiz import Quiz, QuizError
from rhumbline.users.store import PeopleError, Profile

# Of what users.quiz and users.store refuse: everything else is a 400.
STATUSES = {
    **dict.fromkeys(("unknown_quiz", "unknown_profile"), 404),
    **dict.fromkeys(("answered", "not_the_question", "finished", "no_questions", "conflict", "too_many"), 409),
    "bad_state": 500,
}
Name = Annotated[str, Path(max_length=64, description="A profile of this key.")]
Id = Annotated[str, Path(max_length=64, description="A quiz of this key.")]


class QuizRoute(StrictRoute):
    """A StrictRoute that knows the statuses of the quiz's own refusals."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        handler = super().get_route_handler()

        async def told(request: Request) -> Response:
            try:
                return await handler(request)
            except (QuizError, PeopleError) as e:
                raise ApiError(STATUSES.get(e.code, 400), str(e), code=e.code) from None

        return told


def routes(service: Service) -> APIRouter:
    """The routes over one service."""
    router = APIRouter(prefix="/v1/steering", route_class=QuizRoute, tags=["quiz"])
    refusals = documented(404, 408, 409, 413, 415, 503)

    @router.post("/quiz", response_model=QuizState, responses=refusals, summary="Begin a quiz")
    async def begin(body: QuizBody, request: Request) -> Any:
        people, owner = service.needs_people(), exchange.of(request.scope).owner
        if not service.questions:
            raise ApiError(404, "this server has no questions: deploy a run that was evaluated", code="no_questions")
        seed = secrets.randbelow(2**31) if body.seed is None else body.seed
        quiz_id = uuid.uuid4().hex

        def work() -> Json:
            quiz = Quiz.start(service.served.cone, service.questions, seed, repeat_after=body.repeat_after)
            people.save_quiz(owner, quiz_id, quiz.to_dict())
            return quiz.state()

        return {"id": quiz_id, **await run_in_threadpool(work)}

    @router.get("/quiz/{id}", response_model=QuizState, responses=refusals, summary="A quiz as it stands")
    async def read(id: Id, request: Request) -> Any:
        return await _read(service, request, id)

    @router.post("/quiz/{id}/answer", response_model=QuizState, responses=refusals, summary="Answer a question")
    async def answer(id: Id, body: AnswerBody, request: Request) -> Any:
        return await _change(service, request, id, lambda quiz: quiz.answer(body.question, body.choice))

    @router.post("/quiz/{id}/more", response_model=QuizState, responses=refusals, summary="Ask for more questions")
    async def more(id: Id, request: Request) -> Any:
        return await _change(service, request, id, lambda quiz: quiz.more())

    @router.post("/quiz/{id}/save", response_model=ProfileCard, responses=refusals, summary="Keep what was found")
    async def save(id: Id, body: SaveBody, request: Request) -> Any:
        people, owner = service.needs_people(), exchange.of(request.scope).owner

        def work() -> Profile:
            state, _ = people.load_quiz(owner, id)
            quiz = _quiz(service, state)
            estimate = quiz.estimate()
            weights = dict(zip(quiz.cone.names, estimate.direction, strict=True))
            return people.save_profile(
                owner, body.profile, weights, source="quiz", half_angle_deg=estimate.half_angle_deg
            )

        profile = await run_in_threadpool(work)
        return await _bound(service, owner, profile, True if body.bind else None)

    @router.get("/profiles", response_model=Profiles, responses=refusals, summary="The key's profiles")
    async def profiles(request: Request) -> Any:
        people, owner = service.needs_people(), exchange.of(request.scope).owner
        found = await run_in_threadpool(people.profiles, owner)
        bound = await run_in_threadpool(people.bound, owner)
        return {"profiles": [_card(profile, bound) for profile in found]}

    @router.get("/profiles/{name}", response_model=ProfileCard, responses=refusals, summary="One profile")
    async def profile(name: Name, request: Request) -> Any:
        people, owner = service.needs_people(), exchange.of(request.scope).owner
        found = await run_in_threadpool(people.get_profile, owner, name)
        return _card(found, await run_in_threadpool(people.bound, owner))

    @router.put("/profiles/{name}", response_model=ProfileCard, responses=refusals, summary="Set a profile by hand")
    async def put(name: Name, body: ProfileBody, request: Request) -> Any:
        people, owner = service.needs_people(), exchange.of(request.scope).owner
        _check(service, body.weights)
        saved = await run_in_threadpool(people.save_profile, owner, name, body.weights)
        return await _bound(service, owner, saved, body.bind)

    @router.delete("/profiles/{name}", status_code=204, responses=refusals, summary="Forget a profile")
    async def delete(name: Name, request: Request) -> Response:
        people, owner = service.needs_people(), exchange.of(request.scope).owner
        await run_in_threadpool(people.delete_profile, owner, name)
        service.bound.pop(owner, None)
        return Response(status_code=204)

    return router


def _quiz(service: Service, state: Json) -> Quiz:
    """Raises ApiError (409) for the quiz of another model: deployments share a database, and its answers mean nothing here."""
    quiz, names = Quiz.from_dict(state, service.questions), service.served.names
    if quiz.cone.names != names:
        raise ApiError(
            409,
            f"this quiz is about {', '.join(quiz.cone.names)}, the model is steered by {', '.join(names)}: begin another one",
            code="other_model",
        )
    return quiz


async def _read(service: Service, request: Request, quiz_id: str) -> Json:
    people, owner = service.needs_people(), exchange.of(request.scope).owner

    def work() -> Json:
        state, _ = people.load_quiz(owner, quiz_id)
        return _quiz(service, state).state()

    return {"id": quiz_id, **await run_in_threadpool(work)}


async def _change(service: Service, request: Request, quiz_id: str, change: Callable[[Quiz], None]) -> Json:
    """Change a quiz; where a rival request was faster, on top of its change. Raises QuizError, PeopleError."""
    people, owner = service.needs_people(), exchange.of(request.scope).owner
    quizzes: list[Quiz] = []

    def changed(state: Json) -> Json:
        quiz = _quiz(service, state)
        change(quiz)
        quizzes.append(quiz)
        return quiz.to_dict()

    def work() -> Json:
        people.change_quiz(owner, quiz_id, changed)
        return quizzes[-1].state()  # the one that was kept: those before it lost to a rival

    return {"id": quiz_id, **await run_in_threadpool(work)}


async def _bound(service: Service, owner: str, profile: Profile, bind: bool | None) -> Json:
    """The profile's card after the key was bound to it, or freed from it; None leaves the binding alone."""
    people = service.needs_people()
    bound = await run_in_threadpool(people.bound, owner)
    if bind:
        bound = await run_in_threadpool(people.bind, owner, profile.name)
    elif bind is False and bound is not None and bound.name == profile.name:
        await run_in_threadpool(people.unbind, owner)
        bound = None
    service.bound.pop(owner, None)
    return _card(profile, bound)


def _card(profile: Profile, bound: Profile | None) -> Json:
    return {**profile.to_dict(), "bound": bound is not None and bound.name == profile.name}


def _check(service: Service, weights: dict[str, float]) -> None:
    """Raises ApiError where the model has no such objective, or the weights are no direction."""
    names = service.served.names
    unknown = next((name for name in weights if name not in names), None)
    if unknown is not None:
        raise ApiError(
            400,
            f"Unknown objective {unknown[:100]!r}.{did_you_mean(unknown, names)} Known: {', '.join(names)}.",
            param=f"weights.{unknown[:100]}",
            code="unknown_objective",
        )
    try:
        parse(weights, names)
    except DirectionError as e:
        raise ApiError(400, f"weights: {e}", param="weights", code="invalid_weights") from None
