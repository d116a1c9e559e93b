"""What a response says about its direction."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rhumbline.directions import Cone, angle_between_deg, from_angle_deg
from rhumbline.serving import echo
from rhumbline.serving.choose import Choice
from rhumbline.serving.requests import Sources, SteeringBody, read_body
from rhumbline.serving.resolve import resolve
from rhumbline.serving.served import Served
from tests.rhumbline.steering_fakes import contract, served, soups


def test_the_wire_example() -> None:
    resolved = resolve(Sources(body=read_body({"weights": {"helpfulness": 0.8, "verbosity": -0.6}})), served())
    assert echo.steering(resolved, rewards=(71.3, 38.0)) == {
        "requested": {"helpfulness": 0.8, "verbosity": -0.6},
        "effective": {"helpfulness": 0.8, "verbosity": -0.6},
        "projected": False,
        "snapped": False,
        "source": "body",
        "method": "dpa",
        "template_version": "dpa-int100/1",
        "rewards": {"helpfulness": 71.3, "verbosity": 38.0},
    }
    assert echo.header(resolved) == "helpfulness=0.8,verbosity=-0.6"


def test_what_happened_besides_is_said() -> None:
    sources = Sources(body=read_body({"weights": {"verbosity": -1}}), header="detailed", profile="gone")
    said = echo.steering(resolve(sources, served(), lambda _: None))
    assert (said["projected"], said["overruled"]) == (True, ["header"])
    assert "gone" in said["notes"][0]
    assert said["requested"] == {"helpfulness": 0.0, "verbosity": -1.0}
    assert said["effective"] == {"helpfulness": 0.7071, "verbosity": -0.7071}
    mixed = echo.steering(resolve(Sources(), soups()))
    assert (mixed["method"], mixed["template_version"], mixed["mixture"]) == ("soups", None, "smol-mix-2")


def test_a_choice_says_how_it_was_made_and_its_rewards() -> None:
    choice = Choice(index=2, value=1.23456, rewards=(60.0, 40.0), num_candidates=4, sampled_under=from_angle_deg(-30))
    said = echo.steering(resolve(Sources(), served()), choice=choice)
    assert said["rewards"] == {"helpfulness": 60.0, "verbosity": 40.0}
    assert said["selection"]["value"] == 1.2346
    assert said["selection"]["sampled_under"] == {"helpfulness": 0.866, "verbosity": -0.5}
    json.dumps(said, allow_nan=False)


def test_the_header_can_be_sent_back_and_means_the_same_within_the_codecs_rounding() -> None:
    # Not the same words always: 87 and -48 have length 99.4, so as a unit vector they are 87.6 and -48.3, which round to 88, -48.
    for angle in range(-45, 1):
        first = resolve(Sources(header=f"{angle}deg"), served())
        again = resolve(Sources(header=echo.header(first)), served())
        assert angle_between_deg(again.effective, first.effective) <= served().codec.precision_deg + 0.05


def test_a_header_is_ascii_whatever_objectives_are_called() -> None:
    names = ("Höflichkeit", "a=b,\r\nX-Evil: 1".replace("\n", ""))
    resolved = resolve(Sources(), Served.of(contract(names, Cone(names, (1, 1), 45)), name="m", folder=Path("x")))
    header = echo.header(resolved)
    assert header.isascii()
    assert header.isprintable()
    assert header.count("=") == 2


def test_a_header_with_encoded_names_can_be_sent_back() -> None:
    names = ("Höflichkeit", "tone/formality")
    model = Served.of(contract(names, Cone(names, (1, 1), 45)), name="m", folder=Path("x"))
    first = resolve(Sources(body=SteeringBody(weights={"Höflichkeit": 0.8, "tone/formality": 0.6})), model)
    again = resolve(Sources(header=echo.header(first)), model)
    assert again.requested == pytest.approx(first.effective, abs=0.01)


def test_only_the_given_chunk_changes_and_not_in_place() -> None:
    chunk = {"object": "chat.completion.chunk", "choices": [], "usage": {"total_tokens": 3}}
    out = echo.with_steering(chunk, {"source": "body"})
    assert out == {**chunk, "steering": {"source": "body"}}
    assert "steering" not in chunk
