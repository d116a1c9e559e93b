"""What Prometheus reads at /metrics. Every label has a bounded number of values, none is a client's word.

metrics = Metrics("aligned-7b")
metrics.observe(exchange, method="POST", route="/v1/chat/completions", status=200)
metrics.page()                                     # bytes for the scraper

A direction is counted by its preset, or by the angle it lies at in steps of 15 degrees: for two objectives DPA's angle, for
more the angle off the trained axis. Raw vectors would be a new series each, and tell who asked for what.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from rhumbline.directions import Cone, angle_between_deg, angle_deg
from rhumbline.serving.exchange import Exchange

CONTENT_TYPE = CONTENT_TYPE_LATEST
METHODS = {"GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"}
STEP_DEG = 15
MAX_CODES = 64
_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_STEERING_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05)


_CODE = re.compile(r"[a-z_]{1,40}")


class Metrics:
    """Counters of one app, in a registry of their own, so that two apps in a process do not meet."""

    def __init__(self, model: str) -> None:
        self.registry = CollectorRegistry()
        self._codes: set[str] = set()
        one = self.registry
        Gauge("rhumbline_serving_info", "Which model is served.", ["model"], registry=one).labels(model).set(1)
        self._requests = Counter("rhumbline_requests", "Requests.", ["method", "route", "status"], registry=one)
        self._seconds = Histogram(
            "rhumbline_request_seconds", "Whole requests.", ["route"], buckets=_SECONDS, registry=one
        )
        self._first = Histogram(
            "rhumbline_first_chunk_seconds", "Until a stream's first chunk.", buckets=_SECONDS, registry=one
        )
        self._steering_s = Histogram(
            "rhumbline_steering_seconds",
            "Resolving and rendering a direction.",
            buckets=_STEERING_SECONDS,
            registry=one,
        )
        self._steered = Counter(
            "rhumbline_steered_requests", "Steered requests.", ["direction", "source"], registry=one
        )
        self._tokens = Counter("rhumbline_tokens", "Tokens as the engine counts them.", ["kind"], registry=one)
        self._ended = Counter("rhumbline_unfinished_requests", "Answers that were cut short.", ["reason"], registry=one)
        self._refused = Counter("rhumbline_refused_requests", "Refusals by their code.", ["code"], registry=one)
        self._in_flight = Gauge("rhumbline_requests_in_flight", "Requests that run now.", registry=one)

    def begin(self) -> None:
        self._in_flight.inc()

    def observe(self, exchange: Exchange, *, method: str, route: str, status: int) -> None:
        """Count one finished request. `route` is a template."""
        self._in_flight.dec()
        self._requests.labels(method if method in METHODS else "other", route, str(status)).inc()
        self._seconds.labels(route).observe(time.perf_counter() - exchange.started)
        if exchange.first_chunk_s is not None:
            self._first.observe(exchange.first_chunk_s)
        if exchange.steering_s is not None:
            self._steering_s.observe(exchange.steering_s)
        if exchange.bucket is not None:
            self._steered.labels(exchange.bucket, exchange.source or "default").inc()
        self._tokens.labels("prompt").inc(exchange.prompt_tokens)
        self._tokens.labels("completion").inc(exchange.completion_tokens)
        if exchange.ended is not None:
            self._ended.labels(exchange.ended).inc()
        if exchange.code is not None:
            self._refused.labels(self._code(exchange.code)).inc()

    def _code(self, code: str) -> str:
        """Refusals have a few dozen codes of ours; what an engine calls its own is counted together once there are more."""
        if code not in self._codes and (len(self._codes) >= MAX_CODES or not _CODE.fullmatch(code)):
            return "other"
        self._codes.add(code)
        return code

    def page(self) -> bytes:
        """Prometheus's text format."""
        return generate_latest(self.registry)


def bucket(direction: Sequence[float], cone: Cone) -> str:
    """`-30..-15deg` for two objectives, `15..30deg_off_axis` for more: at most 24 values."""
    degrees = angle_deg(direction) if len(direction) == 2 else angle_between_deg(direction, cone.axis)
    low = STEP_DEG * math.floor(round(degrees, 6) / STEP_DEG)
    return f"{low}..{low + STEP_DEG}deg" + ("" if len(direction) == 2 else "_off_axis")
