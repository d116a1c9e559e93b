"""POST /v1/completions: a prompt without roles. It becomes the user's turn of a chat, since only there a direction is said.

    client.completions.create(model="aligned-7b@concise", prompt="Why is the sky blue?")

Prompts of token ids are refused: they would pass by the server's words. A list of prompts is answered as one request, with
the choices of each prompt after those before it; streams take one.
"""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from rhumbline.records import Message
from rhumbline.serving import echo, exchange
from rhumbline.serving.answers import Asked, answer, positive, possible, prompt_text
from rhumbline.serving.bodies import CompletionBody, Json
from rhumbline.serving.chat import note, sampling
from rhumbline.serving.errors import ApiError, documented
from rhumbline.serving.exchange import Exchange
from rhumbline.serving.prompt import final_prompt
from rhumbline.serving.protocols import Body
from rhumbline.serving.replies import STEERED, STREAMED, CompletionReply
from rhumbline.serving.resolve import Resolved
from rhumbline.serving.service import Service
from rhumbline.serving.streams import stream
from rhumbline.serving.strict_route import StrictRoute
from rhumbline.serving.waiting import Deadline, together, while_wanted

USUAL = 16  # tokens of an answer where none are named, as OpenAI has it for completions


def routes(service: Service) -> APIRouter:
    """The route over one service."""
    router = APIRouter(route_class=StrictRoute, tags=["completions"])

    @router.post(
        "/v1/completions",
        response_model=CompletionReply,
        responses={200: STREAMED, **documented(404, 408, 413, 415, 503, 504)},
        summary="Answer a prompt in a direction",
        openapi_extra=STEERED,
    )
    async def complete(body: CompletionBody, request: Request) -> Response:
        deadline = Deadline(service.settings.deadline_s)
        alias = service.base(body.model)
        resolved = await service.settle(
            request, body=body.steering, metadata=body.metadata, verbosity=body.verbosity, alias=alias
        )
        prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        service.bounded("prompt", len(prompts), service.settings.max_prompts)
        service.text_fits(*prompts)
        fields = {"max_tokens": min(USUAL, service.settings.max_tokens), **sampling(service, body)}
        fields["add_special_tokens"] = False  # the chat template has written them
        asked = [await _asked(service, request, one, fields, body.n or 1, positive(body.seed)) for one in prompts]
        possible(service, resolved, asked[0].n, body.temperature)
        service.allow(request, answers=len(asked) * asked[0].n * resolved.options.best_of)
        about = exchange.of(request.scope)
        if service.settings.log_text:
            about.text = {"prompts": prompts}
        if body.stream:
            if len(asked) > 1:
                raise ApiError(400, "a stream takes one prompt", param="prompt", code="too_many_prompts")
            usage = body.stream_options is not None and body.stream_options.include_usage
            return await stream(service, resolved, asked[0], request, model=body.model, usage=usage, deadline=deadline)
        reply = await while_wanted(request, _all(service, resolved, asked, about, body.model), deadline)
        note(about.text, reply)
        return JSONResponse(reply, headers={echo.HEADER: echo.header(resolved)})

    return router


async def _asked(service: Service, request: Request, prompt: str, fields: Json, n: int, seed: int) -> Asked:
    defused = await service.defused(request, [{"role": "user", "content": prompt}])

    def render(line: str | None) -> Body:
        started = time.perf_counter()
        out = {"prompt": final_prompt(line, defused, service.served.tokenizer)}
        service.spent(request, started)
        return out

    return Asked(
        render=render,
        fields=fields,
        n=n,
        conversation=(Message(role="user", content=prompt),),
        ask=service.engine.complete,
        stream=service.engine.stream_complete,
        text=prompt_text,
        seed=seed,
    )


async def _all(service: Service, resolved: Resolved, asked: list[Asked], about: Exchange, model: str) -> Body:
    """The replies to all prompts as one: choices in the order of the prompts, tokens of all of them."""
    replies = await together(*(answer(service, resolved, one, about, model) for one in asked))
    if len(replies) == 1:
        return replies[0]
    choices = [choice for reply in replies for choice in reply["choices"]]
    keys = ("prompt_tokens", "completion_tokens", "total_tokens")
    usage = {key: sum(int(reply["usage"].get(key) or 0) for reply in replies) for key in keys}
    told = [each for reply in replies for each in reply["steering"].get("choices", [_of_choice(reply["steering"])])]
    steering = {**replies[0]["steering"], **({"choices": told} if any(told) else {})}
    numbered = [{**choice, "index": i} for i, choice in enumerate(choices)]
    return echo.with_steering({**replies[0], "choices": numbered, "usage": usage}, steering)


def _of_choice(steering: Json) -> Json:
    return {key: steering[key] for key in ("rewards", "selection") if key in steering}
