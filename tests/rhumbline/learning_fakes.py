"""A Llama of two layers over bytes, and examples it can learn in a second.

folder = tiny_policy(tmp_path / "policy")        # Hugging Face layout, real weights and tokenizer
fit(examples(12), learner=quick(), policy_dir=folder, out_dir=tmp_path / "out", seed=7)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rhumbline import config
from rhumbline.data.chat import Encoded
from rhumbline.records import Example, Message
from tests.rhumbline.chat_fakes import CHATML, byte_tokenizer


def tiny_model(tied: bool = True, seed: int = 0, **settings: Any) -> LlamaForCausalLM:
    tokenizer = byte_tokenizer(CHATML)
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": tied,
        "initializer_range": 0.2,  # the default gives nearly even probabilities, in which a leak would drown
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return LlamaForCausalLM(LlamaConfig(**shape | settings)).eval()


def tiny_policy(folder: Path, tied: bool = True, seed: int = 0) -> Path:
    tiny_model(tied, seed).save_pretrained(folder)
    byte_tokenizer(CHATML).save_pretrained(folder)
    return folder


def sample(ids: list[int], learned: int) -> Encoded:
    """Token ids of which the last `learned` carry the loss."""
    return Encoded(token_ids=tuple(ids), loss_mask=tuple(i >= len(ids) - learned for i in range(len(ids))))


def random_samples(lengths: list[tuple[int, int]], seed: int = 0) -> list[Encoded]:
    """One sample per (prompt, response) length."""
    generator = torch.Generator().manual_seed(seed)
    return [
        sample(torch.randint(0, 256, (prompt + response,), generator=generator).tolist(), response)
        for prompt, response in lengths
    ]


def example(index: int, response: str, teacher: str | None = None, **fields: Any) -> Example:
    asked = Message(role="user", content=f"q{index}")
    return Example(
        id=f"e{index}",
        messages=(Message(role="system", content="v"), asked),
        response=response,
        teacher=None if teacher is None else (Message(role="system", content=teacher), asked),
        **fields,
    )


def examples(count: int, teacher: str | None = None) -> list[Example]:
    """Responses of 3 to 12 letters."""
    return [example(i, "abcdefghijkl"[: 3 + i % 10], teacher) for i in range(count)]


def quick(**settings: Any) -> config.Learner:
    """A learner for tests: fp32, four samples a step, two passes over the data."""
    base: dict[str, Any] = {
        "lr": 1e-2,
        "warmup_steps": 2,
        "epochs": 2,
        "batch_size": 4,
        "micro_batch_tokens": 256,
        "dtype": "float32",
        "checkpoint_every": 2,
    }
    return config.Learner.model_validate(base | settings)


class Log:
    """Figures of every step, and the folders that were reported."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.figures: list[dict[str, Any]] = []
        self.folders: list[Path] = []
        self.stop_after = stop_after

    def __call__(self, figures: dict[str, Any], folder: Path | None) -> None:
        self.figures.append(figures)
        if folder is not None:
            self.folders.append(folder)
            assert (folder / "state.json").is_file()
        if len(self.figures) == self.stop_after:
            raise KeyboardInterrupt

    @property
    def losses(self) -> list[float]:
        return self.of("loss")

    def of(self, name: str) -> list[float]:
        return [f[f"learn/{name}"] for f in self.figures]
