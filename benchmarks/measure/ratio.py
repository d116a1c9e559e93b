"""One of ours against named rivals: alternating pairs of runs, a CSV of every run, and a ratio with its interval.

    (ratio,) = compare("train", "tokens/s", ours=Side("packed", run), rivals=[Side("padded", other)], pairs=5, out=path)
    print(ratio)                           # train ratio=1.93 low=1.88 high=1.97

A pair is one run of each side, back to back; who begins changes from pair to pair, so that a machine that slows down or
speeds up favours nobody. With several rivals one run of ours is paired with one of each, and a ratio is called NAME_RIVAL.
The pair's ratio is our rate divided by the rival's. What counts is the median over the pairs;
low and high are the 95% percentile interval of the median by bootstrap over the pairs (`scipy.stats.bootstrap`, 9,999
resamples, seeded). With five pairs that is the lowest and the highest ratio, with one it is not defined (nan).
"""

from __future__ import annotations

import csv
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import bootstrap

from rhumbline.probe import installed

RESULTS = Path(__file__).resolve().parents[2] / "build" / "benchmarks"  # ignored by git, removed by `make clean`
COLUMNS = ("benchmark", "pair", "side", "order", "amount", "unit", "seconds", "rate")
WARM_UP = -1


@dataclass(frozen=True, slots=True)
class Work:
    """What one run did."""

    amount: float  # of the unit's numerator: tokens, answers
    seconds: float

    @property
    def rate(self) -> float:
        return self.amount / self.seconds


@dataclass(frozen=True, slots=True)
class Side:
    """One of those that are compared."""

    name: str
    run: Callable[[int], Work]  # is given the pair's number from 0; WARM_UP: a short run that does not count

    @property
    def slug(self) -> str:
        return self.name.replace(" ", "_")


@dataclass(frozen=True, slots=True)
class Ratio:
    """The result; prints as the last line of a benchmark."""

    name: str
    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.name} ratio={self.median:.3f} low={self.low:.3f} high={self.high:.3f}"


def compare(
    name: str, unit: str, *, ours: Side, rivals: Sequence[Side], pairs: int, out: Path | None = None
) -> list[Ratio]:
    """Run the pairs; a ratio per rival. `out` None: RESULTS / NAME.csv. Every run is in the CSV as soon as it is over."""
    path = RESULTS / f"{name}.csv" if out is None else out
    path.parent.mkdir(parents=True, exist_ok=True)
    sides = [ours, *rivals]
    print(f"{name}: {ours.name} against {' and '.join(rival.name for rival in rivals)}, {pairs} pairs; {machine()}")
    for side in sides:
        side.run(WARM_UP)
    rates: dict[str, list[float]] = {side.name: [] for side in sides}
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for pair in range(pairs):
            first = pair % len(sides)
            for order, side in enumerate(sides[first:] + sides[:first]):
                work = side.run(pair)
                rates[side.name].append(work.rate)
                rows.writerow(
                    [name, pair, side.name, order, work.amount, unit, f"{work.seconds:.4f}", f"{work.rate:.4f}"]
                )
                file.flush()
            seen = ", ".join(f"{side.name} {rates[side.name][-1]:.1f}" for side in sides)
            last = ", ".join(f"{rates[ours.name][-1] / rates[rival.name][-1]:.3f}" for rival in rivals)
            print(f"pair {pair + 1}/{pairs}: {seen} {unit}, ratio {last}", flush=True)
    for side in sides:
        print(f"{name}/{side.slug} {np.median(rates[side.name]):.1f} {unit}")
    print(f"runs: {path}")
    return [
        summarise(
            name if len(rivals) == 1 else f"{name}_{rival.slug}",
            [a / b for a, b in zip(rates[ours.name], rates[rival.name], strict=True)],
        )
        for rival in rivals
    ]


def summarise(name: str, ratios: Sequence[float]) -> Ratio:
    """Median and interval over the pairs."""
    if len(ratios) < 2:
        return Ratio(name, float(np.median(ratios)), float("nan"), float("nan"))
    found = bootstrap((np.asarray(ratios),), np.median, method="percentile", rng=np.random.default_rng(0))
    interval = found.confidence_interval
    return Ratio(name, float(np.median(ratios)), float(interval.low), float(interval.high))


def timed(work: Callable[[], float]) -> Work:
    """`work` returns the amount that it did."""
    began = time.perf_counter()
    amount = work()
    return Work(amount, time.perf_counter() - began)


def machine() -> str:
    """What the figures belong to. A load beyond this benchmark's own makes them worthless, so it is said."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(encoding="utf-8"), re.M) if info.exists() else None
    versions = " ".join(f"{name} {installed(name)}" for name in ("torch", "transformers"))
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    busy = "" if load < 0.5 else ": OTHERS ARE AT WORK HERE, unless this is the benchmark before"
    return f"{found[1] if found else 'unknown CPU'}, {cores} cores, {versions}, load {load:.1f}{busy}"
