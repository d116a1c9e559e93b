"""What serving needs of Ray and vLLM that nobody promises is there, and a version that nobody has looked at is refused."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from actors import serve_internals
from rhumbline.errors import ResourceError


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


def test_every_hop_of_a_request_is_grpc() -> None:
    """Ray reads these once, when it is imported, and one of them before another that implies it."""
    names = ("RAY_SERVE_USE_GRPC_BY_DEFAULT", "RAY_SERVE_PROXY_USE_GRPC", "RAY_SERVE_ENABLE_DIRECT_INGRESS")
    ask = f"from ray.serve._private import constants as c; print([getattr(c, name) for name in {names}])"
    told = subprocess.run(
        [sys.executable, "-c", ask],
        env={**os.environ, **serve_internals.DATA_PLANE},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == "[True, True, False]"


def test_another_ray_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_internals.ray, "__version__", "2.70.1")
    with pytest.raises(ResourceError, match=r"from 2.60 below 2.62.*this is 2.70.1"):
        serve_internals.check_ray()
