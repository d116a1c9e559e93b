"""What serving a run takes, and how a cluster gets from what it serves to that.

    plan = plan_of(served, settings)                # which applications, under which names, with which resources
    check_room(plan, settings)                      # ResourceError before anything is touched
    roll_out(plan, settings)                        # new policy beside the old, ingress switched, old one drained

    NAME--<version>     a policy: vLLM, one application per version, or per mixture of a soup
    NAME--rewards-<id>  the reward model, shared by all versions that were trained against it
    NAME                the ingress at /, which is told by its user_config who answers

Applications that begin with NAME-- belong to NAME. A version is a hash of the weights and of every setting that their engine is
started with: the same one is never started twice, and another one never under the same name.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.engine_settings import engine_settings, workers
from cluster import placement
from rhumbline import config, durable
from rhumbline.config.deploy import Deploy
from rhumbline.errors import CodecError, ConfigError, ResourceError
from rhumbline.faults import explain
from rhumbline.learning.policy import fingerprint, load_tokenizer, merge_adapter, resolve
from rhumbline.rewards.model import RewardModel
from rhumbline.serving.served import Served, recipe_of
from rhumbline.serving.settings import Settings

PROXY_S = 300.0  # for Serve's proxy to come up
MARGIN_S = 30.0  # Serve's own timeout comes after ours, which has a proper answer
Row = placement.Row


@dataclass(frozen=True, slots=True)
class App:
    """One Serve application."""

    name: str
    builder: str  # of the `import_path` that makes it from `args`
    args: Mapping[str, Any]
    rows: tuple[Row, ...]  # what it needs of the cluster


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that serves one model."""

    name: str
    url: str
    policies: tuple[App, ...]
    rewards: App | None
    ingress: App
    setting: Mapping[str, Any]  # the ingress's user_config
    http: Mapping[str, Any]  # host, port, request_timeout_s

    @property
    def apps(self) -> tuple[App, ...]:
        """In the order in which they are started."""
        return (*([self.rewards] if self.rewards else []), *self.policies, self.ingress)

    def lines(self) -> list[str]:
        """For people."""
        rows = [row for app in self.apps for row in app.rows]
        shown = [f"{'application':<44}{'deployment':<12}{'replicas':>8}{'CPU':>8}{'GPU':>6}"]
        for app in self.apps:
            for role, count, cpus, gpus in app.rows:
                shown.append(f"{app.name:<44}{role:<12}{count:>8}{count * cpus:>8g}{count * gpus:>6g}")
        wanted = placement.totals(rows)
        shown.append(f"{'together':<64}{wanted['CPU']:>8g}{wanted['GPU']:>6g}")
        return [*shown, f"at {self.url}, timeout of the proxy {self.http['request_timeout_s']:g} s"]


# --- what there is to start -------------------------------------------------------------------------------------------


def limits_of(settings: Deploy) -> Settings:
    """Raises ConfigError for an unknown limit, with a did-you-mean."""
    from pydantic import ValidationError

    try:
        return Settings(**settings.limits)
    except ValidationError as e:
        raise ConfigError("\n".join(f"limits: {explain(fault, Settings)}" for fault in e.errors())) from None


