"""Conversations out of files of every kind: which answers are learned, what is left out and why, and what is held out."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rhumbline.data.chat import encode
from rhumbline.data.dialogues import Dialogues, conversation, encode_example, hold_out, load_dialogues, without_marks
from rhumbline.errors import DataError
from rhumbline.learning.logprobs import token_logprobs
from rhumbline.records import Example, Message
from tests.rhumbline.chat_fakes import CHATML, byte_tokenizer
from tests.rhumbline.learning_fakes import tiny_model


def said(*texts: str) -> list[dict[str, str]]:
    """Turns that alternate between the user and the assistant."""
    return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]


def read(tmp_path: Path, rows: list[dict[str, Any]], **options: Any) -> Dialogues:
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return load_dialogues(path, "mine", **options)


def refusal(tmp_path: Path, rows: list[dict[str, Any]], **options: Any) -> str:
    with pytest.raises(DataError) as error:
        read(tmp_path, rows, **options)
    return str(error.value)


def texts(found: Dialogues) -> list[tuple[str, ...]]:
    return [(*(m.content for m in one.messages), one.response) for one in found.examples]


def test_prompts_with_completions(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": " "}]
    found = read(tmp_path, [*rows, {"prompt": "d", "completion": None}, {"prompt": "", "completion": "e"}], weight=0.5)
    assert texts(found) == [("a", "b")]
    assert found.skipped == {"duplicate": 1, "empty answer": 1, "no answer": 1, "no prompt": 1}
    (one,) = found.examples
    assert (one.id, one.weight, one.every_turn) == ("mine/0", 0.5, False)


def test_alpaca_s_two_halves_of_an_instruction(tmp_path: Path) -> None:
    found = read(tmp_path, [{"instruction": "Add.", "input": "1 and 2", "output": "3"}])
    assert texts(found) == [("Add.\n\n1 and 2", "3")]


def test_dialogues_are_cut_after_the_assistant_s_last_turn_and_learned_in_every_turn(tmp_path: Path) -> None:
    rows = [
        {"messages": said("a", "b", "c", "d")},
        {"messages": said("a", "b", "c", "d", "and?")},  # the same once its open end is cut
        {"messages": said("only asked")},
        {"messages": said("a", " ", "c", "d")},
        {"messages": [{"role": "assistant", "content": "Hello!"}, *said("a", "b")]},
        {"messages": [{"role": "system", "content": "s"}, *said("a", "b")]},
    ]
    found = read(tmp_path, rows)
    assert texts(found) == [("a", "b", "c", "d"), ("s", "a", "b")]
    assert all(one.every_turn for one in found.examples)
    assert found.skipped == {"duplicate": 1, "no answer": 1, "empty answer": 1, "no prompt": 1}
    last = read(tmp_path, rows, turns="last")
    assert not any(one.every_turn for one in last.examples)
    assert len(last.examples) == 3  # an empty answer among the turns is no matter where it is not learned


def test_prompts_that_hold_a_whole_dialogue(tmp_path: Path) -> None:
    rows = [
        {"id": "1", "prompt": "a", "messages": said("a", "b", "c", "d")},
        {"id": "2", "prompt": "\n\nHuman: e\n\nAssistant: f\n\nHuman: g\n\nAssistant: h", "messages": None},
        {"id": "3", "prompt": "just asked", "messages": None},
    ]
    found = read(tmp_path, rows)
    assert texts(found) == [("a", "b", "c", "d"), ("e", "f", "g", "h")]
    assert found.skipped == {"no answer": 1}


def test_the_answer_of_a_column_is_learned_alone_after_several_turns(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "messages": said("a", "b", "c"), "response": "d"}]
    assert not read(tmp_path, rows).examples[0].every_turn
    assert read(tmp_path, rows, turns="every").examples[0].every_turn


def test_rated_answers_from_a_least_rating_on(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "response": "good", "ratings": {"quality": 0.5, "humor": 0.0}},
        {"prompt": "a", "response": "poor", "ratings": {"quality": 0.4}},
        {"prompt": "a", "response": "odd", "ratings": {"humor": 1.0}},
        {"prompt": "a", "response": "nan", "ratings": {"quality": float("nan")}},
    ]
    found = read(tmp_path, rows, min_rating={"quality": 0.5})
    assert texts(found) == [("a", "good")]
    assert found.skipped == {"rated too low": 1, "not rated": 2}
    assert len(read(tmp_path, rows).examples) == 4
    assert "Did you mean 'quality'? Found: humor, quality" in refusal(tmp_path, rows, min_rating={"qualty": 0.5})
    assert "no answer in it can be learned from; left out: rated too low 2, not rated 2" in refusal(
        tmp_path, rows, min_rating={"quality": 0.9}
    )
    plain = [{"prompt": "a", "response": "b"}]
    assert "has no ratings: leave out min_rating" in refusal(tmp_path, plain, min_rating={"quality": 0.5})


def test_the_better_answer_of_two(tmp_path: Path) -> None:
    assert texts(read(tmp_path, [{"prompt": "a", "chosen": "good", "rejected": "bad"}])) == [("a", "good")]
    both = {"prompt": "a", "response_a": "x", "response_b": "y"}
    winners = [{**both, "winner": "b"}, {**both, "winner": "tie"}, {**both, "winner": None}, {**both, "winner": "a"}]
    found = read(tmp_path, winners)
    assert texts(found) == [("a", "y"), ("a", "x")]
    assert found.skipped == {"tie": 1, "no winner": 1}


def test_answers_that_were_labelled_desirable(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b", "label": True}, {"prompt": "a", "completion": "c", "label": False}]
    found = read(tmp_path, rows)
    assert texts(found) == [("a", "b")]
    assert found.skipped == {"labelled undesirable": 1}


def test_the_best_ranked_answers_of_a_tree(tmp_path: Path) -> None:
    def message(name: str, parent: str | None, role: str, **more: Any) -> dict[str, Any]:
        return {"message_id": name, "parent_id": parent, "role": role, "text": name, **more}

    rows = [
        message("q", None, "prompter"),
        message("best", "q", "assistant", rank=0),
        message("second", "q", "assistant", rank=1),
        message("more", "best", "prompter"),
        message("reply", "more", "assistant", rank=None),
        message("open", None, "prompter"),
    ]
    assert texts(read(tmp_path, rows)) == [("q", "best"), ("q", "second"), ("q", "best", "more", "reply")]
    found = read(tmp_path, rows, best_ranked=True)
    assert texts(found) == [("q", "best")]
    assert found.skipped == {"ranked lower": 1, "no rank": 1}
    assert "leave out where" in refusal(tmp_path, rows, where={"role": "assistant"})
    assert "no column rank" in refusal(tmp_path, [{"prompt": "a", "response": "b"}], best_ranked=True)


def test_rows_are_chosen_by_split_column_and_number(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"q{i}", "response": "r", "lang": "en" if i % 2 else "de", "split": "test" if i == 1 else "train"}
        for i in range(8)
    ]
    found = read(tmp_path, rows, split="train", where={"lang": "en"}, limit=2)
    assert texts(found) == [("q3", "r"), ("q5", "r")]
    assert found.skipped == {}
    assert "no row left where lang is 'fr'" in refusal(tmp_path, rows, where={"lang": "fr"})
    assert "no column 'lng' (where). Did you mean 'lang'?" in refusal(tmp_path, rows, where={"lng": "en"})


# --- held out ---------------------------------------------------------------------------------------------------------


def asked(text: str, *later: str) -> Example:
    turns = tuple(Message(role="assistant" if i % 2 else "user", content=t) for i, t in enumerate((text, *later)))
    return Example(id=text, messages=turns, response="r")


def test_a_conversation_is_on_one_side_whatever_follows_and_whoever_asks() -> None:
    examples = [one for i in range(400) for one in (asked(f"q{i}"), asked(f"Q{i}?", "a", "b"))]
    kept, held = hold_out(examples, 0.1)
    assert len(kept) + len(held) == 800
    assert not {conversation(one) for one in kept} & {conversation(one) for one in held}
    assert 40 <= len(held) <= 130  # 80 on average, 12 their deviation
    assert hold_out(examples[:200], 0.1)[1] == [one for one in held if one in examples[:200]]
    assert set(map(conversation, held)) <= set(map(conversation, hold_out(examples, 0.2)[1]))  # more holds out the same
    assert hold_out(examples, 0.0) == (examples, [])


# --- as tokens --------------------------------------------------------------------------------------------------------

TALK = (
    Message(role="user", content="Why?"),
    Message(role="assistant", content="So."),
    Message(role="user", content="Hm?"),
)


def test_an_example_says_which_turns_are_learned() -> None:
    tokenizer = byte_tokenizer(CHATML)
    last = encode_example(Example(id="x", messages=TALK, response="Ah!"), tokenizer)
    every = encode_example(Example(id="x", messages=TALK, response="Ah!", every_turn=True), tokenizer)
    assert last == encode(TALK, "Ah!", tokenizer)
    assert last.token_ids == every.token_ids
    assert (last.num_learned, every.num_learned) == (4, 8)
    cut = Example(id="x", messages=TALK, response="Ah!", every_turn=True, complete=False)
    assert encode_example(cut, tokenizer).num_learned == 7


def test_one_sample_of_every_turn_costs_what_a_sample_per_turn_would() -> None:
    tokenizer, model = byte_tokenizer(CHATML), tiny_model()
    every = encode_example(Example(id="x", messages=TALK, response="Ah!", every_turn=True), tokenizer)
    apart = [encode(TALK[:1], "So.", tokenizer), encode(TALK, "Ah!", tokenizer)]
    torch.testing.assert_close(token_logprobs(model, [every])[0], torch.cat(token_logprobs(model, apart)))


def test_marks_in_a_system_turn_of_a_file_are_broken() -> None:
    tokenizer = byte_tokenizer(CHATML)
    system = Message(role="system", content="Be brief.<|im_end|>")
    (clean, _) = without_marks(Example(id="x", messages=(system, TALK[0]), response="r"), tokenizer).messages
    assert clean.content == "Be brief.< |im_end|>"
    plain = Example(id="x", messages=TALK, response="r")
    assert without_marks(plain, tokenizer) is plain
