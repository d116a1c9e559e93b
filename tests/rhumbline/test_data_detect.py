from __future__ import annotations

import json

import pytest

from rhumbline.data.detect import RATED, Kind, detect
from rhumbline.data.samples import samples
from rhumbline.data.turns import transcript, turns
from rhumbline.errors import DataError
from rhumbline.records import Message

CHAT = [{"role": "user", "content": "Why?"}]
SAID = [{"role": "assistant", "content": "So."}]
TRANSCRIPT = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:"
HELPSTEER = {"helpfulness": 3, "correctness": 4, "coherence": 4, "complexity": 0, "verbosity": 1}


def note(rating):
    return {"Rating": rating, "Rationale": "because"}


NESTED = {
    "instruction": "Why?",
    "completions": [
        {
            "response": "So.",
            "model": "m",
            "overall_score": 7.5,
            "annotations": {"instruction_following": note("5"), "honesty": note("N/A")},
        },
        {"response": "No.", "model": "n", "annotations": {"instruction_following": note("1"), "honesty": note("2.5")}},
    ],
}
WHY = (Message(role="user", content="Why?"),)

# (row, kind, turns, answers, ratings): string and conversational forms of every kind.
CASES = {
    "messages": ({"messages": CHAT + SAID}, Kind.MESSAGES, WHY, ("So.",), ()),
    "messages that end with the user": ({"messages": CHAT}, Kind.MESSAGES, WHY, (), ()),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]},
        Kind.MESSAGES,
        WHY,
        ("So.",),
        (),
    ),
    "prompt": ({"prompt": "Why?"}, Kind.PROMPT, WHY, (), ()),
    "prompt, conversational": ({"prompt": CHAT}, Kind.PROMPT, WHY, (), ()),
    "prompt and what else": ({"prompt": "Why?", "label": "safe", "scores": [1, 2]}, Kind.PROMPT, WHY, (), ()),
    "completion": ({"prompt": "Why?", "completion": "So."}, Kind.COMPLETION, WHY, ("So.",), ()),
    "completion, conversational": ({"prompt": CHAT, "completion": SAID}, Kind.COMPLETION, WHY, ("So.",), ()),
    "response": ({"prompt": "Why?", "response": "So."}, Kind.COMPLETION, WHY, ("So.",), ()),
    "alpaca": ({"instruction": "Why?", "input": "", "output": "So."}, Kind.COMPLETION, WHY, ("So.",), ()),
    "alpaca with input": (
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        Kind.COMPLETION,
        (Message(role="user", content="Add.\n\n1 2"),),
        ("3",),
        (),
    ),
    "pair": ({"prompt": "Why?", "chosen": "So.", "rejected": "No."}, Kind.PAIR, WHY, ("So.", "No."), ()),
    "pair, conversational": (
        {"prompt": CHAT, "chosen": SAID, "rejected": [{"role": "assistant", "content": "No."}]},
        Kind.PAIR,
        WHY,
        ("So.", "No."),
        (),
    ),
    "pair, whole conversations beside a text": (
        {"prompt": "Why?", "chosen": CHAT + SAID, "rejected": CHAT + SAID, "messages": CHAT + SAID},
        Kind.PAIR,
        WHY,
        ("So.", "So."),
        (),
    ),
    "pair, implicit prompt": ({"chosen": CHAT + SAID, "rejected": CHAT + SAID}, Kind.PAIR, WHY, ("So.", "So."), ()),
    "pair, transcripts": (
        {"chosen": "\n\nHuman: Why?\n\nAssistant: So.", "rejected": "\n\nHuman: Why?\n\nAssistant: No."},
        Kind.PAIR,
        WHY,
        ("So.", "No."),
        (),
    ),
    "ties": (
        {"prompt": "Why?", "response_a": "So.", "response_b": "No.", "winner": "tie"},
        Kind.TIES,
        WHY,
        ("So.", "No."),
        (),
    ),
    "ties, conversational, judged in a column of another name": (
        {"prompt": CHAT, "response_a": SAID, "response_b": SAID, "human_winner": "b"},
        Kind.TIES,
        WHY,
        ("So.", "So."),
        (),
    ),
    "ties, Chatbot Arena": (
        {
            "prompt": '["Why?"]',
            "response_a": '["So."]',
            "response_b": '["No."]',
            "winner_model_a": 1,
            "winner_model_b": 0,
            "winner_tie": 0,
        },
        Kind.TIES,
        WHY,
        ("So.", "No."),
        (),
    ),
    "ties, Chatbot Arena, two rounds": (
        {"prompt": '["Why?", "Sure?"]', "response_a": '["So.", "Yes."]', "response_b": '["No.", null]'},
        Kind.TIES,
        WHY,
        (None, None),
        (),
    ),
    "label": ({"prompt": "Why?", "completion": "So.", "label": True}, Kind.LABEL, WHY, ("So.",), ()),
    "ratings": (
        {"prompt": "Why?", "response": "So.", "ratings": {"a": 0, "b": 0.5, "c": None}},
        Kind.RATINGS,
        WHY,
        ("So.",),
        ({"a": 0.0, "b": 0.5},),
    ),
    "ratings of a dialogue": (
        {"prompt": "topic", "messages": CHAT + SAID, "ratings": {"a": 1}},
        Kind.RATINGS,
        WHY,
        ("So.",),
        ({"a": 1.0},),
    ),
    "scores": (
        {"prompt": "Why?", "completion": "So.", "scores": {"a": 2}},
        Kind.SCORES,
        WHY,
        ("So.",),
        ({"a": 2.0},),
    ),
    "helpsteer": (
        {"prompt": "Why?", "response": "So.", **HELPSTEER},
        Kind.WIDE,
        WHY,
        ("So.",),
        ({k: float(v) for k, v in HELPSTEER.items()},),
    ),
    "ultrafeedback": (
        NESTED,
        Kind.NESTED,
        WHY,
        ("So.", "No."),
        ({"instruction_following": 5.0, "overall_score": 7.5}, {"instruction_following": 1.0, "honesty": 2.5}),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_kind(case):
    row, kind, messages, responses, ratings = CASES[case]
    found, stream = samples([row], "file")
    (sample,) = stream
    assert (found.kind, sample.messages, sample.responses, sample.ratings) == (kind, messages, responses, ratings)
    assert (kind in RATED) == bool(ratings)
    # What a Parquet reader or a hub set adds changes nothing: columns of nulls, in any order.
    padded = {"chosen": None, "ratings": None, "label": None, **dict(reversed(row.items()))}
    assert detect([row | padded]).kind == kind


def test_every_kind_but_the_tree_is_covered_above():
    assert {kind for _, kind, *_ in CASES.values()} == set(Kind) - {Kind.TREE}


def test_columns_and_what_is_left():
    found = detect([{"instruction": "a", "output": "b", "id": 1, "model": "m"}])
    assert found.columns == {"prompt": "instruction", "response": "output", "id": "id"}
    assert found.unused == ("model",)
    assert detect([{"prompt": "a", "response": "b", **HELPSTEER}]).ratings == tuple(HELPSTEER)


def test_a_column_that_only_some_rows_have():
    found = detect([{"prompt": "a", "response": "b"}, {"prompt": "c", "response": "d", "ratings": {"x": 1}}])
    assert found.kind is Kind.RATINGS


def test_winners_ranks_and_what_goes_by_their_names():
    _, stream = samples([{"prompt": "a", "response_a": "b", "response_b": "c", "winner": "model_b"}], "file")
    assert next(stream).winner == "b"
    _, stream = samples([{"prompt": "a", "response_a": "b", "response_b": "c", "winner": "gpt"}], "file")
    with pytest.raises(DataError, match=r"file: row 1: winner is 'gpt', expected one of a, b, tie"):
        next(stream)
    _, stream = samples([{"prompt": "a", "response_a": "b", "response_b": "c", "winner": 1}], "file")
    assert next(stream).winner is None  # a number is nobody's name; a column that a recipe names is another matter
    rows = [
        {"prompt": "a", "response": "b", "rank": r, "parent_id": p} for r, p in ((2, "x"), ("gold", None), (True, 7))
    ]
    _, stream = samples(rows, "file")
    said = list(stream)
    assert [s.rank for s in said] == [2.0, None, None]
    assert [s.siblings for s in said] == ["x", "user\x1fa", "7"]


def test_refusals_name_the_columns():
    with pytest.raises(DataError, match=r"file: the columns promt, text are no kind.*'promt' meant to be 'prompt'"):
        detect([{"promt": "a", "text": "b"}], "file")
    with pytest.raises(DataError, match="user_id, score"):
        detect([{"user_id": "a", "score": 1}])
    with pytest.raises(DataError, match="no rows"):
        detect([])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("high", r"row 1: rating 'a' is 'high', expected a number"),
        (True, "is True"),
        (float("inf"), "is inf"),
    ],
)
def test_a_rating_that_is_no_number(value, message):
    _, stream = samples([{"prompt": "a", "response": "b", "ratings": {"a": value}}], "file")
    with pytest.raises(DataError, match=message):
        list(stream)


