"""What is refused before a cluster is touched: no room, another application at /, proxies that would cut requests off."""

from __future__ import annotations

from typing import Any

import pytest

from actors import serve_internals, updating
from actors.deployment import App, Plan
from rhumbline.config.deploy import load_deploy
from rhumbline.errors import ResourceError


def plan() -> Plan:
    """A policy of one CPU and its ingress of a tenth."""
    policy = App("smol--new", "x:policy", {}, (("policy", 1, 1.0, 0.0),))
    ingress = App("smol", "x:ingress", {}, (("ingress", 1, 0.1, 0.0),))
    http = {"host": "127.0.0.1", "port": 8123, "request_timeout_s": 330.0}
    return Plan("smol", "http://127.0.0.1:8123", (policy,), None, ingress, {}, http)


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Serve's applications, as the test wants them."""
    now: dict[str, str] = {}
    monkeypatch.setattr(updating, "serving_now", lambda _name: now)
    return now


def test_room_is_needed_for_what_does_not_run_yet(running: dict[str, str]) -> None:
    made, wanted = plan(), load_deploy()
    nodes = [{"CPU": 2.0}]
    updating.check_room(made, wanted, {"CPU": 1.1}, nodes)
    with pytest.raises(ResourceError, match=r"CPU: wanted 1\.1, the cluster has 0\.5") as refused:
        updating.check_room(made, wanted, {"CPU": 0.5}, nodes)
    assert "add nodes" in str(refused.value)
    running |= dict.fromkeys((app.name for app in made.apps), "RUNNING")
    updating.check_room(made, wanted, {"CPU": 0.0}, nodes)  # all of it is there


def test_a_rolling_update_needs_room_for_two(running: dict[str, str]) -> None:
    made, wanted = plan(), load_deploy()
    running |= {"smol": "RUNNING", "smol--old": "RUNNING"}
    with pytest.raises(ResourceError, match="room for both versions at once") as refused:
        updating.check_room(made, wanted, {"CPU": 0.9}, [{"CPU": 2.0}])
    assert "update=replace" in str(refused.value)
    updating.check_room(made, wanted, {"CPU": 1.0}, [{"CPU": 2.0}])


def test_proxies_that_would_cut_requests_off_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.serve.config import HTTPOptions

    made = plan()

    others: dict[str, str] = {}
    monkeypatch.setattr(serve_internals, "routes", lambda: others)

    def have(**options: Any) -> None:
        monkeypatch.setattr(serve_internals, "http_options", lambda: HTTPOptions(host="127.0.0.1", **options))

    monkeypatch.setattr(serve_internals, "http_options", lambda: None)
    updating.check_proxy(made)
    have(port=8123)  # without a timeout
    updating.check_proxy(made)
    have(port=8123, request_timeout_s=400)
    updating.check_proxy(made)
    have(port=8123, request_timeout_s=300)
    with pytest.raises(ResourceError, match="request_timeout_s 300, and the deadline of a request needs 330"):
        updating.check_proxy(made)
    have(port=8000, request_timeout_s=400)
    with pytest.raises(ResourceError, match=r"listens on 127\.0\.0\.1:8000"):
        updating.check_proxy(made)
    others |= {"smol": "/", "theirs": "/theirs"}
    have(port=8123)
    updating.check_proxy(made)
    others |= {"big": "/"}
    with pytest.raises(ResourceError, match=r"serves big at / already.*name=big"):
        updating.check_proxy(made)
