"""What serving takes, under which names, and what is refused before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from actors import deployment, engine_settings, serve_internals
from actors.deployment import Plan
from rhumbline.config.deploy import Deploy, load_deploy
from rhumbline.errors import CodecError, ConfigError, ResourceError, UserError
from rhumbline.learning.precision import AUTO, name_of
from rhumbline.rewards.model import RewardModel
from rhumbline.serving.mixtures import Mixture
from rhumbline.serving.served import Served
from tests.fakes import tiny_policy
from tests.rhumbline.serving_fakes import contract

REWARDS = {
    "sources": [{"kind": "rules", "heads": {"verbosity": {"rule": "verbosity"}, "variety": {"rule": "repetition"}}}],
    "objectives": {
        "helpfulness": {"heads": {"variety": -1.0}, "sign": 1},
        "verbosity": {"heads": {"verbosity": 1.0}, "sign": -1},
    },
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy") / "t=1"
    tiny_policy(folder)
    contract().write(folder)
    return folder


@pytest.fixture
def recipe(tmp_path: Path, weights: Path) -> Path:
    path = tmp_path / "rewards.yaml"
    path.write_text(yaml.safe_dump({"rewards": REWARDS, "policy": {"initial": str(weights)}}, sort_keys=False))
    return path


def served(folder: Path, **more: Any) -> Served:
    return Served.of(contract(), name="smol", folder=folder, **more)


def settings(*overrides: str) -> Deploy:
    return load_deploy(["users.url=null", "keys=null", "rewards.enabled=false", *overrides])


def plan(folder: Path, *overrides: str) -> Plan:
    return deployment.plan_of(served(folder), settings(*overrides))


def test_a_version_is_its_weights_and_its_engines_settings(weights: Path, tmp_path: Path) -> None:
    (one,), (same,) = plan(weights).policies, plan(weights, "limits.burst=5", "ingress.replicas=2").policies
    assert one.name == same.name  # nothing that the engine sees has changed
    (other,) = plan(weights, "policy.threads=1").policies
    tiny_policy(tmp_path / "t=2", seed=1)
    (retrained,) = plan(tmp_path / "t=2").policies
    assert len({one.name, other.name, retrained.name}) == 3
    assert all(app.name == f"smol--{str(app.args['model']).removeprefix('smol-')}" for app in (one, other, retrained))


def test_the_ingress_is_told_who_answers(weights: Path) -> None:
    made = plan(weights, "http.port=8123", "limits={deadline_s: 60}")
    (policy,) = made.policies
    assert made.setting["engines"] == {"smol": [policy.name, policy.args["model"]]}
    assert made.setting["checkpoint"] == str(weights)  # not a run, whose newest checkpoint may be another one tomorrow
    assert made.setting["limits"]["deadline_s"] == 60
    assert made.http == {"host": "127.0.0.1", "port": 8123, "request_timeout_s": 90.0}
    assert made.url == "http://127.0.0.1:8123"
    assert policy.args["drain_s"] == 60
    json.dumps(dict(made.setting))


def test_every_mixture_of_a_soup_is_an_engine(weights: Path, tmp_path: Path) -> None:
    folders = [weights, tiny_policy(tmp_path / "t=2", seed=1)]
    mixtures = tuple(
        Mixture(name=f"smol-mix-{i}", direction=(1.0, 0.0), folder=folder) for i, folder in enumerate(folders)
    )
    soup = served(weights, mechanism="weights", mixtures=mixtures, run=tmp_path)
    made = deployment.plan_of(soup, settings())
    assert list(made.setting["engines"]) == ["smol-mix-0", "smol-mix-1"]
    assert len({app.name for app in made.policies}) == 2
    assert made.setting["checkpoint"] == str(tmp_path)
    with pytest.raises(ConfigError, match="2 mixtures, each an engine of its own, and mixtures is 1"):
        deployment.plan_of(soup, settings("mixtures=1"))


def test_rewards_are_served_where_they_are_those_of_training(weights: Path, recipe: Path) -> None:
    from rhumbline import config

    model = RewardModel.build(config.Rewards(**REWARDS), tokenise=lambda _: [])
    wanted = settings("rewards.enabled=true", f"rewards.recipe={recipe}")
    with pytest.raises(CodecError, match="the policy was trained against rm-1"):
        deployment.plan_of(served(weights), wanted)
    made = deployment.plan_of(served(weights, reward_model=model.id), wanted)
    assert made.rewards is not None
    assert made.rewards.args["id"] == model.id
    assert made.setting["rewards"] == made.rewards.name
    with pytest.raises(ConfigError, match=r"name a recipe that has them \(rewards.recipe=smol\)"):
        deployment.plan_of(served(weights), settings("rewards.enabled=true"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("limits.burzt=3", "Did you mean 'burst'"),
        pytest.param("policy.engine={max_model_leng: 3}", "Did you mean 'max_model_len'", marks=pytest.mark.slow),
        ("http.request_timeout_s=10", "http.request_timeout_s is 10 and limits.deadline_s 300"),
    ],
)
def test_a_setting_that_cannot_be_is_named(weights: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(weights, override)


def test_a_name_that_would_hide_another_models_applications_is_refused(weights: Path) -> None:
    with pytest.raises(ConfigError, match="two hyphens"):
        deployment.plan_of(Served.of(contract(), name="smol--2", folder=weights), settings())


def test_on_a_cpu_the_batch_holds_the_longest_prompt(weights: Path) -> None:
    policy = settings().policy
    assert engine_settings.engine_settings(policy, str(weights)) == {
        "dtype": name_of(AUTO),  # what this machine computes in
        "max_model_len": 512,  # the policy's own
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": 2048,
        "max_num_seqs": 64,
    }
    assert engine_settings.environment(policy)["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    on_gpu = policy.model_copy(update={"num_gpus": 1.0})
    assert engine_settings.engine_settings(on_gpu, str(weights)) == {"dtype": "bfloat16"}
    assert "OMP_NUM_THREADS" not in engine_settings.environment(on_gpu)


@pytest.mark.slow  # imports vLLM
def test_what_is_asked_for_stands(weights: Path) -> None:
    wanted = settings("policy.engine={max_model_len: 8192, enable_chunked_prefill: true}").policy
    asked = engine_settings.engine_settings(wanted, str(weights))
    assert (asked["max_num_batched_tokens"], asked["enable_chunked_prefill"]) == (8192, True)


# --- the cluster ------------------------------------------------------------------------------------------------------


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Serve's applications, as the test wants them."""
    now: dict[str, str] = {}
    monkeypatch.setattr(deployment, "serving_now", lambda _name: now)
    return now


