"""What serving needs of Ray and vLLM that they do not offer as their public interface, in one place and for one version.

Each piece says what it is for and what is lost without it, so that whoever raises the pins knows what to look at:
`tests/actors/test_serve_internals.py` fails where one has moved.
"""

from __future__ import annotations

from typing import Any

import ray
from packaging.version import Version

from rhumbline.errors import ResourceError

RAY = ("2.60", "2.62")  # from, below: what this was read and tested against
# Of Serve's controller, from which proxies and replicas have theirs: what Ray documents for high throughput (guides of KubeRay).
# Requests and chunks go from process to process by gRPC and not as Ray's objects, and a replica has one event loop instead of
# three: on two cores that is a quarter of all tokens (docs/decisions.md). Without it everything works, slower. The proxies need a
# word of their own: Ray 2.60 decides about them before it reads what the first variable implies (serve/_private/constants.py).
# Direct ingress would take the proxies away, and with them an ingress that is replaced unnoticed.
# The controller looks around twice a second and not ten times.
DATA_PLANE = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_PROXY_USE_GRPC": "1",
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
}


def check_ray() -> None:
    """Raises ResourceError for a Ray whose internals nobody has looked at."""
    low, high = (Version(bound) for bound in RAY)
    if not low <= Version(ray.__version__) < high:
        raise ResourceError(
            f"serving needs Ray from {low} below {high}, which its use of Ray's internals was tested with; this is "
            f"{ray.__version__}. Install `ray[serve]>={low},<{high}`"
        )


def with_version(deployment: Any, version: str) -> Any:
    """A Serve deployment under a version of its own.

    Serve draws a random version for every `serve.run`, and replaces replicas whose version has changed. One that stays the same
    is only reconfigured: that keeps HTTP replicas through an update, and the policy through a change of limits.
    """
    return deployment.options(version=version, _internal=True)


def handle_of(deployment: str, app: str) -> Any:
    """A handle of a deployment that may not be there yet: requests wait for it. With `serve run FILE` all applications start at
    once, and Serve's public function would let the ingress fail for good where the policy is a second later.
    """
    from ray import serve

    return serve.get_deployment_handle(deployment, app, _check_exists=False)


def http_options() -> Any | None:
    """The options of the proxies that run, `ray.serve.config.HTTPOptions`; None where Serve does not run yet."""
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    return None if client is None else client.http_config


def routes() -> dict[str, str]:
    """Serve's applications that a proxy leads to -> their route prefix; those that only handles reach are left out."""
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return {}
    found: dict[str, dict[str, Any]] = client.get_serve_details()["applications"]
    return {name: str(app["route_prefix"]) for name, app in found.items() if app.get("route_prefix")}


def begin(app: Any, name: str, route_prefix: str | None) -> None:
    """`serve.run` without the wait, which has no end: a replica that finds no room would hold a roll-out for ever."""
    from ray.serve.api import _run

    _run(app, _blocking=False, name=name, route_prefix=route_prefix)


def replicas(deployment: str, app: str) -> dict[str, set[str]]:
    """Ids of a deployment's replicas by their state; RUNNING and STOPPING are always there."""
    from ray.serve.context import _get_global_client

    found: dict[str, set[str]] = {"RUNNING": set(), "STOPPING": set()}
    client = _get_global_client(raise_if_no_controller_running=False)
    details = {} if client is None else client.get_serve_details()["applications"].get(app, {})
    for one in details.get("deployments", {}).get(deployment, {}).get("replicas", []):
        found.setdefault(str(getattr(one["state"], "value", one["state"])), set()).add(one["replica_id"])
    return found


class Counts:
    """A stat logger of vLLM that keeps the scheduler's last figures, for whoever asks a replica how busy its engine is.

    vLLM's other loggers write to Prometheus alone, where a replica cannot read its own.
    """

    def __init__(self) -> None:
        self.running, self.waiting = 0, 0

    def record(self, scheduler_stats: Any, *_args: Any, **_kwargs: Any) -> None:
        if scheduler_stats is not None:
            self.running = int(scheduler_stats.num_running_reqs)
            self.waiting = int(scheduler_stats.num_waiting_reqs) + int(scheduler_stats.num_skipped_waiting_reqs)

    def log(self) -> None: ...
    def log_engine_initialized(self) -> None: ...
    def record_sleep_state(self, *_args: Any, **_kwargs: Any) -> None: ...
    def record_admission_rejection(self, *_args: Any, **_kwargs: Any) -> None: ...


def engine_class() -> type[Any]:
    """ray.serve.llm's vLLM engine, with `counts`, and without a process between the scheduler and its one worker on a CPU.

    ray.serve.llm asks for vLLM's multi-process executor on CPUs whatever there is to distribute, and so does vLLM itself unless
    VLLM_ENABLE_V1_MULTIPROCESSING is 0. With a single worker that is one process more, which wakes for every token.
    """
    from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine

    class CountingEngine(VLLMEngine):
        counts = Counts()

        async def start(self) -> None:
            # The weights are a folder: there is nothing to download, and the task for it would import vLLM once more.
            config: Any = self.llm_config
            config.get_or_create_callback().ctx.run_init_node = False
            await super().start()

        def _start_async_llm_engine(self, vllm_engine_args: Any, vllm_engine_config: Any, placement_group: Any) -> Any:
            parallel = vllm_engine_config.parallel_config
            if parallel.world_size == 1 and parallel.distributed_executor_backend == "mp":
                parallel.distributed_executor_backend = "uni"
            client: Any = super()._start_async_llm_engine(vllm_engine_args, vllm_engine_config, placement_group)
            if client.logger_manager is not None:
                client.logger_manager.stat_loggers.append(self.counts)
            return client

        def unfinished(self) -> int:
            """Requests that the front of the engine knows of."""
            client: Any = self._engine_client
            return int(client.output_processor.get_num_unfinished_requests())

        def longest(self) -> int:
            """Tokens of a prompt and its answer together."""
            client: Any = self._engine_client
            return int(client.model_config.max_model_len)

    return CountingEngine
