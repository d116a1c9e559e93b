"""Load on a real endpoint: what benchmarks/serving.py --minutes says of two of them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.jobs.deploy_runs import free_port
from tests.jobs.dpa_runs import ROOT, environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


def test_load_brings_no_error_that_is_not_documented_and_leaves_no_slot_taken() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/serving.py", "--minutes", "2", "--port", str(free_port())],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=2000,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert "load held" in done.stdout
    assert "200 whole" in done.stdout
    assert "left on the way" in done.stdout
