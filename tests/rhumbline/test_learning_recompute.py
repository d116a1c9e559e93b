from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch

from rhumbline import config
from rhumbline.errors import ConfigError
from rhumbline.learning import lora
from rhumbline.learning.loop import start
from rhumbline.learning.packing import learned_logits, pack
from rhumbline.learning.policy import load_tokenizer
from rhumbline.learning.recompute import recompute
from rhumbline.learning.train import encode_examples
from tests.rhumbline.learning_fakes import examples, quick, tiny_policy


def kept(model: Any, packed: Any) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients of every trained tensor, and how many numbers the forward pass kept: inputs of recomputed layers aside."""
    count = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits_RV = learned_logits(model, packed)
    held = count
    torch.nn.functional.cross_entropy(logits_RV, packed.targets).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, held


@pytest.mark.parametrize("adapter", [None, config.Lora(r=4)], ids=["full", "lora"])
@pytest.mark.parametrize("training", [True, False])
def test_the_gradients_are_the_same_and_less_is_kept(tmp_path: Any, adapter: Any, training: bool) -> None:
    folder = tiny_policy(tmp_path / "policy")
    samples, _, _ = encode_examples(examples(4), load_tokenizer(folder), 256)
    found = []
    for again in (False, True):
        learner = quick(lora=adapter and adapter.model_dump(), gradient_checkpointing=again)
        with ExitStack() as stack:
            model = start(learner, folder, None, 7, False, stack).train(training)
            if adapter is not None:
                for name, parameter in model.named_parameters():  # B = 0 would leave A without a gradient
                    if "lora_B" in name:
                        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
                assert lora.fuse(model) > 0
            found.append(kept(model, pack([sample.student for sample in samples])))
    (plain, much), (recomputed, little) = found
    assert plain.keys() == recomputed.keys()
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)
    assert little < 0.6 * much


def test_a_model_without_such_layers_is_named() -> None:
    with pytest.raises(ConfigError, match=r"learner\.gradient_checkpointing: Linear has no layers"):
        recompute(torch.nn.Linear(1, 1))
