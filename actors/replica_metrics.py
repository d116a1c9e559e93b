"""The app's Prometheus metrics as Ray metrics, so that those of all replicas come together in one place.

async with mirrored(app, replica="k3x9", every_s=5, current=lambda: True): ...

/metrics of the app is that of the one replica which happens to answer. Ray's own exporter has every replica of every node,
so each replica repeats its figures there, under the same names behind `ray_`, with the label `replica`: sum over it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from ray.util import metrics


@asynccontextmanager
async def mirrored(app: FastAPI, replica: str, every_s: float, current: Callable[[], bool]) -> AsyncIterator[None]:
    """Within it the figures of the app's own metrics are repeated, and once more at its end. current: whether the app is the one
    that new requests go to; the gauges of one that has only its last ones to answer are its successor's to set.
    """
    registry, repeated = app.state.service.metrics.registry, Repeated(replica)

    async def for_ever() -> None:
        while True:
            await asyncio.sleep(every_s)
            repeated.take(registry, gauges=current())

    task = asyncio.create_task(for_ever())
    try:
        yield
    finally:
        task.cancel()
        repeated.take(registry, gauges=current())


class Repeated:
    """What was told to Ray so far. Counters and histograms go on as counters, by what they rose since."""

    def __init__(self, replica: str) -> None:
        self._replica = replica
        self._told: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._metrics: dict[str, Any] = {}

    def take(self, registry: CollectorRegistry, gauges: bool = True) -> None:
        """Tell Ray what has changed since the last time."""
        for family in registry.collect():
            rising = family.type in ("counter", "histogram")
            if not rising and not gauges:
                continue
            for sample in family.samples:
                if sample.name.endswith("_created"):
                    continue
                labels = {**sample.labels, "replica": self._replica}
                key = (sample.name, tuple(sorted(labels.items())))
                before, self._told[key] = self._told.get(key, 0.0), sample.value
                metric = self._metric(sample.name, family.documentation, tuple(labels), rising)
                if not rising:
                    metric.set(sample.value, tags=labels)
                elif sample.value > before:
                    metric.inc(sample.value - before, tags=labels)

    def _metric(self, name: str, about: str, labels: tuple[str, ...], rising: bool) -> Any:
        if name not in self._metrics:
            made: Any = metrics.Counter if rising else metrics.Gauge
            self._metrics[name] = made(name, description=about, tag_keys=labels)
        return self._metrics[name]
