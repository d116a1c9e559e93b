"""A run of soups on Ray Serve: an engine per mixture, and every request goes to the one that its direction is nearest to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from actors.deployment import plan_of
from rhumbline.config.deploy import load_deploy
from rhumbline.learning.embedded import adapter
from rhumbline.learning.policy import merge_adapter, resolve
from rhumbline.serving.served import open_served
from tests.jobs.deploy_runs import QUICK, Cluster, cluster, ready, until
from tests.jobs.dpa_runs import ROOT, environment
from tests.rhumbline.served_runs import soup_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600), pytest.mark.filterwarnings("ignore")]
ASKED = [{"role": "user", "content": "Why is the sky blue?"}]
ANSWER = {"max_tokens": 12, "temperature": 0, "stream": False}
ASK = """
import json, sys
import ray
from ray import serve
ray.init(address="auto", namespace="rhumbline", log_to_driver=False)
handle = serve.get_deployment_handle("policy", sys.argv[1])
print(json.dumps(handle.answer.remote("chat", json.loads(sys.argv[2]), "test").result(timeout_s=240)))
"""
OWN = ["rewards.recipe=null", "rewards.enabled=false", "policy.threads=1"]


def test_a_direction_is_answered_by_the_nearest_mixture(tmp_path: Path) -> None:
    base = resolve("embedded")
    steered = merge_adapter(base, adapter(), tmp_path / "steered")
    run = soup_run(tmp_path, [base, steered])  # shares 1 and 0, then a half each: the directions (1, 0) and (1, -1)
    with cluster(tmp_path, cpus=3) as one:
        key = one.key()
        done = one.deploy(str(run), *OWN)
        assert done.returncode == 0, done.stdout + done.stderr
        until(lambda: ready(one.base), "readiness")
        engines = plan_of(open_served(run), load_deploy([*QUICK, *OWN, f"http.port={one.port}"])).setting["engines"]
        assert sorted(engines) == ["mine-mix-1", "mine-mix-2"]
        first, second = (_of_engine(one, *engines[name]) for name in sorted(engines))
        assert first != second
        with httpx.Client(base_url=one.base, headers={"Authorization": f"Bearer {key}"}, timeout=280) as http:
            told = {v: _answer(http, v) for v in (0.0, -0.1, -0.9, -1.0)}
        assert [text for text, _ in told.values()] == [first, first, second, second]
        effective = [steering["effective"]["verbosity"] for _, steering in told.values()]
        assert effective == pytest.approx([0, 0, -(0.5**0.5), -(0.5**0.5)], abs=1e-3)


def _of_engine(one: Cluster, app: str, model: str) -> str:
    """What an engine says when it is asked by itself, from a process whose Serve was never connected to another cluster."""
    body = {"model": model, "messages": ASKED, **ANSWER}
    done = subprocess.run(
        [sys.executable, "-c", ASK, app, json.dumps(body)],
        cwd=ROOT,
        env={**environment(), "RAY_ADDRESS": one.address},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    return str(answer["choices"][0]["message"]["content"])


def _answer(http: httpx.Client, verbosity: float) -> tuple[str, dict[str, Any]]:
    steering = {"weights": {"helpfulness": 1.0, "verbosity": verbosity}}
    answer = http.post(
        "/v1/chat/completions", json={"model": "mine", "messages": ASKED, "steering": steering, **ANSWER}
    )
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return str(body["choices"][0]["message"]["content"]), body["steering"]
