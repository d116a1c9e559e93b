#!/usr/bin/env python
"""Response tokens per second of sampling: the Generator on vLLM against the Generator on transformers' `generate`.

    .venv/bin/python benchmarks/generate.py
    .venv/bin/python benchmarks/generate.py --pairs 3 --rival-prompts 32

Ours      `actors.generator.Generator` with the settings of the smol recipe, in this process, all queries in one call.
The rival the same class with `backend: transformers`: `model.generate` in bf16, one query at a time, its n samples as one
          batch. It is the fallback that this project offers, not the fastest that transformers can do.

Both are asked the same queries with the same seeds, and give log-probabilities with their samples, as the interface wants:
vLLM while it samples, transformers by one more forward pass. Tokens are those of the responses. The rival takes queries one
by one, so its rate does not depend on how many there are; in each pair it answers --rival-prompts of them, another part of
the 32 each time, because all of them would take it minutes.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Annotated

import typer

from actors.generator import Generator
from benchmarks.measure.inputs import first_queries, smol
from benchmarks.measure.options import Out, Pairs, Threads
from benchmarks.measure.ratio import WARM_UP, Side, Work, compare, timed
from rhumbline import config
from rhumbline.cli import user_errors
from rhumbline.learning.policy import resolve, set_threads
from rhumbline.queries import derive_seed
from rhumbline.records import Query


def main(
    pairs: Pairs = 5,
    prompts: Annotated[int, typer.Option(min=1, help="queries that vLLM answers in a run")] = 32,
    rival_prompts: Annotated[int, typer.Option(min=1, help="of these, how many transformers answers in a run")] = 4,
    n: Annotated[int, typer.Option(min=1, help="samples per query")] = 2,
    max_tokens: Annotated[int, typer.Option(min=1, help="of a response")] = 64,
    threads: Threads = 2,
    out: Out = None,
) -> None:
    """Measure sampling."""
    with user_errors():
        plan = smol()
        queries = first_queries(plan, prompts)
        sampling = config.Sampling(temperature=1.0, max_tokens=max_tokens)
        settings = plan.recipe.generator.model_copy(update={"backend": "vllm", "threads": threads})
        os.environ.update(settings.env)  # as the actor's process gets it, before vLLM is imported
        folder = str(resolve("embedded"))
        vllm = Generator(settings, model=folder)
        vllm.setup()
        transformers = Generator(
            config.Generator(backend="transformers", threads=threads, engine={"max_model_len": vllm.backend.context}),
            model=folder,
        )
        transformers.setup()

        def asked(pair: int, count: int) -> list[Query]:
            """`count` queries: another part of them in every pair, with seeds of the pair's own."""
            first = 0 if pair == WARM_UP else pair * count
            chosen = [queries[(first + i) % len(queries)] for i in range(count)]
            return [dataclasses.replace(query, seed=derive_seed(query.seed, pair)) for query in chosen]

        def run(generator: Generator, pair: int, count: int) -> Work:
            set_threads(threads)  # whoever ran before
            chosen = asked(pair, max(1, count // 4) if pair == WARM_UP else count)
            return timed(lambda: sum(len(c.token_ids) for c in generator.generate(chosen, n, sampling)))

        print(f"{prompts} queries, {n} samples each, at most {max_tokens} tokens; {threads} threads")
        ours = Side("vllm", lambda pair: run(vllm, pair, prompts))
        rival = Side("transformers", lambda pair: run(transformers, pair, min(rival_prompts, prompts)))
        (ratio,) = compare("generate", "tokens/s", ours=ours, rivals=[rival], pairs=pairs, out=out)
        print(ratio, flush=True)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    typer.run(main)