def plan_of(served: Served, settings: Deploy) -> Plan:
    """Writes and starts nothing. Raises UserError for limits, weights or rewards that do not fit."""
    if "--" in served.name:
        raise ConfigError(
            f"the model is called {served.name!r}, and two hyphens divide a model's name from its versions' in Serve: give "
            "another one (name)"
        )
    # The checkpoint itself, not its run: a replica that starts later must not open a newer one.
    source = str(served.run if served.mechanism == "weights" else served.folder)
    limits = limits_of(settings)
    drain_s = settings.drain_s or limits.deadline_s
    weights = [(m.name, m.folder) for m in served.mixtures] or [(served.name, served.folder)]
    if len(weights) > settings.mixtures:
        raise ConfigError(
            f"{source} has {len(weights)} mixtures, each an engine of its own, and mixtures is {settings.mixtures}: raise it, or "
            "evaluate the soup on a smaller grid"
        )
    policies = {model: _policy(served, folder, settings, drain_s) for model, folder in weights}
    rewards = _rewards(served, settings, drain_s)
    serving = settings.ingress
    http: dict[str, Any] = {
        "host": settings.http.host,
        "port": settings.http.port,
        "request_timeout_s": settings.http.request_timeout_s or limits.deadline_s + MARGIN_S,
    }
    if http["request_timeout_s"] <= limits.deadline_s:
        raise ConfigError(
            f"http.request_timeout_s is {http['request_timeout_s']:g} and limits.deadline_s {limits.deadline_s:g}: the proxy "
            "would cut requests off before the deadline can answer them. Give more, or leave it out"
        )
    setting = {
        "checkpoint": source,
        "name": served.name,
        "engines": {model: [app.name, str(app.args["model"])] for model, app in policies.items()},
        "rewards": None if rewards is None else rewards.name,
        "keys": None if settings.keys is None else str(_key_file(settings)),
        "users": users_url(settings),
        "limits": limits.model_dump(mode="json"),
    }
    ingress = App(
        app_name(served.name),
        "actors.ingress:ingress_app",
        {"ingress": serving.model_dump(mode="json"), "drain_s": drain_s},
        (("ingress", serving.replicas, serving.num_cpus, 0.0),),
    )
    shown = "127.0.0.1" if settings.http.host in ("0.0.0.0", "::") else settings.http.host
    url = f"http://{shown}:{settings.http.port}"
    return Plan(served.name, url, tuple(policies.values()), rewards, ingress, setting, http)


def app_name(model: str) -> str:
    """Serve's application names hold no slash."""
    return model.replace("/", "-")


def _policy(served: Served, folder: Path, settings: Deploy, drain_s: float) -> App:
    policy = settings.policy
    section = policy.model_dump(mode="json")
    what = json.dumps([fingerprint(folder), served.steering.initial, section], sort_keys=True)
    version = hashlib.sha256(what.encode()).hexdigest()[:12]
    args = {
        "model": f"{app_name(served.name)}-{version}",
        "folder": str(merged_folder(served, folder)),
        "policy": section,
        "drain_s": drain_s,
    }
    engine_settings(
        policy, str(folder if not served.is_adapter else resolve(served.steering.initial))
    )  # or ConfigError
    count = int(policy.autoscaling.get("min_replicas", 1)) if policy.autoscaling else policy.replicas
    each = workers(policy)
    rows = (("policy", count, policy.num_cpus * each, policy.num_gpus * each),)
    return App(f"{app_name(served.name)}--{version}", "actors.policy_server:policy_app", args, rows)


def _rewards(served: Served, settings: Deploy, drain_s: float) -> App | None:
    serving = settings.rewards
    if not serving.enabled:
        return None
    if serving.recipe is not None:
        from rhumbline import recipes

        recipe: config.Run = config.load(recipes.find(serving.recipe))
    elif served.run is not None:
        recipe = recipe_of(served.run)
    else:
        raise ConfigError(
            f"{served.folder} is no part of a run, so nobody says which rewards it was trained against: name a recipe that has "
            "them (rewards.recipe=smol), or serve without (rewards.enabled=false)"
        )
    trusted = recipe.policy.trust_remote_code
    found = RewardModel.build(recipe.rewards, policy=recipe.policy.initial, trust_remote_code=trusted)
    if found.id != served.reward_model:
        raise CodecError(
            f"the rewards of {recipe.name} make the reward model {found.id}, the policy was trained against "
            f"{served.reward_model}: give the recipe of its run (rewards.recipe), with the reward models that it names where "
            "they were, or serve without (rewards.enabled=false)"
        )
    args = {
        "rewards": recipe.rewards.model_dump(mode="json"),
        "id": found.id,
        "policy": recipe.policy.initial,
        "serving": serving.model_dump(mode="json"),
        "trust_remote_code": trusted,
    }
    what = hashlib.sha256(json.dumps(args, sort_keys=True).encode()).hexdigest()[:12]
    args["drain_s"] = drain_s  # not in the name: another deadline is no other reward model
    rows = (("rewards", serving.replicas, serving.num_cpus, serving.num_gpus),)
    return App(f"{app_name(served.name)}--rewards-{what}", "actors.reward_server:rewards_app", args, rows)


