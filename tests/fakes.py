"""Small things that obey the real interfaces: a generator and a scorer that answer at once, and a policy of two layers.

generator = FakeGenerator(config.Generator(), model="none"); generator.setup()
generator.load("t=1", "checkpoints/t=1")
generator.generate(queries, 2, config.Sampling(max_tokens=40))     # shorter where the prompt asks for less verbosity

tiny_policy(tmp_path / "policy")       # Hugging Face layout, loads in milliseconds, real weights and tokenizer
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from actors.generator import Backend, Generator, Sample
from actors.scorer import Scorer
from actors.weights import FILE, read_probe
from rhumbline import config
from rhumbline.data.chat import Encoded
from rhumbline.records import Message, Prompt, Query
from tests.rhumbline.chat_fakes import CHATML, byte_tokenizer

LOGPROB = -1.5  # of every token that a fake samples, nats
_ASKED = re.compile(r"verbosity\*(-?\d+)")  # as the codec dpa-int100 says it


def prompt(text: str, id: str = "p1") -> Prompt:
    return Prompt(id=id, messages=(Message(role="user", content=text),))


def query(text: str = "Why is the sky blue?", *, id: str = "p1", verbosity: int | None = None, seed: int = 7) -> Query:
    """A query as `ask` makes it. `verbosity`: what the system turn asks for, in hundredths; None: no system turn."""
    asked = prompt(text, id)
    system = () if verbosity is None else (Message(role="system", content=f"maximize verbosity*{verbosity}"),)
    direction = None if verbosity is None else (float(np.sqrt(1 - (verbosity / 100) ** 2)), verbosity / 100)
    return Query(
        prompt=asked,
        iteration=1,
        direction=direction,
        direction_index=0,
        style="",
        messages=(*system, *asked.messages),
        seed=seed,
    )


# --- a generator and a scorer -----------------------------------------------------------------------------------------


class FakeBackend(Backend):
    """Answers of letters whose number follows the direction, once a trained version is loaded, and the seed, always."""

    context = 512

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.trained = False
        self.known: dict[tuple[int, ...], list[float]] = {}  # the probe of the version that is loaded

    def sample(
        self, prompts: Sequence[tuple[int, ...]], seeds: Sequence[int], n: int, sampling: config.Sampling
    ) -> list[list[Sample]]:
        return [self._samples(ids, seed, n, sampling) for ids, seed in zip(prompts, seeds, strict=True)]

    def _samples(self, ids: tuple[int, ...], seed: int, n: int, sampling: config.Sampling) -> list[Sample]:
        rng = random.Random(seed)
        asked = _ASKED.search(self.tokenizer.decode(ids)) if self.trained else None
        mean = 30 if asked is None else 30 * (1 + int(asked[1]) / 100)  # 30 letters at 0, 9 at -70
        out: list[Sample] = []
        for _ in range(n):
            text = "".join(rng.choice("abcdefgh ") for _ in range(max(1, round(mean + rng.uniform(-4, 4)))))
            tokens = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            ended = len(tokens) < sampling.max_tokens
            tokens = (*tokens, int(self.tokenizer.eos_token_id)) if ended else tokens[: sampling.max_tokens]
            text = text if ended else str(self.tokenizer.decode(tokens))
            out.append(Sample(text=text, token_ids=tokens, logprobs=(LOGPROB,) * len(tokens), ended=ended))
        return out

    def load(self, version: str, folder: Path) -> None:
        self.trained = True
        if (folder / FILE).is_file():
            self.known = {case.encoded.token_ids: list(case.logprobs) for case in read_probe(folder)}

    def logprobs(self, encoded: Sequence[Encoded]) -> list[list[float]]:
        return [self.known.get(one.token_ids, [LOGPROB] * one.num_learned) for one in encoded]


class FakeGenerator(Generator):
    """The real actor around `FakeBackend`."""

    def setup(self) -> None:
        self.tokenizer = byte_tokenizer(CHATML)
        self.backend = FakeBackend(self.tokenizer)


class FakeRewardModel:
    """helpfulness: share of letters that are no space; verbosity: characters, 100 at most. (N, 2) on 0-100."""

    def setup(self) -> None: ...

    def score(self, batch: Sequence[tuple[Prompt, str]]) -> np.ndarray:
        return np.array(
            [[100 * sum(c != " " for c in text) / max(len(text), 1), min(len(text), 100)] for _, text in batch]
        )


class FakeScorer(Scorer):
    """The real actor around `FakeRewardModel`."""

    def setup(self) -> None:
        self.model = FakeRewardModel()  # type: ignore[assignment]  # of the two methods that are used


# --- a policy ---------------------------------------------------------------------------------------------------------


def tiny_policy(folder: Path, seed: int = 0) -> Path:
    """A Llama of two layers over bytes with a ChatML template, saved as transformers saves it."""
    tokenizer = byte_tokenizer(CHATML)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            initializer_range=0.2,  # so that answers differ: the default gives nearly even probabilities
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
