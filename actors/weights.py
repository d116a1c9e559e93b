"""Weight sync: new weights into every generator, then proof that they answer with them.

    synced = sync(generators, "t=1", "runs/smol/checkpoints/t=1", tolerance=0.05, deadline_s=600)
    synced.seconds, synced.load_s, synced.probe_s, synced.gap        # 1.9, 1.1, 0.7, 0.03

Rollouts from stale weights are this field's commonest silent failure. So every checkpoint carries `probe.json`: fixed
token sequences with the learner's own log-probabilities of them, and those of the policy that training started from. After a
load each engine computes its own; where they differ from the learner's by more than the recipe allows, or are those of older
weights (actors/probes.py), the run stops with the figures.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.generator import Switched
from actors.pool import Pool
from actors.probes import Case
from rhumbline.data.chat import Encoded
from rhumbline.durable import replace
from rhumbline.errors import WeightSyncError

FILE = "probe.json"


@dataclass(frozen=True, slots=True)
class Synced:
    """New weights in every replica; of what differs between them the largest."""

    seconds: float  # until the last one had proven them
    load_s: float
    probe_s: float
    gap: float  # mean over the probe's tokens of |log p engine - log p learner|, nats


def write_probe(folder: str | Path, cases: Sequence[Case]) -> None:
    """Store the learner's side of the probe beside its weights."""
    rows = [
        {
            "token_ids": list(case.encoded.token_ids),
            "prompt_length": case.encoded.prompt_length,
            "logprobs": [float(p) for p in case.logprobs],
            "start": None if case.start is None else [float(p) for p in case.start],
        }
        for case in cases
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
        Case(
            encoded=Encoded(
                token_ids=tuple(row["token_ids"]),
                loss_mask=tuple(i >= row["prompt_length"] for i in range(len(row["token_ids"]))),
            ),
            logprobs=row["logprobs"],
            start=row.get("start"),  # of a checkpoint from before there were any: None
        )
        for row in rows
    ]


def sync(generators: Pool, version: str, folder: str | Path, *, tolerance: float, deadline_s: float) -> Synced:
    """Load `folder` into every replica and have each prove it. Raises WeightSyncError.

    A replica that is replaced later loads and proves the same before it gets any work.
    """
    began = time.monotonic()
    replies: list[Switched] = generators.broadcast(
        "switch", version, str(folder), read_probe(folder), tolerance, deadline_s=deadline_s
    )
    return Synced(
        seconds=time.monotonic() - began,
        load_s=max(reply.load_s for reply in replies),
        probe_s=max(reply.probe_s for reply in replies),
        gap=max(reply.gap for reply in replies),
    )
