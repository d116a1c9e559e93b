"""What an operator sees: request ids, one line per request without text, bounded metrics, and the headers of safety."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from starlette.testclient import TestClient

from rhumbline.directions import Cone, from_angle_deg, normalise
from rhumbline.serving.app import create_app
from rhumbline.serving.exchange import Exchange
from rhumbline.serving.metrics import MAX_CODES, Metrics, bucket
from rhumbline.serving.settings import Settings
from tests.rhumbline.serving_fakes import REQUEST, FakeEngine, FakeRewards, served

CHAT = "/v1/chat/completions"
SECRET = "zanzibar"


def client_of(**settings: Any) -> TestClient:
    return TestClient(
        create_app(served(), FakeEngine(), rewards=FakeRewards(), keys=None, people=None, settings=Settings(**settings))
    )


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(record.message) for record in caplog.records if record.name == "rhumbline.serving.access"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("abc-123.X_y:z", True),
        ("a" * 64, True),
        ("a" * 65, False),
        ("a b", False),
        ("a\tb", False),
        ("-a", False),
        ('a"b', False),
        ("\u00e9", False),
        ("", False),
    ],
)
def test_a_request_id_is_kept_where_it_is_plain(given: str, kept: bool) -> None:
    answer = client_of().get("/health", headers=[(b"X-Request-Id", given.encode("latin-1"))])  # type: ignore[arg-type]  # bytes are legal
    assert (answer.headers["X-Request-Id"] == given) == kept
    assert answer.headers["X-Request-Id"]


def test_the_engine_never_sees_a_clients_request_id() -> None:
    engine = FakeEngine()
    client = TestClient(create_app(served(), engine, rewards=None, keys=None, people=None, settings=Settings()))
    for _ in range(2):
        client.post(CHAT, json=REQUEST, headers={"X-Request-Id": "same"})
    assert len(set(engine.ids)) == 2
    assert "same" not in engine.ids


def test_the_access_log_says_what_was_done_and_nobodys_words(caplog: pytest.LogCaptureFixture) -> None:
    client = client_of()
    messages = [{"role": "user", "content": SECRET}]
    with caplog.at_level(logging.DEBUG):
        client.post(CHAT, json={"model": "smol@concise", "messages": messages, "user": SECRET})
        client.post(CHAT, json={"model": "smol", "messages": messages, "stream": True})
        client.post(CHAT, json={"model": SECRET, "messages": messages})
        client.post(CHAT, json={**REQUEST, SECRET: 1})
        client.get(f"/v1/{SECRET}?{SECRET}=1", headers={"User-Agent": SECRET, "X-Request-Id": "id-1"})
        client.get(f"/v1/models/{SECRET}")
    assert SECRET not in " ".join(record.getMessage() for record in caplog.records if "httpx" not in record.name)
    first, second, third, fourth, fifth, sixth = lines(caplog)
    assert first["steering"] == {"helpfulness": 0.8, "verbosity": -0.6}
    assert (first["source"], first["status"], first["route"]) == ("alias", 200, CHAT)
    assert (first["prompt_tokens"], first["completion_tokens"]) == (10, 10)
    assert (second["status"], second["completion_tokens"]) == (200, 10)
    assert (third["status"], third["code"]) == (404, "model_not_found")
    assert (fourth["status"], fourth["code"]) == (400, "unknown_field")
    assert (fifth["route"], fifth["request_id"]) == ("unmatched", "id-1")
    assert sixth["route"] == "/v1/models/{id:path}"


def test_text_is_logged_only_where_the_settings_ask(caplog: pytest.LogCaptureFixture) -> None:
    messages = [{"role": "user", "content": SECRET}]
    client = client_of(log_text=True)
    with caplog.at_level(logging.INFO, "rhumbline.serving.access"):
        for stream in (False, True):
            client.post(CHAT, json={"model": "smol", "messages": messages, "stream": stream})
        client.post("/v1/completions", json={"model": "smol", "prompt": SECRET})
    for line in lines(caplog):
        assert SECRET in str(line["text"])
        assert line["text"]["answers"][0].split() == ["word"] * 10


def test_metrics_have_bounded_labels_and_no_words() -> None:
    client = client_of()
    client.post(CHAT, json={**REQUEST, "model": "smol@concise"})
    for i in range(5):
        client.post(CHAT, json={**REQUEST, "steering": {"weights": {"helpfulness": 1, "verbosity": -0.1 - i / 1000}}})
        client.get(f"/v1/{SECRET}{i}")
        client.get(f"/v1/models/{SECRET}{i}")
        client.request(f"BREW{i}", "/v1/models")
    client.post(CHAT, json={**REQUEST, "stream": True})
    page = client.get("/metrics").text
    assert SECRET not in page
    assert 'rhumbline_steered_requests_total{direction="preset:concise",source="alias"} 1.0' in page
    assert 'rhumbline_steered_requests_total{direction="-15..0deg",source="body"} 5.0' in page
    assert 'rhumbline_requests_total{method="GET",route="unmatched",status="404"} 5.0' in page
    assert 'rhumbline_requests_total{method="GET",route="/v1/models/{id:path}",status="404"} 5.0' in page
    assert 'rhumbline_requests_total{method="other",route="/v1/models",status="405"} 5.0' in page
    assert 'rhumbline_refused_requests_total{code="model_not_found"} 5.0' in page
    assert 'rhumbline_tokens_total{kind="completion"} 70.0' in page
    assert "rhumbline_steering_seconds_count 7.0" in page
    assert "rhumbline_first_chunk_seconds_count 1.0" in page
    assert "rhumbline_requests_in_flight 1.0" in page  # this one


def test_what_an_engine_calls_its_refusals_cannot_fill_the_metrics() -> None:
    metrics = Metrics("smol")
    for i in range(200):
        code = "x" * (i % 40 + 1) + "y" * (i // 40)
        metrics.observe(Exchange(request_id="a", code=code), method="GET", route="/", status=400)
    page = metrics.page().decode()
    assert page.count("rhumbline_refused_requests_total{") <= MAX_CODES + 1
    assert 'code="other"' in page


def test_two_apps_in_one_process_count_apart() -> None:
    one, other = client_of(), client_of()
    one.get("/v1/models")
    assert "/v1/models" not in other.get("/metrics").text


@pytest.mark.parametrize(
    ("degrees", "label"), [(0.0, "0..15deg"), (-0.5, "-15..0deg"), (-45.0, "-45..-30deg"), (44.9, "30..45deg")]
)
def test_buckets_of_two_objectives_are_angles(degrees: float, label: str) -> None:
    cone = Cone(("a", "b"), (1.0, 0.0), 45.0)
    assert bucket(from_angle_deg(degrees), cone) == label


def test_buckets_of_more_are_angles_off_the_axis() -> None:
    cone = Cone(("a", "b", "c"), (1.0, 0.0, 0.0), 45.0)
    assert bucket((1.0, 0.0, 0.0), cone) == "0..15deg_off_axis"
    assert bucket(normalise((1.0, 0.0, 0.5)), cone) == "15..30deg_off_axis"


def test_every_answer_carries_the_headers_of_safety() -> None:
    client = client_of()
    for path in ("/health", "/v1/models", "/nothing", CHAT, "/docs", "/openapi.json"):
        headers = client.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "no-referrer"
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "access-control-allow-origin" not in headers
    assert client.get("/v1/models").headers["Cache-Control"] == "no-store"


def test_other_pages_may_call_only_where_the_settings_name_them() -> None:
    asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    assert client_of().options(CHAT, headers=asked).status_code == 405
    client = client_of(cors_origins=("https://a.example",))
    allowed = client.options(CHAT, headers=asked)
    assert allowed.headers["access-control-allow-origin"] == "https://a.example"
    assert "access-control-allow-origin" not in client.get("/health", headers={"Origin": "https://b.example"}).headers
    assert "access-control-allow-credentials" not in allowed.headers
