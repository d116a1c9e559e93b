"""TRL's own losses of tokens that it is given, by its trainers' `compute_loss`: fp32, one padded batch, no training.

    settings = trl_settings(tmp_path)
    dpo(settings, policies, units, loss_type=["sigmoid"], beta=0.3)

Its trainers tokenise a data set when they are made. They get one of nothing, and the batch afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rhumbline.data.chat import Encoded
from rhumbline.learning.units import JudgedUnit, PairUnit
from tests.rhumbline.real_batch import Policies

IGNORED = -100  # a label without loss


def trl_settings(folder: Path) -> dict[str, Any]:
    """What all trainers are told."""
    import datasets

    datasets.disable_progress_bars()
    return {
        "output_dir": str(folder),
        "use_cpu": not torch.cuda.is_available(),
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": [],
    }


def sft(settings: dict[str, Any], policies: Policies, encoded: Sequence[Encoded]) -> float:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [{"input_ids": list(one.token_ids), "labels": _labels(one)} for one in encoded]
    given = {"train_dataset": Dataset.from_list(rows), "processing_class": policies.tokenizer}
    return _loss(SFTTrainer(policies.fresh(), SFTConfig(**settings, max_length=None), **given), rows)


def dpo(settings: dict[str, Any], policies: Policies, units: Sequence[PairUnit], **loss: Any) -> float:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    rows = []
    for unit in units:
        chosen, rejected = unit.sides
        border = chosen.prompt_length
        assert chosen.token_ids[:border] == rejected.token_ids[:border]
        parts = (chosen.token_ids[:border], chosen.token_ids[border:], rejected.token_ids[border:])
        rows.append(dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), map(list, parts), strict=True)))
    nothing = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    arguments = DPOConfig(**settings, max_length=None, **loss)
    given = {"train_dataset": nothing, "processing_class": policies.tokenizer}
    return _loss(DPOTrainer(policies.fresh(), policies.models["reference"], arguments, **given), rows)


def kto(settings: dict[str, Any], policies: Policies, units: Sequence[JudgedUnit], **loss: Any) -> float:
    from trl import KTOConfig, KTOTrainer

    rows = []
    for unit in units:
        (own,), (other,) = unit.sides, unit.mismatched
        border = own.prompt_length
        parts = (own.token_ids[:border], own.token_ids[border:], other.token_ids[border:])
        ids = dict(zip(("prompt_ids", "completion_ids", "KL_completion_ids"), map(list, parts), strict=True))
        rows.append({**ids, "label": unit.desirable})
    arguments = KTOConfig(
        **settings, max_length=None, per_device_train_batch_size=2, **loss
    )  # it refuses batches of one
    given = {"train_dataset": _unpaired(), "processing_class": policies.tokenizer}
    return _loss(KTOTrainer(policies.fresh(), policies.models["reference"], arguments, **given), rows)


def bco(
    settings: dict[str, Any], policies: Policies, units: Sequence[JudgedUnit], **loss: Any
) -> tuple[float, float, float]:
    """The loss without a shift, the loss with that which TRL makes of the batch, and this shift."""
    from trl.experimental.bco import BCOConfig, BCOTrainer

    arguments = BCOConfig(**settings, max_length=512, remove_unused_columns=False, **loss)
    given = {"train_dataset": _unpaired(), "processing_class": policies.tokenizer}
    trainer = BCOTrainer(policies.fresh(), policies.models["reference"], arguments, **given)
    batch = _padded(units, policies.tokenizer.pad_token_id)
    with torch.no_grad():
        said = [trainer.forward(model, batch)[:2] for model in (trainer.model, trainer.ref_model)]
        before, *_ = trainer.bco_loss(*said[0], *said[1], None, None, do_train=False)
        after, _, _, shift = trainer.bco_loss(*said[0], *said[1], None, None)
    return float(before.mean()), float(after.mean()), float(shift)


def _loss(trainer: Any, rows: Sequence[dict[str, Any]]) -> float:
    with torch.no_grad():
        return float(trainer.compute_loss(trainer.model, trainer.data_collator(list(rows))))


def _unpaired() -> Any:
    from datasets import Dataset

    return Dataset.from_list([{"prompt": f"a{i}", "completion": "b", "label": i == 0} for i in range(2)])


def _labels(one: Encoded) -> list[int]:
    return [i if learned else IGNORED for i, learned in zip(one.token_ids, one.loss_mask, strict=True)]


def _padded(units: Sequence[JudgedUnit], pad_token_id: int) -> dict[str, Any]:
    """As BCO's collator makes it of texts."""
    encoded = [unit.sides[0] for unit in units]
    longest = max(map(len, encoded))
    ids = [[*one.token_ids, *[pad_token_id] * (longest - len(one))] for one in encoded]
    seen = [[1] * len(one) + [0] * (longest - len(one)) for one in encoded]
    labels = [_labels(one) + [IGNORED] * (longest - len(one)) for one in encoded]
    tensors = {"input_ids": ids, "attention_mask": seen, "labels": labels}
    padded = {f"completion_{key}": torch.tensor(rows) for key, rows in tensors.items()}
    return {"label": [unit.desirable for unit in units], **padded}