# --- turns ------------------------------------------------------------------------------------------------------------


def spoken(messages):
    return [(m.role, m.content) for m in messages]


def test_transcripts():
    dialogue = [("user", "Hi"), ("assistant", "Hello"), ("user", "Why?")]
    assert spoken(transcript(TRANSCRIPT)) == dialogue
    assert spoken(transcript(TRANSCRIPT.removesuffix("\n\nAssistant:"))) == dialogue
    assert spoken(transcript(TRANSCRIPT.lstrip())) == dialogue
    assert spoken(transcript("\n\nSystem: Be kind." + TRANSCRIPT)) == [("system", "Be kind."), *dialogue]
    assert spoken(transcript("Hi\n\nAssistant: Hello\n\nHuman: Why?")) == dialogue  # the first mark is lost
    assert spoken(transcript("\n\nHuman: One.\n\nTwo: a colon\n\nAssistant:")) == [("user", "One.\n\nTwo: a colon")]


@pytest.mark.parametrize(
    "text",
    [
        "Why?",
        "",
        "Continue:\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?",
        "Write as\n\nAssistant: would",
        "The Human: Assistant: marks",
        "\n\nHuman: nobody answers",
        "\n\nAssistant: begins",
    ],
)
def test_texts_that_are_no_transcripts(text):
    assert transcript(text) == ()


