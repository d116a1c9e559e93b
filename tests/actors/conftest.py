"""What tests of actors share: one small Ray cluster, because starting one takes seconds, and a search that needs none."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from rhumbline.config import SweepRecipe


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


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepRecipe:
    """The search of trial_fakes.py in the working folder, on a cluster of one node."""
    from actors import search
    from tests.actors import trial_fakes

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search, "nodes", lambda: [{"CPU": 4.0}])
    return trial_fakes.written(tmp_path)
