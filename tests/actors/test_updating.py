"""What is refused before a cluster is touched: no room, another application at /, proxies that would cut requests off."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from actors import serve_internals, updating
from actors.deployment import App, Plan
from rhumbline.config.deploy import load_deploy
from rhumbline.errors import ResourceError


def plan() -> Plan:
    """A policy of one CPU and its ingress of a tenth."""
    policy = App("smol--new", "x:policy", {}, (("policy", 1, 1.0, 0.0),))
    ingress = App("smol", "x:ingress", {"drain_s": 0.2}, (("ingress", 1, 0.1, 0.0),))
    http = {"host": "127.0.0.1", "port": 8123, "request_timeout_s": 330.0}
    return Plan("smol", "http://127.0.0.1:8123", (policy,), None, ingress, {"version": "new"}, http)


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


# --- the roll-out, on a Serve that does as the test says --------------------------------------------------------------


class FakeServe:
    """Serve's applications, whether each comes up, and what the ingress's replicas say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **now: str) -> None:
        self.now = {name.replace("__", "--"): status for name, status in now.items()}
        self.fails: set[str] = set()
        self.refusal: str | None = None
        self.setting: dict[str, Any] = {"version": "old"}
        self.behind = 0  # how often a replica still tells the setting before
        self.leaving = 0  # how often replicas are still said to be stopping
        self.log: list[str] = []
        monkeypatch.setattr("ray.serve.status", lambda: SimpleNamespace(applications=self._applications()))
        monkeypatch.setattr("ray.serve.delete", self._delete)
        monkeypatch.setattr(
            "ray.serve.get_deployment_handle", lambda *_: SimpleNamespace(state=SimpleNamespace(remote=self._state))
        )
        monkeypatch.setattr(serve_internals, "http_options", lambda: object())
        monkeypatch.setattr(serve_internals, "replicas", self._replicas)
        monkeypatch.setattr(serve_internals, "begin", self._begin)
        monkeypatch.setattr(updating, "built", lambda app, **extra: extra.get("user_config", {}))

    def _applications(self) -> dict[str, Any]:
        return {
            name: SimpleNamespace(status=Status(status), message="why", deployments={})
            for name, status in self.now.items()
        }

    def _begin(self, config: dict[str, Any], name: str, route_prefix: str | None) -> None:
        self.log.append(f"begin {name} {config.get('version', '')}".strip())
        self.now[name] = "DEPLOY_FAILED" if name in self.fails else "RUNNING"
        if route_prefix == "/" and name not in self.fails and (self.refusal is None or config == self.setting):
            self.behind = 2 if self.refusal else 0
            self.setting = config

    def _delete(self, name: str, _blocking: bool = True) -> None:
        assert not _blocking, "it gives up after a minute"
        self.log.append(f"delete {name}")
        self.now.pop(name, None)

    def _replicas(self, _deployment: str, app: str) -> dict[str, set[str]]:
        self.leaving -= 1
        running = {"r1", "r2"} if self.now.get(app) == "RUNNING" else set[str]()
        return {"RUNNING": running, "STOPPING": {"r0"} if self.leaving > 0 else set()}

    def _state(self) -> Any:
        self.asked = not getattr(self, "asked", False)  # Serve chooses the replica
        self.behind -= 1
        if self.behind >= 0:
            self.log.append("behind")
        told = {
            "replica": "r1" if self.asked else "r2",
            "setting": {"version": "new"} if self.behind >= 0 else self.setting,
            "refusal": self.refusal,
            "retiring": 0,
        }
        return SimpleNamespace(result=lambda timeout_s: told)


class Status(str):
    @property
    def value(self) -> str:
        return str(self)


def quiet(_line: str) -> None: ...


def test_what_is_new_is_started_before_what_is_old_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    serve = FakeServe(monkeypatch, smol="RUNNING", smol__old="RUNNING")
    serve.leaving = 5  # replicas of the ingress that its code has replaced
    updating.roll_out(plan(), load_deploy(), quiet)
    assert serve.log == ["begin smol--new", "begin smol new", "delete smol--old"]
    assert serve.leaving < 0  # nothing was taken away before they had gone


