"""One JSON line per request, without a word of anybody's text: logger `rhumbline.serving.access`.

    {"request_id": "req-1f..", "owner": "key-3f..", "method": "POST", "route": "/v1/chat/completions", "status": 200, "ms": 812.4,
     "steering": {"helpfulness": 0.8, "verbosity": -0.6}, "source": "body", "prompt_tokens": 31, "completion_tokens": 40}

Routes are templates, never paths. An unexpected exception is logged by its kind and the places it passed, never by its
words, which may be a client's. Text is there only where `Settings.log_text` asks for it.
"""

from __future__ import annotations

import json
import logging
import time
import traceback
from pathlib import PurePath

from rhumbline.serving.exchange import Exchange

access = logging.getLogger("rhumbline.serving.access")
failures = logging.getLogger("rhumbline.serving.failures")


def record(exchange: Exchange, *, method: str, route: str, status: int) -> None:
    """Log one finished request at INFO. `method` is one that HTTP knows, `route` a template."""
    if not access.isEnabledFor(logging.INFO):
        return
    line = {
        "request_id": exchange.request_id,
        "owner": exchange.owner,
        "method": method,
        "route": route,
        "status": status,
        "ms": round(1000 * (time.perf_counter() - exchange.started), 1),
        "steering": {name: round(w, 4) for name, w in exchange.steering.items()} if exchange.steering else None,
        "source": exchange.source,
        "prompt_tokens": exchange.prompt_tokens or None,
        "completion_tokens": exchange.completion_tokens or None,
        "ended": exchange.ended,
        "code": exchange.code,
        "text": exchange.text,
    }
    access.info(json.dumps({name: value for name, value in line.items() if value is not None}))


def failure(exchange: Exchange, error: BaseException, *, route: str) -> None:
    """Log an unexpected exception at ERROR: kinds and places of it and of what caused it."""
    chain: list[dict[str, object]] = []
    seen: BaseException | None = error
    while seen is not None and len(chain) < 5:
        places = [f"{PurePath(f.filename).name}:{f.lineno} {f.name}" for f in traceback.extract_tb(seen.__traceback__)]
        chain.append({"kind": type(seen).__name__, "places": places[-8:]})
        seen = seen.__cause__ or seen.__context__
    failures.error(json.dumps({"request_id": exchange.request_id, "route": route, "failure": chain}))
