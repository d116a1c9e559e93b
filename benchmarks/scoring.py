#!/usr/bin/env python
"""Answers per second of a trained reward network: a batch as a run scores it, against transformers in two ways.

    .venv/bin/python benchmarks/scoring.py
    .venv/bin/python benchmarks/scoring.py --backbone minilm
    .venv/bin/python benchmarks/scoring.py --data ranked_pairs.jsonl.gz --prompts 20 --per-prompt 4

Ours          `RewardModel.score` of a network (`rewards.trained`) on all answers at once: answers to one prompt share its
              computation, batches go by length, longest first, up to a budget of padded tokens.
pipeline      `transformers.pipeline("text-classification")` on the list of all texts. Its batches are of one text unless
              it is told otherwise (--pipeline-batch); of more, they are padded as the texts come.
one at a time the model that the pipeline holds, called once for every text: no padding and nothing around it.

All of them begin with texts and the same checkpoint, which is made here: the backbone with a fresh head, since the work does
not depend on what a network has learned. Before anything is timed all must give the same scores to every answer. Answers
are distinct and nothing comes from the cache, which would only help us; how many answers there are to a prompt helps us too:
the 10 are those of the smol recipe, 5 directions x 2. Prompts are of 8 to 512 tokens, as conversations are, answers of 16 to 256,
both even in the logarithm; --longest-prompt 64 gives single questions. An encoder has no prefix to share.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.measure.inputs import smol
from benchmarks.measure.options import Data, Out, Pairs, Seed, Split, Threads
from benchmarks.measure.ratio import WARM_UP, Side, Work, compare, timed
from benchmarks.measure.texts import described, made, read
from rhumbline.cli import user_errors
from rhumbline.errors import ConfigError
from rhumbline.learning.policy import load_tokenizer, resolve, set_threads
from rhumbline.rewards.features import Pair
from rhumbline.rewards.model import RewardModel
from rhumbline.rewards.network import Network, NetworkSpec
from rhumbline.rewards.objectives import Head, linear_map
from rhumbline.rewards.opening import open_model
from rhumbline.rewards.pretrained import quiet, read_settings
from rhumbline.rewards.trained import Array, Schema, preference_maps, publish

MOVED = 0.01  # points of 100 that scores may differ by, as `rewards.invariance` has it
LONGEST = 256  # tokens of an answer that is made here
READ = 1024  # tokens at most, with the prompt, which is cut
WARM_UP_ANSWERS = 4
Text = Mapping[str, str]  # what a tokenizer is given by name: text, and an encoder's text_pair


def main(
    pairs: Pairs = 5,
    prompts: Annotated[int, typer.Option(min=1, help="prompts that are answered")] = 4,
    per_prompt: Annotated[int, typer.Option(min=1, help="answers to each; of --data: at most")] = 10,
    longest_prompt: Annotated[int, typer.Option(min=16, help="tokens; of --data: as they are")] = 512,
    backbone: Annotated[str, typer.Option(help="'embedded', 'minilm', a hub name or a folder")] = "embedded",
    data: Data = None,
    split: Split = None,
    pipeline_batch: Annotated[int, typer.Option(min=1, help="of the pipeline; 1 is its default")] = 1,
    threads: Threads = 2,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Measure scoring."""
    with user_errors(), tempfile.TemporaryDirectory() as scratch:
        set_threads(threads)
        if data is None:
            asked = made(smol(), load_tokenizer("embedded"), prompts, per_prompt, (longest_prompt, LONGEST), seed)
        else:
            asked = read(data, split, prompts, per_prompt, seed)
        folder = Path(scratch)
        network = start(backbone, seed)
        batch, texts, num_tokens = readable(network, [(prompt, said) for prompt, answers in asked for said in answers])
        schema = checkpoint(network, folder, backbone, batch)
        loaded = open_model(str(folder))
        loaded.setup()
        pipe = pipeline(folder)

        def ours(chosen: Sequence[int]) -> Array:
            model = RewardModel(loaded.sources, loaded.objectives)  # an empty cache
            return model.score([batch[i] for i in chosen])

        def piped(chosen: Sequence[int]) -> Array:
            said = pipe([texts[i] for i in chosen], function_to_apply="none", batch_size=pipeline_batch)
            return schema.scores([[one["score"]] for one in said])

        @torch.inference_mode()
        def one_at_a_time(chosen: Sequence[int]) -> Array:
            said = []
            for i in chosen:
                encoded = pipe.tokenizer(**texts[i], return_tensors="pt").to(pipe.device)
                said.append([float(pipe.model(**encoded).logits)])
            return schema.scores(said)

        sides = {"batched": ours, "pipeline": piped, "one at a time": one_at_a_time}
        everything = range(len(batch))
        scores = {name: score(everything) for name, score in sides.items()}
        print(f"{described(asked)}, {num_tokens} tokens, prompts counted each time; {backbone}; {threads} threads")
        for name in ("pipeline", "one at a time"):
            moved = float(np.abs(scores["batched"] - scores[name]).max())
            print(f"scoring/largest_difference {name}: {moved:.2g} points, allowed are {MOVED}")
            assert moved <= MOVED, f"{name} scores differently, by up to {moved:.3g} points: it does not do the same"

        def run(name: str, pair: int) -> Work:
            chosen = everything[:WARM_UP_ANSWERS] if pair == WARM_UP else everything
            return timed(lambda: len(sides[name](chosen)))

        first, *rivals = (Side(name, lambda pair, name=name: run(name, pair)) for name in sides)
        for ratio in compare("scoring", "answers/s", ours=first, rivals=rivals, pairs=pairs, out=out):
            print(ratio)


