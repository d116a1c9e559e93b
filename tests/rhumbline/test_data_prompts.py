from __future__ import annotations

import json
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhumbline.data.prompts import first_turn, load_prompts, prompt_id_of, split_by_hash, turn_id
from rhumbline.data.ratings import load_ratings
from rhumbline.errors import DataError
from rhumbline.records import Message, Prompt


def written(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def ask(*texts: str) -> Prompt:
    roles = ("user", "assistant")
    messages = tuple(Message(role=roles[i % 2], content=text) for i, text in enumerate(texts))
    return Prompt(id=prompt_id_of(messages), messages=messages)


# --- loading ----------------------------------------------------------------------------------------------------------


def test_ids_given_and_made(tmp_path):
    given_ids = load_prompts(written(tmp_path / "a.jsonl", [{"id": 7, "prompt": "a"}, {"id": "x", "prompt": "b"}]))
    assert [p.id for p in given_ids] == ["7", "x"]
    made = load_prompts(written(tmp_path / "b.jsonl", [{"prompt": "b"}, {"prompt": "a"}]))
    assert made[0] == ask("b")
    assert len({p.id for p in made}) == 2
    # An id of a rated row names the answer, not the prompt.
    rated = [{"id": i, "prompt": "a", "response": r, "ratings": {"q": 1}} for i, r in enumerate("xy")]
    assert load_prompts(written(tmp_path / "c.jsonl", rated)) == [ask("a")]


def test_an_id_tells_roles_and_turns_apart():
    ids = {ask("a", "b", "c").id, ask("a", "bc", "").id, ask("abc").id, ask("a").id}
    ids.add(prompt_id_of([Message(role="system", content="a")]))
    assert len(ids) == 5
    assert prompt_id_of([Message(role="user", content="half a pair \ud800")])


def test_duplicates_are_dropped_and_counted(tmp_path, caplog):
    path = written(tmp_path / "a.jsonl", [{"id": i, "prompt": t} for i, t in enumerate(["a", "b", "a", "a", "c"])])
    with caplog.at_level(logging.INFO, logger="rhumbline"):
        assert [p.id for p in load_prompts(path)] == ["0", "1", "4"]
    assert "3 prompts, 2 duplicates dropped" in caplog.text
    assert [p.id for p in load_prompts(path, limit=2)] == ["0", "1"]


def test_references_and_splits(tmp_path):
    rows = [{"prompt": "a", "reference": "7", "split": "train"}, {"prompt": "b", "reference": ["x"], "split": "test"}]
    path = written(tmp_path / "a.jsonl", rows)
    assert [p.reference for p in load_prompts(path)] == ["7", None]
    assert [p.messages[0].content for p in load_prompts(path, split="test")] == ["b"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": ""}, "row 3 has no prompt"),
        ({"prompt": " \n"}, "row 3 has no prompt"),
        ({"prompt": None}, "row 3 has no prompt"),
        ({"promt": "x"}, "row 3 has no prompt"),
        ({"prompt": []}, "row 3 has no prompt"),
        ({"prompt": [{"role": "system", "content": "x"}]}, "row 3 has no prompt"),
        ({"id": "1", "prompt": "x"}, r"row 3: the id '1' is already taken by another prompt \(.*row 1\)"),
    ],
)
def test_a_row_without_a_prompt_is_named(tmp_path, row, message):
    path = written(tmp_path / "a.jsonl", [{"id": "1", "prompt": "a"}, {"id": "2", "prompt": "b"}, row])
    with pytest.raises(DataError, match=message):
        load_prompts(path)


@pytest.mark.parametrize(
    "answers", [{"chosen": "So.", "rejected": "No."}, {"response_a": "So.", "response_b": "No.", "winner": "a"}]
)
def test_prompts_of_compared_answers_that_nobody_asked_are_left_out(tmp_path, caplog, answers):
    unasked = {"prompt": "\n\nHuman: Hi\n\nAssistant: Hello\n\nAssistant: Again", **answers}
    path = written(tmp_path / "a.jsonl", [{"prompt": "Why?", **answers}, unasked, {"prompt": "How?", **answers}])
    with caplog.at_level(logging.INFO):
        assert [p.messages[-1].content for p in load_prompts(path)] == ["Why?", "How?"]
    assert "2 prompts, 1 rows left out whose prompt does not end with the user's turn" in caplog.text
    with pytest.raises(DataError, match="none of its 1 rows has a prompt that ends with the user's turn"):
        load_prompts(written(tmp_path / "b.jsonl", [unasked]))


def test_the_embedded_prompts_make_a_run():
    prompts = load_prompts("embedded")
    splits = split_by_hash(prompts, evaluation=64, seed=0)
    assert len(splits.evaluation) == 64
    assert min(len(splits.d1), len(splits.d2)) >= 100


# --- splitting --------------------------------------------------------------------------------------------------------


def test_first_turn_by_hand():
    assert first_turn(ask("Why, is IT so?  2 b", "x")) == "whyisitso2b"
    assert first_turn(ask("Ärger ©")) == "ärger"
    assert first_turn(ask("é" * 200)) == "é" * 120
    assert first_turn(ask(" ?! ")) == "?!"
    system_first = (Message(role="system", content="Be kind"), Message(role="user", content="Why"))
    assert first_turn(Prompt(id="x", messages=system_first)) == "why"


texts = st.lists(
    st.sampled_from(["a", "A!", "b", "c", "d d", "dd", "e", "f", "g", "h", "?", "ü"]), min_size=1, max_size=3
)