def test_room_is_needed_for_what_does_not_run_yet(weights: Path, running: dict[str, str]) -> None:
    made, wanted = plan(weights, "policy.num_cpus=1"), settings("policy.num_cpus=1")
    nodes = [{"CPU": 2.0}]
    deployment.check_room(made, wanted, {"CPU": 1.1}, nodes)
    with pytest.raises(ResourceError, match=r"CPU: wanted 1\.1, the cluster has 0\.5") as refused:
        deployment.check_room(made, wanted, {"CPU": 0.5}, nodes)
    assert "add nodes" in str(refused.value)
    running |= dict.fromkeys((app.name for app in made.apps), "RUNNING")
    deployment.check_room(made, wanted, {"CPU": 0.0}, nodes)  # all of it is there


def test_a_rolling_update_needs_room_for_two(weights: Path, running: dict[str, str]) -> None:
    made, wanted = plan(weights, "policy.num_cpus=1"), settings("policy.num_cpus=1")
    running |= {"smol": "RUNNING", "smol--old": "RUNNING"}
    with pytest.raises(ResourceError, match="room for both versions at once") as refused:
        deployment.check_room(made, wanted, {"CPU": 0.9}, [{"CPU": 2.0}])
    assert "update=replace" in str(refused.value)
    deployment.check_room(made, wanted, {"CPU": 1.0}, [{"CPU": 2.0}])


