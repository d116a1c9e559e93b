"""Load on our endpoint for some minutes: errors that nobody documented, memory that grows, slots that stay taken.

    code = hold(settings, minutes=10, seed=0)      # 0, or 1 with the reasons printed

More requests than the engine has slots, of every kind: streamed and whole, with rewards, clients that leave on the way, and
requests that must be refused. Everything goes to 127.0.0.1, and no more than STREAMS at a time.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from benchmarks.measure.inputs import smol
from benchmarks.measure.serving_sides import Ours, ours
from rhumbline.config.deploy import Deploy

STREAMS = 48  # half as many again as max_num_seqs
GROWTH, FREE_S = 1.05, 60.0  # of memory from the second quarter to the last; for slots to be free
REFUSALS = {400: "the request's fault", 429: "limits", 503: "come again"}
_PAGE = os.sysconf("SC_PAGE_SIZE")


def hold(settings: Deploy, minutes: float, seed: int) -> int:
    """The exit code."""
    with ours(settings) as here:
        counts, memory = asyncio.run(_press(here, minutes * 60, seed))
        slots = _freed(here)
    faults = [f"{what}: {count}" for what, count in counts.items() if what.startswith("UNDOCUMENTED")]
    quarter = len(memory) // 4
    early, late = np.median(memory[quarter : 2 * quarter]), np.median(memory[-quarter:])
    for what, count in sorted(counts.items()):
        print(f"{count:>8} {what}")
    print(f"memory of the servers: {early / 2**20:.0f} MiB in the second quarter, {late / 2**20:.0f} MiB in the last")
    print(f"engine afterwards: {slots}")
    if late > GROWTH * early:
        faults.append(f"memory grew by {(late / early - 1) * 100:.1f}%")
    if any(slots.values()):
        faults.append(f"slots are still taken: {slots}")
    if not counts["200 whole"] or not counts["left on the way"]:
        faults.append("the load did not contain what it should")
    for fault in faults:
        print(f"FAILED  {fault}")
    print(f"load {'failed' if faults else 'held'}: {sum(counts.values())} requests in {minutes:g} minutes")
    return 1 if faults else 0


async def _press(here: Ours, seconds: float, seed: int) -> tuple[Counter[str], list[int]]:
    counts: Counter[str] = Counter()
    memory: list[int] = []
    until = time.monotonic() + seconds
    texts = [prompt.messages[-1].content for prompt in smol().splits.evaluation]
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=330)

    async def client(session: aiohttp.ClientSession, number: int) -> None:
        rng = np.random.default_rng([seed, number])
        while time.monotonic() < until:
            what = str(rng.choice(["stream", "whole", "rewards", "leave", "wrong"], p=[0.4, 0.3, 0.1, 0.15, 0.05]))
            counts[await _one(session, here, what, rng, texts)] += 1

    async def watch() -> None:
        while time.monotonic() < until:
            memory.append(resident())
            await asyncio.sleep(min(5.0, seconds / 40))

    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session, asyncio.TaskGroup() as group:
        group.create_task(watch())
        for number in range(STREAMS):
            group.create_task(client(session, number))
    return counts, memory


async def _one(session: aiohttp.ClientSession, here: Ours, what: str, rng: Any, texts: list[str]) -> str:
    """What became of one request, for counting."""
    angle = float(rng.uniform(-45, 0))
    body: dict[str, Any] = {
        "model": here.served.name,
        "messages": [{"role": "user", "content": texts[int(rng.integers(len(texts)))]}],
        "max_tokens": int(rng.integers(4, 96)),
        "seed": int(rng.integers(2**31)),
        "stream": what in ("stream", "leave"),
        "steering": {"degrees": angle, "return_rewards": what == "rewards"},
    }
    if what == "leave":
        body |= {"max_tokens": 400, "ignore_eos": True}
    if what == "wrong":
        body["steering"] = {"weights": {"helpfullness": 1.0}}
    try:
        async with session.post(f"{here.base}/chat/completions", json=body) as answer:
            if what == "leave" and answer.status == 200:
                await answer.content.readline()
                answer.close()  # the connection with it
                return "left on the way"
            data = await answer.read()
            return _judged(what, answer, data)
    except (aiohttp.ClientError, TimeoutError) as e:
        return f"UNDOCUMENTED {type(e).__name__}: {e}"


def _judged(what: str, answer: aiohttp.ClientResponse, data: bytes) -> str:
    if answer.status == 200 and what != "wrong":
        if body_says_error(data):
            return f"UNDOCUMENTED error within a stream: {data[-200:]!r}"
        return f"200 {what}"
    ours_shape = answer.content_type == "application/json" and b'"error"' in data and b'"type"' in data
    retry = answer.status not in (429, 503) or "Retry-After" in answer.headers
    if answer.status in REFUSALS and ours_shape and retry and (answer.status != 400 or what == "wrong"):
        return f"{answer.status} {REFUSALS[answer.status]}"
    return f"UNDOCUMENTED {answer.status}: {data[:200]!r}"


def body_says_error(data: bytes) -> bool:
    """Whether a stream that began well ended in an error event."""
    return data.startswith(b"data: ") and b'data: {"error"' in data


def _freed(here: Ours) -> dict[str, int]:
    """What the engine still holds once nobody asks; the scheduler's own figures after one more short request."""
    until = time.monotonic() + FREE_S
    told = here.load()
    while told["unfinished"] and time.monotonic() < until:
        time.sleep(1)
        told = here.load()
    import urllib.request

    body = b'{"model": "%s", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}'
    request = urllib.request.Request(
        f"{here.base}/chat/completions", body % here.served.name.encode(), {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=120).read()
    time.sleep(1)
    return here.load()


def resident() -> int:
    """Bytes of memory of Serve's replicas and their engines: of this process's descendants, what is not shared."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, parent = int(entry.parent.name), int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(pid)
    total, pending = 0, list(children.get(os.getpid(), ()))
    while pending:
        pid = pending.pop()
        pending += children.get(pid, ())
        try:
            name = (Path("/proc") / str(pid) / "cmdline").read_bytes()
            _, rss, shared, *_ = (int(part) for part in (Path("/proc") / str(pid) / "statm").read_text().split())
        except OSError:
            continue
        if name.startswith((b"ray::ServeReplica", b"VLLM", b"ray::ProxyActor")):
            total += (rss - shared) * _PAGE
    return total
