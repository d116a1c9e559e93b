"""ASHA that a resumed search goes on with: what other trials came to, by which it stops the next one, outlives its process.

    scheduler = Asha(folder / "asha.pkl", metric="reward", mode="max", grace_period=2)

Tune of Ray 2.60 stores trials and searcher while it runs, and a scheduler once, before the first trial
(its controller leaves it out of what it saves): after Tuner.restore ASHA would know of no trial that it was to compare
with, and stop nothing until enough of them had come by again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray.tune.schedulers import ASHAScheduler

from rhumbline import durable


class Asha(ASHAScheduler):
    """Of Ray, with its state in `file` after every report. A pickle: its folder is as trusted as the code."""

    def __init__(self, file: Path, **settings: Any) -> None:
        super().__init__(**settings)
        self.file, self.recalled = file, False

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """The first of a session reads what the one before it left."""
        if not self.recalled:
            if self.file.is_file():
                file = self.file
                self.restore(str(file))
                self.file = file  # the search may have been moved
            self.recalled = True
        super().on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        action: str = super().on_trial_result(tune_controller, trial, result)
        self._keep()
        return action

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        super().on_trial_complete(tune_controller, trial, result)
        self._keep()

    def _keep(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        new = self.file.with_name(f".{self.file.name}{durable.TEMPORARY}")
        self.save(str(new))
        new.replace(self.file)
