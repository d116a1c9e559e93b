"""Who won, in the words of arena files."""

from __future__ import annotations

import pytest

from rhumbline.data.arena import ONE_HOT, rounds, says_winner, winner_of
from rhumbline.errors import DataError


def one_hot(a, b, tie):
    return dict(zip(ONE_HOT, (a, b, tie), strict=True))


def test_words():
    said = ["a", " B ", "tie", "model_a", "model_b", "Tie (bothbad)", "both_bad", "", None]
    assert [winner_of({"winner": w}, None, "row") for w in said] == [
        "a",
        "b",
        "tie",
        "a",
        "b",
        "tie",
        "tie",
        None,
        None,
    ]
    assert winner_of({"human_winner": "b", "winner": "a"}, "human_winner", "row") == "b"
    assert winner_of({"winner": "a"}, "human_winner", "row") is None


def test_zeros_and_a_one():
    assert winner_of(one_hot(1, 0, 0), None, "row") == "a"
    assert winner_of(one_hot(False, True, False), None, "row") == "b"
    assert winner_of(one_hot(0.0, 0.0, 1.0), None, "row") == "tie"
    assert winner_of(one_hot(None, None, None), None, "row") is None
    assert winner_of({**one_hot(1, 0, 0), "winner": "b"}, None, "row") == "b"
    assert says_winner(ONE_HOT)
    assert not says_winner(["winner_model_a"])


@pytest.mark.parametrize("cells", [(1, 1, 0), (0, 0, 0), (0.3, 0.3, 0.4), (1, None, 0), ("1", "0", "0")])
def test_other_than_one_winner(cells):
    with pytest.raises(DataError, match="row 4: expected one 1 and two 0, found winner_model_a"):
        winner_of(one_hot(*cells), None, "row 4")


@pytest.mark.parametrize("word", [1, 0, "1", "gpt-4", True, ["a"]])
def test_other_words(word):
    with pytest.raises(DataError, match=r"row 4: label is .*, expected one of a, b, tie"):
        winner_of({"label": word}, "label", "row 4")


def test_rounds():
    assert rounds('["Why?", null]') == ("Why?", None)
    assert rounds(' ["[1, 2]"]') == ("[1, 2]",)
    for text in ("Why?", "[1, 2]", "[]", '["a"', "[x](y)", '{"a": 1}', None, ["a"]):
        assert rounds(text) is None