def test_a_policy_that_does_not_start_is_taken_away_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    serve = FakeServe(monkeypatch, smol="RUNNING", smol__old="RUNNING")
    serve.fails = {"smol--new"}
    with pytest.raises(ResourceError, match=r"smol--new did not start: why"):
        updating.roll_out(plan(), load_deploy(), quiet)
    assert serve.log == ["begin smol--new", "delete smol--new"]
    assert (serve.now, serve.setting) == ({"smol": "RUNNING", "smol--old": "RUNNING"}, {"version": "old"})


def test_a_refused_setting_leaves_the_old_policy_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    serve = FakeServe(monkeypatch, smol="RUNNING", smol__old="RUNNING")
    serve.refusal = "UserError: no such checkpoint"
    with pytest.raises(
        ResourceError, match="keeps its setting, the new one was refused: UserError: no such checkpoint"
    ):
        updating.roll_out(plan(), load_deploy(), quiet)
    # replicas that took the new setting send requests to the new policy: it goes when all have the old one again
    assert serve.log == ["begin smol--new", "begin smol new", "begin smol old", "behind", "behind", "delete smol--new"]
    assert serve.setting == {"version": "old"}


def test_an_interrupted_switch_is_taken_back_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    serve = FakeServe(monkeypatch, smol="RUNNING", smol__old="RUNNING")
    begin, state = serve._begin, serve._state

    def interrupted() -> Any:
        monkeypatch.setattr("ray.serve.get_deployment_handle", handle(state))
        raise KeyboardInterrupt

    def handle(remote: Any) -> Any:
        return lambda *_: SimpleNamespace(state=SimpleNamespace(remote=remote))

    def beginning(config: dict[str, Any], name: str, route_prefix: str | None) -> None:
        begin(config, name, route_prefix)
        if config.get("version") == "new":
            monkeypatch.setattr("ray.serve.get_deployment_handle", handle(interrupted))

    monkeypatch.setattr(serve_internals, "begin", beginning)
    with pytest.raises(KeyboardInterrupt):
        updating.roll_out(plan(), load_deploy(), quiet)
    assert serve.log == ["begin smol--new", "begin smol new", "begin smol old", "delete smol--new"]


@pytest.mark.parametrize("state", ["UNHEALTHY", "DEPLOYING"])
def test_a_policy_that_is_there_is_neither_begun_again_nor_taken_away(
    state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve = FakeServe(monkeypatch, smol="RUNNING", smol__new=state)
    serve.refusal = "UserError: broken"
    monkeypatch.setattr(updating, "START_S", 0.3)
    with pytest.raises(ResourceError, match="broken" if state == "UNHEALTHY" else r"smol--new is not up after 0.3 s"):
        updating.roll_out(plan(), load_deploy(), quiet)
    assert serve.now["smol--new"] == state
    assert "begin smol--new" not in serve.log


def test_an_ingress_that_never_came_up_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    serve = FakeServe(monkeypatch)
    serve.fails = {"smol"}
    with pytest.raises(ResourceError, match="smol did not start"):
        updating.roll_out(plan(), load_deploy(), quiet)
    assert serve.now == {}


def test_replacing_stops_the_old_policy_first_and_keeps_the_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    serve = FakeServe(monkeypatch, smol="RUNNING", smol__old="RUNNING")
    updating.roll_out(plan(), load_deploy(["update=replace"]), quiet)
    assert serve.log == ["delete smol--old", "begin smol--new", "begin smol new"]
    serve = FakeServe(monkeypatch, smol="RUNNING", smol__old="RUNNING")
    serve.refusal = "UserError: broken"
    with pytest.raises(ResourceError, match="broken"):
        updating.roll_out(plan(), load_deploy(["update=replace"]), quiet)
    assert serve.now == {
        "smol": "RUNNING",
        "smol--new": "RUNNING",
    }  # the old policy is gone: going back would serve nothing


def test_what_does_not_drain_in_time_is_left_to_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    serve, said = FakeServe(monkeypatch, smol="RUNNING", smol__old="RUNNING"), list[str]()
    monkeypatch.setattr("ray.serve.delete", lambda name, _blocking: serve.log.append(f"delete {name}"))
    monkeypatch.setattr(updating, "MARGIN_S", 0.0)
    updating.roll_out(plan(), load_deploy(), said.append)
    assert said[-1] == "left    smol--old: not gone yet, Serve goes on stopping it"
