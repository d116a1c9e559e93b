#!/usr/bin/env python
"""Tokens per second through our endpoint against vLLM's own OpenAI server: what the steering, Ray Serve and the HTTP app cost.

    .venv/bin/python benchmarks/serving.py
    .venv/bin/python benchmarks/serving.py --streams 16 --pairs 3
    .venv/bin/python benchmarks/serving.py --steering              # the cost of a direction alone
    .venv/bin/python benchmarks/serving.py --minutes 10            # load, no ratio: exit code 1 where something gives way

Ours       the shipped adapter, merged, as jobs/deploy.py serves it, with a direction in the body of every request.
The rival  `python -m vllm.entrypoints.openai.api_server` on the same weights with the same engine arguments, environment and
           threads, and with its worker inside the engine's process as ours has it, asked for the messages that ours ends up
           with: the direction's words are in them. It has no limits, steering or Serve, and one process less between client
           and engine. Neither asks for a key.

Both servers stay up. While one works the other is idle, but for what Ray does by itself, which is told. Requests are streamed
and greedy, all answers have --max-tokens tokens. Before anything is timed both are asked the same and must give the same text.

There is a throughput line per number of streams, and lines for the time to the first token and for the 50% and 95% quantiles
of whole requests, as the rival's time divided by ours: above 1 ours is faster throughout. On a CPU ours sends the tokens
of a quarter of a second together (policy.stream_interval_s), the rival each by itself. The last line, `serving`, is the
throughput at the number of streams where ours is worst.
`serving_steering` is 1 ms divided by the median time that one request spends on its direction, in this process, without any
server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.measure.inputs import smol
from benchmarks.measure.options import Out, Pairs, Seed, Threads
from benchmarks.measure.ratio import RESULTS, WARM_UP, Ratio, Side, Work, compare, machine, summarise
from rhumbline.cli import user_errors
from rhumbline.codecs import conversation
from rhumbline.config.deploy import Deploy, load_deploy
from rhumbline.serving.served import Served, open_served

PORT = 8127


def main(
    pairs: Pairs = 5,
    streams: Annotated[list[int] | None, typer.Option(min=1, help="concurrent streams; 1, 4 and 16 by default")] = None,
    requests: Annotated[
        int, typer.Option(min=1, help="of a run with one stream; others have up to twice as many")
    ] = 16,
    max_tokens: Annotated[int, typer.Option(min=2, help="of every answer")] = 64,
    threads: Threads = 2,
    port: Annotated[int, typer.Option(help="of ours; the rival's is the next one")] = PORT,
    steering: Annotated[bool, typer.Option("--steering", help="measure the cost of a direction alone")] = False,
    minutes: Annotated[float, typer.Option(min=0, help="load ours for so long instead of comparing")] = 0,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Measure serving."""
    with user_errors():
        settings = load_deploy(
            [
                "keys=null",
                "users.url=null",
                f"rewards.enabled={'true' if minutes else 'false'}",
                "rewards.recipe=smol",
                f"http.port={port}",
                f"policy.threads={threads}",
                "policy.engine={max_model_len: 1024, max_num_seqs: 32}",
                "limits={requests_per_minute: 1.0e+6, burst: 100000, max_concurrent: 1000}",
            ]
        )
        if steering:
            print(cost_of_steering(open_served("embedded"), requests=2000, seed=seed))
        elif minutes:
            from benchmarks.measure.serving_load import hold

            raise typer.Exit(hold(settings, minutes, seed))
        else:
            for ratio in versus_vllm(settings, pairs, streams or [1, 4, 16], requests, max_tokens, port + 1, seed, out):
                print(ratio)


