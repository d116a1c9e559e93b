"""Turns of a chat: text that could be read but never be written is refused while it still has a row number."""

import json

import pytest

from rhumbline.data.load import rows
from rhumbline.data.prompts import load_prompts
from rhumbline.data.samples import samples
from rhumbline.data.turns import answer, turns
from rhumbline.errors import DataError

HALF = "Why \ud83d not?"  # what json.loads makes of "\ud83d" without its second half


@pytest.mark.parametrize("cell", [HALF, [{"role": "user", "content": HALF}], [{"from": "human", "value": HALF}]])
def test_half_a_character_is_refused(cell: object) -> None:
    with pytest.raises(DataError, match=r"row 3.*'\\ud83d' at character 4 is half of a character.*drop the character"):
        turns(cell, "row 3")


def test_half_a_character_in_an_answer_is_refused() -> None:
    with pytest.raises(DataError, match="half of a character"):
        answer(HALF, "row 3")


def test_whole_characters_are_kept() -> None:
    assert turns("Why \U0001f600 not?", "row 1")[0].content == "Why \U0001f600 not?"


def test_the_row_is_named_when_a_file_is_loaded(tmp_path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in ("Why?", HALF)))
    with pytest.raises(DataError, match=r"prompts\.jsonl: row 2.*half of a character"):
        load_prompts(path)
    rated = {"prompt": "Why?", "completion": HALF}
    path.write_text(json.dumps(rated) + "\n")
    with pytest.raises(DataError, match=r"row 1.*half of a character"):
        list(samples(rows(path), str(path))[1])
