"""The model's name as a channel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rhumbline.directions import Cone
from rhumbline.errors import CodecError
from rhumbline.serving.alias import model_card, model_cards, split
from rhumbline.serving.served import Served
from tests.rhumbline.steering_fakes import NAMES, contract, served


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ("smol", ("smol", None)),
        ("smol@concise", ("smol", "concise")),
        ("smol@helpfulness=0.8,verbosity=-0.6", ("smol", "helpfulness=0.8,verbosity=-0.6")),
        ("smol@", ("smol", "")),
        ("smol@a@b", ("smol", "a@b")),
        ("@concise", ("", "concise")),
        ("", ("", None)),
    ],
)
def test_split(model: str, parts: tuple[str, str | None]) -> None:
    assert split(model) == parts


def test_cards_list_the_model_and_its_presets_as_the_interface_says() -> None:
    cards = model_cards(served(), created=7)
    assert [card["id"] for card in cards] == ["smol", "smol@concise", "smol@detailed"]
    base, concise, _ = cards
    assert (base["object"], base["created"], "parent" in base) == ("model", 7, False)
    assert concise["parent"] == "smol"
    assert concise["metadata"]["preset"] == {"helpfulness": 1.0, "verbosity": -1.0}
    assert concise["metadata"]["objectives"] == list(NAMES)
    assert concise["metadata"]["trained_region"]["half_angle_deg"] == 22.5
    assert concise["metadata"]["template_version"] == "dpa-int100/1"
    json.dumps(cards)


def test_an_inline_form_has_a_card_too() -> None:
    card = model_card(served(), "smol@verbosity=-1", 7)
    assert (card["id"], card["parent"]) == ("smol@verbosity=-1", "smol")
    assert "preset" not in card["metadata"]


@pytest.mark.parametrize("name", ["smol@x", "base:adapter", "", "a b", "x" * 200, "-x"])
def test_names_that_would_be_taken_apart_are_refused(name: str) -> None:
    with pytest.raises(CodecError, match="cannot be called"):
        Served.of(contract(), name=name, folder=Path("nowhere"))


def test_an_owner_and_a_name_are_a_name() -> None:
    names = ("a", "b")
    assert Served.of(contract(names, Cone(names, (1, 1), 45)), name="owner/name", folder=Path("x")).name == "owner/name"
