"""What the HTTP app needs from whoever runs the models: protocols that Ray actors fulfil in deployment and fakes in tests.

    request -> steering.resolve -> messages -> Engine.chat -> echo
                                              Rewards.score ^

The engine speaks OpenAI's objects as plain dictionaries, so that logprobs, tools and whatever a newer engine knows pass
through untouched. Everything about directions is settled before it is asked and added after it has answered.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

from rhumbline.errors import RhumblineError
from rhumbline.records import Message

Body = dict[str, Any]  # an OpenAI request, response or chunk, as JSON says it
UNNAMED = (
    "rhumbline_max_tokens"  # of a request that names no max_tokens: a bound that may be beyond the engine's context
)


class EngineError(RhumblineError):
    """The engine refused or failed. `status` is what the client is told: 400 its request's fault, 503 come again, 500 ours."""

    def __init__(self, message: str, status: int = 500, code: str = "engine_error") -> None:
        super().__init__(message, status, code)  # all in args, so that it pickles

    @property
    def message(self) -> str:
        return str(self.args[0])

    @property
    def status(self) -> int:
        return int(self.args[1])

    @property
    def code(self) -> str:
        return str(self.args[2])

    def __str__(self) -> str:
        return self.message


class Engine(Protocol):
    """Generates. `body` is an OpenAI request whose `model` is an engine's name and whose messages are final, and UNNAMED.

    Cancelling the awaiting task, or closing the iterator, frees the request's slot. Raises EngineError.
    """

    async def chat(self, body: Body, *, request_id: str) -> Body:
        """The `chat.completion` object."""
        ...

    def stream_chat(self, body: Body, *, request_id: str) -> AsyncIterator[Body]:
        """`chat.completion.chunk` objects in order, without the closing [DONE]."""
        ...

    async def complete(self, body: Body, *, request_id: str) -> Body:
        """The `text_completion` object; `body["prompt"]` is a string that already carries the chat template."""
        ...

    def stream_complete(self, body: Body, *, request_id: str) -> AsyncIterator[Body]: ...

    async def ready(self) -> bool:
        """Whether a request would be answered now."""
        ...


class Rewards(Protocol):
    """Scores answers with the run's reward model, on 0-100 in the order of the served objectives."""

    async def score(self, items: Sequence[tuple[Sequence[Message], str]]) -> list[tuple[float, ...]]:
        """(N, K) rewards of N (conversation without a direction, answer). Raises EngineError."""
        ...


class Mixtures(Protocol):
    """Where steering is by weights: which of the engine's models are which mixtures."""

    def nearest(self, direction: Sequence[float]) -> tuple[str, tuple[float, ...]]:
        """The engine's model name nearest to `direction` (K,), and the direction (K,) it was merged for."""
        ...


Labels = Mapping[str, str]