@settings(deadline=None)
@given(st.lists(texts, min_size=1, max_size=40), st.integers(0, 6), st.integers(0, 3), st.randoms())
def test_splits_hold_their_promises(conversations, evaluation, seed, random):
    prompts = list({p.id: p for p in (ask(*c) for c in conversations)}.values())
    groups = {first_turn(p) for p in prompts}
    if len(groups) < evaluation + 2:
        with pytest.raises(DataError, match=f"{len(groups)} distinct first turns are too few"):
            split_by_hash(prompts, evaluation, seed)
        return
    splits = split_by_hash(prompts, evaluation, seed)
    parts = [splits.d1, splits.d2, splits.evaluation, splits.left_out]
    # Every prompt is in exactly one part; nobody's first turn is on two sides.
    assert sorted(p.id for part in parts for p in part) == sorted(p.id for p in prompts)
    turns = [{first_turn(p) for p in part} for part in parts[:3]]
    assert not turns[0] & turns[1]
    assert not (turns[0] | turns[1]) & turns[2]
    assert len(splits.evaluation) == len(turns[2]) == evaluation
    assert {first_turn(p) for p in splits.left_out} <= turns[2]
    assert splits.d1
    assert splits.d2
    assert splits.train == splits.d1 + splits.d2
    # Neither the order of rows nor anything else outside the texts and the seed matters.
    shuffled = prompts[:]
    random.shuffle(shuffled)
    assert split_by_hash(shuffled, evaluation, seed) == splits


def test_halves_are_even_and_seeds_differ():
    prompts = [ask(f"question {i}") for i in range(101)]
    splits = split_by_hash(prompts, evaluation=10, seed=0)
    assert sorted((len(splits.d1), len(splits.d2))) == [45, 46]
    assert splits.half(1) == splits.half(3) == splits.d1
    assert splits.half(2) == splits.d2
    assert split_by_hash(prompts, evaluation=10, seed=1).evaluation != splits.evaluation


def test_more_prompts_move_few_others():
    prompts = [ask(f"question {i}") for i in range(200)]
    before = split_by_hash(prompts[:190], evaluation=20, seed=0)
    after = split_by_hash(prompts, evaluation=20, seed=0)
    kept = set(before.evaluation) & set(after.evaluation)
    assert len(kept) >= 15
    assert len(set(before.d1) & set(after.d1)) >= len(before.d1) - 15


def test_what_a_policy_has_seen_is_never_held_out():
    prompts = [ask(f"question {i}") for i in range(60)]
    seen = {turn_id(p) for p in split_by_hash(prompts, evaluation=20, seed=7).train}
    for seed in (7, 1, 2):
        splits = split_by_hash(prompts, evaluation=20, seed=seed, trained_on=seen)
        assert not seen & {turn_id(p) for p in splits.evaluation}
        assert len(splits.evaluation) == 20
        assert len(splits.train) == 40
    with pytest.raises(DataError, match="trained on 40 of 60 prompts"):
        split_by_hash(prompts, evaluation=21, seed=1, trained_on=seen)


def test_a_turn_id_is_that_of_the_first_turn():
    assert turn_id(ask("Why, is IT so?", "x")) == turn_id(ask("why is it so"))
    assert turn_id(ask("a")) != turn_id(ask("b"))


def test_a_negative_count_is_refused():
    with pytest.raises(DataError, match="cannot hold out -1"):
        split_by_hash([ask("a"), ask("b"), ask("c")], evaluation=-1, seed=0)


# --- ratings ----------------------------------------------------------------------------------------------------------


def test_ratings(tmp_path):
    rows = [
        {"prompt": "a", "response": "x", "ratings": {"q": 0, "h": None}, "source": "s", "split": "train"},
        {"prompt": "a", "response": "y", "ratings": {"q": 1, "h": 0.5}, "split": "train"},
        {"prompt": "b", "response": "z", "ratings": {}, "split": "train"},
        {"prompt": "c", "response": "", "ratings": {"h": 1}, "split": "test"},
    ]
    path = written(tmp_path / "rated.jsonl", rows)
    rated = load_ratings(path)
    # 0 is a rating, null is none; an answer without any is dropped.
    assert [(r.response, dict(r.ratings)) for r in rated] == [
        ("x", {"q": 0.0}),
        ("y", {"q": 1.0, "h": 0.5}),
        ("", {"h": 1.0}),
    ]
    assert rated[0].prompt == rated[1].prompt == ask("a")
    assert [r.source for r in rated] == ["s", "rated.jsonl", "rated.jsonl"]
    assert [r.split for r in load_ratings(path, split="test")] == ["test"]
    assert load_ratings(path, limit=1) == rated[:1]


def test_ratings_that_are_none(tmp_path):
    pairs = written(tmp_path / "pairs.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    with pytest.raises(DataError, match="holds prompt/chosen/rejected, expected rated answers"):
        load_ratings(pairs)
    for row, message in (
        ({"prompt": "a", "response": None, "ratings": {"q": 1}}, "row 2 has ratings but no response"),
        ({"response": "b", "ratings": {"q": 1}}, "row 2 has no prompt"),
        ({"prompt": "a", "response": "b", "ratings": [1]}, "row 2: expected ratings as"),
    ):
        # Late enough that the kind is settled by whole rows.
        good = {"prompt": "a", "response": "b", "ratings": {"q": 1}}
        path = written(
            tmp_path / "rated.jsonl", [good, row] if not isinstance(row["ratings"], list) else [good] * 300 + [row]
        )
        with pytest.raises(DataError, match=message.replace("row 2:", "row 301:")):
            load_ratings(path)
    unrated = written(tmp_path / "unrated.jsonl", [{"prompt": "a", "response": "b", "ratings": {}}])
    with pytest.raises(DataError, match="no answer in it has a rating"):
        load_ratings(unrated)
