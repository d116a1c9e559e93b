"""Keys and limits: who may ask, how often, and how much at once."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from rhumbline.serving import keys
from rhumbline.serving.app import create_app
from rhumbline.serving.keys import KeyFileError, KeyRing, new_key, revoke
from rhumbline.serving.limits import LimitedError, Limiter
from rhumbline.serving.settings import Settings
from tests.rhumbline.serving_fakes import REQUEST, FakeEngine, FakeRewards, running, served

CHAT = "/v1/chat/completions"


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_key_file_holds_no_key_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key = new_key(path, "alice")
    assert key.startswith("rl-")
    assert len(key) >= 43
    assert path.stat().st_mode & 0o777 == 0o600
    assert key not in path.read_text()
    assert key[3:] not in path.read_text()
    other = new_key(path, "bob")
    ring = KeyRing(path)
    assert ring.owner(key) != ring.owner(other)
    assert ring.owner(key) == keys.read(path)[0].id
    assert ring.owner("rl-wrong") is None
    assert ring.owner(key[:-1]) is None
    assert ring.owner("") is None
    assert ring.owner("\ud800") is None
    assert sorted(file.name for file in tmp_path.iterdir()) == [".keys.json.lock", "keys.json"]


def test_every_entry_is_compared_whichever_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys.json"
    first, last = new_key(path, "a"), [new_key(path, name) for name in "bcd"][-1]
    ring, compared = KeyRing(path), []
    real = keys.hmac.compare_digest

    def counted(a: str, b: str) -> bool:
        compared.append(a)
        return real(a, b)

    monkeypatch.setattr(keys.hmac, "compare_digest", counted)
    for key in (first, last, "rl-unknown"):
        compared.clear()
        ring.owner(key)
        assert len(compared) == 4


def test_a_ring_follows_its_file(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys.json", Clock()
    alice = new_key(path, "alice")
    ring = KeyRing(path, clock=clock)
    bob = new_key(path, "bob")
    assert ring.owner(bob) is None
    clock.now = 2.0
    assert ring.owner(bob) is not None
    revoke(path, "alice")
    clock.now = 4.0
    assert ring.owner(alice) is None
    path.chmod(0o644)  # others may have written it
    clock.now = 6.0
    assert ring.owner(bob) is None


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda path: path.unlink(), "does not exist"),
        (lambda path: path.chmod(0o640), "chmod 600"),
        (lambda path: path.write_text("{"), "cannot be read"),
        (lambda path: path.write_text(json.dumps({"format": 2, "keys": []})), "format 2"),
        (lambda path: path.write_text(json.dumps({"format": 1, "keys": [{"id": "a"}]})), "cannot be read"),
        (
            lambda path: path.write_text(json.dumps({"format": 1, "keys": [{"id": "a", "name": "a", "sha256": "00"}]})),
            "cannot be read",
        ),
    ],
)
def test_a_key_file_that_is_missing_unsafe_or_broken_is_refused(
    tmp_path: Path, break_it: Callable[[Path], None], says: str
) -> None:
    path = tmp_path / "keys.json"
    new_key(path, "alice")
    break_it(path)
    with pytest.raises(KeyFileError, match=says):
        KeyRing(path)


def test_names_of_keys_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    new_key(path, "alice")
    for name in ("alice", "", " ", "a\nb", "x" * 65):
        with pytest.raises(KeyFileError):
            new_key(path, name)
    with pytest.raises(KeyFileError, match="Did you mean 'alice'"):
        revoke(path, "alise")


def test_everything_but_health_and_pages_needs_a_key(tmp_path: Path) -> None:
    key = new_key(tmp_path / "keys.json", "alice")
    ring = KeyRing(tmp_path / "keys.json")
    engine = FakeEngine()
    client = TestClient(create_app(served(), engine, rewards=None, keys=ring, people=None, settings=Settings()))
    for headers in (
        {},
        bearer(""),
        bearer("rl-wrong"),
        {"Authorization": f"Basic {key}"},
        {"Authorization": key},
        {"X-Api-Key": key},
    ):
        refused = client.post(CHAT, json=REQUEST, headers=headers)
        assert refused.status_code == 401
        assert refused.headers["WWW-Authenticate"] == "Bearer"
        assert refused.json()["error"]["type"] == "authentication_error"
    two = client.post(CHAT, json=REQUEST, headers=[("Authorization", f"Bearer {key}"), ("Authorization", "Bearer x")])  # type: ignore[arg-type]  # pairs are legal
    assert two.status_code == 401
    assert not engine.requests
    for path in (
        "/v1/models",
        "/metrics",
        "/v1/nothing",
        "/nothing",
        "/v1/steering/objectives",
        "http://testserver//health",
        "/health/",
    ):
        assert client.get(path).status_code == 401, path
    for path in ("/health", "/ready", "/openapi.json", "/docs"):
        assert client.get(path).status_code == 200, path
    assert client.post(CHAT, json=REQUEST, headers=bearer(key)).status_code == 200
    assert client.get("/metrics", headers=bearer(key)).status_code == 200
    # Refused before the body is looked at.
    assert client.post(CHAT, content=b"{", headers={"Content-Type": "application/json"}).status_code == 401


def test_a_key_pays_for_every_answer_and_waits_for_its_debt() -> None:
    clock = Clock()
    limiter = Limiter(requests_per_minute=60, burst=3, max_concurrent=100, clock=clock)
    for _ in range(3):
        limiter.enter("a")
    with pytest.raises(LimitedError) as caught:
        limiter.enter("a")
    assert caught.value.status_code == 429
    assert dict(caught.value.headers or {}) == {"Retry-After": "1"}
    limiter.enter("b")  # another key has its own bucket
    clock.now = 1.0
    limiter.enter("a")
    limiter.charge("a", 9)  # ten answers at once
    clock.now = 10.5
    with pytest.raises(LimitedError):
        limiter.enter("a")
    clock.now = 11.0
    limiter.enter("a")
    clock.now = 1e9
    for _ in range(3):  # a bucket never holds more than its size
        limiter.enter("a")
    with pytest.raises(LimitedError):
        limiter.enter("a")


def test_an_answer_that_is_scored_costs_as_much_as_one_that_is_asked_for() -> None:
    limits = Settings(burst=10, requests_per_minute=1)
    app = create_app(served(), FakeEngine(), rewards=FakeRewards(), keys=None, people=None, settings=limits)
    client = TestClient(app)
    item = {"messages": [{"role": "user", "content": "a"}], "response": "b"}
    assert client.post("/v1/rewards", json={"items": [item] * 10}).status_code == 200
    refused = client.post("/v1/rewards", json={"items": [item]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")


def test_two_who_make_keys_at_once_get_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = tmp_path / "keys.json", keys.read
    new_key(path, "first")
    monkeypatch.setattr(keys, "read", lambda of: (read(of), time.sleep(0.05))[0])  # time for the other one to read, too
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda i: new_key(path, f"key {i}"), range(4)))
    ring = KeyRing(path)
    assert len({ring.owner(key) for key in made} - {None}) == 4
    assert next(entry.name for entry in read(path)) == "first"


def test_a_refused_request_holds_no_slot() -> None:
    limiter = Limiter(requests_per_minute=60_000, burst=100, max_concurrent=2, clock=Clock())
    limiter.enter("a")
    limiter.enter("a")
    for _ in range(3):
        with pytest.raises(LimitedError, match="in flight"):
            limiter.enter("a")
    limiter.leave("a")
    limiter.enter("a")


def test_too_many_requests_are_429_with_retry_after() -> None:
    settings = Settings(burst=2, requests_per_minute=1)
    client = TestClient(create_app(served(), FakeEngine(), rewards=None, keys=None, people=None, settings=settings))
    assert client.post(CHAT, json={**REQUEST, "n": 2}).status_code == 200
    refused = client.post(CHAT, json=REQUEST)
    assert refused.status_code == 429
    assert 50 <= int(refused.headers["Retry-After"]) <= 60
    assert refused.json()["error"] | {"message": ""} == {
        "message": "",
        "type": "rate_limit_error",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    assert client.get("/health").status_code == 200


def test_a_stream_counts_as_in_flight_until_it_ends() -> None:
    engine = FakeEngine(words_delay_s=60.0)
    settings = Settings(max_concurrent=1)
    app: Any = create_app(served(), engine, rewards=None, keys=None, people=None, settings=settings)
    with running(app) as url:
        started, leave = threading.Event(), threading.Event()

        def stream() -> None:
            with httpx2.stream("POST", f"{url}{CHAT}", json={**REQUEST, "stream": True}, timeout=120) as answer:
                lines = answer.iter_lines()  # kept: closing the iterator closes the connection
                next(lines)
                started.set()
                leave.wait()

        thread = threading.Thread(target=stream)
        thread.start()
        started.wait()
        refused = httpx2.get(f"{url}/v1/models")
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "too_many_concurrent_requests"
        leave.set()
        thread.join()
        while httpx2.get(f"{url}/v1/models").status_code == 429:
            pass  # the server notices that the client left
        assert engine.running == 0
