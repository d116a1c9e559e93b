#!/usr/bin/env python
"""Seconds of a weight sync into vLLM: an adapter by its path against full weights, read again or by weight transfer.

    .venv/bin/python benchmarks/sync.py
    .venv/bin/python benchmarks/sync.py --policy models/qwen --rank 64 --pairs 3

adapter   `generator.sync: adapter`: a LoRA of a few megabytes, under a new name and id.
full      `generator.sync: full`: all weights, read again from the merged checkpoint.
transfer  `generator.sync: transfer`: the same files in a session of vLLM's weight transfer (actors/file_engine.py).

Each has an engine of its own in this process, with the settings of the smol recipe, and is given the same versions in turn:
the policy under a small random LoRA, as its adapter and merged. What is timed is `Generator.switch`, for which a run waits:
the probe before, the load with everything cached thrown away, the probe after; the phases are printed too. Where an engine
does not answer with the new weights, the benchmark ends with that error. Files are in the page cache, as they are right
after a learner has written them.

That is the engines' half. The learner's, writing the adapter, or that and the merged weights, is timed where the versions are
made and printed; `sync_whole` and `sync_transfer_whole` have both halves. (In a run the learner also says its figures of the
probe's tokens, of merged weights from the file: about as long as one probe here.)

The ratio `sync` is the seconds of full over those of adapter, above 1 where the adapter is quicker; `sync_transfer` has those
of transfer in the numerator. `sync_load` and `sync_transfer_load` compare the loads without the probes. On a CPU the two tell
different stories: an adapter is there at once, but vLLM then copies its matrices, at the engine's max_lora_rank, for every
token of a prompt, in the probe and in all that is sampled later. So that rank is the adapter's here, not the
generator's default of 64.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer

from actors.generator import Generator, Switched
from actors.probes import Case
from actors.weights import read_probe, write_probe
from benchmarks.measure.inputs import first_queries, smol
from benchmarks.measure.options import Out, Pairs, Seed, Threads
from benchmarks.measure.ratio import WARM_UP, Side, Work, compare, summarise
from rhumbline import config
from rhumbline.cli import user_errors
from rhumbline.data.chat import Encoded, encode
from rhumbline.learning import lora
from rhumbline.learning.logprobs import token_logprobs
from rhumbline.learning.policy import load_policy, load_tokenizer, merge_adapter, resolve, save_adapter, set_threads
from rhumbline.records import Message

PROBES, ANSWER = 4, "A rhumb line crosses every meridian at the same angle, which keeps the bearing of a ship constant."
RANKS = (8, 16, 32, 64)  # that vLLM makes room for
SCALE = 0.02  # standard deviation of B: a gap in log p that the probe sees, and text that stays text


def main(
    pairs: Pairs = 5,
    policy: Annotated[str, typer.Option(help="'embedded', a hub name or a folder")] = "embedded",
    syncs: Annotated[int, typer.Option(min=1, help="versions loaded in a run")] = 3,
    versions: Annotated[int, typer.Option(min=2, help="made beforehand, each with its merged weights on disk")] = 3,
    rank: Annotated[int, typer.Option(min=1, max=RANKS[-1], help="of the LoRA, on all linear layers")] = 16,
    threads: Threads = 2,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Measure weight syncs."""
    with user_errors(), tempfile.TemporaryDirectory() as scratch:
        set_threads(threads)
        plan = smol()
        base = resolve(policy)
        turns = [query.messages for query in first_queries(plan, PROBES)]
        made = [make(base, Path(scratch) / f"t={i}", turns, rank, seed + i) for i in range(versions)]
        folders = [one.folder for one in made]
        adapter_s, merged_s = median(one.adapter_s for one in made), median(one.merged_s for one in made)
        published = {"adapter": adapter_s, "full": adapter_s + merged_s, "transfer": adapter_s + merged_s}
        size = {
            part: sum(f.stat().st_size for f in folders[0].glob(f"{part}/*.safetensors")) for part in ("adapter", ".")
        }
        os.environ.update(plan.recipe.generator.env)  # as the actor's process gets it, before vLLM is imported
        settings = plan.recipe.generator.model_copy(update={"backend": "vllm", "threads": threads})
        generators = {sync: engine(settings, sync, base, rank) for sync in ("adapter", "full", "transfer")}
        cases = [read_probe(folder) for folder in folders]
        switched: dict[str, list[Switched]] = {sync: [] for sync in generators}
        turn = dict.fromkeys(generators, 0)

        def one(sync: str) -> Switched:
            version, turn[sync] = turn[sync] % versions, turn[sync] + 1
            folder = str(folders[version])
            return generators[sync].switch(f"t={version}", folder, cases[version], settings.probe_tolerance)

        def run(sync: str, pair: int) -> Work:
            count = 1 if pair == WARM_UP else syncs
            began = time.perf_counter()
            took = [one(sync) for _ in range(count)]
            seconds = time.perf_counter() - began
            if pair != WARM_UP:
                switched[sync] += took
            return Work(count, seconds)

        print(
            f"{policy}: adapter of rank {rank}, {size['adapter'] / 1e6:.1f} MB; full weights {size['.'] / 1e6:.0f} MB; "
            f"{syncs} syncs a run; {threads} threads"
        )
        ours, *rivals = (Side(sync, lambda pair, sync=sync: run(sync, pair)) for sync in generators)
        full, transfer = compare("sync", "syncs/s", ours=ours, rivals=rivals, pairs=pairs, out=out)
        for sync, seen in switched.items():
            load, probe, gap = (median(getattr(s, key) for s in seen) for key in ("load_s", "probe_s", "gap"))
            told = f"published {published[sync]:.3f} s, load {load:.3f} s, probe {probe:.3f} s, gap {gap:.4f} nats"
            print(f"sync/{sync} {told}; medians of {len(made)} and {len(seen)}")
        loads = {sync: by_pair([one.load_s for one in seen], syncs) for sync, seen in switched.items()}
        for sync, name in (("transfer", "sync_transfer_load"), ("full", "sync_load")):
            print(summarise(name, [a / b for a, b in zip(loads[sync], loads["adapter"], strict=True)]))
        whole = {
            sync: [published[sync] * syncs + s for s in by_pair([one.load_s + one.probe_s for one in seen], syncs)]
            for sync, seen in switched.items()
        }
        for sync, name in (("transfer", "sync_transfer_whole"), ("full", "sync_whole")):
            print(summarise(name, [a / b for a, b in zip(whole[sync], whole["adapter"], strict=True)]))
        print(transfer)
        print(dataclasses.replace(full, name="sync"), flush=True)


