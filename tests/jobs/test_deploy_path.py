"""The whole path: a checkpoint of the quickstart, deployed, quizzed by a simulated person through the API, steered as it infers.

RHUMBLINE_TEST_RUN names a finished run of the quickstart; without it a small one is made here, from the shipped adapter.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from rhumbline.directions import angle_between_deg
from rhumbline.runs import read
from rhumbline.serving.served import open_served
from rhumbline.users.pool import items_from_run
from rhumbline.users.simulated import MANNERS, SimulatedUser
from tests.jobs.deploy_runs import Cluster, cluster, ready, until
from tests.jobs.dpa_runs import start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400), pytest.mark.filterwarnings("ignore")]
SMALL = [
    "prompts.limit=96",
    "prompts.evaluation=24",
    "iterations=0",  # t=0 is the shipped adapter, which steers; the run gives the quiz its scored answers
    "shard_prompts=24",
    "evaluation.angles_deg=[0,-22.5,-45]",
    "evaluation.samples=1",
    "evaluation.bootstrap=50",
    "evaluation.initial_policy=false",
    "evaluation.kl=false",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = os.environ.get("RHUMBLINE_TEST_RUN")
    if given is not None:
        assert read(Path(given)).state == "done"
        return Path(given)
    runs = tmp_path_factory.mktemp("runs")
    done = start(
        "jobs/dpa.py",
        "--recipe",
        "jobs/recipes/quickstart.yaml",
        "--runs",
        str(runs),
        "--name",
        "small",
        *SMALL,
        timeout=3000,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return runs / "small"


@pytest.fixture(scope="module")
def api(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with cluster(tmp_path_factory.mktemp("path"), cpus=2) as one:
        key = one.key("path")
        _deployed(one, run)
        with httpx.Client(base_url=one.base, headers={"Authorization": f"Bearer {key}"}, timeout=280) as http:
            yield http


def _deployed(one: Cluster, run: Path) -> None:
    done = one.deploy(str(run), "name=path", "rewards.recipe=null")  # the run's own recipe
    assert done.returncode == 0, done.stdout + done.stderr
    until(lambda: ready(one.base), "readiness")


def test_what_a_quiz_infers_steers_the_answers(run: Path, api: httpx.Client) -> None:
    served = open_served(run, check_base=False)
    wish = served.cone.grid(7)[-1]  # the end of the arc that asks for the least verbosity
    direction = _quizzed(api, run, wish)
    assert angle_between_deg(direction, wish) < 15
    told = api.get("/v1/steering/profiles/me").json()
    assert told["bound"]

    other_end = served.cone.grid(7)[0]
    opposite = dict(zip(served.names, other_end.tolist(), strict=True))
    prompts = [item.prompt[-1].content for item in items_from_run(run, per_prompt=1)][:24]
    mine, other = [], []
    for i, text in enumerate(prompts):
        asked = {"model": "path", "messages": [{"role": "user", "content": text}], "max_tokens": 96, "seed": i}
        # Of an unmodified client, whose key the profile is bound to; the same rewards for both, asked for apart.
        mine.append(_rewards(api, text, _answer(api, asked, source="profile")))
        other.append(_rewards(api, text, _answer(api, {**asked, "steering": {"weights": opposite}}, source="body")))
    change_K = np.mean(mine, axis=0) - np.mean(other, axis=0)
    verbosity = served.names.index("verbosity")
    assert change_K[verbosity] < -2, change_K  # shorter, by the run's own reward model
    # And the right way on the whole: what this person gains by the inferred direction, v . z, and somebody at the other end by
    # the other one, against the two swapped. Of policies that are best for whom they serve it is never below zero.
    gain = (np.asarray(direction) - other_end) @ (change_K / np.asarray(served.steering.calibration["std"]))
    assert gain > 0, (change_K, direction)


def _quizzed(api: httpx.Client, run: Path, wish: Any) -> tuple[float, ...]:
    """The direction that a consistent person with that wish is found to have; kept as the key's profile."""
    items = {(item.prompt[-1].content, *sorted((item.a, item.b))): item for item in items_from_run(run)}
    person = SimulatedUser(direction=tuple(wish.tolist()), manner=MANNERS["consistent"])
    rng = np.random.default_rng(0)
    state = _ok(api.post("/v1/steering/quiz", json={"seed": 7}))
    while not state["done"] and state["question"] is not None:
        question = state["question"]
        item = items[(_last(question["prompt"]), *sorted((question["a"], question["b"])))]
        difference_K = np.asarray(item.difference) * (1 if question["a"] == item.a else -1)
        choice = person.choose(difference_K.tolist(), rng)
        body = {"question": question["index"], "choice": choice}
        state = _ok(api.post(f"/v1/steering/quiz/{state['id']}/answer", json=body))
    found = state["estimate"]["direction"]
    _ok(api.post(f"/v1/steering/quiz/{state['id']}/save", json={"profile": "me", "bind": True}))
    return tuple(found.values())


def _last(prompt: Any) -> str:
    return str(prompt if isinstance(prompt, str) else prompt[-1]["content"])


def _answer(api: httpx.Client, body: dict[str, Any], source: str) -> str:
    told = _ok(api.post("/v1/chat/completions", json=body))
    assert told["steering"]["source"] == source
    return str(told["choices"][0]["message"]["content"])


def _rewards(api: httpx.Client, text: str, answer: str) -> list[float]:
    body = {"items": [{"messages": [{"role": "user", "content": text}], "response": answer or " "}]}
    rewards: list[float] = _ok(api.post("/v1/rewards", json=body))["rewards"][0]
    return rewards


def _ok(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told
