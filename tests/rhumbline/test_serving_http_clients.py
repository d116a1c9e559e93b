"""Unmodified clients against a real server: the official openai package, LangChain's chat model, curl with SSE."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from langchain_openai import ChatOpenAI

from rhumbline.serving.app import create_app
from rhumbline.serving.keys import KeyRing, new_key
from rhumbline.serving.settings import Settings
from tests.rhumbline.serving_fakes import REQUEST, FakeEngine, FakeRewards, running, served

CONCISE = {"weights": {"helpfulness": 0.8, "verbosity": -0.6}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """URL and key of a server that needs one."""
    path: Path = tmp_path_factory.mktemp("keys") / "keys.json"
    key = new_key(path, "test")
    app: Any = create_app(
        served(), FakeEngine(), rewards=FakeRewards(), keys=KeyRing(path), people=None, settings=Settings()
    )
    with running(app) as url:
        yield url, key


@pytest.fixture(scope="module")
def client(server: tuple[str, str]) -> Iterator[openai.OpenAI]:
    url, key = server
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=120) as client:
        yield client


def test_openai_works_without_any_steering(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="smol", messages=REQUEST["messages"])
    assert answer.choices[0].message.content == " ".join(["word"] * 10)
    assert answer.usage is not None
    assert answer.model_extra is not None
    assert answer.model_extra["steering"]["source"] == "default"


def test_openai_steers_by_body_alias_header_and_metadata(client: openai.OpenAI) -> None:
    ways: list[dict[str, Any]] = [
        {"model": "smol", "extra_body": {"steering": CONCISE}},
        {"model": "smol@concise"},
        {"model": "smol", "extra_headers": {"X-Steering": "concise"}},
        {"model": "smol", "metadata": {"steering": "helpfulness=0.8,verbosity=-0.6"}},
    ]
    for way in ways:
        answer = client.chat.completions.create(messages=REQUEST["messages"], **way)
        assert len(str(answer.choices[0].message.content).split()) == 5
        assert answer.model == way["model"]
        assert answer.model_extra is not None
        assert answer.model_extra["steering"]["effective"] == CONCISE["weights"]
    raw = client.chat.completions.with_raw_response.create(model="smol@concise", messages=REQUEST["messages"])
    assert raw.headers["X-Steering-Effective"] == "helpfulness=0.8,verbosity=-0.6"
    assert raw.request_id


def test_openai_streams(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="smol@concise",
        messages=REQUEST["messages"],
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"steering": {"return_rewards": True}},
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices).split() == ["word"] * 5
    assert chunks[-1].usage is not None
    assert chunks[-1].model_extra is not None
    assert chunks[-1].model_extra["steering"]["rewards"]["verbosity"] == 10.0
    assert not any("steering" in (chunk.model_extra or {}) for chunk in chunks[:-1])
    prompt = client.completions.create(model="smol@concise", prompt="Why?", stream=True)
    assert "".join(chunk.choices[0].text for chunk in prompt).split() == ["word"] * 5


def test_openai_lists_models_with_their_presets(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["smol", "smol@balanced", "smol@concise"]
    assert client.models.retrieve("smol@concise").id == "smol@concise"


def test_openai_reads_every_refusal(client: openai.OpenAI, server: tuple[str, str]) -> None:
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(
            model="smol", messages=REQUEST["messages"], extra_body={"steering": {"weights": {"helpfullness": 1}}}
        )
    assert (wrong.value.param, wrong.value.code) == ("steering.weights.helpfullness", "unknown_objective")
    assert "Did you mean 'helpfulness'?" in str(wrong.value)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=REQUEST["messages"])
    with (
        openai.OpenAI(base_url=f"{server[0]}/v1", api_key="rl-wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()


def test_langchain_chats_and_streams(server: tuple[str, str]) -> None:
    url, key = server
    model = ChatOpenAI(
        model="smol@concise",
        base_url=f"{url}/v1",
        api_key=key,
        max_retries=0,
        timeout=120,  # type: ignore[arg-type]  # text is read as a secret
    )
    assert str(model.invoke("Why is the sky blue?").content).split() == ["word"] * 5
    assert "".join(str(chunk.content) for chunk in model.stream("Why?")).split() == ["word"] * 5
    steered = model.bind(extra_body={"steering": {"weights": {"helpfulness": 1.0}}})
    assert len(str(steered.invoke("Why?").content).split()) == 10


def test_curl_reads_the_stream(server: tuple[str, str]) -> None:
    url, key = server
    headers = [f"Authorization: Bearer {key}", "Content-Type: application/json", "X-Steering: concise"]
    told = [option for header in headers for option in ("-H", header)]
    body = json.dumps({**REQUEST, "stream": True})
    done = subprocess.run(
        ["curl", "-sN", "--max-time", "120", f"{url}/v1/chat/completions", *told, "-d", body],
        capture_output=True,
        text=True,
        check=True,
    )
    events = [line.removeprefix("data: ") for line in done.stdout.splitlines() if line]
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["steering"]["source"] == "header"
    assert len(events) == 6
