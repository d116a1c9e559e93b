"""The policy that online training starts from, to measure the KL against: without a second copy of it, where LoRA allows.

    with reference_of(model, learner, folder, adapter_dir, None, False, stack) as copy:
        logits_RV = learned_logits(model if copy is None else copy, packed)     # None: the model answers as the reference

Under LoRA that is the model with its adapter switched off, or where it goes on with one, with that one, loaded a second
time and frozen. Full weights need a frozen copy, and so does a reference of the caller's own.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from rhumbline import config
from rhumbline.learning.loop import resting_dtype
from rhumbline.learning.packing import packed_attention
from rhumbline.learning.policy import load_adapter, load_policy
from rhumbline.learning.precision import dtype_of

NAME = "reference"  # of the second adapter


class Reference:
    """A context within which the reference answers; it may be entered again and again."""

    def __init__(self, model: Any, adapter_dir: str | Path | None = None, copy: Any = None) -> None:
        """`model` a PeftModel, which goes on with `adapter_dir`, unless there is a `copy` to be asked instead."""
        self.model, self.copy, self.second = model, copy, copy is None and adapter_dir is not None
        self._stack = ExitStack()
        if self.second:
            model.load_adapter(str(adapter_dir), adapter_name=NAME, is_trainable=False)
            for name, parameter in model.named_parameters():
                if f".{NAME}." in name:
                    parameter.data = parameter.data.float()  # as what is trained, or the KL would not begin at 0

    def __enter__(self) -> Any:
        """The copy to ask; None where the model itself answers as the reference until the end."""
        if self.second:
            self._stack.callback(self.model.set_adapter, self.model.active_adapter)
            self.model.set_adapter(NAME, inference_mode=True)
        elif self.copy is None:
            self._stack.enter_context(self.model.disable_adapter())
        return self.copy

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def reference_of(
    model: Any,
    learner: config.Learner,
    policy_dir: str | Path,
    adapter_dir: str | Path | None,
    reference_dir: str | Path | None,
    trust_remote_code: bool,
    stack: ExitStack,
) -> Reference:
    """The reference of `model`, which was just made of `policy_dir` and `adapter_dir`; `reference_dir`: another one."""
    if learner.lora is not None and reference_dir is None:
        return Reference(model, adapter_dir)
    # As the policy's weights rest, or the KL would not begin at 0; DeepSpeed casts those itself.
    dtype = dtype_of(learner.dtype) if learner.engine == "deepspeed" else resting_dtype(learner)
    copy: Any = load_policy(reference_dir or policy_dir, dtype, trust_remote_code)
    if reference_dir is None and adapter_dir is not None:
        copy = load_adapter(copy, adapter_dir).merge_and_unload()
    stack.enter_context(packed_attention(copy))
    return Reference(model, copy=copy.requires_grad_(False))
