"""Weight sync: new weights into every generator, then proof that they answer with them.

    seconds = sync(generators, "t=1", "runs/smol/checkpoints/t=1", tolerance=0.05, deadline_s=600)

Rollouts from stale weights are this field's commonest silent failure. So every checkpoint carries `probe.json`: fixed token
sequences with the learner's own log-probabilities of them. After a load each engine computes its own; where they differ by
more than the recipe allows, the run stops with both figures.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actors.pool import Pool
from rhumbline.data.chat import Encoded
from rhumbline.durable import replace
from rhumbline.errors import WeightSyncError

FILE = "probe.json"
Case = tuple[Encoded, Sequence[float]]  # tokens, the learner's log-probability of each learned one


def write_probe(folder: str | Path, cases: Sequence[Case]) -> None:
    """Store the learner's side of the probe beside its weights."""
    rows = [
        {"token_ids": list(e.token_ids), "prompt_length": e.prompt_length, "logprobs": [float(p) for p in logprobs]}
        for e, logprobs in cases
    ]
    replace(Path(folder) / FILE, json.dumps(rows).encode())


def read_probe(folder: str | Path) -> list[Case]:
    """Raises WeightSyncError where a checkpoint has no probe: it could not be told from any other."""
    path = Path(folder) / FILE
    try:
        rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise WeightSyncError(f"{path} cannot be read: {e}. A checkpoint of a learner holds one") from e
    return [
        (
            Encoded(
                token_ids=tuple(row["token_ids"]),
                loss_mask=tuple(i >= row["prompt_length"] for i in range(len(row["token_ids"]))),
            ),
            row["logprobs"],
        )
        for row in rows
    ]


def sync(generators: Pool, version: str, folder: str | Path, *, tolerance: float, deadline_s: float) -> float:
    """Load `folder` into every replica and probe it; seconds it took. Raises WeightSyncError with both figures."""
    began = time.monotonic()
    cases = read_probe(folder)
    generators.broadcast("load", version, str(folder), deadline_s=deadline_s)
    for replica, gap in enumerate(generators.broadcast("probe", cases, deadline_s=deadline_s)):
        if not gap <= tolerance:
            raise WeightSyncError(
                f"generator {replica} answers with other weights than the learner's after loading {version} from {folder}: "
                f"mean |log p - log p| is {gap:.4f} nats per token over the probe, at most {tolerance:g} is allowed "
                "(generator.probe_tolerance)"
            )
    return time.monotonic() - began
