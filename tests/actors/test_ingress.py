"""The HTTP app in a replica: another app for new requests, the old one until its last; what a setting makes."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import httpx
import pytest
from fastapi import FastAPI
from pydantic import ValidationError
from starlette.responses import StreamingResponse

from actors import ingress
from actors.engine_client import Target
from actors.ingress import Current, Setting, built
from actors.replica_metrics import Repeated, mirrored
from rhumbline.errors import UserError
from rhumbline.serving.exchange import Exchange
from rhumbline.serving.keys import new_key
from rhumbline.serving.metrics import Metrics
from tests.rhumbline.serving_fakes import REQUEST, FakeEngine, FakeRewards, served

ROOT = Path(__file__).parents[2]


def app(name: str, log: list[str], gate: asyncio.Event | None = None) -> FastAPI:
    """Says its name in two chunks, the second after `gate`."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        log.append(f"{name} begins")
        yield
        log.append(f"{name} ends")

    made = FastAPI(lifespan=lifespan)

    @made.get("/")
    async def read() -> StreamingResponse:
        async def say() -> AsyncIterator[str]:
            yield name
            if gate is not None:
                await gate.wait()
            yield "."

        return StreamingResponse(say())

    return made


async def _swap() -> tuple[list[str], str, str]:
    log: list[str] = []
    gate, current = asyncio.Event(), Current()
    await current.install(app("old", log, gate))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(current), base_url="http://here") as client:
        under_way = asyncio.create_task(client.get("/"))
        while not current._busy:
            await asyncio.sleep(0)
        await current.install(app("new", log))
        fresh = (await client.get("/")).text
        assert "old ends" not in log  # its request is still under way
        gate.set()
        ended = (await under_way).text
        await asyncio.gather(*current._retiring)
    return log, fresh, ended


def test_a_request_ends_in_the_app_that_it_began_in() -> None:
    log, fresh, ended = asyncio.run(_swap())
    assert (fresh, ended) == ("new.", "old.")
    assert log == ["old begins", "new begins", "old ends"]


def test_serves_own_lifespan_ends_the_app_of_the_moment() -> None:
    async def run() -> list[str]:
        log: list[str] = []
        current = Current()
        told = iter(["lifespan.startup", "lifespan.shutdown"])
        sent: list[str] = []

        async def receive() -> dict[str, Any]:
            kind = next(told)
            if kind == "lifespan.shutdown":
                await current.install(app("only", log))
            return {"type": kind}

        async def send(message: Any) -> None:
            sent.append(message["type"])

        await current({"type": "lifespan"}, receive, send)
        return [*log, *sent]

    assert asyncio.run(run()) == [
        "only begins",
        "only ends",
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]


# --- what a setting makes ---------------------------------------------------------------------------------------------


