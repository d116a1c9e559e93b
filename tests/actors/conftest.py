"""One small Ray cluster for all tests of actors: starting one takes seconds."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # Ray leaves a token in the home folder otherwise
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, namespace="tests")
    yield
    ray.shutdown()
