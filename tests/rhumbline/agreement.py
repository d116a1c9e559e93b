"""A table of what was compared with another implementation: told, written, and asserted row by row.

table.check("DPO", "TRL", ours=0.6931471, theirs=0.6931472)
table.write(Path("build/agreement.csv"))
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ALLOWED = 1e-5


@dataclass(slots=True)
class Agreement:
    """Of many numbers the means are told, and the largest difference between two."""

    rows: list[tuple[str, str, float, float, float]] = field(default_factory=list)

    def check(self, name: str, rival: str, ours: Any, theirs: Any, allowed: float = ALLOWED) -> None:
        mine, other = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
        assert mine.shape == other.shape
        difference = float(np.abs(mine - other).max())
        self.rows.append((name, rival, float(mine.mean()), float(other.mean()), difference))
        assert difference <= allowed, f"{name}: ours {ours}, {rival} {theirs}: they differ by {difference:.2g}"

    def write(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["loss", "rival", "ours", "theirs", "difference"])
            writer.writerows((name, rival, *(f"{x:.9g}" for x in figures)) for name, rival, *figures in self.rows)

    def __str__(self) -> str:
        lines = [f"{'':44} {'rival':14} {'ours':>12} {'theirs':>12} difference"]
        lines += [f"{name:44} {rival:14} {a:12.7f} {b:12.7f} {d:10.1e}" for name, rival, a, b, d in self.rows]
        return "\n".join(lines)
