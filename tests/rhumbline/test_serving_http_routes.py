"""The routes besides completions: models, steering, rewards, quiz and profiles, health, pages and the OpenAPI description."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from rhumbline.directions import angle_between_deg, from_angle_deg
from rhumbline.serving.app import create_app
from rhumbline.serving.evidence import Achieved
from rhumbline.serving.keys import KeyRing, new_key
from rhumbline.serving.protocols import EngineError
from rhumbline.serving.served import Served
from rhumbline.serving.settings import Settings
from rhumbline.users.pool import QuizItem
from rhumbline.users.store import People
from tests.rhumbline.chat_fakes import CHATML, byte_tokenizer
from tests.rhumbline.serving_fakes import NAMES, REQUEST, FakeEngine, FakeRewards, questions, served
from tests.rhumbline.steering_fakes import served_3

MESSAGES = REQUEST["messages"]


@pytest.fixture(scope="module")
def steady() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def engine(steady: FakeEngine) -> FakeEngine:
    steady.requests.clear()
    steady.fails, steady.up = None, True
    return steady


@pytest.fixture(scope="module")
def whole(steady: FakeEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with People(f"sqlite:///{tmp_path_factory.mktemp('people')}/people.sqlite") as people:
        yield TestClient(
            create_app(
                served(),
                steady,
                rewards=FakeRewards(),
                keys=None,
                people=people,
                settings=Settings(burst=1000),
                questions=questions(),
            )
        )


@pytest.fixture
def client(whole: TestClient, engine: FakeEngine) -> TestClient:
    return whole


@pytest.fixture(scope="module")
def bare(steady: FakeEngine) -> TestClient:
    """No reward model, no people."""
    return TestClient(create_app(served(), steady, rewards=None, keys=None, people=None, settings=Settings()))


# --- what there is ----------------------------------------------------------------------------------------------------


def test_models_lists_the_base_and_its_presets(client: TestClient) -> None:
    body = client.get("/v1/models").json()
    assert [card["id"] for card in body["data"]] == ["smol", "smol@balanced", "smol@concise"]
    card = client.get("/v1/models/smol@concise").json()
    assert card["parent"] == "smol"
    assert card["metadata"]["preset"] == {"helpfulness": 0.8, "verbosity": -0.6}
    assert (card["owned_by"], card["metadata"]["range"]) == ("local", {})
    assert client.get("/v1/models/smol@helpfulness=0.8,verbosity=-0.6").status_code == 200
    missing = client.get("/v1/models/smoll")
    assert missing.status_code == 404
    assert "Did you mean 'smol'?" in missing.json()["error"]["message"]


def test_a_model_card_has_the_usual_scores(engine: FakeEngine) -> None:
    model = served(ranges={"helpfulness": (40.0, 50.0, 60.0), "verbosity": (20.0, 30.0, 45.0)})
    app = create_app(model, engine, rewards=None, keys=None, people=None, settings=Settings())
    card = TestClient(app).get("/v1/models/smol").json()
    assert card["metadata"]["range"] == {"helpfulness": [40.0, 50.0, 60.0], "verbosity": [20.0, 30.0, 45.0]}


def test_a_model_whose_name_has_a_slash_is_found(engine: FakeEngine) -> None:
    client = TestClient(
        create_app(served("org/smol"), engine, rewards=None, keys=None, people=None, settings=Settings())
    )
    assert client.get("/v1/models/org/smol").json()["id"] == "org/smol"


def test_objectives_and_presets_say_what_can_be_asked(client: TestClient, bare: TestClient) -> None:
    body = client.get("/v1/steering/objectives").json()
    assert body["model"] == "smol"
    assert [one["name"] for one in body["objectives"]] == list(NAMES)
    assert [one["sign"] for one in body["objectives"]] == [1, -1]
    assert body["region"] == {"axis": {"helpfulness": 1.0, "verbosity": 0.0}, "half_angle_deg": 45.0}
    assert body["default"] == {"helpfulness": 1.0, "verbosity": 0.0}
    assert (body["mechanism"], body["method"], body["template_version"]) == ("prompt", "dpa", "dpa-int100/1")
    assert body["effect"]["proven"] is False
    assert (body["rewards"], body["quiz"]) == (True, True)
    assert (body["front"], body["evaluated"]) == ([], [])
    without = bare.get("/v1/steering/objectives").json()
    assert (without["rewards"], without["quiz"]) == (False, False)
    presets = client.get("/v1/steering/presets").json()["presets"]
    assert presets[1] == {
        "name": "concise",
        "weights": {"helpfulness": 0.8, "verbosity": -0.6},
        "effective": {"helpfulness": 0.8, "verbosity": -0.6},
    }


def test_health_and_readiness_are_two_things(client: TestClient, engine: FakeEngine) -> None:
    assert client.get("/ready").status_code == 200
    engine.up = False
    assert client.get("/health").json() == {"status": "ok", "model": "smol"}
    refused = client.get("/ready")
    assert refused.status_code == 503
    assert refused.headers["Retry-After"] == "5"


def test_the_page_of_the_api_has_every_route_and_status(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    assert {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/models",
        "/v1/rewards",
        "/v1/steering/objectives",
        "/v1/steering/presets",
        "/v1/steering/score",
        "/v1/steering/compare",
        "/v1/steering/quiz",
        "/v1/steering/quiz/{id}",
        "/v1/steering/quiz/{id}/answer",
        "/v1/steering/quiz/{id}/more",
        "/v1/steering/quiz/{id}/save",
        "/v1/steering/profiles",
        "/v1/steering/profiles/{name}",
        "/health",
        "/ready",
        "/metrics",
    } <= set(described["paths"])
    chat = described["paths"]["/v1/chat/completions"]["post"]
    assert {"200", "400", "401", "404", "405", "408", "413", "415", "429", "500", "503", "504"} == set(
        chat["responses"]
    )
    assert "text/event-stream" in chat["responses"]["200"]["content"]
    assert chat["security"] == [{"key": []}]
    assert described["paths"]["/health"]["get"]["security"] == []
    fields = described["components"]["schemas"]["ChatBody"]["properties"]
    assert "steering" in fields
    assert "chat_template" not in fields
    assert "422" not in str(described["paths"])
    page = client.get("/docs").text
    for path in described["paths"]:
        assert path in page
    assert "<script" not in page
    assert "http://" not in page
    assert "https://" not in page


def test_the_root_leads_to_the_playground(client: TestClient) -> None:
    for path in ("/", "/playground"):
        answer = client.get(path, follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (307, "./playground/")
    page = client.get("/playground/")
    assert page.status_code == 200
    assert "script-src 'self'" in page.headers["Content-Security-Policy"]


# --- rewards ----------------------------------------------------------------------------------------------------------


def test_rewards_are_a_row_per_answer(client: TestClient) -> None:
    items = [{"messages": MESSAGES, "response": "one two"}, {"messages": MESSAGES, "response": "one"}]
    body = client.post("/v1/rewards", json={"items": items}).json()
    assert body == {"objectives": list(NAMES), "rewards": [[59.0, 4.0], [58.9, 2.0]]}


def test_score_is_the_vector_and_its_value_in_a_direction(client: TestClient) -> None:
    asked = {"messages": MESSAGES, "response": "word " * 12}
    body = client.post("/v1/steering/score", json={**asked, "steering": {"preset": "concise"}}).json()
    assert body["rewards"] == {"helpfulness": 60.0, "verbosity": 24.0}
    # Over the calibration (40, 30), (50, 50), (60, 70): means 50, std 8.165 and 16.33.
    # 0.8 * (60 - 50) / 8.165 - 0.6 * (24 - 50) / 16.33 = 0.9798 + 0.9553 = 1.9351.
    assert body["value"] == pytest.approx(1.9351, abs=1e-3)
    assert body["steering"]["effective"] == {"helpfulness": 0.8, "verbosity": -0.6}
    header = client.post("/v1/steering/score", json=asked, headers={"X-Steering": "concise"}).json()
    assert header["value"] == body["value"]


def test_without_a_reward_model_there_is_nothing_to_score(bare: TestClient) -> None:
    item = {"messages": MESSAGES, "response": "x"}
    for path, body in (("/v1/rewards", {"items": [item]}), ("/v1/steering/score", item)):
        refused = bare.post(path, json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "no_reward_model")


def test_too_many_items_are_refused(client: TestClient) -> None:
    item = {"messages": MESSAGES, "response": "x"}
    refused = client.post("/v1/rewards", json={"items": [item] * 65})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "items")


def test_compare_answers_one_prompt_in_several_directions(client: TestClient, engine: FakeEngine) -> None:
    directions = [{"preset": "concise", "return_rewards": True}, {"degrees": 0}, {"degrees": 40, "best_of": 2}]
    body = client.post(
        "/v1/steering/compare",
        json={"messages": MESSAGES, "directions": directions, "max_tokens": 50, "temperature": 0.5, "seed": 7},
    ).json()
    words = [result["words"] for result in body["results"]]
    assert words[0] == 5 < words[1] < words[2]
    assert body["results"][0]["steering"]["rewards"]["verbosity"] == 10.0
    assert "rewards" not in body["results"][1]["steering"]
    assert body["results"][0]["message"]["role"] == "assistant"
    assert all(request["seed"] == 7 and request["max_tokens"] == 50 for request in engine.requests)


@pytest.mark.parametrize(
    ("directions", "param"),
    [
        ([{}], "directions"),
        ([{}] * 6, "directions"),
        ("all", "directions"),
        ([{}, {"preset": 3}], "directions.1.preset"),
        ([{}, {"weigths": {}}], "directions.1.weigths"),
        ([{}, {"weights": {"helpfullness": 1}}], "directions.1.weights.helpfullness"),
        ([{}, {"weights": {"helpfulness": 0}}], "directions.1.weights"),
        ([{"preset": "consise"}, {}], "directions.0.preset"),
        ([{}, {"degrees": 170, "out_of_range": "error"}], "directions.1"),
        ([{}, {"profile": "nobody"}], "directions.1.profile"),
        ([{}, {"best_of": 17}], "directions.1.best_of"),
        ([{"best_of": 16}, {"best_of": 16}, {}], "n"),
    ],
)
def test_compare_says_which_direction_is_wrong(client: TestClient, directions: Any, param: str) -> None:
    refused = client.post("/v1/steering/compare", json={"messages": MESSAGES, "directions": directions})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


def test_compare_fails_as_one_and_lets_the_others_go(client: TestClient, engine: FakeEngine) -> None:
    engine.fails = EngineError("gone", 503, "no_replica")
    refused = client.post("/v1/steering/compare", json={"messages": MESSAGES, "directions": [{}, {"degrees": 3}]})
    assert refused.status_code == 503
    assert engine.running == 0


def test_dominated_directions_are_told_as_such(engine: FakeEngine) -> None:
    points = tuple(
        Achieved(direction=from_angle_deg(angle), rewards=rewards, pareto=pareto)
        for angle, rewards, pareto in ((0, (68.0, 60.0), True), (-20, (67.0, 50.0), False), (-45, (67.5, 40.0), True))
    )
    model = served(achieved=points, front=tuple(point for point in points if point.pareto))
    app = create_app(model, engine, rewards=None, keys=None, people=None, settings=Settings())
    body = TestClient(app).get("/v1/steering/objectives").json()
    assert [point["pareto"] for point in body["evaluated"]] == [True, False, True]
    assert body["evaluated"][1]["rewards"] == {"helpfulness": 67.0, "verbosity": 50.0}
    assert body["front"] == [
        {key: point[key] for key in ("direction", "rewards")} for point in body["evaluated"] if point["pareto"]
    ]


# --- quiz and profiles ------------------------------------------------------------------------------------------------


def test_a_quiz_finds_a_person_and_becomes_the_keys_direction(client: TestClient) -> None:
    truth = (0.8, -0.6)
    state = client.post("/v1/steering/quiz", json={"seed": 1}).json()
    assert {"id", "question", "estimate", "done", "wedge"} <= set(state)
    assert state["estimate"]["asked"] == 0
    by_texts = {item.a: item for item in questions()} | {item.b: item for item in questions()}
    while not state["done"]:
        question = state["question"]
        item = by_texts[question["a"]]
        gap = truth[0] * item.difference[0] + truth[1] * item.difference[1]
        first_is_a = question["a"] == item.a
        choice = "a" if (gap > 0) == first_is_a else "b"
        answer = {"question": question["index"], "choice": choice}
        state = client.post(f"/v1/steering/quiz/{state['id']}/answer", json=answer).json()
    found = tuple(state["estimate"]["direction"][name] for name in NAMES)
    assert angle_between_deg(found, truth) < 20
    assert client.get(f"/v1/steering/quiz/{state['id']}").json() == state
    saved = client.post(f"/v1/steering/quiz/{state['id']}/save", json={"profile": "me", "bind": True}).json()
    assert (saved["source"], saved["bound"]) == ("quiz", True)
    assert saved["weights"] == pytest.approx(state["estimate"]["direction"])
    steering = client.post("/v1/chat/completions", json=REQUEST).json()["steering"]
    assert steering["source"] == "profile"
    assert steering["effective"]["verbosity"] < 0
    more = client.post(f"/v1/steering/quiz/{state['id']}/more").json()
    assert more["question"] is not None
    client.delete("/v1/steering/profiles/me")


def test_a_quiz_may_repeat_its_first_question(client: TestClient) -> None:
    state = client.post("/v1/steering/quiz", json={"seed": 1, "repeat_after": 2}).json()
    path, first = f"/v1/steering/quiz/{state['id']}/answer", state["question"]
    assert state["estimate"]["consistent"] is None
    for choice in ("a", "b"):
        state = client.post(path, json={"question": state["question"]["index"], "choice": choice}).json()
    assert (state["question"]["a"], state["question"]["b"]) == (first["b"], first["a"])
    state = client.post(path, json={"question": 2, "choice": "b"}).json()
    assert state["estimate"]["consistent"] is True
    assert client.post("/v1/steering/quiz", json={"repeat_after": 0}).status_code == 400


def test_a_quiz_refuses_what_does_not_fit(client: TestClient) -> None:
    state = client.post("/v1/steering/quiz", json={}).json()
    path = f"/v1/steering/quiz/{state['id']}"
    assert client.post(f"{path}/answer", json={"question": 5, "choice": "a"}).status_code == 409
    assert client.post(f"{path}/answer", json={"question": 0, "choice": "c"}).status_code == 400
    assert client.post(f"{path}/answer", json={"question": 0, "choice": "a"}).status_code == 200
    assert client.post(f"{path}/answer", json={"question": 0, "choice": "a"}).status_code == 200  # again: counts once
    again = client.post(f"{path}/answer", json={"question": 0, "choice": "b"})
    assert (again.status_code, again.json()["error"]["code"]) == (409, "answered")
    assert client.get(path).json()["estimate"]["asked"] == 1
    assert client.get("/v1/steering/quiz/none").status_code == 404


def test_a_quiz_about_another_model_is_refused(engine: FakeEngine, tmp_path: Path) -> None:
    other = served_3()
    other.__dict__["tokenizer"] = byte_tokenizer(CHATML)
    with People(f"sqlite:///{tmp_path}/people.sqlite") as people:

        def client_of(model: Served, items: Sequence[QuizItem]) -> TestClient:
            rest: Any = {"rewards": None, "keys": None, "people": people, "settings": Settings(), "questions": items}
            return TestClient(create_app(model, engine, **rest))

        state = client_of(served(), questions()).post("/v1/steering/quiz", json={}).json()
        three = [replace(one, rewards_a=(*one.rewards_a, 1.0), rewards_b=(*one.rewards_b, 0.0)) for one in questions()]
        deployed = client_of(other, three)
        path = f"/v1/steering/quiz/{state['id']}"
        told = [
            deployed.get(path),
            deployed.post(f"{path}/answer", json={"question": 0, "choice": "a"}),
            deployed.post(f"{path}/more"),
            deployed.post(f"{path}/save", json={"profile": "me"}),
        ]
    assert [(one.status_code, one.json()["error"]["code"]) for one in told] == [(409, "other_model")] * 4


def test_profiles_are_set_read_bound_and_forgotten(client: TestClient) -> None:
    weights = {"helpfulness": 0.8, "verbosity": -0.6}
    assert client.get("/v1/steering/profiles").json() == {"profiles": []}
    assert client.put("/v1/steering/profiles/me", json={"weights": weights}).json()["bound"] is False
    assert client.put("/v1/steering/profiles/me", json={"weights": weights, "bind": True}).json()["bound"] is True
    assert client.get("/v1/steering/profiles/me").json()["bound"] is True
    assert client.put("/v1/steering/profiles/me", json={"weights": weights, "bind": False}).json()["bound"] is False
    missing = client.get("/v1/steering/profiles/you")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "unknown_profile")
    assert client.delete("/v1/steering/profiles/me").status_code == 204
    assert client.delete("/v1/steering/profiles/me").status_code == 404
    for name, body in (
        ("a b", {"weights": weights}),
        ("me", {"weights": {"helpfullness": 1}}),
        ("me", {"weights": {"helpfulness": 0}}),
        ("me", {"weights": {}}),
        ("me", {}),
    ):
        assert client.put(f"/v1/steering/profiles/{name}", json=body).status_code == 400


def test_keys_do_not_see_each_others_quizzes_and_profiles(engine: FakeEngine, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    alice, bob = ({"Authorization": f"Bearer {new_key(path, name)}"} for name in ("alice", "bob"))
    with People(f"sqlite:///{tmp_path}/people.sqlite") as people:
        client = TestClient(
            create_app(
                served(),
                engine,
                rewards=None,
                keys=KeyRing(path),
                people=people,
                settings=Settings(),
                questions=questions(),
            )
        )
        weights = {"helpfulness": 0.8, "verbosity": -0.6}
        client.put("/v1/steering/profiles/me", json={"weights": weights, "bind": True}, headers=alice)
        quiz = client.post("/v1/steering/quiz", json={}, headers=alice).json()["id"]
        assert client.get(f"/v1/steering/quiz/{quiz}", headers=alice).status_code == 200
        assert client.get(f"/v1/steering/quiz/{quiz}", headers=bob).status_code == 404
        assert client.get("/v1/steering/profiles/me", headers=bob).status_code == 404
        sources = {
            who: client.post("/v1/chat/completions", json=REQUEST, headers=key).json()["steering"]["source"]
            for who, key in (("alice", alice), ("bob", bob))
        }
        assert sources == {"alice": "profile", "bob": "default"}


def test_a_server_without_people_or_questions_says_so(bare: TestClient) -> None:
    assert bare.post("/v1/steering/quiz", json={}).json()["error"]["code"] == "no_people"
    assert bare.get("/v1/steering/profiles").status_code == 404