def engine(settings: config.Generator, sync: str, base: Path, rank: int) -> Generator:
    """The engine of a run that syncs like that."""
    room = {"max_lora_rank": next(r for r in RANKS if r >= rank)} if sync == "adapter" else {}
    settings = settings.model_copy(update={"sync": sync, "engine": {**settings.engine, **room}})
    generator = Generator(settings, model=str(base))
    generator.setup()
    return generator


def by_pair(seconds: Sequence[float], syncs: int) -> list[float]:
    return [sum(seconds[i : i + syncs]) for i in range(0, len(seconds), syncs)]


@dataclasses.dataclass(frozen=True)
class Made:
    """A version, and how long it took to write its adapter, and to merge it and write that."""

    folder: Path
    adapter_s: float
    merged_s: float


def make(base: Path, folder: Path, turns: list[tuple[Message, ...]], rank: int, seed: int) -> Made:
    """A version as a learner publishes it: adapter/, merged weights, probe.json."""
    torch.manual_seed(seed)
    model = lora.attach(load_policy(base, device="cpu"), config.Lora(r=rank, alpha=2 * rank))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=SCALE)
    began = time.perf_counter()
    save_adapter(model, folder / "adapter")
    saved = time.perf_counter()
    merge_adapter(base, folder / "adapter", folder)
    merged = time.perf_counter()
    tokenizer = load_tokenizer(folder)
    encoded: list[Encoded] = [encode(messages, ANSWER, tokenizer) for messages in turns]
    rows = token_logprobs(load_policy(folder, torch.float32, device="cpu"), encoded)
    write_probe(folder, [Case(encoded=one, logprobs=row.tolist()) for one, row in zip(encoded, rows, strict=True)])
    return Made(folder=folder, adapter_s=saved - began, merged_s=merged - saved)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    typer.run(main)