def start(backbone: str, seed: int) -> Network:
    """The backbone with a fresh head of one output."""
    torch.manual_seed(seed)
    folder = resolve(backbone)
    limit = getattr(read_settings(folder, trust_remote_code=False), "max_position_embeddings", READ)
    spec = NetworkSpec(kind_of_input="pair", outputs=("preference",), max_tokens=min(READ, limit))
    return Network.start(folder, spec).eval()


def readable(network: Network, pairs: Sequence[Pair]) -> tuple[list[Pair], list[Text], int]:
    """Pairs, the same as texts for transformers, and their tokens. A text is the tokens that our reader makes of a pair,
    cut and all, written out; pairs whose text does not give the same tokens again are left out and counted.
    """
    tokenizer: Any = network.tokenizer
    kept: list[Pair] = []
    texts: list[Text] = []
    num_tokens = 0
    for pair in pairs:
        row = network.reader.pair(*pair)
        ids = [*row.prefix, *row.answer]
        if network.decoder:
            text = {"text": tokenizer.decode(ids, clean_up_tokenization_spaces=False)}
        else:
            parts = [tokenizer.decode(part, skip_special_tokens=True) for part in (row.prefix, row.answer)]
            text = dict(zip(("text", "text_pair"), parts, strict=True))
        if tokenizer(**text)["input_ids"] == ids:
            kept.append(pair)
            texts.append(text)
            num_tokens += len(ids)
    if len(kept) < 2:
        raise ConfigError(
            f"{len(kept)} of {len(pairs)} answers give the same tokens as one text: the sides cannot be compared"
        )
    if len(kept) < len(pairs):
        print(f"left out: {len(pairs) - len(kept)} of {len(pairs)} answers, which as one text have other tokens")
    return kept, texts, num_tokens


def checkpoint(network: Network, folder: Path, backbone: str, batch: Sequence[Pair]) -> Schema:
    """The network on disk as jobs/reward.py writes one; its scores of `batch` are 50 + 10 z."""

    def raw(pairs: Sequence[Pair]) -> Array:
        return network.raw([network.reader.pair(*pair) for pair in pairs])

    network.save(folder)
    schema = Schema(
        kind="preference",
        heads=(Head(name="preference", source="benchmark", higher_is_better=True, **linear_map(0, 1, 0, 100)),),
        base=backbone,
        fingerprint=network.fingerprint,
        maps=preference_maps(raw(batch)),
    )
    return publish(folder, schema, lambda pairs: schema.scores(raw(pairs)))


def pipeline(folder: Path) -> Any:
    """transformers' own, on the device that ours uses."""
    import transformers

    with quiet():
        return transformers.pipeline(
            "text-classification", model=str(folder), device="cuda" if torch.cuda.is_available() else "cpu"
        )


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    typer.run(main)
