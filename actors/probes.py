"""Probes: the few tokens that a checkpoint's own weights are asked about, so that an engine can prove that it has loaded them.

write("checkpoints/t=1", examples)     # probe.json beside the weights, which `actors.weights.sync` compares with
probe_again("checkpoints/t=0")         # of a checkpoint that nobody here trained, such as a merged adapter
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rhumbline.data.chat import Encoded
from rhumbline.records import Example, Message

NUM_PROBES, PROBE_TOKENS = 4, 64


def cut(sample: Encoded) -> Encoded:
    """Its prompt and the first tokens of its answer."""
    end = sample.prompt_length + PROBE_TOKENS
    return Encoded(token_ids=sample.token_ids[:end], loss_mask=sample.loss_mask[:end])


def write(folder: Path, examples: Sequence[Example], trust_remote_code: bool = False) -> None:
    """Log-probabilities of a few samples under the weights as they were saved: what an engine must answer with."""
    import torch

    from actors.weights import write_probe
    from rhumbline.data.chat import encode
    from rhumbline.learning.logprobs import token_logprobs
    from rhumbline.learning.policy import load_policy, load_tokenizer

    tokenizer = load_tokenizer(folder, trust_remote_code)
    encoded = [encode(e.messages, e.response, tokenizer, e.complete) for e in examples]
    # Short ones, so that they fit every engine's context.
    by_length = sorted((e for e in encoded if e.num_learned > 0), key=lambda e: (e.prompt_length, e.token_ids))
    cases = [cut(e) for e in by_length[:NUM_PROBES]]
    # In fp32 where that is cheap: the comparison then carries the rounding of one engine, not of two.
    dtype = None if torch.cuda.is_available() else torch.float32
    rows = token_logprobs(load_policy(folder, dtype, trust_remote_code), cases)
    write_probe(folder, [(e, row.tolist()) for e, row in zip(cases, rows, strict=True)])


def probe_again(folder: Path, trust_remote_code: bool = False) -> None:
    """Write the probe of a checkpoint that no learner made here, such as a merged adapter."""
    text = "A rhumb line crosses every meridian at the same angle."
    user = Message(role="user", content="What is a rhumb line?")
    write(folder, [Example(id="probe", messages=(user,), response=text)], trust_remote_code)
