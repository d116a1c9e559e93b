"""Asks any server that speaks OpenAI's chat completions, a bounded number at a time, and keeps every answer. Over `roleplay`.

    book = AnswerBook(out / "answers.jsonl")                # what was answered before, whoever asked
    wanted = requests(endpoint, cases, portrait=None)       # every case once per order of its options
    asyncio.run(ask(endpoint, wanted, book, told=print))    # asks what is not in the book, adds as answers come
    found, failed = foreseen(book, endpoint, cases, None)   # {key of the case: (A,) probabilities}, {reason: cases}

An answer is filed under a hash of all that the model is sent. So a run that was killed goes on where it was, a recipe that
changed asks only what is new, and nothing is asked twice: not even what two predictors would both ask.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import openai

from rhumbline import durable
from rhumbline.config.users import Endpoint
from rhumbline.errors import ConfigError, GenerationError
from rhumbline.records import Message
from rhumbline.users.population import Floats
from rhumbline.users.roleplay import Case, averaged, messages, orders, read_logprobs, read_text

K = TypeVar("K", bound=Hashable)
TEXT_TOKENS = 8  # room for 'The answer is B.'
TOLD_EVERY = 20  # lines of progress in a run


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One request: what is sent, and how many letters there are to choose from."""

    key: str
    body: dict[str, Any]
    letters: int
    read: str  # logprobs or text

    @classmethod
    def of(cls, endpoint: Endpoint, turns: Sequence[Message], letters: int) -> Wanted:
        """The request for these turns at temperature 0."""
        by_logprobs = endpoint.read == "logprobs"
        body: dict[str, Any] = {
            "model": endpoint.model,
            "messages": [{"role": message.role, "content": message.content} for message in turns],
            "temperature": 0.0,
            "max_tokens": endpoint.max_tokens or (1 if by_logprobs else TEXT_TOKENS),
        }
        if by_logprobs:
            body |= {"logprobs": True, "top_logprobs": endpoint.top_logprobs}
        sent = json.dumps(
            [endpoint.url, body, endpoint.body, letters, endpoint.read], sort_keys=True, ensure_ascii=False
        )
        key = hashlib.sha256(sent.encode("utf-8", "surrogatepass")).hexdigest()[:24]
        return cls(key=key, body=body, letters=letters, read=endpoint.read)


