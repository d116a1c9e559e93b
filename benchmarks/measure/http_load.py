"""Streams of chat completions over HTTP: how many tokens came, when the first one did, how long each request took.

async with client("http://127.0.0.1:8127/v1") as http:
    told = await streamed(http, bodies, streams=4)             # four at a time, until all are answered
told.tokens, told.seconds, told.first_s, told.whole_s
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

TIMEOUT_S = 600.0


@dataclass(slots=True)
class Told:
    """Of all requests of one run, in the order in which they ended."""

    seconds: float = 0.0
    tokens: int = 0  # of answers, as the server counts them
    first_s: list[float] = field(default_factory=list)  # until the first token
    whole_s: list[float] = field(default_factory=list)
    texts: dict[int, str] = field(default_factory=dict)  # by the request's place


@asynccontextmanager
async def client(base: str, key: str | None = None) -> Any:
    """Keeps its connections; to this machine alone."""
    if not base.startswith("http://127.0.0.1:"):
        raise ValueError(f"benchmarks only ask this machine, not {base}")
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout) as session:
        yield Http(session, base)


@dataclass(frozen=True, slots=True)
class Http:
    session: aiohttp.ClientSession
    base: str

    async def stream(self, body: dict[str, Any], told: Told, place: int) -> None:
        """One streamed chat. RuntimeError where it is refused or ends without its usage."""
        began, first, tokens, text = time.perf_counter(), None, None, []
        async with self.session.post(f"{self.base}/chat/completions", json=body) as answer:
            if answer.status != 200:
                raise RuntimeError(f"{self.base} refused: {answer.status} {await answer.text()}")
            async for line in answer.content:
                if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise RuntimeError(f"{self.base} failed: {event['error']}")
                said = "".join(choice["delta"].get("content") or "" for choice in event.get("choices", ()))
                if said and first is None:
                    first = time.perf_counter() - began
                text.append(said)
                if event.get("usage"):
                    tokens = event["usage"]["completion_tokens"]
        if tokens is None or first is None:
            raise RuntimeError(f"{self.base}: a stream ended without its usage or without a token")
        told.whole_s.append(time.perf_counter() - began)
        told.first_s.append(first)
        told.tokens += tokens
        told.texts[place] = "".join(text)


async def streamed(http: Http, bodies: Sequence[dict[str, Any]], streams: int) -> Told:
    """All bodies, `streams` at a time."""
    told, waiting = Told(), iter(enumerate(bodies))

    async def work() -> None:
        for place, body in waiting:
            await http.stream(body, told, place)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(streams):
            group.create_task(work())
    told.seconds = time.perf_counter() - began
    return told
