"""Settings of a deployment: defaults, a file, overrides, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from rhumbline.config.deploy import Deploy, Http, load_deploy
from rhumbline.errors import ConfigError


def test_overrides_lie_over_the_file_and_that_over_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "serving.yaml"
    path.write_text("http: {port: 8080}\npolicy: {engine: {max_model_len: 512}, replicas: 2}\n")
    found = load_deploy(["policy.engine.max_num_seqs=8", "limits.burst=3"], path)
    assert (found.http.port, found.http.host, found.policy.replicas) == (8080, "127.0.0.1", 2)
    assert found.policy.engine == {"max_model_len": 512, "max_num_seqs": 8}
    assert found.limits == {"burst": 3}
    assert found.name is None  # the run's, not the file's
    assert load_deploy(["name=mine"]).name == "mine"
    assert load_deploy() == Deploy()


def test_keys_are_on_and_only_this_machine_may_do_without() -> None:
    assert load_deploy().keys is not None
    assert load_deploy(["keys=null"]).keys is None
    with pytest.raises(ConfigError, match=r"keys is null and http\.host is 0\.0\.0\.0"):
        load_deploy(["keys=null", "http.host=0.0.0.0"])
    assert [Http(host=host).private for host in ("::1", "localhost", "127.0.0.9", "example.org", "10.0.0.1")] == [
        True,
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("http.prt=1", "unknown key http.prt. Did you mean 'port'"),
        ("http.port", "expected key.sub=value"),
        ("policy.engine={", "is not YAML"),
        ("policy.replicas=0", "policy.replicas"),
        ("update=restart", "update"),
        ("name=a b", "name"),
    ],
)
def test_faults_are_named_by_their_key(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_deploy([override])
    assert message in str(refused.value)


def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(ConfigError, match="expected a mapping"):
        load_deploy(file=tmp_path / "list.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_deploy(file=tmp_path / "none.yaml")
