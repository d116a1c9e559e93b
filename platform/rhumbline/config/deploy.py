"""How a policy is served: what `jobs/deploy.py` takes as key=value, every key with a default that works on one machine.

    settings = load_deploy(["policy.num_cpus=2", "policy.engine={max_model_len: 2048}", "http.port=8080"])
    settings = load_deploy(["limits.requests_per_minute=30"], file="serving.yaml")

Engine settings, autoscaling and limits pass through under their own names: vLLM, Ray Serve and `rhumbline.serving.settings`
check them.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from rhumbline.config.reading import build, merge, parsed
from rhumbline.config.sections import Section
from rhumbline.errors import ConfigError

HOME = "~/.config/rhumbline"


class Http(Section):
    """Where the cluster's proxies listen. They belong to the cluster: what runs there already keeps its own."""

    host: str = "127.0.0.1"
    port: int = Field(8000, gt=0, lt=65536)
    request_timeout_s: float | None = Field(None, gt=0)  # None: limits.deadline_s and half a minute

    @property
    def private(self) -> bool:
        """Whether nobody outside this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


class PolicyServing(Section):
    """vLLM under ray.serve.llm. `num_cpus` and `num_gpus` are of each worker of an engine, which has
    tensor_parallel_size x pipeline_parallel_size of them.
    """

    replicas: int = Field(1, gt=0)
    # Ray Serve's autoscaling_config, instead of `replicas`; its target is half of max_ongoing_requests unless it says another.
    autoscaling: dict[str, Any] = Field(default={})
    num_cpus: float = Field(0.5, gt=0)  # that Ray counts; `threads` says how many work
    num_gpus: float = Field(0.0, ge=0)  # 0: on the CPU
    threads: int | None = Field(None, gt=0)  # on the CPU; None: as many as this machine has cores
    max_ongoing_requests: int = Field(64, gt=0)  # of a replica
    max_queued_requests: int = Field(256, ge=0)  # of an ingress replica, beyond those; more are refused with 503
    # Chunks that come closer travel together; the first and the last never wait. None: 0.05, and 0.25 on the CPU, where every
    # message takes time from the engine's threads.
    stream_interval_s: float | None = Field(None, ge=0)
    engine: dict[str, Any] = Field(default={})  # vLLM's engine arguments
    env: dict[str, str] = Field(default={})  # of the replica and its engine, e.g. VLLM_CPU_KVCACHE_SPACE
    options: dict[str, Any] = Field(default={})  # other fields of ray.serve.llm.LLMConfig, e.g. accelerator_type

    def stream_interval(self) -> float:
        """Seconds."""
        if self.stream_interval_s is not None:
            return self.stream_interval_s
        return 0.05 if self.num_gpus else 0.25


class RewardServing(Section):
    """The run's reward model beside the policy: best_of, return_rewards, /v1/rewards."""

    enabled: bool = True
    recipe: str | None = None  # whose rewards; None: the run's own recipe
    replicas: int = Field(1, gt=0)
    num_cpus: float = Field(0.25, ge=0)
    num_gpus: float = Field(0.0, ge=0)
    threads: int | None = Field(None, gt=0)  # of torch; None: as torch has it
    max_batch: int = Field(16, gt=0)  # requests that are scored in one pass
    wait_s: float = Field(0.005, ge=0)  # how long the first of them waits for others


class IngressServing(Section):
    """The HTTP app. Limits per key are counted in each replica."""

    replicas: int = Field(1, gt=0)
    num_cpus: float = Field(0.1, ge=0)
    max_ongoing_requests: int = Field(512, gt=0)  # of a replica
    max_queued_requests: int = Field(512, ge=0)  # of a proxy, beyond those; it answers more with a plain 503


class Users(Section):
    """Where quizzes and profiles are kept; null: no quiz."""

    # Any SQLAlchemy URL without a password; a server's where more than one node has an ingress.
    url: str | None = f"sqlite:///{HOME}/users.db"


class Deploy(Section):
    """Of jobs/deploy.py."""

    name: str | None = Field(None, pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]*$")  # of the model; None: the run's
    http: Http = Http()
    policy: PolicyServing = PolicyServing()
    rewards: RewardServing = RewardServing()
    ingress: IngressServing = IngressServing()
    users: Users = Users()
    keys: str | None = f"{HOME}/keys.json"  # hashed API keys; null: everybody on this machine may ask
    limits: dict[str, Any] = Field(default={})  # rhumbline.serving.settings.Settings
    mixtures: int = Field(8, gt=0)  # of a soup, at most so many policies are served; a run with more is refused
    # rolling: the new version starts beside the old one, which then drains. replace: the old one stops first.
    update: Literal["rolling", "replace"] = "rolling"
    drain_s: float | None = Field(None, gt=0)  # what a stopping replica's requests are given; None: limits.deadline_s

    @model_validator(mode="after")
    def _guarded(self) -> Deploy:
        if self.keys is None and not self.http.private:
            raise ValueError(
                f"keys is null and http.host is {self.http.host}: without API keys only this machine may ask. Give keys a "
                "file, or http.host 127.0.0.1"
            )
        return self


def load_deploy(overrides: list[str] | tuple[str, ...] = (), file: str | Path | None = None) -> Deploy:
    """Defaults, then `file`, then the overrides. Raises ConfigError with the key, what was seen and a did-you-mean."""
    raw: dict[str, Any] = {}
    if file is not None:
        try:
            raw = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
            raise ConfigError(f"{file}: cannot be read as YAML: {e}") from None
        if not isinstance(raw, dict):
            raise ConfigError(f"{file}: expected a mapping of sections, found {type(raw).__name__}")
    for override in overrides:
        raw = merge(raw, parsed(override, "http.port=8080"), whole=frozenset())
    named = "name" in raw
    settings = build(Deploy, raw, str(file or "deploy"))
    # `build` names a recipe after its file; a deployment is named after its run.
    return settings if named else settings.model_copy(update={"name": None})
