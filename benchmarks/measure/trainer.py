"""transformers' Trainer as a rival: without what is not training, and timed by its steps alone.

arguments = TrainingArguments(**unattended(folder, seed), learning_rate=1e-4)
seconds = seconds_of(Trainer(model, arguments, ...))
"""

from __future__ import annotations

import time
from typing import Any

import torch


def unattended(folder: str, seed: int) -> dict[str, Any]:
    """Arguments of a run that neither saves, reports nor logs."""
    return {
        "output_dir": folder,
        "seed": seed,
        "use_cpu": not torch.cuda.is_available(),
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def seconds_of(trainer: Any) -> float:
    """Seconds of its steps: what comes before the first one is not counted."""
    from transformers import PrinterCallback, TrainerCallback

    clock = {"seconds": 0.0}

    class Clock(TrainerCallback):
        def on_train_begin(self, *_args: Any, **_kwargs: Any) -> None:
            clock["seconds"] = -time.perf_counter()

        def on_train_end(self, *_args: Any, **_kwargs: Any) -> None:
            clock["seconds"] += time.perf_counter()

    trainer.add_callback(Clock())
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return clock["seconds"]
