"""A served model, an engine and a reward model that obey the protocols, answer at once and do what a direction asks.

    app = create_app(served(), FakeEngine(), rewards=FakeRewards(), keys=None, people=None, settings=Settings())

The engine reads the direction from the words of the codec, as a policy does: the more verbosity it asks for, the longer the
answer. It repeats the system message and keeps every request, so that a test sees what a model would have seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from rhumbline import codecs
from rhumbline.codecs import direction_of
from rhumbline.directions import Cone, from_angle_deg
from rhumbline.errors import CodecError
from rhumbline.records import Message
from rhumbline.rewards.objectives import Calibration
from rhumbline.serving.protocols import Body, EngineError
from rhumbline.serving.served import Served
from rhumbline.steering import Steering
from rhumbline.users.pool import QuizItem
from tests.rhumbline.chat_fakes import CHATML, byte_tokenizer

NAMES = ("helpfulness", "verbosity")
PRESETS = {"balanced": {"helpfulness": 1.0}, "concise": {"helpfulness": 0.8, "verbosity": -0.6}}
REQUEST = {"model": "smol", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}


def contract(presets: dict[str, dict[str, float]] = PRESETS) -> Steering:
    """steering.json of two objectives, trained within 45 degrees of helpfulness; rewards lie around 50."""
    return Steering(
        objectives=NAMES,
        signs=(1, -1),
        calibration=Calibration.fit(NAMES, [(40.0, 30.0), (50.0, 50.0), (60.0, 70.0)], [10, 20, 30]).to_dict(),
        codec=codecs.make("dpa-int100", NAMES).to_dict(),
        region=Cone(NAMES, from_angle_deg(0), 45.0).to_dict(),
        reward_model="rm-1",
        iteration=2,
        initial="embedded",
        presets=presets,
    )


def served(name: str = "smol", **more: Any) -> Served:
    """A `Served` without weights: its tokenizer is the byte tokenizer with ChatML."""
    made = Served.of(contract(), name=name, folder=Path("nowhere"), **more)
    made.__dict__["tokenizer"] = byte_tokenizer(CHATML)  # where cached_property would keep the real one
    return made


class FakeEngine:
    """Answers `N words.` for verbosity v, N = round(10 + 8 v), after the system message that it was given."""

    def __init__(self, delay_s: float = 0.0, words_delay_s: float = 0.0) -> None:
        self.delay_s = delay_s  # before an answer, or a stream's first chunk
        self.words_delay_s = words_delay_s  # between chunks
        self.requests: list[Body] = []
        self.ids: list[str] = []
        self.running = 0
        self.cancelled = 0
        self.up = True
        self.fails: Exception | None = None
        self.fails_after: int | None = None  # chunks of a stream

    async def chat(self, body: Body, *, request_id: str) -> Body:
        with self._seen(body, request_id):
            await asyncio.sleep(self.delay_s)
            choices = [
                {"index": i, "finish_reason": "stop", "message": {"role": "assistant", "content": self._text(body, i)}}
                for i in range(body.get("n", 1))
            ]
            return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": body["model"]} | _rest(
                choices
            )

    async def stream_chat(self, body: Body, *, request_id: str) -> AsyncIterator[Body]:
        with self._seen(body, request_id):
            await asyncio.sleep(self.delay_s)
            base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
            async for index, word, last in self._words(body):
                delta = {"role": "assistant", "content": word}
                choice = {"index": index, "delta": delta, "finish_reason": "stop" if last else None}
                yield {**base, "choices": [choice], "usage": None}
            yield {**base, "choices": [], "usage": _usage(1)}

    async def complete(self, body: Body, *, request_id: str) -> Body:
        with self._seen(body, request_id):
            await asyncio.sleep(self.delay_s)
            choices = [
                {"index": i, "finish_reason": "stop", "text": self._text(body, i)} for i in range(body.get("n", 1))
            ]
            return {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": body["model"]} | _rest(choices)

    async def stream_complete(self, body: Body, *, request_id: str) -> AsyncIterator[Body]:
        with self._seen(body, request_id):
            await asyncio.sleep(self.delay_s)
            base = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": body["model"]}
            async for index, word, last in self._words(body):
                yield {**base, "choices": [{"index": index, "text": word, "finish_reason": "stop" if last else None}]}
            yield {**base, "choices": [], "usage": _usage(1)}

    async def ready(self) -> bool:
        return self.up

    @contextlib.contextmanager
    def _seen(self, body: Body, request_id: str) -> Iterator[None]:
        self.requests.append(body)
        self.ids.append(request_id)
        if self.fails is not None and self.fails_after is None:
            raise self.fails
        self.running += 1
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def _words(self, body: Body) -> AsyncIterator[tuple[int, str, bool]]:
        told = 0
        for index in range(body.get("n", 1)):
            words = [f"{word} " for word in self._text(body, index).split(" ")]
            for i, word in enumerate(words):
                if self.fails is not None and told == self.fails_after:
                    raise self.fails
                told += 1
                yield index, word, i == len(words) - 1
                await asyncio.sleep(self.words_delay_s)

    def _text(self, body: Body, index: int) -> str:
        return " ".join(["word"] * max(1, round(10 + 8 * verbosity_of(body)) + index))


def verbosity_of(body: Body) -> float:
    """The weight of verbosity in the words that a request carries; 0 where it carries none."""
    text = (
        body["messages"][0]["content"]
        if "messages" in body
        else body["prompt"].split("\n", 1)[-1].split("<|im_end|>")[0]
    )
    system = (Message(role="system", content=text),)
    try:
        return direction_of(system, codecs.make("dpa-int100", NAMES))[1]
    except CodecError:
        return 0.0


class FakeRewards:
    """helpfulness: 60 less a tenth of the distance from 12 words; verbosity: twice the number of words."""

    def __init__(self) -> None:
        self.items: list[tuple[tuple[Message, ...], str]] = []
        self.fails: EngineError | None = None

    async def score(self, items: Sequence[tuple[Sequence[Message], str]]) -> list[tuple[float, ...]]:
        if self.fails is not None:
            raise self.fails
        self.items += [(tuple(messages), text) for messages, text in items]
        lengths = [len(text.split()) for _, text in items]
        return [(60.0 - abs(length - 12) / 10, 2.0 * length) for length in lengths]


def questions(count: int = 40) -> tuple[QuizItem, ...]:
    """Pairs of answers that trade helpfulness for verbosity, at angles that cover the cone."""
    spread = [((-1) ** i) * (0.5 + i / count) for i in range(count)]
    return tuple(
        QuizItem(
            prompt_id=f"p{i}",
            prompt=(Message(role="user", content=f"Question {i}?"),),
            a=f"First answer to {i}.",
            b=f"Second answer to {i}, in more words.",
            rewards_a=(gap * (i % 7) / 6, gap),
            rewards_b=(0.0, 0.0),
        )
        for i, gap in enumerate(spread)
    )


@contextlib.contextmanager
def running(app: ASGIApp) -> Iterator[str]:
    """`app` under a real uvicorn on a free port of this machine; its URL."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive(), "the server did not stop"


def _usage(n: int) -> dict[str, int]:
    return {"prompt_tokens": 10, "completion_tokens": 10 * n, "total_tokens": 10 + 10 * n}


def _rest(choices: list[dict[str, Any]]) -> Body:
    return {"choices": choices, "usage": _usage(len(choices))}
