"""Log-probabilities that a policy gives to tokens: what policies are trained by, and what they are compared by.

logp_R = chosen_logprobs(learned_logits(model, packed), packed.targets)    # with a gradient
logp_N = sequence_logprobs(model, encoded, device)             # nats per response, with a gradient
rows = token_logprobs(model, encoded, token_budget=4096)       # one (T,) tensor per sample, without
sums = response_logprobs(model, encoded, token_budget=4096)    # nats per response

R learned tokens, V vocabulary, N samples, T learned tokens of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from rhumbline.data.chat import Encoded
from rhumbline.learning.packing import bins, learned_logits, pack, packed_attention
from rhumbline.losses.rows import widen
from rhumbline.losses.sft import chunks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def chosen_logprobs(logits_RV: torch.Tensor, targets_R: torch.Tensor) -> torch.Tensor:
    """(R,) log softmax(logits_r)[target_r], nats; computed in fp32 or better. The gradient reaches the logits."""
    assert logits_RV.shape[:1] == targets_R.shape, f"logits {tuple(logits_RV.shape)}, targets {tuple(targets_R.shape)}"
    logp_R: torch.Tensor = _ChosenLogprobs.apply(logits_RV, targets_R)  # type: ignore[no-untyped-call]  # torch leaves `apply` untyped
    return logp_R


def sequence_logprobs(model: Any, encoded: Sequence[Encoded], device: torch.device | str) -> torch.Tensor:
    """(N,) sum_t log pi(y_t | x, y_<t) of each sample, nats, from one pass over all of them, with a gradient.

    Tokens in fp32, their sums in fp64: sums of hundreds of nats are subtracted from each other. The caller attends as
    `packed_attention` says.
    """
    packed = pack(encoded, device)
    logp_R = chosen_logprobs(learned_logits(model, packed), packed.targets)
    return torch.stack([own_T.sum() for own_T in torch.split(logp_R.double(), list(packed.counts))])


@torch.no_grad()
def entropies(logits_RV: torch.Tensor) -> torch.Tensor:
    """(R,) -sum_v p_v log p_v of softmax(logits_r), nats; computed in fp32 or better, without a gradient."""
    out_R = widen(logits_RV.new_empty(len(logits_RV)))
    for rows in chunks(logits_RV):
        out_R[rows] = torch.special.entr(widen(logits_RV[rows]).softmax(-1)).sum(-1)
    return out_R


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
            chosen_R = chosen_logprobs(learned_logits(model, packed), packed.targets).float().cpu()
            for index, row in zip(group, torch.split(chosen_R, list(packed.counts)), strict=True):
                out[index] = row
    return out


def response_logprobs(model: PreTrainedModel, encoded: Sequence[Encoded], token_budget: int = 4096) -> list[float]:
    """sum_t log pi(y_t | x, y_<t) per sample, nats."""
    return [float(row.double().sum()) for row in token_logprobs(model, encoded, token_budget)]


class _ChosenLogprobs(torch.autograd.Function):
    """A few rows at a time: the logits are kept in their own dtype, and no wider copy of all of them is ever made."""

    @staticmethod
    def forward(ctx: Any, logits_RV: torch.Tensor, targets_R: torch.Tensor) -> torch.Tensor:
        logp_R = widen(logits_RV.new_empty(len(logits_RV)))
        logsumexp_R = torch.empty_like(logp_R)
        for rows in chunks(logits_RV):
            targets, logits = targets_R[rows, None], widen(logits_RV[rows])
            logp_R[rows] = logits.log_softmax(-1).gather(1, targets)[:, 0]
            logsumexp_R[rows] = logits.gather(1, targets)[:, 0] - logp_R[rows]
        ctx.save_for_backward(logits_RV, targets_R, logsumexp_R)
        return logp_R

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """grad (onehot(target) - softmax(logits)), in the dtype of the logits."""
        logits_RV, targets_R, logsumexp_R = ctx.saved_tensors
        gradient_RV = torch.empty_like(logits_RV)
        for rows in chunks(logits_RV):
            grad = grad_outputs[0][rows, None]
            minus_p = widen(logits_RV[rows]).sub(logsumexp_R[rows, None]).exp_().mul_(-grad)
            gradient_RV[rows] = minus_p.scatter_add_(1, targets_R[rows, None], grad.contiguous())
        return gradient_RV, None
