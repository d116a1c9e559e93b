"""Streams: chunks as they come, `steering` in the last one, refusals before and on the way, and clients that leave."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from starlette.testclient import TestClient

from rhumbline.serving.app import create_app
from rhumbline.serving.protocols import EngineError
from rhumbline.serving.settings import Settings
from tests.rhumbline.serving_fakes import REQUEST, FakeEngine, FakeRewards, running, served


def app_of(engine: FakeEngine, **settings: Any) -> Any:
    return create_app(served(), engine, rewards=FakeRewards(), keys=None, people=None, settings=Settings(**settings))


def events(text: str) -> list[Any]:
    """What the events of a stream hold; its end must be [DONE]."""
    data = [event.removeprefix("data: ") for event in text.split("\n\n") if event]
    assert data[-1] == "[DONE]"
    return [json.loads(one) for one in data[:-1]]


@pytest.mark.parametrize("usage", [True, False])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_steering_and_rewards_stand_in_the_last_chunk_alone(path: str, usage: bool) -> None:
    client = TestClient(app_of(FakeEngine()))
    asked = REQUEST if "chat" in path else {"model": "smol", "prompt": "Why is the sky blue?"}
    body = {**asked, "model": "smol@concise", "stream": True, "steering": {"return_rewards": True}}
    answer = client.post(path, json=body | ({"stream_options": {"include_usage": True}} if usage else {}))
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["X-Steering-Effective"] == "helpfulness=0.8,verbosity=-0.6"
    *chunks, last = events(answer.text)
    assert not any("steering" in chunk for chunk in chunks)
    assert last["steering"]["effective"] == {"helpfulness": 0.8, "verbosity": -0.6}
    assert last["steering"]["rewards"] == {"helpfulness": 59.3, "verbosity": 10.0}
    assert all(chunk["model"] == "smol@concise" for chunk in [*chunks, last])
    if usage:
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == 10
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    else:
        assert last["choices"][0]["finish_reason"] == "stop"
        assert not any(chunk.get("usage") for chunk in [*chunks, last])
        assert all(chunk["choices"] for chunk in [*chunks, last])


def test_several_choices_stream_and_are_scored_each() -> None:
    client = TestClient(app_of(FakeEngine()))
    body = {**REQUEST, "stream": True, "n": 2, "steering": {"return_rewards": True}}
    *chunks, last = events(client.post("/v1/chat/completions", json=body).text)
    assert [one["rewards"]["verbosity"] for one in last["steering"]["choices"]] == [20.0, 22.0]
    assert sum(chunk["choices"][0]["finish_reason"] == "stop" for chunk in [*chunks, last]) == 2


def test_an_engine_that_refuses_before_the_first_chunk_is_an_ordinary_refusal() -> None:
    engine = FakeEngine()
    engine.fails = EngineError("the prompt is too long", 400, "context_length_exceeded")
    refused = TestClient(app_of(engine)).post("/v1/chat/completions", json={**REQUEST, "stream": True})
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("fault", [EngineError("replica 3 died", 503, "engine_died"), RuntimeError("secret words")])
def test_an_engine_that_fails_on_the_way_says_so_in_an_event(fault: Exception) -> None:
    engine = FakeEngine()
    engine.fails, engine.fails_after = fault, 3
    answer = TestClient(app_of(engine)).post("/v1/chat/completions", json={**REQUEST, "stream": True})
    *chunks, last = events(answer.text)
    assert len(chunks) == 3
    assert last["error"]["code"] == ("engine_died" if isinstance(fault, EngineError) else "internal_error")
    assert "secret" not in answer.text
    assert engine.running == 0


def test_a_deadline_is_a_504_before_and_an_event_within_a_stream() -> None:
    slow = FakeEngine(delay_s=30.0)
    client = TestClient(app_of(slow, deadline_s=0.05))
    for more in ({}, {"stream": True}, {"steering": {"best_of": 2}}):
        refused = client.post("/v1/chat/completions", json={**REQUEST, **more})
        assert refused.status_code == 504
        assert refused.json()["error"]["code"] == "deadline_exceeded"
        assert refused.headers["x-should-retry"] == "false"
    assert (slow.running, slow.cancelled) == (0, 3)

    halting = FakeEngine(words_delay_s=30.0)
    answer = TestClient(app_of(halting, deadline_s=1.0)).post("/v1/chat/completions", json={**REQUEST, "stream": True})
    assert events(answer.text)[-1]["error"]["code"] == "deadline_exceeded"
    assert (halting.running, halting.cancelled) == (0, 1)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/steering/compare"])
def test_a_client_that_leaves_frees_its_slots(path: str) -> None:
    engine = FakeEngine(delay_s=60.0)
    body = REQUEST if "chat" in path else {"messages": REQUEST["messages"], "directions": [{}, {"preset": "concise"}]}
    with running(app_of(engine)) as url:
        leave(url, path, body, lambda: engine.running > 0)
        until(lambda: engine.running == 0)
        assert engine.cancelled == len(engine.requests) > 0
        assert httpx2.get(f"{url}/health").status_code == 200


def test_a_client_that_leaves_a_stream_frees_its_slot() -> None:
    engine = FakeEngine(words_delay_s=60.0)
    with running(app_of(engine)) as url:
        leave(url, "/v1/chat/completions", {**REQUEST, "stream": True}, lambda: engine.running == 1)
        until(lambda: engine.running == 0)
        assert engine.cancelled == 1
        until(
            lambda: 'rhumbline_unfinished_requests_total{reason="client_gone"} 1.0' in httpx2.get(f"{url}/metrics").text
        )


def leave(url: str, path: str, body: dict[str, Any], when: Callable[[], bool]) -> None:
    """Send a request and close the connection once `when` is true, without reading."""
    where = urlsplit(url)
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    with socket.create_connection((str(where.hostname), int(where.port or 0))) as connection:
        connection.sendall(head.encode() + data)
        until(when)


def until(happened: Callable[[], bool]) -> None:
    """Wait for it; pytest's own timeout ends the test where it never does."""
    while not happened():
        time.sleep(0.01)
