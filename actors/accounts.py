"""What every stage of a run cost: seconds, items and tokens, for the report's account of where the time went.

    accounts = Accounts(store)
    accounts.add("evaluation/t=1-kl", seconds=12.5, items=128, tokens=9000)
    accounts.stages()          # [{"name": "evaluation/t=1-kl", "seconds": 12.5, ..., "tokens_per_s": 720.0}]

They are kept in the run's store, and what a resumed run finds done is not counted again.
"""

from __future__ import annotations

from typing import Any

from rhumbline.store import RunStore


class Accounts:
    """Of one run."""

    def __init__(self, store: RunStore) -> None:
        self.store = store

    def add(self, stage: str, seconds: float, items: int, tokens: int, on_top: bool = False) -> None:
        """Seconds, items and tokens of a finished stage; on_top: of those of earlier stages of its kind."""
        stages = dict(self.store.marked("stages") or {})
        before = stages.get(stage, {}) if on_top else {}
        figures = {"seconds": seconds, "items": items, "tokens": tokens}
        stages[stage] = {name: value + before.get(name, 0) for name, value in figures.items()}
        self.store.mark("stages", stages)

    def shards(self, stage: str, shards: str, on_top: bool = False) -> None:
        """The same from what the ledger notes of every shard, whichever session made it."""
        made = self.store.shards(shards)
        seconds, tokens = (sum(shard.notes.get(key, 0) for shard in made) for key in ("seconds", "tokens"))
        self.add(stage, seconds, sum(shard.rows for shard in made), int(tokens), on_top)

    def stages(self) -> list[dict[str, Any]]:
        """name, seconds, items, tokens, tokens_per_s of every stage so far, in order."""
        stages = [
            {"name": name, **figures, "tokens_per_s": figures["tokens"] / max(figures["seconds"], 1e-9)}
            for name, figures in (self.store.marked("stages") or {}).items()
        ]
        for mark in self.store.marks("iterations", "learn"):
            learned = self.store.marked(mark) or {}
            if "seconds" in learned:
                keys = {"items": "num_examples", "tokens": "tokens", "tokens_per_s": "tokens_per_s"}
                figures = {name: learned.get(key) for name, key in keys.items()}
                stages.append({"name": mark, "seconds": learned["seconds"], **figures})
        return stages
