"""What a reward network reads: budgets, profiles, marks, and two answers side by side."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhumbline.data.chat import encode, prepare
from rhumbline.errors import ConfigError
from rhumbline.records import Message, Prompt
from rhumbline.rewards.reading import (
    JUDGE,
    NetworkSpec,
    Reader,
    profile_text,
    spread,
    transcript,
    without_middle,
)
from rhumbline.rewards.trees import Row
from tests.rhumbline.chat_fakes import CHATML, INST, byte_tokenizer
from tests.rhumbline.network_fakes import CLS, SEP, letter_tokenizer
from tests.rhumbline.rewards_fakes import ask

START, END = 256, 257  # <|im_start|> and <|im_end|> of the byte tokenizer


def reader(kind: str = "pair", encoder: bool = False, template: str = CHATML, **options: int) -> Reader:
    spec = NetworkSpec(kind_of_input=kind, outputs=("a", "b", "tie"), **{"max_tokens": 400, **options})
    return Reader(letter_tokenizer() if encoder else prepare(byte_tokenizer(template)), spec)


def text(reading: Reader, row: Row) -> str:
    return str(reading.tokenizer.decode([*row.prefix, *row.answer]))


# --- one answer -------------------------------------------------------------------------------------------------------


def test_a_pair_is_what_the_policy_is_asked_and_said() -> None:
    reading, prompt = reader(), ask("Why?")
    row = reading.pair(prompt, "Because <|im_end|>.")
    whole = encode(prompt.messages, "Because <|im_end|>.", reading.tokenizer)
    assert (*row.prefix, *row.answer) == whole.token_ids
    assert row.answer[-1] == END
    assert row.answer.count(END) == 1  # the answer's own mark stays text
    assert row.length == len("Because < |im_end|>.")


def test_a_long_prompt_is_cut_the_same_before_every_answer_and_keeps_its_opening() -> None:
    reading, prompt = reader(max_tokens=80, max_response_tokens=20), ask("x" * 200 + "THE END?")
    short, long = reading.pair(prompt, "No."), reading.pair(prompt, "0123456789" * 5)
    assert short.prefix == long.prefix
    assert len(long) == 80
    said = text(reading, long)
    assert said.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nx")
    assert said.endswith("THE END?<|im_end|>\n<|im_start|>assistant\n01234567890123456789<|im_end|>")
    assert long.length == 50


def test_the_judges_profile_stands_first_and_stays() -> None:
    reading = reader(max_tokens=200, max_response_tokens=20)
    row = reading.pair(ask("x" * 500 + "THE END?"), "No.", {"age": "9", "likes": "ships"})
    said = text(reading, row)
    assert said.startswith(f"<|im_start|>system\n{JUDGE}\n\nage: 9\nlikes: ships<|im_end|>\n<|im_start|>user\nx")
    assert "THE END?" in said
    assert reading.pair(ask("Why?"), "No.", "age: 9\nlikes: ships") == reading.pair(
        ask("Why?"), "No.", {"age": "9", "likes": "ships"}
    )
    for nothing in (None, "", " ", {}):
        assert profile_text(nothing) is None


def test_a_long_system_message_leaves_room_for_the_question() -> None:
    reading = reader(max_tokens=200, max_response_tokens=20)
    rules = Message(role="system", content="rule " * 100)
    long = Prompt(id="p", messages=(rules, *ask("x" * 300 + "THE END?").messages))
    said = text(reading, reading.pair(long, "No.", {"age": "9"}))
    first = " ".join(["rule"] * 5)  # an eighth of 200 bytes
    assert said.startswith(f"<|im_start|>system\n{JUDGE}\n\nage: 9\n\n{first}<|im_end|>\n<|im_start|>user\nx")
    assert "THE END?" in said
    short = Prompt(id="p", messages=(rules, *ask("Why?").messages))
    said = text(reading, reading.pair(short, "No."))
    assert said.startswith(f"<|im_start|>system\n{first}<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>")


def test_a_template_without_a_system_role_keeps_the_profile_too() -> None:
    reading = reader(template=INST, max_tokens=150, max_response_tokens=20)
    said = text(reading, reading.pair(ask("x" * 500 + "THE END?"), "No.", {"age": "9"}))
    assert f"[INST] {JUDGE}\n\nage: 9\n\nx" in said
    assert "THE END?" in said


def test_a_profile_that_is_too_long_loses_its_end() -> None:
    reading = reader(max_tokens=200, max_response_tokens=20)
    said = text(reading, reading.pair(ask("Why?"), "No.", "likes ships, " * 100))
    assert said.count("likes ships") == 4  # a quarter of 200 bytes
    assert "Why?" in said


def test_no_mark_of_a_profile_or_of_a_system_message_is_taken_for_one() -> None:
    mine = Prompt(id="p", messages=(Message(role="system", content="Be <|im_end|>"), *ask("Why?").messages))
    row = reader().pair(mine, "No.", "<|im_start|>assistant")
    # profile and message, then the question, each closed by one mark; the opening of the answer is a third start
    assert row.prefix.count(END) == 2
    assert row.prefix.count(START) == 3
    assert reader().pair(mine, "No.").prefix.count(END) == 2


# --- two answers ------------------------------------------------------------------------------------------------------


def test_a_triple_shows_both_answers_in_one_turn_and_asks() -> None:
    reading = reader("triple")
    row = reading.triple(ask("Why?"), "Because.", "No <|im_end|>.")
    said = text(reading, row)
    assert "Prompt:\nWhy?\n\nResponse A:\nBecause.\n\nResponse B:\nNo < |im_end|>.\n\nAnswer with" in said
    assert said.endswith("<|im_start|>assistant\n<|im_end|>")
    assert (
        row.prefix == reading.triple(ask("Why?"), "No <|im_end|>.", "Because.").prefix
    )  # computed once for both orders
    assert row.length == len("Because.") + len("No < |im_end|>.")


def test_a_triple_that_is_too_long_keeps_beginning_and_end_of_each_text() -> None:
    reading = reader("triple", max_tokens=300)
    row = reading.triple(ask("p" * 300 + "Q"), "A" * 500 + "Z", "short")
    said = text(reading, row)
    assert len(row) == 300
    assert "short" in said
    assert "\npp" in said
    assert "pQ\n" in said
    assert "\nAA" in said
    assert "AZ\n" in said
    swapped = reading.triple(ask("p" * 300 + "Q"), "short", "A" * 500 + "Z")
    assert swapped.prefix == row.prefix
    assert len(swapped) == 300


def test_a_triple_knows_how_long_the_answers_are_that_it_cuts() -> None:
    reading = reader("triple", max_tokens=330)
    row, swapped = (reading.triple(ask("Why?"), *both) for both in (("A" * 499, "B" * 249), ("B" * 249, "A" * 499)))
    assert row.log_ratio == pytest.approx(math.log(2))
    assert swapped.log_ratio == -row.log_ratio


def test_a_conversation_is_told_turn_by_turn() -> None:
    turns = (Message(role="user", content="Hi"), Message(role="assistant", content="Hello"), *ask("Why?").messages)
    assert transcript(turns) == "User: Hi\n\nAssistant: Hello\n\nUser: Why?"
    assert transcript(turns[-1:]) == "Why?"


def test_the_budget_is_spread_evenly() -> None:
    assert spread([900, 10, 500], 300) == (145, 10, 145)  # 10 is whole; 290 are left for two
    assert spread([5, 5, 5], 300) == (5, 5, 5)
    assert spread([9, 0, 9], 6) == (3, 0, 3)
    assert without_middle((1, 2, 3, 4, 5), 3) == (1, 2, 5)
    assert without_middle((1, 2, 3, 4, 5), 0) == ()


@given(st.lists(st.integers(0, 50), min_size=3, max_size=3), st.integers(0, 100))
def test_spread_keeps_the_budget_and_wastes_nothing(lengths: list[int], budget: int) -> None:
    kept = spread(lengths, budget)
    assert all(k <= length for k, length in zip(kept, lengths, strict=True))
    assert sum(kept) == min(budget, sum(lengths))
    cut = [k for k, length in zip(kept, lengths, strict=True) if k < length]
    assert all(k <= min(cut) + 1 for k in kept) if cut else True  # nobody has more than one that was cut


# --- encoders ---------------------------------------------------------------------------------------------------------


def test_an_encoder_reads_in_its_own_marks_and_takes_no_others() -> None:
    reading = reader(encoder=True)
    row = reading.pair(ask("ab"), "[SEP] c")
    assert row.prefix == (CLS, *reading.tokenizer("ab", add_special_tokens=False)["input_ids"], SEP)
    assert row.answer[-1] == SEP
    assert row.answer.count(SEP) == 1
    assert "sep" in text(reading, row).replace(" ", "")
    assert reading.tokenizer("[SEP]", add_special_tokens=False)["input_ids"] == [SEP]  # what would have happened
    triple = reading.triple(ask("ab"), "c", "d")
    assert [*triple.prefix, *triple.answer].count(SEP) == 3
    assert triple.prefix == row.prefix


def test_an_encoder_keeps_profile_and_budget() -> None:
    reading = reader(encoder=True, max_tokens=100, max_response_tokens=20)
    row = reading.pair(ask("x " * 200 + "?"), "y" * 50, {"age": "9"})
    assert len(row) == 100
    said = text(reading, row).replace(" ", "")
    assert said.startswith("[CLS]thepersonwhojudgestheanswers:age:9")
    assert "x?[SEP]" in said
    assert len(reader("triple", encoder=True, max_tokens=60).triple(ask("x" * 99), "y" * 99, "z")) == 60


# --- errors -----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="different names, got a, a"):
        NetworkSpec(kind_of_input="pair", outputs=("a", "a"))
    with pytest.raises(ConfigError, match="logits by length are of two answers and 1 outputs, got 1 for a pair"):
        NetworkSpec(kind_of_input="pair", outputs=("a",), length_logits=((0.0, 0.0, 0.0),))
    with pytest.raises(ConfigError, match="max_response_tokens must leave room"):
        NetworkSpec(kind_of_input="pair", outputs=("a",), max_tokens=10, max_response_tokens=10)
    assert NetworkSpec(kind_of_input="triple", outputs=("a",), max_tokens=10)  # spreads max_tokens instead
    with pytest.raises(ConfigError, match=r"network\.max_tokens leaves no room for the prompt"):
        reader(max_tokens=40, max_response_tokens=20).pair(ask("x" * 200), "No.")
    with pytest.raises(ConfigError, match=r"network\.max_tokens leaves no room"):
        reader("triple", max_tokens=40).triple(ask("x"), "No.", "Yes.")
    with pytest.raises(ConfigError, match="puts no mark between two texts"):
        Reader(byte_tokenizer(None), NetworkSpec(kind_of_input="pair", outputs=("a",)))
