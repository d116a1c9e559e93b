"""Log-probabilities that a policy gives to responses: the KL to the initial policy, and the probe of a weight sync.

rows = token_logprobs(model, encoded, token_budget=4096)       # one (T,) tensor per sample
sums = response_logprobs(model, encoded, token_budget=4096)    # nats per response
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from rhumbline.data.chat import Encoded
from rhumbline.learning.packing import bins, learned_logits, pack, packed_attention
from rhumbline.losses.sft import chunks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def token_logprobs(model: PreTrainedModel, encoded: Sequence[Encoded], token_budget: int = 4096) -> list[torch.Tensor]:
    """log pi(token | everything before it) of every learned token: one fp32 CPU tensor (T,) per sample, nats.

    Samples are packed into rows of at most `token_budget` tokens; the result does not depend on how.
    """
    out: list[torch.Tensor] = [torch.zeros(0)] * len(encoded)
    with packed_attention(model):
        for group in bins([len(e) for e in encoded], token_budget):
            packed = pack([encoded[i] for i in group], model.device)
            if len(packed.targets) == 0:
                continue
            logits_RV = learned_logits(model, packed)
            chosen_R = torch.empty(len(logits_RV))
            for rows in chunks(logits_RV):
                log_p = logits_RV[rows].float().log_softmax(-1)
                chosen_R[rows] = log_p.gather(1, packed.targets[rows, None])[:, 0].cpu()
            for index, row in zip(group, torch.split(chosen_R, list(packed.counts)), strict=True):
                out[index] = row
    return out


def response_logprobs(model: PreTrainedModel, encoded: Sequence[Encoded], token_budget: int = 4096) -> list[float]:
    """sum_t log pi(y_t | x, y_<t) per sample, nats."""
    return [float(row.double().sum()) for row in token_logprobs(model, encoded, token_budget)]
