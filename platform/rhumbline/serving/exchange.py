"""What is known about one request while it runs: filled by the routes, read by the access log and the metrics.

exchange = of(request.scope)
exchange.steering = {"helpfulness": 0.8, "verbosity": -0.6}
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Literal

_SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
ANONYMOUS = "anonymous"  # the owner of everything where the server was told to run without keys


@dataclass(slots=True)
class Exchange:
    """One request and its answer. Never holds text, but for `text` where the settings ask for it."""

    request_id: str
    owner: str = ANONYMOUS  # id of the key
    started: float = field(default_factory=time.perf_counter)
    steering: Mapping[str, float] | None = None  # the effective direction, by objective
    source: str | None = None  # where the direction came from
    bucket: str | None = None  # the preset or the angle, for metrics
    steering_s: float | None = None  # resolving and rendering, without the engine
    first_chunk_s: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    ended: Literal["client_gone", "deadline", "engine"] | None = None  # why there is no whole answer
    code: str | None = None  # of the refusal
    text: dict[str, Any] | None = None  # messages and answers, only where Settings.log_text

    @property
    def engine_id(self) -> str:
        """A fresh id for the engine: a client's own may be in flight twice, and the engine knows requests by their id."""
        return f"rl-{uuid.uuid4().hex}"

    def count(self, usage: Mapping[str, Any] | None) -> None:
        """Add an engine's `usage`."""
        if usage:
            self.prompt_tokens += int(usage.get("prompt_tokens") or 0)
            self.completion_tokens += int(usage.get("completion_tokens") or 0)


def begin(scope: MutableMapping[str, Any]) -> Exchange:
    """A new exchange for an ASGI scope, under the client's request id where that is a plain word of at most 64 characters."""
    wanted = [value for name, value in scope["headers"] if name == b"x-request-id"]
    text = wanted[0].decode("latin-1") if len(wanted) == 1 else ""
    exchange = Exchange(request_id=text if _SAFE_ID.fullmatch(text) else f"req-{uuid.uuid4().hex}")
    scope.setdefault("state", {})["exchange"] = exchange
    return exchange


def of(scope: Mapping[str, Any]) -> Exchange:
    """The exchange that `begin` laid into the scope."""
    exchange = scope["state"]["exchange"]
    assert isinstance(exchange, Exchange)
    return exchange
