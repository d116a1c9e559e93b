"""Metrics: one flat dict of numbers per step, always in metrics.jsonl, and in any tracker besides.

    log = MetricsLog(store.path / "metrics.jsonl", trackers=[wandb.init(project="dpa")])
    log.log(3, {"learn/loss": 0.7, **reward_metrics(names, rewards_NK, "score")})
    # {"step": 3, "time": 1760000000.0, "learn/loss": 0.7, "score/helpfulness_mean": 61.2, ...}

Names are `stage/quantity`. What is not a finite number is written as null, so that every JSON parser reads the file.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from rhumbline import durable

_NAME = re.compile(r"[^/\s]+/\S.*")
_logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """A wandb run, a trackio run, a few lines around TensorBoard: anything with this method."""

    def log(self, data: dict[str, Any], step: int) -> Any: ...


class MetricsLog:
    """Appends to `path`; going on with an old file is safe after a kill."""

    def __init__(self, path: str | Path, trackers: Iterable[Tracker] = ()) -> None:
        self.path = Path(path)
        self.trackers = list(trackers)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write one step. Values are numbers (numpy and 0-d tensors too) or None. ValueError for a wrong name."""
        for name in metrics:
            if not _NAME.fullmatch(name):
                raise ValueError(f"metric {name!r}: expected stage/quantity, for example learn/loss")
        numbers = {name: _finite(value) for name, value in metrics.items()}
        durable.append(self.path, {"step": int(step), "time": time.time(), **numbers})
        known = {name: value for name, value in numbers.items() if value is not None}
        for tracker in list(self.trackers):
            try:
                tracker.log(known, step)
            except Exception as e:  # a tracker's outage must not cost a run: the file has everything
                _logger.warning("tracker %s failed and is left out from now on: %s", type(tracker).__name__, e)
                self.trackers.remove(tracker)

    def read(self) -> list[dict[str, Any]]:
        """All steps in the file, in order."""
        return list(durable.read(self.path))


def summary(values: ArrayLike) -> dict[str, float]:
    """mean, std (denominator n) and the 10th, 50th and 90th percentile of the numbers; all NaN for none."""
    numbers = np.asarray(values, dtype=np.float64).ravel()
    if len(numbers) == 0:
        return dict.fromkeys(("mean", "std", "p10", "p50", "p90"), math.nan)
    p10, p50, p90 = np.percentile(numbers, [10, 50, 90]).tolist()
    return {"mean": float(numbers.mean()), "std": float(numbers.std()), "p10": p10, "p50": p50, "p90": p90}


def reward_metrics(names: Sequence[str], rewards_NK: ArrayLike, prefix: str) -> dict[str, float]:
    """`summary` of every objective: {'score/helpfulness_mean': ..., 'score/helpfulness_std': ..., ...}."""
    r_NK = np.asarray(rewards_NK, dtype=np.float64).reshape(-1, len(names))
    return {
        f"{prefix}/{name}_{key}": value for k, name in enumerate(names) for key, value in summary(r_NK[:, k]).items()
    }


def _finite(value: Any) -> float | None:
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) else None
