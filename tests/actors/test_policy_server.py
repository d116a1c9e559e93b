"""What a policy's application is made with: replicas that scale, and the weights that it was planned with."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rhumbline.config.deploy import PolicyServing
from rhumbline.errors import CodecError
from rhumbline.fingerprint import fingerprint
from tests.fakes import tiny_policy

pytestmark = [
    pytest.mark.slow,  # imports vLLM
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("cluster"),  # else ray.serve.llm starts one when it builds a deployment
]


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Warnings about half-made replicas come when they are collected: here they are ignored, in the next test an error."""
    yield
    gc.collect()


def made(folder: Path, weights: str | None = None, **policy: Any) -> Any:
    """Serve's deployment of a policy."""
    from actors.policy_server import policy_app

    section = PolicyServing(**policy).model_dump(mode="json")
    args = {"model": "smol-1", "folder": str(folder), "weights": weights, "policy": section, "drain_s": 10}
    return policy_app(args)._bound_deployment


def test_autoscaling_has_a_target_that_is_reached(tmp_path: Path) -> None:
    folder = tiny_policy(tmp_path / "policy")
    bounds = {"min_replicas": 1, "max_replicas": 4}
    scaled = made(folder, autoscaling=bounds, max_ongoing_requests=20)._deployment_config.autoscaling_config
    assert (scaled.min_replicas, scaled.max_replicas, scaled.target_ongoing_requests) == (1, 4, 10)
    wanted = made(folder, autoscaling={**bounds, "target_ongoing_requests": 3})._deployment_config.autoscaling_config
    assert wanted.target_ongoing_requests == 3
    fixed = made(folder, replicas=2)._deployment_config
    assert (fixed.num_replicas, fixed.autoscaling_config) == (2, None)


def test_a_replica_serves_the_weights_that_it_was_planned_with(tmp_path: Path) -> None:
    from actors.policy_server import Policy

    folder, other = tiny_policy(tmp_path / "policy"), tiny_policy(tmp_path / "other", seed=1)
    planned = fingerprint(folder)
    assert made(folder, planned).init_kwargs["weights"] == planned
    with pytest.raises(CodecError, match="other weights by now"):
        made(other, planned)
    none: Any = None
    with pytest.raises(CodecError, match="was deployed with"):  # made anew in its place since
        asyncio.run(Policy.__init__(object.__new__(Policy), none, folder=str(other), weights=planned))
