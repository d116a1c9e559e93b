"""Samples of many lengths as one row of tokens, with attention confined to each sample. Tensors begin here.

    order = Order(num_samples=1000, batch_size=16, epochs=2, seed=7)
    for indices in order:                                               # one optimiser step; order[step] is any
        for micro in bins([len(encoded[i]) for i in indices], 2048):    # positions in `indices`
            packed = pack([encoded[indices[j]] for j in micro], device)
            logits_RV = learned_logits(model, packed)                      # only where a token is learned

T tokens of the row, R learned tokens, V vocabulary, H heads, D head size.

On a CPU attention runs sample by sample (`SEGMENTED`), so its cost is the sum of squares of the lengths, not the
square of the sum; measured on SmolLM2-135M this is 1.3 times as fast as one row under a block-diagonal mask and 1.4
times as fast as a padded batch, forward and backward. It computes in fp32: torch's fp32 kernel is faster than its
bf16 one there, by 1.2 over the whole step. On a GPU the row goes to flash attention where that is installed, else to
SDPA under the block mask that transformers makes from the restarting positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from rhumbline.data.chat import Encoded
from rhumbline.errors import TrainingError

HALF, FLASH = (torch.bfloat16, torch.float16), "flash_attention_2"
SEGMENTED = "rhumbline_segmented"


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """Samples in one row. A sample's first token is never learned: nothing precedes it."""

    token_ids: torch.Tensor  # (1, T)
    positions: torch.Tensor  # (1, T) from 0 in every sample
    lengths: tuple[int, ...]  # per sample, summing to T
    predictors: torch.Tensor  # (R,) index into T of the token before each learned one
    targets: torch.Tensor  # (R,) ids of the learned tokens
    counts: tuple[int, ...]  # learned tokens per sample, summing to R


def pack(samples: Sequence[Encoded], device: torch.device | str = "cpu") -> Packed:
    """Lay samples end to end. Raises TrainingError for a sample whose first token is to be learned."""
    if any(sample.loss_mask[0] for sample in samples):
        raise TrainingError("a sample's first token carries loss, but nothing precedes it: its prompt has no tokens")
    lengths = tuple(len(sample) for sample in samples)
    ids = np.concatenate([np.asarray(sample.token_ids, dtype=np.int64) for sample in samples])
    learned = np.flatnonzero(np.concatenate([np.asarray(sample.loss_mask, dtype=bool) for sample in samples]))
    positions = np.concatenate([np.arange(n) for n in lengths])
    return Packed(
        token_ids=torch.from_numpy(ids)[None].to(device),
        positions=torch.from_numpy(positions)[None].to(device),
        lengths=lengths,
        predictors=torch.from_numpy(learned - 1).to(device),
        targets=torch.from_numpy(ids[learned]).to(device),
        counts=tuple(sample.num_learned for sample in samples),
    )


def learned_logits(model: Any, packed: Packed) -> torch.Tensor:
    """(R, V) logits of the tokens that are learned, and of no others: the head never sees the prompts."""
    out = model(
        input_ids=packed.token_ids,
        position_ids=packed.positions,
        logits_to_keep=packed.predictors,
        use_cache=False,
        segment_lengths=packed.lengths,
    )
    return cast(torch.Tensor, out.logits[0])


# --- attention --------------------------------------------------------------------------------------------------------


@contextmanager
def packed_attention(model: Any, dtype: torch.dtype | None = None) -> Iterator[None]:
    """Within it, `model` (a PeftModel too) uses the fastest attention for packed rows on its device; then its own
    again.

    dtype: what is computed in, where autocast makes that another one than the weights'. Flash attention knows no fp32.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from transformers.utils.import_utils import is_flash_attn_2_available

    policy = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = policy.config._attn_implementation
    if policy.device.type == "cpu":
        ALL_ATTENTION_FUNCTIONS.register(SEGMENTED, segmented_attention)
        policy.set_attn_implementation(SEGMENTED)
    elif (dtype or policy.dtype) in HALF and is_flash_attn_2_available():
        policy.set_attn_implementation(FLASH)
    else:
        policy.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        policy.set_attn_implementation(before)


def segmented_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001  the interface's; packing needs none
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    segment_lengths: tuple[int, ...] | None = None,
    **kwargs: Any,  # noqa: ARG001  what other attention functions are told
) -> tuple[torch.Tensor, None]:
    """Causal attention within each segment: query (1, H, T, D), key and value (1, H_kv, T, D) -> (1, T, H, D)."""
    if segment_lengths is None:
        raise TrainingError(
            f"{type(module).__name__} was not told the lengths of the packed samples: its model does not pass keyword "
            "arguments on to attention, so it cannot be trained packed"
        )
    pieces = []
    lengths = list(segment_lengths)
    split = [torch.split(tensor.float(), lengths, dim=2) for tensor in (query, key, value)]
    with torch.autocast(query.device.type, enabled=False):  # it would round what was just made fp32
        for q, k, v in zip(*split, strict=True):
            length = q.shape[2]
            band = None
            if sliding_window is not None and length > sliding_window:
                band = torch.ones(length, length, dtype=torch.bool, device=q.device).tril().triu(1 - sliding_window)
            pieces.append(
                scaled_dot_product_attention(
                    q, k, v, attn_mask=band, is_causal=band is None, dropout_p=dropout, scale=scaling, enable_gqa=True
                )
            )
    return torch.cat(pieces, dim=2).transpose(1, 2).to(query.dtype).contiguous(), None


# --- which samples go together ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Order:
    """The samples of every optimiser step: a seeded permutation per epoch, laid end to end and cut into batches.

    Any step can be asked for by number, so that training resumes at it. The last batch may be smaller.
    """

    num_samples: int
    batch_size: int
    epochs: int
    seed: int

    def __len__(self) -> int:
        return -(-self.num_samples * self.epochs // self.batch_size)

    def __getitem__(self, step: int) -> tuple[int, ...]:
        if not 0 <= step < len(self):
            raise IndexError(step)
        first = step * self.batch_size
        last = min(first + self.batch_size, self.num_samples * self.epochs)
        permutations = {
            epoch: np.random.default_rng((self.seed, epoch)).permutation(self.num_samples)
            for epoch in range(first // self.num_samples, (last - 1) // self.num_samples + 1)
        }
        return tuple(int(permutations[i // self.num_samples][i % self.num_samples]) for i in range(first, last))

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return (self[step] for step in range(len(self)))


def bins(lengths: Sequence[int], max_tokens: int, multiple_of: int = 1) -> list[list[int]]:
    """Indices into `lengths`, grouped so that no group exceeds `max_tokens`: first fit, longest first.

    A sample longer than `max_tokens` has a group of its own. The number of groups is a multiple of `multiple_of` (the
    workers, which must all do the same number of passes): groups are halved until it is, and empty ones added where
    nothing is left to halve. Groups of about the same size lie next to each other.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        for group in groups:
            if sum(lengths[i] for i in group) + lengths[index] <= max_tokens:
                group.append(index)
                break
        else:
            groups.append([index])
    while len(groups) % multiple_of:
        largest = max(groups, key=lambda g: (len(g) > 1, sum(lengths[i] for i in g)))
        if len(largest) < 2:
            groups += [[] for _ in range(-len(groups) % multiple_of)]
            break
        groups.remove(largest)
        groups += [largest[0::2], largest[1::2]]
    return sorted(groups, key=lambda g: (-sum(lengths[i] for i in g), g))
