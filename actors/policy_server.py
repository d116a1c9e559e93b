"""The policy behind ray.serve.llm's LLMServer: vLLM in a replica, asked in plain JSON.

    app = policy_app({"model": "smol-3f2a", "folder": "runs/smol/checkpoints/t=2", "policy": {...}, "drain_s": 120})
    serve.run(app, name="smol--3f2a", route_prefix=None)

Each version of a policy is a Serve application of its own, under a name that is never used for other weights: an engine that is
asked for a model by that name can only answer with these. Requests and answers cross as dictionaries, so the ingress needs
neither vLLM nor its types.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator
from typing import Any, Literal

from pydantic import ValidationError
from ray import serve
from ray.serve.llm import LLMConfig, build_llm_deployment
from ray.serve.llm.deployment import LLMServer

from actors import serve_internals
from actors.coalesce import together
from actors.engine_client import QUIET
from actors.engine_settings import engine_settings, environment
from rhumbline.config.deploy import PolicyServing
from rhumbline.errors import CodecError, ConfigError
from rhumbline.fingerprint import fingerprint
from rhumbline.serving.protocols import UNNAMED

DEPLOYMENT = "policy"
Kind = Literal["chat", "completions"]
Body = dict[str, Any]


class Policy(LLMServer):
    """`answer` for a whole answer, `stream` for its chunks; an OpenAI error object where vLLM refuses."""

    async def __init__(  # type: ignore[misc]
        self, llm_config: LLMConfig, *, folder: str, weights: str, stream_interval_s: float
    ) -> None:
        # Serve awaits constructors, and LLMServer's is one of these.
        if (
            found := fingerprint(folder)
        ) != weights:  # a replica that starts later must not bring others under this name
            raise CodecError(
                f"{folder} holds the weights {found[:12]}, and this policy was deployed with {weights[:12]} (fingerprints): "
                "deploy again what is there now"
            )
        self.stream_interval_s = stream_interval_s
        await super().__init__(llm_config, engine_cls=serve_internals.engine_class())

    async def answer(self, kind: Kind, body: Body, request_id: str) -> Body:
        """The completion object. Cancelling it frees the request's slot."""
        request = _request(kind, self._bounded({**body, "stream": False}), request_id)
        if isinstance(request, dict):
            return request
        async for item in await getattr(self, kind)(request):
            return _plain(item)
        return _error("the engine gave no answer", 500)

    async def stream(self, kind: Kind, body: Body, request_id: str) -> AsyncIterator[list[str | Body]]:
        """Server-sent events as vLLM writes them, some at a time. A refusal is a dictionary with `error`."""
        request = _request(kind, self._bounded({**body, "stream": True}), request_id)
        if isinstance(request, dict):
            yield [request]
            return
        events = await getattr(self, kind)(request)
        async for batch in together(_flat(events), self.stream_interval_s):
            yield batch

    def _bounded(self, body: Body) -> Body:
        """vLLM refuses a bound beyond its context, also where it is not the client's."""
        most = body.pop(UNNAMED, None)
        engine: Any = self.engine
        return body if most is None else {**body, "max_tokens": min(most, engine.longest())}

    async def load(self) -> dict[str, int]:
        """{running, waiting}: of the scheduler, when it last worked; unfinished: of the front, now."""
        engine: Any = self.engine
        counts = engine.counts
        return {"running": counts.running, "waiting": counts.waiting, "unfinished": engine.unfinished()}

    async def pid(self) -> int:
        return os.getpid()


async def _flat(batches: AsyncIterator[Any]) -> AsyncIterator[str | Body]:
    async for batch in batches:
        for item in batch if isinstance(batch, list) else [batch]:
            yield item if isinstance(item, str) else _plain(item)


def _request(kind: Kind, body: Body, request_id: str) -> Any:
    """vLLM's request, or an OpenAI error that names the first field it does not take."""
    from ray.serve.llm.openai_api_models import ChatCompletionRequest, CompletionRequest

    made = ChatCompletionRequest if kind == "chat" else CompletionRequest
    # Two requests of one id would be one to the engine, and clients may send theirs twice.
    try:
        return made(**body, request_id=f"{request_id}-{uuid.uuid4().hex[:8]}")
    except ValidationError as e:
        fault = e.errors()[0]
        path = ".".join(str(part) for part in fault["loc"])
        return _error(f"{path}: {fault['msg']}" if path else str(fault["msg"]), 400, path or None)
    except ValueError as e:
        return _error(str(e), 400)


def _plain(item: Any) -> Body:
    return dict(item.model_dump(mode="json"))


def _error(message: str, status: int, param: str | None = None) -> Body:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def policy_app(args: dict[str, Any]) -> serve.Application:
    """A Serve application of one policy; what `serve run` calls. `args`: model, folder, weights (its fingerprint; None: whatever
    is there now), policy (a section), drain_s. Raises CodecError for other weights.
    """
    serve_internals.check_ray()
    policy, weights = PolicyServing(**args["policy"]), fingerprint(args["folder"])
    if args.get("weights") not in (None, weights):
        raise CodecError(f"{args['folder']} holds other weights by now than this was planned with: make the plan again")
    scaled: dict[str, Any] = {"num_replicas": policy.replicas}
    if policy.autoscaling:
        # ray.serve.llm's own default, a billion, never scales.
        scaled = {
            "autoscaling_config": {"target_ongoing_requests": policy.max_ongoing_requests / 2, **policy.autoscaling}
        }
    bundle = {"CPU": policy.num_cpus} | ({"GPU": policy.num_gpus} if policy.num_gpus else {})
    given: dict[str, Any] = {
        "model_loading_config": {"model_id": args["model"], "model_source": args["folder"]},
        "engine_kwargs": engine_settings(policy, args["folder"]),
        "accelerator_config": None if policy.num_gpus else {"kind": "cpu"},
        "placement_group_config": {"bundle_per_worker": bundle},
        "runtime_env": {"env_vars": environment(policy)},
        "experimental_configs": {
            "stream_batching_interval_ms": 0
        },  # `together` does it, and lets the first chunk through
        **policy.options,
    }
    given["deployment_config"] = {
        "ray_actor_options": {"num_cpus": 0},  # the engine's bundle has them
        "max_ongoing_requests": policy.max_ongoing_requests,
        "max_queued_requests": policy.max_queued_requests,
        "graceful_shutdown_timeout_s": args["drain_s"],
        "graceful_shutdown_wait_loop_s": 1.0,
        "health_check_timeout_s": 30.0,  # a busy CPU answers late, and is healthy
        "logging_config": QUIET,
        "max_surge_percent": 100,  # `serve deploy` with other settings starts a replica before it stops one
        **scaled,
        **policy.options.get("deployment_config", {}),
    }
    try:
        config = LLMConfig(**given)
    except ValidationError as e:
        fault = e.errors()[0]
        raise ConfigError(f"policy: {'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}") from None
    return build_llm_deployment(
        config,
        deployment_cls=Policy,
        override_serve_options={"name": DEPLOYMENT},
        bind_kwargs={
            "folder": args["folder"],
            "weights": weights,
            "stream_interval_s": policy.stream_interval(),
        },
    )