class AnswerBook:
    """Answers by request, in a file of JSON lines that only ever grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known = {str(line["key"]): line for line in durable.read(path) if "key" in line}

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, wanted: Wanted) -> bool:
        return wanted.key in self._known

    def add(self, wanted: Wanted, answer: dict[str, Any]) -> None:
        """File an answer; it is on the disk when this returns."""
        line = {"key": wanted.key, "model": wanted.body["model"], **answer}
        durable.append(self.path, line)
        self._known[wanted.key] = line

    def probabilities(self, wanted: Wanted) -> Floats | None:
        """(L,) of the letters; None where the answer chose none. Raises KeyError for what was not asked."""
        found = self._known[wanted.key].get("p")
        return None if found is None else np.array(found, dtype=np.float64)

    def failure(self, wanted: Wanted) -> str | None:
        """Why an answer could not be used; None where it could."""
        found = self._known[wanted.key].get("failed")
        return None if found is None else str(found)


def requests(endpoint: Endpoint, cases: Iterable[Case], portrait: str | None) -> list[Wanted]:
    """What is sent for these cases: each with its options in every order of `roleplay.orders`."""
    return [one for case in cases for one in _orders(endpoint, case, portrait)]


def foreseen(
    book: AnswerBook, endpoint: Endpoint, cases: Mapping[K, Case], portrait: str | None
) -> tuple[dict[K, Floats], Counter[str]]:
    """(A,) probabilities of the options of every case that was answered in all orders, and why the others were not."""
    found: dict[K, Floats] = {}
    failed: Counter[str] = Counter()
    for key, case in cases.items():
        wanted = _orders(endpoint, case, portrait)
        reasons = [reason for one in wanted if (reason := book.failure(one)) is not None]
        answers = [p_L for one in wanted if (p_L := book.probabilities(one)) is not None]
        if reasons:
            failed[reasons[0]] += 1
        else:
            found[key] = averaged(answers, orders(len(case.question.options)))
    return found, failed


def _orders(endpoint: Endpoint, case: Case, portrait: str | None) -> list[Wanted]:
    size = len(case.question.options)
    return [Wanted.of(endpoint, messages(case, turn, portrait, endpoint.system_role), size) for turn in range(size)]


def key_of(endpoint: Endpoint) -> str:
    """The key in the environment. Raises ConfigError where `endpoint.key_env` names a variable that is not set."""
    if endpoint.key_env is None:
        return "none"  # the client insists on one
    found = os.environ.get(endpoint.key_env)
    if not found:
        raise ConfigError(
            f"endpoint.key_env: the environment variable {endpoint.key_env} is not set where the job runs: set it to the "
            "server's key, or give null for a server that wants none"
        )
    return found


def missing(wanted: Sequence[Wanted], book: AnswerBook) -> list[Wanted]:
    """What is yet to be asked, each request once, in order."""
    return list({one.key: one for one in wanted if one not in book}.values())


async def ask(
    endpoint: Endpoint, wanted: Sequence[Wanted], book: AnswerBook, *, told: Callable[[str], None] = print
) -> int:
    """Ask what the book lacks and file the answers as they come; returns how many requests were sent.

    A request that the server refuses for what it says (it is too long, say), and an answer without a letter, are filed as
    failures and counted by whoever measures. Raises ConfigError where the settings cannot work (nobody answers there, the
    key or the model is refused, no log-probabilities), GenerationError where a server that answered stops to.
    """
    left = missing(wanted, book)
    if not left:
        return 0
    async with openai.AsyncOpenAI(
        base_url=endpoint.url, api_key=key_of(endpoint), timeout=endpoint.timeout_s, max_retries=endpoint.retries
    ) as client:
        # The shortest goes first and alone: a wrong setting shows once, and what refuses it refuses all.
        lengths = [sum(len(message["content"]) for message in one.body["messages"]) for one in left]
        left.insert(0, left.pop(lengths.index(min(lengths))))
        book.add(left[0], await _answer(client, endpoint, left[0], first=True))
        done, step = 1, max(1, len(left) // TOLD_EVERY)
        rest = iter(left[1:])

        async def work() -> None:
            nonlocal done
            for one in rest:
                book.add(one, await _answer(client, endpoint, one))
                done += 1
                if done % step == 0:
                    told(f"asked {done} of {len(left)}")

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(endpoint.concurrency, len(left) - 1)):
                    group.create_task(work())
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None
    return len(left)


async def _answer(
    client: openai.AsyncOpenAI, endpoint: Endpoint, wanted: Wanted, first: bool = False
) -> dict[str, Any]:
    try:
        reply = await client.chat.completions.create(**wanted.body, extra_body=endpoint.body or None)
    except (openai.BadRequestError, openai.UnprocessableEntityError) as e:
        if first:
            raise ConfigError(f"{endpoint.url} refuses even the shortest request: {_reason(e)} (endpoint)") from None
        return {"failed": f"refused: {_reason(e)}"}
    except (openai.AuthenticationError, openai.PermissionDeniedError) as e:
        raise ConfigError(f"{endpoint.url} refuses the key: {_reason(e)} (endpoint.key_env)") from None
    except openai.NotFoundError as e:
        raise ConfigError(
            f"{endpoint.url} knows no model {endpoint.model!r}, or this is not its address: {_reason(e)} "
            "(endpoint.model, endpoint.url, which ends in /v1)"
        ) from None
    except (
        openai.APIError
    ) as e:  # nobody there, a time-out, an error of the server, each after the client's own retries
        if first and isinstance(e, openai.APIConnectionError):
            raise ConfigError(f"nobody answers at {endpoint.url}: {_reason(e)} (endpoint.url)") from None
        raise GenerationError(
            f"{endpoint.url} stopped answering: {_reason(e)}. What it answered is kept: the same command with --resume goes on"
        ) from None
    if not reply.choices:
        return {"failed": "no choice in the reply"}
    choice = reply.choices[0]
    text = choice.message.content or ""
    if wanted.read == "text":
        return _filed(read_text(text, wanted.letters), text)
    if choice.logprobs is None or not choice.logprobs.content:
        if first:
            raise ConfigError(
                f"{endpoint.url} gives no log-probabilities: give endpoint.read: text, which reads what is said, or a server "
                "that has them"
            )
        return {"failed": "no log-probabilities in the reply", "text": text}
    token = choice.logprobs.content[0]
    found = {one.token: one.logprob for one in token.top_logprobs} or {token.token: token.logprob}
    return _filed(read_logprobs(found, wanted.letters), text)


def _filed(p_L: Floats | None, text: str) -> dict[str, Any]:
    return {"failed": "no letter", "text": text} if p_L is None else {"p": p_L.tolist(), "text": text}


def _reason(error: openai.APIError) -> str:
    """One line of what the server or the client says."""
    cause = error.__cause__
    said = f"{error.message} ({cause})" if cause is not None and str(cause) else error.message
    return " ".join(said.split())[:300]
