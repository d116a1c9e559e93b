"""A backbone of two layers with random weights and a byte tokenizer, in a folder that transformers loads; pairs to score."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rhumbline.records import Message, Prompt
from tests.rhumbline.chat_fakes import CHATML, byte_tokenizer

HIDDEN = 32


def tiny_backbone(folder: Path, seed: int = 0, layers: int = 2) -> Path:
    """Hugging Face layout; `seed` of the weights."""
    tokenizer = byte_tokenizer(CHATML)
    settings = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.3,  # so that layers do something
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def ask(text: str, reference: str | None = None) -> Prompt:
    return Prompt(id=text, messages=(Message(role="user", content=text),), reference=reference)


# Answers of unlike lengths to two prompts: shared prompts, much padding, an empty answer.
PAIRS = [
    (ask("Why?"), "Because."),
    (ask("Why is the sky blue, and the sea?"), "The sky scatters blue light; the sea mirrors it. " * 3),
    (ask("Why?"), "No idea, and a few more words so that it is longer."),
    (ask("Why?"), ""),
    (ask("Why is the sky blue, and the sea?"), "x"),
]