def setting(**changes: Any) -> Setting:
    base: dict[str, Any] = {
        "checkpoint": "nowhere",
        "name": "smol",
        "engines": {"smol": ("smol--1", "smol-1")},
        "rewards": None,
        "keys": None,
        "users": None,
        "limits": {},
    }
    return Setting(**base | changes)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What open_served was asked for; a model without weights comes back."""
    asked: list[str] = []

    def fake(checkpoint: str, *, name: str, check_base: bool) -> Any:
        asked.append(checkpoint)
        return served(name)

    monkeypatch.setattr(ingress, "open_served", fake)
    return asked


def ask(made: FastAPI, call: Callable[[httpx.AsyncClient], Coroutine[Any, Any, httpx.Response]]) -> httpx.Response:
    async def run() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(made), base_url="http://here") as client:
            return await call(client)

    return asyncio.run(run())


def test_the_app_asks_the_engines_of_its_setting(opened: list[str]) -> None:
    engine = FakeEngine()
    made = built(setting(checkpoint="runs/a"), engine, None)
    reply = ask(made, lambda client: client.post("/v1/chat/completions", json=REQUEST))
    assert reply.status_code == 200, reply.text
    assert opened == ["runs/a"]
    assert setting().targets == {"smol": Target(app="smol--1", model="smol-1")}
    assert engine.requests[0]["model"] == "smol"  # the handle's client turns it into the version's name


def test_without_a_key_nobody_is_answered_where_keys_are_wanted(opened: list[str], tmp_path: Path) -> None:
    key = new_key(tmp_path / "keys.json", "me")
    made = built(setting(keys=str(tmp_path / "keys.json")), FakeEngine(), None)
    refused = ask(made, lambda client: client.post("/v1/chat/completions", json=REQUEST))
    assert refused.status_code == 401
    told = {"Authorization": f"Bearer {key}"}
    assert ask(made, lambda client: client.post("/v1/chat/completions", json=REQUEST, headers=told)).status_code == 200


def test_without_a_reward_model_nothing_is_scored(opened: list[str]) -> None:
    body = {"items": [{"messages": REQUEST["messages"], "response": "Because."}]}
    for rewards, status in ((FakeRewards(), 200), (None, 404)):
        made = built(setting(), FakeEngine(), rewards)
        told = ask(made, lambda client: client.post("/v1/rewards", json=body))
        assert told.status_code == status, told.text


def test_a_key_file_that_is_gone_is_refused(opened: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        built(setting(keys=str(tmp_path / "none.json")), FakeEngine(), None)


def test_a_setting_that_cannot_be_opened_leaves_the_one_before(
    opened: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingress, "HandleEngine", lambda _: FakeEngine())
    monkeypatch.setattr(ingress, "log_beside_serve", lambda: None)  # other tests read the log
    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="r1"))
    monkeypatch.setattr(ingress.serve, "get_replica_context", lambda: context)
    good = setting().model_dump(mode="json")
    bad = setting(keys=str(tmp_path / "none.json")).model_dump(mode="json")

    async def run() -> None:
        with pytest.raises(UserError, match="does not exist"):
            await ingress.Ingress().reconfigure(bad)  # there is none before: Serve must hear of it
        one = ingress.Ingress()
        await one.reconfigure(good)
        app = one.current._app
        await one.reconfigure(bad)
        told = await one.state()
        assert (one.current._app, told["setting"], told["replica"], told["retiring"]) == (app, good, "r1", 0)
        assert "does not exist" in told["refusal"]
        await one.reconfigure(good)
        assert (await one.state())["refusal"] is None

    asyncio.run(run())


def test_a_setting_crosses_as_json_and_knows_no_other_key() -> None:
    one = setting(limits={"burst": 3})
    assert Setting(**json.loads(one.model_dump_json())) == one
    with pytest.raises(ValidationError, match="engine"):
        setting(engine={})


# --- metrics ----------------------------------------------------------------------------------------------------------


class Told:
    """A Ray metric that remembers what it was told."""

    all: ClassVar[dict[str, list[tuple[str, float, dict[str, str]]]]] = {}

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        self.name, self.keys = name, set(tag_keys)

    def inc(self, by: float, tags: dict[str, str]) -> None:
        self._note("inc", by, tags)

    def set(self, to: float, tags: dict[str, str]) -> None:
        self._note("set", to, tags)

    def _note(self, how: str, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == self.keys
        Told.all.setdefault(self.name, []).append((how, value, tags))


def test_a_replicas_figures_are_repeated_by_what_they_rose(monkeypatch: pytest.MonkeyPatch) -> None:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
    from ray.util import metrics

    monkeypatch.setattr(metrics, "Counter", Told)
    monkeypatch.setattr(metrics, "Gauge", Told)
    monkeypatch.setattr(Told, "all", {})
    registry = CollectorRegistry()
    counter = Counter("asked", "Requests.", ["route"], registry=registry)
    gauge = Gauge("busy", "Now.", registry=registry)
    seconds = Histogram("took_seconds", "Whole.", buckets=(1.0,), registry=registry)
    repeated = Repeated("r1")
    for _ in range(2):
        counter.labels("/a").inc(3)
        gauge.set(2)
        seconds.observe(0.5)
        repeated.take(registry)
    repeated.take(registry)  # nothing has risen
    assert Told.all["asked_total"] == [("inc", 3.0, {"route": "/a", "replica": "r1"})] * 2
    assert [entry[:2] for entry in Told.all["busy"]] == [("set", 2.0)] * 3
    assert Told.all["took_seconds_bucket"][0] == ("inc", 1.0, {"le": "1.0", "replica": "r1"})
    assert not any(name.endswith("_created") for name in Told.all)


def test_the_last_figures_of_an_app_are_told_when_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    from prometheus_client import CollectorRegistry, Counter, Gauge
    from ray.util import metrics

    monkeypatch.setattr(Told, "all", {})
    monkeypatch.setattr(metrics, "Counter", Told)
    monkeypatch.setattr(metrics, "Gauge", Told)
    registry = CollectorRegistry()
    counter = Counter("asked", "Asked.", ["route"], registry=registry)
    gauge = Gauge("busy", "Busy.", registry=registry)
    state = SimpleNamespace(service=SimpleNamespace(metrics=SimpleNamespace(registry=registry)))
    retired: Any = SimpleNamespace(state=state)

    async def run() -> None:
        async with mirrored(retired, "r1", 3600, lambda: False):
            counter.labels("/a").inc(3)
            gauge.set(1)

    asyncio.run(run())
    assert Told.all == {"asked_total": [("inc", 3.0, {"route": "/a", "replica": "r1"})]}


def test_the_dashboard_shows_metrics_that_exist() -> None:
    dashboard = json.loads((ROOT / "cluster" / "dashboards" / "serving.json").read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    metrics = Metrics("smol")
    about = Exchange(
        request_id="r", bucket="concise", first_chunk_s=0.1, steering_s=0.001, ended="deadline", code="too_long"
    )
    metrics.begin()
    metrics.observe(about, method="POST", route="/v1/chat/completions", status=200)
    samples = [sample for family in metrics.registry.collect() for sample in family.samples]
    rising = {sample.name for sample in samples if sample.name.endswith(("_bucket", "_sum", "_count"))}
    exported = {
        f"{sample.name}_total" if sample.name in rising else sample.name for sample in samples
    }  # as Ray says it
    shown = {name for query in queries for name in re.findall(r"ray_(rhumbline_\w+)", query)}
    assert shown <= exported
    labels = {
        label for query in queries for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(", ")
    }
    assert labels <= {label for sample in samples for label in sample.labels} | {"replica"}
