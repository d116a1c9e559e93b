"""What serving takes, under which names, and what is refused before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from actors import deployment, engine_settings
from actors.deployment import Plan
from rhumbline.config.deploy import Deploy, load_deploy
from rhumbline.errors import CodecError, ConfigError, UserError
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


# --- for `serve run` --------------------------------------------------------------------------------------------------


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
    with pytest.raises(ConfigError, match=r"postgresql://me:\*\*\*@db/x.*RHUMBLINE_USERS_PASSWORD"):
        deployment.users_url(load_deploy(["users.url=postgresql://me:secret@db/x"]))
    with pytest.raises(ConfigError, match="holds a password") as refused:
        deployment.users_url(load_deploy(["users.url=postgresql://me@db/x?password=secret"]))
    assert "secret" not in str(refused.value)
    with pytest.raises(ConfigError, match=r"users\.url"):
        deployment.users_url(load_deploy(["users.url=nonsense"]))
