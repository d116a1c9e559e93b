"""Tasks of every kind that a network of two layers learns in seconds, and their recipes: longer runs of the letter a are better.

task, recipe = answers(), recipe_of("regression", folder, lora=None)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rhumbline.fitting.recipe import RewardRecipe
from rhumbline.fitting.task import Input, Split, Task
from rhumbline.records import Message, Prompt

LORA = {"r": 4, "alpha": 8}
_DATA = {"path": "not read", "licence": "CC0"}
_SECTIONS: dict[str, dict[str, Any]] = {
    "regression": {"ratings": {"mine": {**_DATA, "heads": {"good": {}, "odd": {}}}}},
    "absolute": {"ratings": {"mine": {**_DATA, "heads": {"good": {}}}}, "absolute": {"label": "good"}},
    "preference": {"comparisons": {"mine": {**_DATA, "head": "good"}, "yours": {**_DATA, "head": "long"}}},
    # The question around two answers and a profile are 175 bytes.
    "comparer": {"comparisons": {"mine": _DATA}, "network": {"max_tokens": 320, "max_response_tokens": 48}},
}


def recipe_of(kind: str, backbone: Path, learner: dict[str, Any] | None = None, **sections: Any) -> RewardRecipe:
    """fp32, four units a step, two passes."""
    quick = {
        "lr": 1e-2,
        "warmup_steps": 2,
        "epochs": 2,
        "batch_size": 4,
        "micro_batch_tokens": 512,
        "dtype": "float32",
        "checkpoint_every": 2,
    }
    base = {
        "name": "tiny",
        "kind": kind,
        "backbone": str(backbone),
        "network": {"max_tokens": 160, "max_response_tokens": 48},
        "bootstrap": 20,
        "learner": {**quick, **(learner or {})},
    }
    return RewardRecipe.model_validate({**base, **_SECTIONS[kind], **sections})


def ask(i: int) -> Prompt:
    return Prompt(id=f"p{i}", messages=(Message(role="user", content=f"q{i}"),))


def task_of(kind: str, units: int = 16) -> Task:
    """`units` to train on, and half as many each to validate and to test."""
    return {"regression": _answers, "absolute": _absolute, "preference": _rankings, "comparer": _contests}[kind](units)


def _splits(units: int) -> tuple[Split, ...]:
    half = units // 2
    return ("train",) * units + ("validation",) * half + ("test",) * half


def _task(kind: str, inputs: list[Input], members: list[tuple[int, ...]], units: int, **targets: Any) -> Task:
    count = len(members)
    return Task(
        kind=kind,
        inputs=tuple(inputs),
        members=tuple(members),
        splits=_splits(units),
        groups=tuple(f"{i:08x}" for i in range(count)),
        sources=("mine",) * count,
        folds=tuple(i % 2 if i < units else -1 for i in range(count)),
        targets={name: np.asarray(values, dtype=np.float64) for name, values in targets.items()},
        counts={"mine": {"train": units + units // 2, "test": units // 2}},
    )


def text(a: int, i: int) -> str:
    """`a` letters a, then others; of unlike lengths."""
    return "a" * a + "bcd"[: 1 + i % 3]


def _answers(units: int) -> Task:
    count = 2 * units
    labels = np.array([[20.0 * (i % 5), 50.0 + i % 2] for i in range(count)])
    labels[::3, 1] = np.nan  # not rated
    inputs = [Input(ask(i // 2), text(4 * (i % 5), i)) for i in range(count)]
    return _task("regression", inputs, [(i,) for i in range(count)], units, labels=labels)


def _absolute(units: int) -> Task:
    count = 2 * units
    inputs = [Input(ask(i // 2), text(4 * (i % 5), i)) for i in range(count)]
    return _task(
        "absolute",
        inputs,
        [(i,) for i in range(count)],
        units,
        labels=[0.25 * (i % 5) for i in range(count)],
        weights=[1.0 + i % 2 for i in range(count)],
    )


def _rankings(units: int) -> Task:
    """Three ranked answers to each prompt, all three pairs; and a second head that prefers the last one."""
    inputs, members, pairs = [], [], []
    for u in range(2 * units):
        first = len(inputs)
        inputs += [Input(ask(u), text(a, u)) for a in (12, 6, 1)]
        members.append((first, first + 1, first + 2))
        pairs += [
            (u, 0, 1, 0, 1.0, 1.0),
            (u, 0, 2, 0, 2.0, 1.0),
            (u, 1, 2, 0, float("nan"), 1.0),
            (u, 2, 0, 1, 1.0, 1.0),
        ]
    columns = dict(
        zip(("unit", "better", "worse", "head", "strength", "weight"), zip(*pairs, strict=True), strict=True)
    )
    return _task("preference", inputs, members, units, **columns, source=columns["head"])


def _contests(units: int) -> Task:
    """Whoever has more letters a wins; a third are ties of equals in this."""
    inputs, members, winner = [], [], []
    for u in range(2 * units):
        a, b = [(12, 1), (1, 12), (6, 6)][u % 3]
        x, y = text(a, u), text(b, u + 1)
        members.append((len(inputs), len(inputs) + 1))
        inputs += [Input(ask(u), x, y, "age: 9" if u % 2 else None), Input(ask(u), y, x, "age: 9" if u % 2 else None)]
        winner.append(u % 3)
    return _task("comparer", inputs, members, units, winner=winner)
