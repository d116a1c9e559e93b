"""What serving a run takes: applications, their names and resources, keys, weights. `actors.updating` brings a cluster there.

    plan = plan_of(served, settings)                # which applications, under which names, with which resources
    merge(served)                                   # an adapter's full weights, where the plan expects them
    write_config(plan, "serve.yaml")                # the same for `serve run` and `serve deploy`

    NAME--<version>     a policy: vLLM, one application per version, or per mixture of a soup
    NAME--rewards-<id>  the reward model, shared by all versions that were trained against it
    NAME                the ingress at /, which is told by its user_config who answers

Applications that begin with NAME-- belong to NAME. A version is a hash of the weights, of every setting that their engine is
started with, and of the code that runs it: the same one is never started twice, and another one never under the same name.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.engine_settings import engine_settings, workers
from actors.versions import of_policy, of_rewards
from cluster import placement
from rhumbline import config, durable
from rhumbline.config.deploy import Deploy
from rhumbline.errors import CodecError, ConfigError
from rhumbline.faults import explain
from rhumbline.fingerprint import fingerprint
from rhumbline.learning.policy import load_tokenizer, merge_adapter, resolve
from rhumbline.rewards.model import RewardModel
from rhumbline.serving.served import Served, recipe_of
from rhumbline.serving.settings import Settings

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
    weights = fingerprint(folder)
    what = json.dumps([weights, served.steering.initial, section, of_policy()], sort_keys=True)
    version = hashlib.sha256(what.encode()).hexdigest()[:12]
    args = {
        "model": f"{app_name(served.name)}-{version}",
        "folder": str(merged_folder(served, folder)),
        "weights": None if served.is_adapter else weights,  # merged ones have a fingerprint once they are there
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
    what = hashlib.sha256(json.dumps([args, of_rewards()], sort_keys=True).encode()).hexdigest()[:12]
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
    """With ~ as this user's home, and the folder of an SQLite file made. Raises ConfigError for one that holds a password:
    Serve shows its settings to everybody who may look at the cluster.
    """
    import sqlalchemy as sa

    from rhumbline.users.store import PASSWORD

    url = settings.users.url
    try:
        told = None if url is None else sa.make_url(url)
    except sa.exc.ArgumentError as e:
        raise ConfigError(
            f"users.url: {e}. Expected sqlite:///FILE, postgresql+psycopg://USER@HOST/NAME or null"
        ) from None
    if told is not None and (told.password is not None or any("pass" in key.lower() for key in told.query)):
        told = told.set(query={key: "***" if "pass" in key.lower() else value for key, value in told.query.items()})
        raise ConfigError(
            f"users.url holds a password ({told.render_as_string(hide_password=True)}), and the cluster's status shows it: leave "
            f"it out, and set {PASSWORD} in the environment that Ray is started in"
        )
    start = "sqlite:///"
    if url is None or not url.startswith(start) or url == start or ":memory:" in url:
        return url
    file = Path(url.removeprefix(start)).expanduser().absolute()
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return f"{start}{file}"


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