def versus_vllm(
    settings: Deploy,
    pairs: int,
    streams: Sequence[int],
    requests: int,
    max_tokens: int,
    port: int,
    seed: int,
    out: Path | None,
) -> list[Ratio]:
    """Ratios of throughput, first token and latency per number of streams; the worst throughput last."""
    from benchmarks.measure.http_load import Told, client, streamed
    from benchmarks.measure.serving_sides import ours, plain, used_s

    with ours(settings) as here, plain(settings, here.folder, port, RESULTS / "serving_vllm.log") as there:
        texts, idle = [prompt.messages for prompt in smol().splits.evaluation], list[float]()
        grid = here.served.cone.grid(7).tolist()

        def bodies(side: str, pair: int, count: int) -> list[dict[str, Any]]:
            rng = np.random.default_rng([seed, pair + 1])
            chosen = rng.integers(0, len(texts), count)
            return [body(here.served, side, texts[i], grid[int(rng.integers(7))], max_tokens) for i in chosen]

        def ask(side: str, pair: int, count: int, at_once: int) -> Told:
            async def run() -> Told:
                async with client(here.base if side == "ours" else there.base) as http:
                    return await streamed(http, bodies(side, pair, count), at_once)

            before, began = used_s(there), time.perf_counter()
            told = asyncio.run(run())
            if side == "vllm" and pair != WARM_UP:
                idle.append((used_s(there) - before) / (time.perf_counter() - began))
            return told

        same = [ask(side, WARM_UP, 4, 2).texts for side in ("ours", "vllm")]
        if same[0] != same[1]:
            raise SystemExit(f"the two servers do not say the same:\n{same[0]}\n{same[1]}")
        ratios, rates = [], []
        for at_once in streams:
            count = min(2 * requests, max(requests, 2 * at_once))
            told: dict[str, list[Told]] = {"ours": [], "vllm": []}

            def run(side: str, pair: int, at_once: int = at_once, count: int = count, told: Any = told) -> Work:
                one = ask(side, pair, max(2, at_once) if pair == WARM_UP else count, at_once)
                if pair != WARM_UP:
                    told[side].append(one)
                return Work(one.tokens, one.seconds)

            name = f"serving_{at_once}_streams"
            path = None if out is None else out.with_stem(f"{out.stem}_{at_once}")
            sides = [Side(side, lambda pair, side=side: run(side, pair)) for side in ("ours", "vllm")]
            (rate,) = compare(name, "tokens/s", ours=sides[0], rivals=sides[1:], pairs=pairs, out=path)
            rates.append(rate)
            ratios += [*quicker(name, told["ours"], told["vllm"]), rate]
        print(f"while vLLM's server worked, ours and Ray used {np.median(idle):.2f} of a core")
        worst = min(rates, key=lambda ratio: ratio.median)
        return [*ratios, Ratio("serving", worst.median, worst.low, worst.high)]


def body(
    served: Served, side: str, messages: Sequence[Any], direction: Sequence[float], max_tokens: int
) -> dict[str, Any]:
    """One request: to ours with a direction, to vLLM with the direction's words."""
    common = {
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.0,
        "max_tokens": max_tokens,
        "ignore_eos": True,
    }
    if side == "ours":
        said, steering = messages, {"weights": dict(zip(served.names, direction, strict=True))}
        return {"model": served.name, "steering": steering, "messages": _plain(said), **common}
    return {"model": "plain", "messages": _plain(conversation(served.codec, direction, messages)), **common}


def _plain(messages: Sequence[Any]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def quicker(name: str, ours: Sequence[Any], rival: Sequence[Any]) -> list[Ratio]:
    """The rival's time divided by ours, over the pairs; the times themselves are printed."""
    measures = {
        "first_token": lambda told: float(np.median(told.first_s)),
        "p50": lambda told: float(np.quantile(told.whole_s, 0.5)),
        "p95": lambda told: float(np.quantile(told.whole_s, 0.95)),
    }
    out = []
    for what, measure in measures.items():
        mine, theirs = [measure(told) for told in ours], [measure(told) for told in rival]
        print(f"{name}/{what} ours {np.median(mine) * 1000:.0f} ms, vllm {np.median(theirs) * 1000:.0f} ms")
        out.append(summarise(f"{name}_{what}", [b / a for a, b in zip(mine, theirs, strict=True)]))
    return out


def cost_of_steering(served: Served, requests: int, seed: int) -> Ratio:
    """1 ms over the median of what one request spends on its direction: checking, resolving, cleaning its text, rendering."""
    from rhumbline.serving.prompt import Guard, final_messages
    from rhumbline.serving.requests import SteeringBody
    from rhumbline.serving.resolve import Sources, resolve

    rng = np.random.default_rng(seed)
    directions = served.cone.sample(rng, requests)
    turns = [_plain(prompt.messages) for prompt in smol().splits.evaluation]
    guard = Guard.of(served.codec, served.tokenizer)
    seconds = []
    for i, direction in enumerate(directions.tolist()):
        raw = {"weights": dict(zip(served.names, direction, strict=True))}
        began = time.perf_counter()
        resolved = resolve(Sources(body=SteeringBody(**raw)), served, None)
        final_messages(resolved.line, turns[i % len(turns)], guard)
        seconds.append(time.perf_counter() - began)
    p50, p95 = np.quantile(seconds, [0.5, 0.95]) * 1000
    print(f"steering alone, {requests} requests: median {p50:.3f} ms, 95% {p95:.3f} ms; {machine()}")
    return summarise("serving_steering", [0.001 / float(np.median(part)) for part in np.array_split(seconds, 10)])


if __name__ == "__main__":
    typer.run(main)
