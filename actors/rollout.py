"""Rollouts: queries through generators and scorers, shard by shard, into the store. Scoring overlaps generation.

    queries ──shards──> generators ──Completion──> store ──> scorers ──Scored──> store

    scored = rollout(store, "iterations/t=1", queries, generators, scorers, n=16, sampling=recipe.sampling,
                     prompts_per_shard=32)

A shard that the ledger has is read back, not made again: a killed driver costs the shards in flight. A shard that kills
every actor it meets is left out and counted; `--resume` tries it again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from actors.pool import Failed, Pool
from actors.progress import Progress
from rhumbline import config
from rhumbline.queries import in_shards
from rhumbline.records import Completion, Query, Scored
from rhumbline.store import RunStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """What came back."""

    scored: tuple[Scored, ...]  # in the order of the queries
    failed: int  # samples that were asked for and given up


def rollout(
    store: RunStore,
    stage: str,
    queries: Sequence[Query],
    generators: Pool,
    scorers: Pool,
    *,
    n: int,
    sampling: config.Sampling,
    prompts_per_shard: int,
    token_logprobs: bool = False,
) -> Rollout:
    """Sample n answers to every query and score them; finished shards are published under `stage`."""
    shards = in_shards(queries, prompts_per_shard)
    generated, scored = f"{stage}/rollouts", f"{stage}/scores"
    before = store.done(scored)
    failed, accounted = 0, 0.0
    store.heartbeat(stage)
    with Progress(stage, len(shards), done=len(before), run=store.path.name) as progress:
        completions = _completions(store, generated, shards, before, generators, (n, sampling, token_logprobs))
        for index, result in scorers.map("score", completions):
            if isinstance(result, Failed):
                failed += len(shards[index]) * n
                store.event("failed", stage=stage, shard=index, reason=result.error, samples=len(shards[index]) * n)
                progress.advance(failed=1)
                continue
            tokens = sum(len(one.completion.token_ids) for one in result)
            seconds = progress.seconds
            store.publish(scored, index, result, {"tokens": tokens, "seconds": seconds - accounted})
            accounted = seconds
            progress.advance(tokens=tokens)
            store.heartbeat(stage, done=progress.done, total=progress.total)
        seconds = progress.seconds
    if len(before) < len(shards):
        store.event("sampled", stage=stage, seconds=seconds, shards=len(shards) - len(before), tokens=progress.tokens)
    return Rollout(scored=tuple(store.read(scored, Scored)), failed=failed)


def _completions(
    store: RunStore,
    stage: str,
    shards: Sequence[Sequence[Query]],
    done: set[int],
    generators: Pool,
    asked: tuple[int, config.Sampling, bool],  # n, how, and whether with the log-probability of every token
) -> Iterator[tuple[int, Any]]:
    """Units for the scorers: shards that were generated but not scored, then the others as they are generated."""
    there = store.done(stage)
    for index in sorted(there - done):
        yield index, (list(store.read(stage, Completion, index=index)),)
    missing = [index for index in range(len(shards)) if index not in there | done]
    for index, result in generators.map("generate", ((i, (list(shards[i]), *asked)) for i in missing)):
        if isinstance(result, Failed):
            yield index, result
        else:
            store.publish(stage, index, result)
            yield index, (result,)
