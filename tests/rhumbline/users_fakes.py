"""Small populations, and a server whose tastes are known: it speaks OpenAI's chat completions, and prefers the first place."""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any

import numpy as np

from rhumbline.records import Message
from rhumbline.users.population import Population, Question, User

TASTE, BIAS = 0.5, 1.0  # logits: a taste alone never beats the place
TASTES = ("tea", "coffee", "water")


def question(id_: str, options: int = 2, split: str | None = None) -> Question:
    asked = (Message(role="user", content=f"What about {id_}?"),)
    return Question(id=id_, messages=asked, options=tuple(f"option {a}" for a in range(options)), split=split)


def population(choices_UQ: Sequence[Sequence[int]], options: int = 2, **fields: Any) -> Population:
    """Users u0, u1, ... and questions q0, q1, ... with these choices."""
    table = np.array(choices_UQ, dtype=np.int64)
    return Population(
        name="made up",
        users=tuple(User(id=f"u{u}") for u in range(table.shape[0])),
        questions=tuple(question(f"q{q}", options) for q in range(table.shape[1])),
        choices_UQ=table,
        **fields,
    )


class TastefulServer(ThreadingHTTPServer):
    """Chooses what the person that it plays is fond of, by TASTE; and whatever stands at A, by BIAS.

    Whose taste: the one in 'fond of X' of the system message, else the most frequent one among the answers shown before,
    else none. A question with the word 'riddle' makes it choose anything but that.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.most_at_once = self.at_once = 0
        self.logprobs = True
        self.refuse_after: int | None = None  # requests that are answered before status 500
        self.refuse_words: str | None = None  # status 400 for a request that has them
        self.says: str | None = None  # instead of a letter
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def asked(self) -> list[str]:
        return [json.dumps(body, sort_keys=True) for body in self.bodies]


@contextmanager
def tasteful_server() -> Iterator[TastefulServer]:
    server = TastefulServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _options(text: str) -> list[str]:
    """The options of a question, in the order of their letters."""
    return re.findall(r"^[A-Z]\. (.*)$", text, flags=re.MULTILINE)


def _taste(messages: list[dict[str, str]]) -> str | None:
    told = re.search(r"fond of (\w+)", messages[0]["content"])
    if messages[0]["role"] == "system" and told:
        return told[1]
    shown = [
        _options(asked["content"])["ABC".index(said["content"])]
        for asked, said in pairwise(messages)
        if said["role"] == "assistant"
    ]
    liked = [taste for option in shown for taste in TASTES if taste in option]
    return max(set(liked), key=liked.count) if liked else None


class _Handler(BaseHTTPRequestHandler):
    server: TastefulServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None: ...

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.bodies.append(body)
            server.keys.append(self.headers["Authorization"])
            number = len(server.bodies)
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            if self.path != "/v1/chat/completions":
                self._send(404, {"error": {"message": "no such path"}})
            elif self.headers["Authorization"] == "Bearer wrong":
                self._send(401, {"error": {"message": "not this key"}})
            elif body["model"] != "tasteful":
                self._send(404, {"error": {"message": f"no model {body['model']}"}})
            elif server.refuse_after is not None and number > server.refuse_after:
                self._send(500, {"error": {"message": "out of order"}})
            elif server.refuse_words and server.refuse_words in body["messages"][-1]["content"]:
                self._send(400, {"error": {"message": "too long"}})
            else:
                self._send(200, self._reply(body))
        finally:
            with server.lock:
                server.at_once -= 1

    def _reply(self, body: dict[str, Any]) -> dict[str, Any]:
        asked, taste = body["messages"][-1]["content"], _taste(body["messages"])
        options = _options(asked) or ["", ""]
        wanted = [taste is not None and (taste in option) != ("riddle" in asked) for option in options]
        logits = [TASTE * want + BIAS * (place == 0) for place, want in enumerate(wanted)]
        total = math.log(sum(map(math.exp, logits)))
        tokens = [
            {"token": f"{' ' * (place % 2)}{'ABC'[place]}", "logprob": logit - total - 0.1, "bytes": None}
            for place, logit in enumerate(logits)
        ] + [{"token": "The", "logprob": math.log(1 - math.exp(-0.1)), "bytes": None}]
        best = max(range(len(options)), key=lambda place: (wanted[place], -place))
        text = self.server.says if self.server.says is not None else f"{'ABC'[best]}."
        logprobs = {"content": [{**tokens[0], "top_logprobs": tokens}], "refusal": None}
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "length"}
        if self.server.logprobs and body.get("logprobs"):
            choice["logprobs"] = logprobs
        return {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice]}

    def _send(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
