"""jobs/deploy.py for real: Ray Serve, vLLM and the embedded model, asked by OpenAI's client; kills, and an update under load."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import openai
import pytest

from tests.jobs.deploy_runs import Cluster, call, cluster, policies, ready, until
from tests.jobs.dpa_runs import ROOT, environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("ignore"),  # Ray, vLLM and sockets of processes that are killed
]
NAME = "m"
ASKED: list[Any] = [{"role": "user", "content": "Why is the sky blue?"}]


@dataclass(frozen=True)
class Served:
    cluster: Cluster
    key: str

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.cluster.base}/v1", api_key=self.key, max_retries=0, timeout=280, http_client=None
        )

    @property
    def policy(self) -> str:
        (one,) = policies(NAME)
        return one

    def load(self) -> dict[str, int]:
        told: dict[str, int] = call(self.policy, "policy", "load")
        return told

    def whole(self, **more: Any) -> Any:
        body = {"max_tokens": 8, "temperature": 0, **more}
        return self.client.chat.completions.create(model=NAME, messages=ASKED, **body)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("serve")
    with cluster(folder, cpus=3) as one:
        refused = one.deploy("embedded", f"name={NAME}")
        assert refused.returncode == 2
        assert "--new-key NAME" in refused.stderr
        key = one.key()
        done = one.deploy("embedded", f"name={NAME}")
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"serving {NAME} at {one.base}/v1" in done.stdout
        until(lambda: ready(one.base), "readiness")
        yield Served(one, key)


# --- what clients see -------------------------------------------------------------------------------------------------


def test_openais_client_chats_streams_and_steers(served: Served) -> None:
    steering = {"weights": {"helpfulness": 0.8, "verbosity": -0.6}, "return_rewards": True}
    whole = served.whole(extra_body={"steering": steering})
    assert whole.choices[0].message.content
    assert whole.model == NAME  # not the name of a version
    told = whole.model_extra["steering"]
    assert told["source"] == "body"
    assert set(told["rewards"]) == {"helpfulness", "verbosity"}
    chunks = list(
        served.client.chat.completions.create(
            model=f"{NAME}@concise",
            messages=ASKED,
            max_tokens=12,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert chunks[-1].usage.completion_tokens == 12
    assert chunks[-1].model_extra["steering"]["source"] == "alias"
    assert f"{NAME}@concise" in [card.id for card in served.client.models.list()]
    text = served.client.completions.create(model=NAME, prompt="Once upon a time", max_tokens=5)
    assert text.choices[0].text


def test_a_request_that_names_no_bound_is_answered_within_the_servers(served: Served) -> None:
    # The settings allow 4096 tokens, the engine's context has 512: the bound that nobody asked for is not refused.
    whole = served.client.chat.completions.create(
        model=NAME, messages=ASKED, temperature=0, extra_body={"ignore_eos": True}
    )
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.total_tokens == 512
    text = served.client.completions.create(
        model=NAME, prompt="Once upon a time", temperature=0, extra_body={"ignore_eos": True}
    )
    assert text.usage.completion_tokens == 16


def test_the_same_seed_gives_the_same_answer(served: Served) -> None:
    texts = [served.whole(seed=5, temperature=1.0).choices[0].message.content for _ in range(2)]
    assert texts[0] == texts[1]


def test_rewards_are_those_of_the_reward_model(served: Served) -> None:
    body = {"items": [{"messages": ASKED, "response": "Light."}, {"messages": ASKED, "response": "Light " * 60}]}
    told = httpx.post(f"{served.cluster.base}/v1/rewards", json=body, headers=_key(served), timeout=240).json()
    assert told["objectives"] == ["helpfulness", "verbosity"]
    (_, short), (_, long) = told["rewards"]
    assert long > short


def test_refusals_have_openais_shape(served: Served) -> None:
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{served.cluster.base}/v1", api_key="rl-no", max_retries=0).models.list()
    with pytest.raises(openai.BadRequestError) as unknown:
        served.whole(extra_body={"steering": {"weights": {"helpfullness": 1.0}}})
    assert unknown.value.param == "steering.weights.helpfullness"
    with pytest.raises(openai.BadRequestError, match=r"(?i)context|max_tokens|length"):
        served.whole(max_tokens=2000)  # the engine's own words


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(served: Served, stream: bool) -> None:
    body = {
        "model": NAME,
        "messages": ASKED,
        "max_tokens": 450,
        "ignore_eos": True,
        "stream": stream,
    }
    before = served.load()["unfinished"]
    with httpx.Client(timeout=280, headers=_key(served)) as http:
        request = http.build_request("POST", f"{served.cluster.base}/v1/chat/completions", json=body)
        if stream:
            answer = http.send(request, stream=True)
            assert answer.status_code == 200, answer.read()
            lines = answer.iter_lines()  # kept: the connection closes with it
            assert next(lines).startswith("data: ")
            assert served.load()["unfinished"] == before + 1
            answer.close()
        else:
            request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), 3.0)
            with pytest.raises(httpx.ReadTimeout):
                http.send(request)
    until(lambda: served.load()["unfinished"] == before, "the slot", timeout=120)
    served.whole()
    until(lambda: not served.load()["running"], "an idle scheduler", timeout=120)
    assert served.load()["waiting"] == 0


def _key(served: Served) -> dict[str, str]:
    return {"Authorization": f"Bearer {served.key}"}


# --- what happens to a server -----------------------------------------------------------------------------------------


class Told(NamedTuple):
    """One request of `Traffic`."""

    began: float  # time.monotonic()
    ended: float
    outcome: str


@dataclass
class Traffic:
    """Streams of requests from threads, each asked again as soon as it is answered; every outcome is kept."""

    served: Served
    clients: int = 3
    answers: list[Told] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Traffic:
        self._threads = [threading.Thread(target=self._ask) for _ in range(self.clients)]
        for thread in self._threads:
            thread.start()
        until(lambda: self.count("ok") >= self.clients, "first answers")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(300)

    def count(self, what: str) -> int:
        return sum(one.outcome == what for one in list(self.answers))

    def failures(self) -> list[Told]:
        return [one for one in list(self.answers) if one.outcome != "ok"]

    def answered(self, after: float) -> bool:
        """Whether a request that began after that time was answered."""
        return any(one.began > after and one.outcome == "ok" for one in list(self.answers))

    def _ask(self) -> None:
        with httpx.Client(timeout=290, headers=_key(self.served)) as http:
            while not self._stop.is_set():
                began = time.monotonic()
                outcome = self._one(http)
                self.answers.append(Told(began, time.monotonic(), outcome))
                if outcome != "ok":
                    self._stop.wait(1.0)

    def _one(self, http: httpx.Client) -> str:
        body = {
            "model": NAME,
            "messages": ASKED,
            "max_tokens": 48,
            "temperature": 1.0,
            "ignore_eos": True,
            "stream": True,
        }
        text = ""
        try:
            with http.stream("POST", f"{self.served.cluster.base}/v1/chat/completions", json=body) as answer:
                text = answer.read().decode()
                if answer.status_code != 200:
                    kind = "retryable" if answer.status_code == 503 else "wrong"
                    return f"{kind} {answer.status_code}"
        except httpx.TransportError as e:
            return f"cut {type(e).__name__}"
        events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        errors = [event["error"] for event in events if "error" in event]
        if errors:
            return "retryable in stream" if errors[0]["code"] == "replica_died" else f"wrong {errors[0]}"
        return "ok" if text.rstrip().endswith("data: [DONE]") else "cut without an end"


def test_a_killed_policy_fails_its_own_requests_alone_and_comes_back(served: Served) -> None:
    with Traffic(served) as traffic:
        os.kill(call(served.policy, "policy", "pid"), signal.SIGKILL)
        killed = time.monotonic()
        until(lambda: traffic.failures(), "the requests under way to fail")
        until(lambda: traffic.answered(after=killed), "answers from the next replica")
    assert all(one.outcome.startswith("retryable") for one in traffic.failures()), traffic.failures()
    assert served.whole().choices[0].message.content


def test_a_killed_ingress_is_replaced(served: Served) -> None:
    with Traffic(served) as traffic:
        os.kill(call(NAME, "ingress", "pid"), signal.SIGKILL)
        killed = time.monotonic()
        until(lambda: traffic.answered(after=killed), "answers through the next ingress")
        back = min(one.began for one in traffic.answers if one.began > killed and one.outcome == "ok")
        more = traffic.count("ok") + 6
        until(lambda: traffic.count("ok") >= more, "answers that follow")
    # What Serve's proxy says is its own: a 5xx as plain text, or a cut stream; docs/serving.md names them.
    assert all(one.outcome.startswith(("retryable", "cut", "wrong 5")) for one in traffic.failures()), (
        traffic.failures()
    )
    assert all(killed < one.ended and one.began < back for one in traffic.failures()), (
        killed,
        back,
        traffic.failures(),
    )
    assert served.whole().choices[0].message.content


def test_an_update_fails_no_request_and_keeps_the_ingress(served: Served) -> None:
    before, ingress = served.policy, call(NAME, "ingress", "pid")
    with Traffic(served) as traffic:
        done = served.cluster.deploy("embedded", f"name={NAME}", "policy.engine.max_model_len=500")
        assert done.returncode == 0, done.stdout + done.stderr
        answered = traffic.count("ok")
        until(lambda: traffic.count("ok") > answered + 3, "answers from the new version")
    assert not traffic.failures()
    assert served.policy != before
    assert call(NAME, "ingress", "pid") == ingress
    with pytest.raises(openai.BadRequestError, match="500"):
        served.whole(max_tokens=505)


def test_an_update_without_room_for_two_is_refused_and_changes_nothing(served: Served) -> None:
    before = served.policy
    done = served.cluster.deploy("embedded", f"name={NAME}", "policy.engine.max_model_len=480", "policy.num_cpus=2.5")
    assert done.returncode == 2
    assert "room for both versions at once" in done.stderr
    assert served.policy == before
    assert served.whole().choices[0].message.content


def test_of_two_replicas_one_dies_with_its_requests_and_the_other_answers(served: Served) -> None:
    done = served.cluster.deploy("embedded", f"name={NAME}", "policy.replicas=2", "update=replace")
    assert done.returncode == 0, done.stdout + done.stderr
    with Traffic(served, clients=6) as traffic:
        os.kill(call(served.policy, "policy", "pid"), signal.SIGKILL)
        killed = time.monotonic()
        until(traffic.failures, "the requests of the dead replica to fail")
        until(lambda: traffic.answered(after=killed + 2), "answers of the other replica")
        again = time.monotonic()
    under_way = [one for one in traffic.answers if one.began < killed < one.ended]
    failures = traffic.failures()
    assert again - killed < 40, "a new replica, not the other one, may have answered"
    assert all(one.outcome.startswith("retryable") for one in failures), failures
    assert all(one in under_way for one in failures), (killed, failures)  # no request that began later
    assert any(one.outcome == "ok" for one in under_way), under_way


# --- the command line -------------------------------------------------------------------------------------------------


def test_a_dry_run_shows_what_it_takes_and_starts_nothing(tmp_path: Path) -> None:
    done = _job("embedded", "--dry-run", "rewards.recipe=smol", "http.port=8129", f"keys={tmp_path}/none.json")
    assert done.returncode == 0, done.stderr
    assert "policy" in done.stdout
    assert "0.85" in done.stdout
    assert "http://127.0.0.1:8129" in done.stdout


def test_a_checkpoint_that_does_not_match_is_refused(tmp_path: Path) -> None:
    import shutil

    from rhumbline.learning.embedded import adapter

    folder = tmp_path / "mine"
    shutil.copytree(adapter(), folder)
    contract = json.loads((folder / "steering.json").read_text())
    contract["reward_model"] = "f00"
    (folder / "steering.json").write_text(json.dumps(contract))
    done = _job(str(folder), "--dry-run", "rewards.recipe=smol")
    assert done.returncode == 2
    assert "f00" in done.stderr
    contract["codec"]["version"] = "signs/0"
    (folder / "steering.json").write_text(json.dumps(contract))
    done = _job(str(folder), "--dry-run", "rewards.enabled=false")
    assert done.returncode == 2
    assert "signs/0" in done.stderr


def _job(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "jobs/deploy.py", *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
