"""What a policy's engine is started with: vLLM's arguments and environment, those that were asked for over what a CPU needs.

engine_settings(settings.policy, "runs/smol/checkpoints/t=2")      # {"dtype": "bfloat16", "max_model_len": 2048, ...}
environment(settings.policy)                                       # {"OMP_NUM_THREADS": "2", ...}
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

from rhumbline.config.deploy import PolicyServing
from rhumbline.errors import ConfigError, did_you_mean
from rhumbline.learning.precision import AUTO, name_of

LONGEST = 4096  # tokens of prompt and answer on a CPU, where nobody says otherwise


def engine_settings(policy: PolicyServing, folder: str) -> dict[str, Any]:
    """vLLM's engine arguments: those that were asked for, over what a CPU needs. Raises ConfigError for an unknown one."""
    if policy.engine:
        known = _known()
        for key in policy.engine.keys() - known:
            raise ConfigError(f"policy.engine.{key}: vLLM has no such setting.{did_you_mean(key, known)}")
    # GPUs are of other nodes, maybe; CPUs are taken to be like this one.
    engine: dict[str, Any] = {"dtype": "bfloat16" if policy.num_gpus else name_of(AUTO), **policy.engine}
    if policy.num_gpus == 0:
        model = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        engine.setdefault("max_model_len", min(int(model.get("max_position_embeddings", LONGEST)), LONGEST))
        # Seeds of requests crash vLLM's CPU engine where a prompt is chunked: the batch must hold the longest one.
        engine.setdefault("enable_chunked_prefill", False)
        engine.setdefault("max_num_batched_tokens", max(2048, int(engine["max_model_len"])))
        engine.setdefault("max_num_seqs", 64)
    return engine


def _known() -> set[str]:
    """Names of vLLM's engine arguments. Seconds: all of vLLM comes with them, and tells what it finds out on the way."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from vllm.engine.arg_utils import AsyncEngineArgs
    finally:
        logging.disable(logging.NOTSET)
    return {field.name for field in fields(AsyncEngineArgs)} - {"model", "served_model_name"}


def environment(policy: PolicyServing) -> dict[str, str]:
    """Of a replica and the processes that its engine starts."""
    base = {"VLLM_LOGGING_LEVEL": "WARNING"}
    if policy.num_gpus == 0:
        threads = policy.threads or os.cpu_count() or 1
        base |= {
            "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; without it vLLM takes most of the memory
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(threads),  # Ray sets it from num_cpus
        }
    return {**base, **policy.env}


def workers(policy: PolicyServing) -> int:
    """Of an engine."""
    return int(policy.engine.get("tensor_parallel_size", 1)) * int(policy.engine.get("pipeline_parallel_size", 1))
