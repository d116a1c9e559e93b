"""A value head on the policy's own trunk: V(prompt and the answer's first tokens), for PPO.

    model = PolicyWithValue(policy)                                  # a transformers model or a PeftModel
    logits_RV, values_R = logits_and_values(model, packed)

One forward pass gives both. Values are linear in the final hidden state, in fp32, and start at 0: until the head has learned,
advantages are those without a baseline. The gradient of the value reaches the trunk, or its adapter.

R learned tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from rhumbline.learning.packing import Packed

PREFIX = "policy."  # of the policy's weights among the names of both


class _Head(nn.Linear):
    """In fp32, also where DeepSpeed has cast the weights: bf16 has steps of 1/128 in a value of 2."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return nn.functional.linear(hidden.float(), self.weight.float(), self.bias.float())


class PolicyWithValue(nn.Module):
    """The policy as `policy`, and `head`. Its forward pass takes what the policy's takes, and where values are wanted."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy
        size = int(policy.config.get_text_config().hidden_size)
        self.head = _Head(size, 1, bias=True, device=policy.device, dtype=torch.float32)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, *, value_positions: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits as the policy gives them, and the values (P,) after the tokens of the row at `value_positions` (P,)."""
        bare = self.policy.get_base_model() if hasattr(self.policy, "get_base_model") else self.policy
        seen: list[torch.Tensor] = []

        def keep(module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG001  the interface of hooks
            seen.append(output.last_hidden_state)

        # A hook, not a call of trunk and head one by one: some models scale or cap their logits in between.
        hook = bare.get_decoder().register_forward_hook(keep)
        try:
            logits = self.policy(**inputs).logits
        finally:
            hook.remove()
        (hidden,) = seen
        values = self.head(hidden[0, value_positions])[:, 0]
        return cast(torch.Tensor, logits), values


def logits_and_values(model: Any, packed: Packed) -> tuple[torch.Tensor, torch.Tensor]:
    """(R, V) logits of the learned tokens, (R,) the values before each."""
    logits, values_R = model(
        input_ids=packed.token_ids,
        position_ids=packed.positions,
        logits_to_keep=packed.predictors,
        use_cache=False,
        segment_lengths=packed.lengths,
        value_positions=packed.predictors,
    )
    return logits[0], values_R
