"""The real vLLM in the test's own process, ended on purpose."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from actors.generator import Generator
from rhumbline import config


def llm(generator: Generator) -> Any:
    """vLLM's own object in a generator."""
    backend: Any = generator.backend
    return backend.llm


@contextmanager
def running(sync: str, model: Path, **engine: Any) -> Iterator[Generator]:
    """A generator on vLLM, which is over when this ends and not whenever it is collected.

    An engine that goes takes vLLM's process-wide state with it. One that is left to the collector (which a later engine's
    `gc.freeze` may delay) does so in the middle of another module's tests.
    """
    from vllm import envs

    envs.disable_envs_cache()  # an engine before this one has kept the environment as it was then
    os.environ["VLLM_CPU_CI_ENV"] = "1"  # no warm-up
    settings = config.Generator(sync=sync, engine={"max_model_len": 512, "max_num_seqs": 32, **engine})
    generator = Generator(settings, model=str(model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        generator.setup()
    try:
        yield generator
    finally:
        llm(generator).llm_engine.engine_core.shutdown()