def test_messages_win_over_a_transcript():
    given = [*CHAT, *SAID, {"role": "user", "content": "And\n\nHuman: me?"}]
    row = {"prompt": "\n\nHuman: Why?\n\nAssistant: So.\n\nHuman: And\n\nHuman: me?\n\nAssistant:", "messages": given}
    for answered in ({}, {"response": "x"}, {"chosen": "x", "rejected": "y"}):
        _, stream = samples([row | answered], "file")
        assert spoken(next(stream).messages) == [("user", "Why?"), ("assistant", "So."), ("user", "And\n\nHuman: me?")]


def test_messages_beside_a_prompt():
    history = [{"role": "user", "content": "I like cats."}, {"role": "assistant", "content": "Noted."}]
    _, stream = samples([{"prompt": "Which pet?", "messages": history}], "file")
    assert [m.content for m in next(stream).messages] == ["I like cats.", "Noted.", "Which pet?"]
    _, stream = samples([{"prompt": "I like cats.", "messages": history}], "file")
    assert [m.content for m in next(stream).messages] == ["I like cats."]


def test_messages_that_cannot_be_read_say_where():
    for cell, message in (
        ([{"role": "usr", "content": "a"}], r"row 1: turn 1: unknown role 'usr'\. Did you mean 'user'"),
        ([{"role": "user", "content": 7}], "expected content as text, found int"),
        (["a"], r"expected \{role, content\}, found str"),
        (7, "expected a text or a list"),
    ):
        with pytest.raises(DataError, match=message):
            turns(cell, "row 1")
    parts = [{"type": "text", "text": "Why"}, {"type": "text", "text": "?"}]
    assert turns([{"role": "user", "content": parts}], "row 1") == WHY
    with pytest.raises(DataError, match="found list"):
        turns([{"role": "user", "content": [{"type": "image"}]}], "row 1")


# --- message trees ----------------------------------------------------------------------------------------------------


def message(message_id, parent_id, role, text, **more):
    return {"message_id": message_id, "parent_id": parent_id, "role": role, "text": text, "lang": "en", **more}


def test_a_message_tree():
    labels = {"name": ["spam", "quality"], "value": [0.0, 0.75], "count": [3, 3]}
    tree = [
        message("c", "b", "prompter", "And?"),
        message("a", None, "prompter", "Why?", labels=labels),
        message("b", "a", "assistant", "So.", labels=labels),
        message("d", "a", "assistant", "No.", labels={"quality": {"value": 0.25, "count": 2}}),
        message("e", "a", "assistant", "Gone.", labels=labels, deleted=True),
        message("f", "c", "assistant", "Then."),
        message("g", "f", "prompter", "Open?"),
    ]
    found, stream = samples(tree, "file")
    assert found.kind is Kind.TREE
    got = {sample.responses: sample for sample in stream}
    assert set(got) == {("So.",), ("No.",), ("Then.",), ()}
    assert got[("So.",)].messages == got[("No.",)].messages == WHY
    assert got[("So.",)].ratings == ({"spam": 0.0, "quality": 0.75},)
    assert got[("No.",)].ratings == ({"quality": 0.25},)
    assert got[("Then.",)].ratings == ({},)
    assert [m.content for m in got[("Then.",)].messages] == ["Why?", "So.", "And?"]
    assert [m.content for m in got[()].messages] == ["Why?", "So.", "And?", "Then.", "Open?"]
    json.dumps(found.columns)


def test_a_tree_with_a_missing_parent_or_a_circle():
    for tree in (
        [message("b", "a", "assistant", "So.")],
        [message("a", "b", "prompter", "Why?"), message("b", "a", "assistant", "So.")],
    ):
        _, stream = samples(tree, "file")
        with pytest.raises(DataError, match="not in the file, or the parents go round"):
            list(stream)
