"""Pairs and judged answers that a policy of two layers can learn from in a second.

log = train(policy, tmp_path / "out", data("dpo", 8), loss_of("dpo"))
log.of("loss")                                   # of every step
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rhumbline import config
from rhumbline.learning.preferences import fit_preferences
from rhumbline.losses import UNPAIRED_LOSSES
from rhumbline.records import Judged, Message, Pair
from tests.rhumbline.learning_fakes import Log, quick

OBJECTIVES = ("helpfulness", "brevity")
LETTERS = "abcdefghijkl"


def pair(index: int, chosen: str = "", rejected: str = "", **fields: Any) -> Pair:
    angle = 0.3 * (index % 3)
    known: dict[str, Any] = {
        "id": f"p{index}",
        "messages": (Message(role="user", content=f"q{index}"),),
        "chosen": chosen or LETTERS[: 3 + index % 8],
        "rejected": rejected or LETTERS[::-1][: 11 - index % 7],
        "gaps": (0.5 + 0.1 * index, -0.7),
        "direction": (math.cos(angle), math.sin(angle)),
    }
    return Pair(**known | fields)


def to_two_prompts(index: int, **fields: Any) -> Pair:
    return pair(index, rejected_messages=(Message(role="user", content="x" * (3 + index)),), **fields)


def judged(index: int, **fields: Any) -> Judged:
    """Two answers of each prompt, one of three desirable."""
    known: dict[str, Any] = {
        "id": f"j{index}",
        "prompt_id": f"q{index // 2}",
        "messages": (Message(role="user", content=f"q{index // 2}" + "?" * (index // 2)),),
        "response": LETTERS[index % 3 : 5 + index % 7],
        "desirable": index % 3 == 0,
    }
    return Judged(**known | fields)


def data(kind: str, count: int) -> list[Any]:
    return [judged(i) if kind in UNPAIRED_LOSSES else pair(i) for i in range(count)]


def loss_of(kind: Any, **fields: Any) -> config.PreferenceLoss:
    return config.PreferenceLoss(kind=kind, learned="helpfulness" if kind == "modpo" else None, **fields)


def train(policy: Path, out: Path, samples: list[Any], loss: config.PreferenceLoss, **given: Any) -> Log:
    log = Log()
    settings: dict[str, Any] = {"learner": quick(), "seed": 7, "report": log, "objectives": OBJECTIVES}
    fit_preferences(samples, loss=loss, policy_dir=policy, out_dir=out, **settings | given)
    return log