def merged_folder(served: Served, folder: Path) -> Path:
    """Where the full weights lie, or will once `merge` has run: beside an adapter's run, else in the cache."""
    if not served.is_adapter:
        return folder.resolve()
    parent = served.run / "serving" if served.run is not None else _cache()
    return parent / f"merged-{fingerprint(folder)[:12]}"


def merge(served: Served) -> None:
    """Write an adapter's full weights where `plan_of` says they are. vLLM copies an adapter's matrices for every token."""
    target = merged_folder(served, served.folder)
    if not served.is_adapter or (target / "config.json").is_file():
        return
    import shutil
    import tempfile

    base, trusted = resolve(served.steering.initial), served.trust_remote_code
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        merge_adapter(base, served.folder, work / "out", load_tokenizer(base, trusted), trusted)
        (work / "out").rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _cache() -> Path:
    from rhumbline.learning.policy import CACHE_VARIABLE

    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/rhumbline").expanduser()


def make_key(settings: Deploy, name: str) -> str:
    """A new key, whose hash is kept in the settings' file."""
    from rhumbline.serving.keys import new_key

    path = _key_file(settings)
    if path is None:
        raise ConfigError("keys is null, so there is no file to keep a key's hash in: give keys=FILE")
    path.parent.mkdir(parents=True, exist_ok=True)
    return new_key(path, name)


def take_key(settings: Deploy, name: str) -> None:
    """Take a key away; servers that run notice within seconds. Raises UserError."""
    from rhumbline.serving.keys import revoke

    path = _key_file(settings)
    if path is None:
        raise ConfigError("keys is null, so there is no file that holds a key: give keys=FILE")
    revoke(path, name)


def check_keys(settings: Deploy) -> None:
    """Raises UserError where nobody could ask: keys are wanted and there are none."""
    from rhumbline.serving.keys import read

    path = _key_file(settings)
    if path is not None and not (path.is_file() and read(path)):
        raise ConfigError(
            f"{path} holds no API key (keys): make one by adding `--new-key NAME` to this command, or serve this machine alone "
            "without keys (keys=null)"
        )


def _key_file(settings: Deploy) -> Path | None:
    return None if settings.keys is None else Path(settings.keys).expanduser().absolute()


def users_url(settings: Deploy) -> str | None:
    """With ~ as this user's home, and the folder of an SQLite file made."""
    url = settings.users.url
    start = "sqlite:///"
    if url is None or not url.startswith(start) or url == start or ":memory:" in url:
        return url
    file = Path(url.removeprefix(start)).expanduser().absolute()
    file.parent.mkdir(parents=True, exist_ok=True)
    return f"{start}{file}"


# --- the cluster ------------------------------------------------------------------------------------------------------


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
    """Raises ResourceError where the cluster's proxies run already with another address or a shorter timeout."""
    from actors.serve_internals import http_options

    have = http_options()
    if have is None:
        return
    from ray import serve

    base = app_name(plan.name)
    for other in {name.partition("--")[0] for name in serve.status().applications if "--" in name} - {base}:
        raise ResourceError(
            f"this cluster serves {other} at / already: update that one by its name (name={other}), or stop it first (`serve "
            "shutdown`)"
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


def built(app: App, **extra: Any) -> Any:
    """The Serve application of an `App`: what its import_path makes."""
    from importlib import import_module

    module, _, function = app.builder.partition(":")
    return getattr(import_module(module), function)(dict(app.args), **extra)


def serve_config(plan: Plan) -> dict[str, Any]:
    """What `serve run FILE` and `serve deploy FILE` take."""
    applications = [
        {"name": app.name, "route_prefix": None, "import_path": app.builder, "args": dict(app.args)}
        for app in plan.apps[:-1]
    ]
    ingress = {
        "name": plan.ingress.name,
        "route_prefix": "/",
        "import_path": plan.ingress.builder,
        "args": {**plan.ingress.args, "setting": dict(plan.setting)},
    }
    return {
        "proxy_location": "EveryNode",
        "http_options": dict(plan.http),
        "applications": [*applications, ingress],
    }


def write_config(plan: Plan, path: Path) -> Path:
    """`serve_config` as a file."""
    import yaml

    mask = os.umask(0o077)  # the database's address may hold a password, policy.env a token
    try:
        durable.replace(path.absolute(), yaml.safe_dump(serve_config(plan), sort_keys=False).encode())
    finally:
        os.umask(mask)
    return path
