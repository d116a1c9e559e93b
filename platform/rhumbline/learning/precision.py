"""What a recipe's precision means on the machine at hand: bf16 where the processor multiplies in it, else fp32.

    dtype_of("auto")                       # torch.bfloat16 on a GPU or a CPU with AVX512_BF16 or AMX, else torch.float32
    dtype_of("bfloat16")                   # torch.bfloat16, however slow

Why not bf16 everywhere: a CPU with AVX2 alone emulates it. On one, torch 2.13 took 7 times as long as in fp32 for the product of
a LoRA layer's forward pass and 80 times for that of its backward pass, and vLLM 0.32 sampled a quarter of the tokens per second.
What is stored is bf16 in either case, so checkpoints of one machine are those of the other.
"""

from __future__ import annotations

from functools import cache

import torch

from rhumbline import probe

AUTO = "auto"


@cache
def computes_bf16() -> bool:
    """Whether this process computes in bf16 at no loss of speed: on the GPU that it sees, else on the CPU.

    Of processors that do not list what they can, it is taken for granted.
    """
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    flags = probe.cpu_flags()
    return not flags or bool(flags & probe.BF16)


def dtype_of(name: str) -> torch.dtype:
    """Of `learner.dtype`, `learner.weights_dtype` or `generator.engine.dtype`: 'auto', 'bfloat16' or 'float32'."""
    if name == AUTO:
        return torch.bfloat16 if computes_bf16() else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def name_of(name: str) -> str:
    """The same as a name, for libraries that want one: 'bfloat16' or 'float32'."""
    return str(dtype_of(name)).removeprefix("torch.")