def test_proxies_that_would_cut_requests_off_are_refused(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.serve.config import HTTPOptions

    made = plan(weights, "http.port=8123")

    others: dict[str, Any] = {}
    monkeypatch.setattr("ray.serve.status", lambda: SimpleNamespace(applications=others))

    def have(**options: Any) -> None:
        monkeypatch.setattr(serve_internals, "http_options", lambda: HTTPOptions(host="127.0.0.1", **options))

    monkeypatch.setattr(serve_internals, "http_options", lambda: None)
    deployment.check_proxy(made)
    have(port=8123)  # without a timeout
    deployment.check_proxy(made)
    have(port=8123, request_timeout_s=400)
    deployment.check_proxy(made)
    have(port=8123, request_timeout_s=300)
    with pytest.raises(ResourceError, match="request_timeout_s 300, and the deadline of a request needs 330"):
        deployment.check_proxy(made)
    have(port=8000, request_timeout_s=400)
    with pytest.raises(ResourceError, match=r"listens on 127\.0\.0\.1:8000"):
        deployment.check_proxy(made)
    others |= {"smol": None, "smol--1": None}
    have(port=8123)
    deployment.check_proxy(made)
    others |= {"big": None, "big--1": None}
    with pytest.raises(ResourceError, match=r"serves big at / already.*name=big"):
        deployment.check_proxy(made)


def test_the_written_config_is_one_that_serve_takes(weights: Path, tmp_path: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    made = plan(weights, "http.port=8123")
    path = deployment.write_config(made, tmp_path / "serve.yaml")
    read = ServeDeploySchema(**yaml.safe_load(path.read_text()))
    assert read.http_options.port == 8123
    assert read.http_options.request_timeout_s == 330
    assert [(app.name, app.route_prefix) for app in read.applications] == [(made.policies[0].name, None), ("smol", "/")]
    for app in read.applications:
        module, _, builder = app.import_path.partition(":")
        file = Path(deployment.__file__).parents[1] / f"{module.replace('.', '/')}.py"
        assert f"def {builder}(args: dict[str, Any]" in file.read_text()


# --- keys -------------------------------------------------------------------------------------------------------------


def test_keys_are_wanted_unless_somebody_says_otherwise(tmp_path: Path) -> None:
    wanted = load_deploy([f"keys={tmp_path / 'own' / 'keys.json'}"])
    with pytest.raises(UserError, match="--new-key NAME"):
        deployment.check_keys(wanted)
    key = deployment.make_key(wanted, "me")
    deployment.check_keys(wanted)
    kept = tmp_path / "own" / "keys.json"
    assert key not in kept.read_text()
    assert kept.stat().st_mode & 0o077 == 0
    deployment.check_keys(load_deploy(["keys=null"]))
    with pytest.raises(ConfigError, match="keys is null"):
        deployment.make_key(load_deploy(["keys=null"]), "me")


def test_the_users_database_lies_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert deployment.users_url(load_deploy()) == f"sqlite:///{tmp_path}/.config/rhumbline/users.db"
    assert (tmp_path / ".config" / "rhumbline").is_dir()
    assert deployment.users_url(load_deploy(["users.url=postgresql://db/x"])) == "postgresql://db/x"
    assert deployment.users_url(load_deploy(["users.url=null"])) is None


# --- what Ray does not promise ----------------------------------------------------------------------------------------


@pytest.mark.slow  # imports vLLM
@pytest.mark.filterwarnings("ignore")
def test_what_serving_needs_of_rays_internals_is_there() -> None:
    import inspect

    from ray import serve
    from ray.llm._internal.common.callbacks.base import CallbackCtx
    from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
    from ray.serve.context import _get_global_client

    serve_internals.check_ray()

    @serve.deployment
    class Nobody:
        pass

    assert serve_internals.with_version(Nobody, "v1").version == "v1"
    assert "_check_exists" in inspect.signature(serve.get_deployment_handle).parameters
    assert "raise_if_no_controller_running" in inspect.signature(_get_global_client).parameters
    assert CallbackCtx().run_init_node is True
    parameters = inspect.signature(VLLMEngine._start_async_llm_engine).parameters
    assert list(parameters) == ["self", "vllm_engine_args", "vllm_engine_config", "placement_group"]
    counts = serve_internals.engine_class().counts
    from vllm.v1.metrics.stats import SchedulerStats

    counts.record(SchedulerStats(num_running_reqs=3, num_waiting_reqs=1, num_skipped_waiting_reqs=1), None)
    assert (counts.running, counts.waiting) == (3, 2)


def test_another_ray_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_internals.ray, "__version__", "2.70.1")
    with pytest.raises(ResourceError, match=r"from 2.60 below 2.62.*this is 2.70.1"):
        serve_internals.check_ray()
