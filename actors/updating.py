"""How a cluster gets from what it serves to a `Plan`, without a failed request.

check_proxy(plan); check_room(plan, settings, free, nodes)    # ResourceError before anything is touched
start_serve(plan)
roll_out(plan, settings)                        # new policy beside the old, ingress switched, old one drained
"""

from __future__ import annotations

import contextlib
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from actors.deployment import App, Plan, app_name, built
from cluster import placement
from rhumbline.config.deploy import Deploy
from rhumbline.errors import ResourceError

PROXY_S = 300.0  # for Serve's proxy to come up


def serving_now(name: str) -> dict[str, str]:
    """Serve's applications of a model -> their state; empty where nothing is served."""
    from ray import serve

    from actors.serve_internals import http_options

    if http_options() is None:
        return {}
    base = app_name(name)
    found = serve.status().applications
    return {app: str(one.status.value) for app, one in found.items() if app == base or app.startswith(f"{base}--")}


def check_proxy(plan: Plan) -> None:
    """Raises ResourceError where / is another application's, or the proxies run with another address or a shorter timeout."""
    from actors.serve_internals import http_options, routes

    have = http_options()
    if have is None:
        return
    for other, prefix in routes().items():
        if prefix == "/" and other != app_name(plan.name):
            raise ResourceError(
                f"this cluster serves {other} at / already: update that one by its name (name={other}), or stop it first "
                "(`serve shutdown`). What else runs there may stay, under another route prefix"
            )
    timeout = have.request_timeout_s
    if timeout is not None and timeout < plan.http["request_timeout_s"]:
        raise ResourceError(
            f"Serve runs on this cluster with request_timeout_s {timeout:g}, and the deadline of a request needs "
            f"{plan.http['request_timeout_s']:g}: lower limits.deadline_s, or shut Serve down first (`serve shutdown`)"
        )
    if (have.host, have.port) != (plan.http["host"], plan.http["port"]):
        raise ResourceError(
            f"Serve listens on {have.host}:{have.port} on this cluster, not on {plan.http['host']}:{plan.http['port']}: give "
            "http.host and http.port as they are, or shut Serve down first (`serve shutdown`)"
        )


def check_room(plan: Plan, settings: Deploy, free: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> None:
    """Raises ResourceError where what is still to be started does not fit. `free`: resources not in use, and where the old
    version is to stop first (update=replace) all of the cluster's.
    """
    now = serving_now(plan.name)
    rows = [row for app in plan.apps if app.name not in now for row in app.rows]
    missing = [*placement.lacking(free, placement.totals(rows)), *placement.too_large(nodes, rows)]
    if not missing:
        return
    table = "\n".join(placement.table(rows, free)).replace("cluster has", "free now   ")
    rolling = any(app.startswith(f"{app_name(plan.name)}--") for app in now) and settings.update == "rolling"
    remedy = "Lower num_cpus, num_gpus or replicas (policy, rewards, ingress), or add nodes"
    if rolling:
        remedy = (
            "A rolling update needs room for both versions at once. Add nodes, lower policy.num_cpus, or let the old version "
            "stop first, which leaves requests without an answer until the new one is up (update=replace)"
        )
    raise ResourceError(f"no room for {plan.name}: {'; '.join(missing)}\n{table}\n{remedy}")


def start_serve(plan: Plan) -> None:
    """Proxies as the plan wants them, where none run yet. Raises ResourceError where they do not come up.

    Serve gives a proxy five seconds to start and then kills it, for ever again on a small machine that is busy.
    """
    from ray import serve
    from ray.exceptions import RayError

    patience = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30"}
    with contextlib.suppress(RayError):  # it waits a minute for the proxies, `_answers` longer
        serve.start(
            proxy_location="EveryNode",
            http_options=dict(plan.http),
            controller_options={"runtime_env": {"env_vars": patience}},
        )
    until = time.monotonic() + PROXY_S
    while not _answers(f"{plan.url}/-/healthz"):
        if time.monotonic() > until:
            raise ResourceError(
                f"Serve's proxy does not answer at {plan.url} after {PROXY_S:g} s: is the port taken (http.port), or the machine "
                "overloaded? Its log is serve/proxy_*.log in Ray's"
            )
        time.sleep(1)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10):
            return True
    except urllib.error.HTTPError:  # with no application a proxy says that it has no routes yet
        return True
    except OSError:
        return False


def roll_out(plan: Plan, settings: Deploy, say: Any = print) -> None:
    """Start what is new, switch the ingress over, then take away what is old. Raises ResourceError where a part fails to start;
    then what was served before goes on.
    """
    from ray import serve

    now = serving_now(plan.name)
    before = _settings_in_force(plan) if now.get(plan.ingress.name) == "RUNNING" else []
    old = [app for app in now if app not in {a.name for a in plan.apps}]
    if settings.update == "replace":
        for name in old:
            say(f"stop    {name}")
            serve.delete(name)
        old = []
    for app in plan.apps[:-1]:
        if now.get(app.name) == "RUNNING":
            say(f"keep    {app.name}")
            continue
        _start(app, say, route_prefix=None)
    _start(plan.ingress, say, route_prefix="/", user_config=dict(plan.setting))
    refused = next((why for _, why in _states(plan) if why is not None), None) if before else None
    if refused is not None:
        _start(plan.ingress, say, route_prefix="/", user_config=dict(before[0]))
        for app in plan.apps[:-1]:
            if app.name not in now:
                serve.delete(app.name)
        raise ResourceError(f"{plan.ingress.name} keeps its setting, the new one was refused: {refused}")
    if old:
        _quiet(plan)
    for name in old:
        say(f"drain   {name}")
        serve.delete(name)


def _states(plan: Plan) -> list[tuple[dict[str, Any] | None, str | None]]:
    """The setting in force and why the newest one is not, of ingress replicas as calls find them."""
    from ray import serve

    handle: Any = serve.get_deployment_handle("ingress", plan.ingress.name)
    return [handle.state.remote().result(timeout_s=60) for _ in range(3 * plan.ingress.rows[0][1])]


def _settings_in_force(plan: Plan) -> list[dict[str, Any]]:
    return [setting for setting, _ in _states(plan) if setting is not None]


def _quiet(plan: Plan) -> None:
    """Wait until no ingress replica has a request of an earlier setting, for as long as requests may take.

    Those that wait for a free slot are in no policy yet, and would wait in vain where theirs is taken away.
    """
    from ray import serve

    replicas = plan.ingress.rows[0][1]
    handle: Any = serve.get_deployment_handle("ingress", plan.ingress.name)
    until, quiet = time.monotonic() + float(plan.ingress.args["drain_s"]), 0
    while quiet < 3 * replicas and time.monotonic() < until:  # a call asks one of them, whichever
        quiet = 0 if handle.retiring.remote().result(timeout_s=60) else quiet + 1
        time.sleep(0.5)


def _start(app: App, say: Any, route_prefix: str | None, **extra: Any) -> None:
    from ray import serve

    say(f"start   {app.name}")
    began = time.monotonic()
    try:
        serve.run(built(app, **extra), name=app.name, route_prefix=route_prefix)
    except RuntimeError as e:  # Serve's word for a deployment that does not start
        if route_prefix is None:  # nobody asks it yet
            serve.delete(app.name)
        raise ResourceError(f"{app.name} did not start: {e}") from e
    say(f"ready   {app.name} after {time.monotonic() - began:.0f} s")
