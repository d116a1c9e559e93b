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

from actors import serve_internals
from actors.deployment import App, Plan, app_name, built
from cluster import placement
from rhumbline.config.deploy import Deploy
from rhumbline.errors import ResourceError

PROXY_S = 300.0  # for Serve's proxy to come up
START_S = 3600.0  # for an application: weights of hundreds of gigabytes are read
INGRESS_S = 600.0  # for the HTTP app, which waits for room where its replicas are replaced
ASK_S = 10.0  # for one answer of an ingress replica, which may be busy
MARGIN_S = 30.0  # beyond what draining is given


def serving_now(name: str) -> dict[str, str]:
    """Serve's applications of a model -> their state; empty where nothing is served."""
    from ray import serve

    if serve_internals.http_options() is None:
        return {}
    base = app_name(name)
    found = serve.status().applications
    return {app: str(one.status.value) for app, one in found.items() if app == base or app.startswith(f"{base}--")}


def check_proxy(plan: Plan) -> None:
    """Raises ResourceError where / is another application's, or the proxies run with another address or a shorter timeout."""
    have = serve_internals.http_options()
    if have is None:
        return
    for other, prefix in serve_internals.routes().items():
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
            controller_options={"runtime_env": {"env_vars": patience | serve_internals.DATA_PLANE}},
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
    then what this call has started is taken away, and what was served before goes on. With update=replace that is gone already:
    policies that came up stay, for the next call.
    """
    now = serving_now(plan.name)
    before = _settings_in_force(plan) if plan.ingress.name in now else None
    wanted = {app.name for app in plan.apps}
    old = [app for app in now if app not in wanted]
    replaced = settings.update == "replace"
    if replaced:
        _stop(old, plan, say)
        old = []
    started: list[str] = []
    try:
        for app in plan.apps[:-1]:
            match now.get(app.name):
                case "RUNNING":
                    say(f"keep    {app.name}")
                case "UNHEALTHY":  # begun again, Serve would replace the replicas that answer as well
                    say(f"keep    {app.name}, some of whose replicas have died: Serve replaces them")
                case "DEPLOYING":  # by an earlier call, which may be under way
                    say(f"wait    {app.name}")
                    _wait(app, START_S)
                case _:
                    started.append(app.name)
                    _start(app, say, START_S)
    except BaseException:
        _delete(started)
        raise
    try:
        try:
            _switch(plan, say)
        except BaseException:
            if before is not None and not replaced:
                _switch_back(plan, before, say)
            raise
    except BaseException:
        if not replaced:  # there, nothing older is left to go back to
            _delete([*started, *([] if plan.ingress.name in now else [plan.ingress.name])])
        raise
    if old:
        _quiet(plan)
    _stop(old, plan, say)


def _switch(plan: Plan, say: Any) -> None:
    """Give the ingress its new setting. Raises ResourceError where it fails or a replica refuses."""
    _start(plan.ingress, say, INGRESS_S, route_prefix="/", user_config=dict(plan.setting))
    refused = next((told["refusal"] for told in _states(plan).values() if told["refusal"] is not None), None)
    if refused is not None:
        raise ResourceError(f"{plan.ingress.name} keeps its setting, the new one was refused: {refused}")


def _switch_back(plan: Plan, before: Mapping[str, Any], say: Any) -> None:
    """Put the setting back that was in force, and wait: of several replicas some may have taken the new one, and send their
    requests to the policy that is about to be taken away.
    """
    until = time.monotonic() + INGRESS_S
    with contextlib.suppress(ResourceError):  # the caller raises why the new setting failed
        _start(plan.ingress, say, INGRESS_S, route_prefix="/", user_config=dict(before))
        while time.monotonic() < until and any(told["setting"] != before for told in _states(plan).values()):
            time.sleep(0.5)
        _quiet(plan)


def _states(plan: Plan) -> dict[str, dict[str, Any]]:
    """Of every ingress replica that runs, by its id: the setting in force, why the newest one is not, what still drains.

    A call reaches whichever replica Serve chooses, so it is repeated until all have answered. Raises ResourceError where one
    does not within INGRESS_S.
    """
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    handle: Any = serve.get_deployment_handle("ingress", plan.ingress.name)
    heard: dict[str, dict[str, Any]] = {}
    until = time.monotonic() + INGRESS_S
    while time.monotonic() < until:
        running = serve_internals.replicas("ingress", plan.ingress.name)["RUNNING"]
        if running and running <= heard.keys():
            return {one: heard[one] for one in running}
        try:
            told = handle.state.remote().result(timeout_s=ASK_S)
        except (TimeoutError, RayError, RayServeException):  # busy, or gone since
            time.sleep(0.2)
            continue
        heard[told["replica"]] = told
    raise ResourceError(f"{plan.ingress.name} does not say its setting within {INGRESS_S:g} s: is it overloaded?")


def _settings_in_force(plan: Plan) -> dict[str, Any] | None:
    """None where no ingress replica runs, or none has a setting."""
    if not serve_internals.replicas("ingress", plan.ingress.name)["RUNNING"]:
        return None
    return next((told["setting"] for told in _states(plan).values() if told["setting"] is not None), None)


def _quiet(plan: Plan) -> None:
    """Wait until no ingress replica has a request of an earlier setting, for as long as requests may take.

    Those that wait for a free slot are in no policy yet, and would wait in vain where theirs is taken away. Replicas that Serve
    replaces, since their code has changed, drain by themselves: they are waited for as well.
    """
    until = time.monotonic() + float(plan.ingress.args["drain_s"]) + MARGIN_S
    while time.monotonic() < until:
        leaving = serve_internals.replicas("ingress", plan.ingress.name)["STOPPING"]
        if not leaving and not any(told["retiring"] for told in _states(plan).values()):
            return
        time.sleep(0.5)


def _stop(names: Sequence[str], plan: Plan, say: Any) -> None:
    """Take applications away and wait until they have drained; one that takes longer is left to Serve, and said."""
    for name in names:
        say(f"drain   {name}")
    _delete(names)
    until = time.monotonic() + float(plan.ingress.args["drain_s"]) + MARGIN_S
    while left := set(names) & set(serving_now(plan.name)):
        if time.monotonic() > until:
            say(f"left    {', '.join(sorted(left))}: not gone yet, Serve goes on stopping it")
            return
        time.sleep(0.5)


def _delete(names: Sequence[str]) -> None:
    from ray import serve

    for name in names:
        serve.delete(name, _blocking=False)  # blocking, it gives up with an error after a minute


def _start(app: App, say: Any, timeout_s: float, route_prefix: str | None = None, **extra: Any) -> None:
    """Run an application and wait until it does. Raises ResourceError where it fails or takes too long."""
    say(f"start   {app.name}")
    began = time.monotonic()
    serve_internals.begin(built(app, **extra), app.name, route_prefix)
    _wait(app, timeout_s)
    say(f"ready   {app.name} after {time.monotonic() - began:.0f} s")


def _wait(app: App, timeout_s: float) -> None:
    from ray import serve

    began = time.monotonic()
    while True:
        status = serve.status().applications.get(app.name)
        if status is not None and status.status == "RUNNING":
            break
        late = time.monotonic() - began > timeout_s
        if late or (status is not None and status.status == "DEPLOY_FAILED"):
            why = (
                "" if status is None else " ".join([status.message, *(d.message for d in status.deployments.values())])
            )
            raise ResourceError(
                f"{app.name} {f'is not up after {timeout_s:g} s' if late else 'did not start'}: {why.strip()}"
            )
        time.sleep(0.2)
