"""How far a job is: stage, done of total, rate, time left. A bar on a terminal, one line each few seconds elsewhere.

    with Progress("t=1 generate", 1280, run="smol", unit="samples") as progress:
        for shard in shards:
            progress.advance(len(shard), tokens=sum(len(c.token_ids) for c in shard))
    objective_means("smol", "t=1 generate", {"helpfulness": 61.2, "verbosity": 40.1})

    t=1 generate  640/1280 samples  50%  12.3/s  410 tok/s  left 0:52

The same figures are Ray metrics, on every Dashboard and in Prometheus as `ray_<name>`, with few labels: the run and the
stage, never a prompt. Only the driver prints: workers' bars garble each other.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

import ray
from ray.util.metrics import Counter, Gauge

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

# name -> (help, labels besides `run`). cluster/dashboards/rhumbline.json shows them.
GAUGES = {
    "rhumbline_stage_done": ("Items of the stage that are done", ("stage",)),
    "rhumbline_stage_total": ("Items of the stage in all", ("stage",)),
    "rhumbline_items_per_s": ("Items per second since the stage began", ("stage",)),
    "rhumbline_tokens_per_s": ("Tokens per second since the stage began", ("stage",)),
    "rhumbline_objective_mean": ("Mean reward of the latest batch, on 0-100", ("stage", "objective")),
    "rhumbline_learn": ("Latest metric of the learner", ("metric",)),
}
COUNTERS = {
    "rhumbline_tokens": ("Tokens generated, scored or learned", ("stage",)),
    "rhumbline_failed_units": ("Units of work that were given up", ("stage",)),
}


class Progress:
    """One stage under way. Its figures stay readable after its end, for the report."""

    def __init__(
        self,
        stage: str,
        total: int,
        *,
        run: str,
        done: int = 0,
        unit: str = "shards",
        stream: TextIO | None = None,
        every_s: float = 5.0,
    ) -> None:
        """`done` items were finished by an earlier driver: shown, but no part of the rate. `stream` None: stdout."""
        self.stage, self.total, self.run, self.unit = stage, total, run, unit
        self.done, self.resumed = done, done
        self.tokens = 0  # of this driver
        self.failed = 0
        self.note = ""  # shown at the end of the line: a loss, a reason
        self.every_s = every_s
        self.stream = sys.stdout if stream is None else stream
        self._began = time.monotonic()
        self._ended: float | None = None
        self._printed = 0.0
        self._bars: Bars | None = None
        self._bar: Any = None

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        if self.stream.isatty():
            self._bars = _bars(self.stream)
            self._bar = self._bars.add_task(self.stage, total=self.total, completed=self.done, line=self.line())
            self._bars.start()
        else:
            before = f", {self.done} done before" if self.done else ""
            self.say(f"{self.stage}: {self.total - self.done} {self.unit}{before}")
            self._printed = self._began
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended = time.monotonic()
        self._metrics()
        if self._bars is None:
            self.say(self.line())
            return
        self._bars.update(self._bar, completed=self.done, line=self.line())
        self._bars.stop()
        self._bars = None

    @property
    def seconds(self) -> float:
        """Since the stage began, until its end."""
        return max((self._ended or time.monotonic()) - self._began, 1e-9)

    @property
    def rate(self) -> float:
        """Items per second."""
        return (self.done - self.resumed) / self.seconds

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    @property
    def left_s(self) -> float | None:
        """Seconds to go at this rate, None before the first item."""
        return (self.total - self.done) / self.rate if self.rate > 0 else None

    def advance(self, items: int = 1, *, tokens: int = 0, failed: int = 0, note: str | None = None) -> None:
        """So many more are done: on the bar at once, off a terminal at most every `every_s`."""
        self.done += items
        self.tokens += tokens
        self.failed += failed
        self.note = self.note if note is None else note
        if self._bars is not None:
            self._bars.update(self._bar, completed=self.done, line=self.line())
        elif time.monotonic() - self._printed >= self.every_s:
            self._printed = time.monotonic()
            self.say(self.line())
        _count("rhumbline_tokens", tokens, run=self.run, stage=self.stage)
        _count("rhumbline_failed_units", failed, run=self.run, stage=self.stage)
        self._metrics()

    def say(self, text: str) -> None:
        """A line of its own, above the bar where there is one."""
        if self._bars is not None:
            self._bars.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=self.stream, flush=True)

    def line(self) -> str:
        """`t=1 generate  640/1280 samples  50%  12.3/s  410 tok/s  left 0:52`."""
        share = f"{self.done / self.total:.0%}" if self.total > 0 else "-"
        parts = [self.stage, f"{self.done}/{self.total} {self.unit}", share, f"{self.rate:.3g}/s"]
        parts += [f"{self.tokens_per_s:.0f} tok/s"] if self.tokens else []
        parts += [f"{self.failed} failed"] if self.failed else []
        if self._ended is not None or self.done >= self.total:
            parts.append(f"took {clock(self.seconds)}")
        elif self.left_s is not None:
            parts.append(f"left {clock(self.left_s)}")
        parts += [self.note] if self.note else []
        return "  ".join(parts)

    def _metrics(self) -> None:
        labels = {"run": self.run, "stage": self.stage}
        _show("rhumbline_stage_done", self.done, **labels)
        _show("rhumbline_stage_total", self.total, **labels)
        _show("rhumbline_items_per_s", self.rate, **labels)
        _show("rhumbline_tokens_per_s", self.tokens_per_s, **labels)


def objective_means(run: str, stage: str, means: Mapping[str, float]) -> None:
    """Mean reward per objective of a batch, on 0-100, as a metric."""
    for objective, mean in means.items():
        _show("rhumbline_objective_mean", mean, run=run, stage=stage, objective=objective)


def learner_metrics(run: str, metrics: Mapping[str, float]) -> None:
    """The learner's latest figures (loss, gradient norm, learning rate), as metrics."""
    for name, value in metrics.items():
        _show("rhumbline_learn", value, run=run, metric=name)


@cache
def _metric(name: str) -> Any:
    """Ray keeps one metric per name and process."""
    kind, (description, labels) = (Gauge, GAUGES[name]) if name in GAUGES else (Counter, COUNTERS[name])
    return kind(name, description=description, tag_keys=("run", *labels))


def _show(name: str, value: float, **labels: str) -> None:
    if ray.is_initialized():
        _metric(name).set(float(value), tags=labels)


def _count(name: str, value: float, **labels: str) -> None:
    if value > 0 and ray.is_initialized():
        _metric(name).inc(float(value), tags=labels)


def clock(seconds: float) -> str:
    """`0:52`, `12:05`, `1:02:03`."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


def _bars(stream: TextIO) -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    return Bars(BarColumn(bar_width=24), TextColumn("{task.fields[line]}", markup=False), console=Console(file=stream))
