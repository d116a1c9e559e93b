from __future__ import annotations

import json
from pathlib import Path

import pytest

from rhumbline.data.detect import RATED, Kind
from rhumbline.data.inspect import inspect
from rhumbline.data.prompts import load_prompts, split_by_hash
from rhumbline.data.ratings import load_ratings
from rhumbline.errors import DataError
from tests.rhumbline.chat_fakes import CHATML, INST, byte_tokenizer

FILES = sorted((Path(__file__).parents[2] / "data").glob("*/*.jsonl.gz"))  # where the recipes read it
OASST1 = next((f for f in FILES if f.parts[-2:] == ("oasst1", "attribute_ratings.jsonl.gz")), Path("absent"))
needs_data = pytest.mark.skipif(not FILES, reason="no real data in data/")


def written(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


ROWS = [
    {"prompt": "Why?", "response": "So.", "ratings": {"q": 1}, "model": "m"},
    {"prompt": "Why?", "response": "No.", "ratings": {"q": 0, "h": 0.5}},
    {"prompt": "Why?", "response": "No.", "ratings": {"q": 1}},  # said before
    {"prompt": " ", "response": "So.", "ratings": {}},  # empty
    {"prompt": "How?", "response": "", "ratings": {}},  # empty
    {"prompt": "Who?", "response": "I" * 50, "ratings": {}},
]


def test_counts_by_hand(tmp_path):
    found = inspect(written(tmp_path / "a.jsonl", ROWS))
    assert found.kind is Kind.RATINGS
    assert (found.rows, found.samples, found.prompts, found.responses) == (6, 6, 2, 6)
    assert (found.duplicates, found.empties, found.refused) == (1, 2, 0)
    assert (found.too_long, found.token_quantiles) == (None, None)
    assert found.unused == ("model",)
    q, h = found.ratings["q"], found.ratings["h"]
    assert (q.count, q.low, q.high, h.count, h.mean) == (3, 0, 1, 1, 0.5)
    assert q.mean == pytest.approx(2 / 3)
    assert found.rendered[1] == "user: Why?\nassistant: No.\nratings: q=0, h=0.5"


def test_lengths_and_masks_with_a_tokenizer(tmp_path):
    tokenizer = byte_tokenizer(CHATML)
    path = written(tmp_path / "a.jsonl", ROWS)
    # One token a byte. The invented system turn is 2 + len("system\nBe brief.") + 1, a user's 2 + len("user\nWhy?") +
    # 1; the cue: 1 + len("assistant\n"). 19 + 12 + 11 = 42. The answers: 3 + the end token, three times, and once 50
    # + 1.
    found = inspect(path, tokenizer, max_tokens=60)
    assert found.token_quantiles == {0.05: 46, 0.25: 46, 0.5: 46, 0.75: 46, 0.95: 93, 1.0: 93}
    assert found.too_long == 1
    assert inspect(path, tokenizer, max_tokens=93).too_long == 0
    assert inspect(path, tokenizer).too_long is None
    assert "[learned, 4 tokens]\nSo.<|im_end|>" in found.rendered[0]


def test_prompts_and_pairs_have_lengths_too(tmp_path):
    tokenizer = byte_tokenizer(CHATML)
    prompts = inspect(written(tmp_path / "a.jsonl", [{"prompt": "Why?"}]), tokenizer)
    assert prompts.token_quantiles is not None
    assert prompts.token_quantiles[1.0] == 42
    assert "learned" not in prompts.rendered[0]
    pairs = inspect(written(tmp_path / "b.jsonl", [{"prompt": "Why?", "chosen": "a", "rejected": "abc"}]), tokenizer)
    assert pairs.token_quantiles is not None
    assert pairs.token_quantiles[1.0] == 46  # of the longer side
    assert pairs.rendered[0].endswith("(and 1 more answer)")


def test_winners_are_counted(tmp_path):
    pair = {"prompt": "Why?", "response_a": "So.", "response_b": "No."}
    rows = [{**pair, "winner": w, "model_a": "m"} for w in ("a", "tie", "tie", None)]
    found = inspect(written(tmp_path / "a.jsonl", rows))
    assert (found.kind, found.winners) == (Kind.TIES, {"a": 1, "b": 0, "tie": 2})
    assert (found.responses, found.unused) == (8, ())
    assert "winners      a 1, tie 2" in found.lines()
    assert found.rendered[0] == "user: Why?\nassistant: So.\n(and 1 more answer)\nwinner: a"
    unnamed = inspect(written(tmp_path / "b.jsonl", [{**pair, "human_winner": "a"}]))
    assert any(line.startswith("winners      not in a column of that name") for line in unnamed.lines())
    assert inspect(written(tmp_path / "c.jsonl", ROWS)).winners is None


def test_what_the_template_refuses_is_counted(tmp_path):
    rows = [{"prompt": [{"role": r, "content": r} for r in roles]} for roles in (["user"], ["assistant", "user"])]
    found = inspect(written(tmp_path / "a.jsonl", rows), byte_tokenizer(INST, bos="<s>", eos="</s>"))
    assert (found.refused, len(found.rendered)) == (1, 1)
    assert found.first_refusal is not None
    assert "row 2" in found.first_refusal
    assert any(line.startswith("refused      1 by the chat template") for line in found.lines())


def test_lines_read_well(tmp_path):
    rows = [{"instruction": f"Say {i}. " + "x" * 2000, "output": "y"} for i in range(5)]
    path = written(tmp_path / "a.jsonl", rows)
    lines = inspect(path).lines()
    assert lines[:8] == [
        str(path),
        "type         prompt+completion",
        "columns      prompt <- instruction, response <- output",
        "unused       none",
        "rows         5",
        "prompts      5 distinct, 5 answers",
        "duplicates   0",
        "empties      0",
    ]
    assert lines[8] == "too long     not counted: no tokenizer"
    text = "\n".join(lines)
    assert text.count("--- sample") == 3
    assert "characters ...]" in text
    assert len(text) < 4000
    with_tokens = inspect(path, byte_tokenizer(CHATML), max_tokens=100).lines()
    assert "too long     5 above 100 tokens" in with_tokens
    assert any(line.startswith("tokens       5%: ") for line in with_tokens)


def test_embedded():
    found = inspect("embedded")
    assert found.kind is Kind.PROMPT
    assert (found.duplicates, found.empties) == (0, 0)
    assert found.prompts == found.rows >= 300


# --- real files of many shapes, where they are at hand ----------------------------------------------------------------

NO_PROMPTS = {  # tables that are joined to others, and ratings without their texts
    "alpaca_eval/preferences",
    "alpaca_eval/responses",
    "llm_rubric/ratings_without_text",
    "polis_votes/items",
    "polis_votes/user_ratings",
    "polis_votes/users",
}


# Models that answered nothing, and dialogues in which the assistant spoke twice.
EMPTIES = {"pandalm/pairs_with_ties": 54, "hh_two_objectives/two_objective_pairs": 5}


@needs_data
@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.name.removesuffix('.jsonl.gz')}")
def test_every_file_of_real_data_is_understood_or_refused(path):
    if f"{path.parent.name}/{path.name.removesuffix('.jsonl.gz')}" in NO_PROMPTS:
        with pytest.raises(DataError, match=r"the columns .* are no kind of data"):
            inspect(path)
        return
    found = inspect(path)
    assert found.empties <= EMPTIES.get(f"{path.parent.name}/{path.name.removesuffix('.jsonl.gz')}", 1)
    assert len(found.rendered) == 3
    assert (found.kind in RATED) == bool(found.ratings)
    assert len(load_prompts(path, limit=50)) == min(50, found.prompts)


@needs_data
def test_oasst_ratings():
    rated = load_ratings(OASST1)
    # 987 answers; 3 have no rating at all and 5 have quality alone.
    assert len(rated) == 984
    assert sum("helpfulness" in r.ratings for r in rated) == 979
    assert all(0 <= value <= 1 for r in rated for value in r.ratings.values())
    assert {r.split for r in rated} == {"train", "test"}
    assert all(r.prompt.messages[-1].role == "user" for r in rated)
    # Several people answered the same prompt; the threads keep their turns.
    assert len({r.prompt.id for r in rated}) < 400
    assert max(len(r.prompt.messages) for r in rated) >= 5


@needs_data
def test_splits_of_conversations_that_open_alike():
    prompts = load_prompts(OASST1)
    splits = split_by_hash(prompts, evaluation=20, seed=0)
    openings = [{p.messages[0].content for p in part} for part in (splits.d1, splits.d2, splits.evaluation)]
    assert not openings[0] & openings[1]
    assert not (openings[0] | openings[1]) & openings[2]
