"""Files of pairs, of battles and of ranked answers as comparisons; what is left out; columns that the caller names."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from rhumbline.data.comparisons import Comparison, load_comparisons, ranked
from rhumbline.errors import DataError
from rhumbline.records import Message, Prompt

FILES = {
    f"{f.parent.name}/{f.name.removesuffix('.jsonl.gz')}": f
    for f in (Path(__file__).parents[2] / "data").glob("*/*.jsonl.gz")  # where the recipes read it
}
needs_data = pytest.mark.skipif(not FILES, reason="no real data in data/")
WHY = Prompt(id="why", messages=(Message(role="user", content="Why?"),))


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def battle(winner: Any = "a", a: Any = "So.", b: Any = "No.", **more: Any) -> dict[str, Any]:
    return {"prompt": "Why?", "response_a": a, "response_b": b, "winner": winner, **more}


def pair(chosen: str = "So.", rejected: str = "No.", **more: Any) -> dict[str, Any]:
    return {"prompt": "Why?", "chosen": chosen, "rejected": rejected, **more}


def test_a_pair_is_won_by_a(tmp_path: Path) -> None:
    (one,) = load_comparisons(written(tmp_path / "p.jsonl", [pair(split="train")]), "train", head="helpful").rows
    assert (one.a, one.b, one.winner, one.head, one.source, one.split) == (
        "So.",
        "No.",
        "a",
        "helpful",
        "p.jsonl",
        "train",
    )
    assert one.prompt.messages == WHY.messages
    assert (one.strength, one.models, one.profile, one.user) == (None, (None, None), {}, None)
    assert pickle.loads(pickle.dumps(one)) == one


def test_a_battle_keeps_who_fought_and_who_judged(tmp_path: Path) -> None:
    row = battle("model_b", model_a="m", model_b="n", user_id=7, annotator="x", source="arena")
    (one,) = load_comparisons(written(tmp_path / "p.jsonl", [row])).rows
    assert (one.winner, one.models, one.user, one.source) == ("b", ("m", "n"), "7", "arena")
    other = one.swapped()
    assert (other.a, other.b, other.winner, other.models) == ("No.", "So.", "a", ("n", "m"))
    assert other.swapped() == one


def test_what_cannot_be_learned_from_is_counted(tmp_path: Path) -> None:
    rows = [
        battle("a"),
        battle("tie"),
        battle(None),
        battle("a", b=" "),
        battle("b", a=None),
        battle("tie", a="No. ", b="No."),
        battle("a") | {"prompt": ""},
        battle("a") | {"prompt": "\n\nHuman: Hi\n\nAssistant: Hello\n\nAssistant: Again"},  # nothing to answer
    ]
    found = load_comparisons(written(tmp_path / "p.jsonl", rows))
    assert [one.winner for one in found.rows] == ["a", "tie"]
    assert found.skipped == {"no winner": 1, "empty side": 1, "missing side": 1, "equal sides": 1, "no prompt": 2}
    assert len(load_comparisons(tmp_path / "p.jsonl", limit=1).rows) == 1
    with pytest.raises(DataError, match="no comparison in it can be used; left out: no winner 1, empty side 1"):
        load_comparisons(written(tmp_path / "q.jsonl", rows[2:4]))


def test_chatbot_arena_rows(tmp_path: Path) -> None:
    names = {"winner_model_a": 0, "winner_model_b": 0, "winner_tie": 1}
    one_round = {"prompt": '["Why?"]', "response_a": '["So."]', "response_b": '["No."]', **names}
    two_rounds = {"prompt": '["Why?", "b"]', "response_a": '["c", "d"]', "response_b": '["e", "f"]', **names}
    found = load_comparisons(written(tmp_path / "p.jsonl", [one_round, two_rounds]))
    assert [(r.a, r.b, r.winner) for r in found.rows] == [("So.", "No.", "tie")]
    assert found.rows[0].prompt.messages == WHY.messages
    assert found.skipped == {"missing side": 1}


# --- columns that the caller names ------------------------------------------------------------------------------------


def test_two_heads_over_one_file(tmp_path: Path) -> None:
    row = {"prompt": "Why?", "response_a": "So.", "response_b": "No."}
    rows = [
        row | {"human_objective": "helpful", "human_winner": "a", "model_objective": "harmless", "model_winner": "b"},
        row | {"human_objective": "harmless", "human_winner": "b", "model_objective": "harmless", "model_winner": "a"},
    ]
    path = written(tmp_path / "p.jsonl", rows)
    harmless = load_comparisons(path, head="harmless", winner="human_winner", where={"human_objective": "harmless"})
    assert [(r.winner, r.head) for r in harmless.rows] == [("b", "harmless")]
    assert harmless.skipped == {}
    model = load_comparisons(path, winner="model_winner", where={"model_objective": ["harmless", "helpful"]})
    assert [r.winner for r in model.rows] == ["b", "a"]


def test_strength(tmp_path: Path) -> None:
    path = written(tmp_path / "gap.jsonl", [pair(rank_gap=2), pair(rank_gap=0), pair(rank_gap=None)])
    found = load_comparisons(path, strength="rank_gap")
    assert [one.strength for one in found.rows] == [2.0, 0.0]  # 0 is a strength
    assert found.skipped == {"no strength": 1}
    rows = [pair(score_chosen=8, score_rejected=6.5), pair(score_chosen=3, score_rejected=4)]
    found = load_comparisons(written(tmp_path / "score.jsonl", rows), strength="score")
    assert ([one.strength for one in found.rows], found.skipped) == ([1.5], {"scores against the winner": 1})
    rows = [
        battle("b", score_a=0.5, score_b=1.5),
        battle("tie", score_a=1, score_b=1),
        battle("a", score_a=None, score_b=1),
    ]
    found = load_comparisons(written(tmp_path / "sides.jsonl", rows), strength="score")
    assert ([one.strength for one in found.rows], found.skipped) == ([1.0, 0.0], {"no strength": 1})


def test_profiles(tmp_path: Path) -> None:
    profile = {"age": 41, "city": None, "tone": "dry"}
    path = written(tmp_path / "p.jsonl", [pair(profile=profile), pair(profile=None), pair(profile={})])
    assert [r.profile for r in load_comparisons(path, profile="profile").rows] == [{"age": "41", "tone": "dry"}, {}, {}]
    path = written(tmp_path / "q.jsonl", [pair(persona="A pilot."), pair(persona=" ")])
    assert [r.profile for r in load_comparisons(path, profile="persona").rows] == [{"persona": "A pilot."}, {}]
    assert load_comparisons(path).rows[0].profile == {}


@pytest.mark.parametrize(
    ("row", "options", "said"),
    [
        (
            battle(),
            {"winner": "winer"},
            r"no column 'winer' \(winner\)\. Did you mean 'winner'\? Columns: prompt, resp",
        ),
        (
            pair(gap=1),
            {"strength": "gaps"},
            r"no column 'gaps' \(strength\)\. Did you mean 'gap'.*gaps_chosen and gaps_rej",
        ),
        (pair(), {"profile": "profile"}, r"no column 'profile' \(profile\)"),
        (battle(goal="kind"), {"where": {"gaol": "kind"}}, r"no column 'gaol' \(where\)\. Did you mean 'goal'"),
        (
            battle(goal="kind"),
            {"where": {"goal": "kidn"}},
            r"no row left where goal is 'kidn' \(where\)\. Did you mean 'kind'\? Found in goal: kind",
        ),
        (pair(x="a"), {"winner": "x"}, "has `chosen` and `rejected`, so the winner is said: leave out winner"),
        (battle("gpt"), {}, r"row 1: winner is 'gpt', expected one of a, b, tie"),
        (battle(1), {}, r"row 1: winner is 1, expected one of"),
        (battle(gap=-1), {"strength": "gap"}, r"row 1: gap is -1, expected 0 or more"),
        (battle(gap="big"), {"strength": "gap"}, r"row 1: gap is 'big', expected a number"),
        (battle(p=[1]), {"profile": "p"}, r"row 1: p is list, expected a mapping or a text"),
        ({"prompt": "Why?"}, {}, r"holds prompt, expected prompt/chosen/rejected, .* or answers with a `rank`"),
        (
            {"prompt": "a", "response_a": "b", "response_b": "c", "human_winner": "a"},
            {},
            r"no column `winner`: name the column .* These look like it: human_winner",
        ),
    ],
)
def test_faults_are_named(tmp_path: Path, row: dict[str, Any], options: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        load_comparisons(written(tmp_path / "p.jsonl", [row]), **options)


def test_a_filter_that_no_row_of_a_ranked_file_passes(tmp_path: Path) -> None:
    row = {"prompt": "Why?", "response": "So.", "rank": 0, "lang": "en"}
    with pytest.raises(DataError, match="no row left where lang is 'de'"):
        load_comparisons(written(tmp_path / "p.jsonl", [row]), where={"lang": "de"})


# --- ranked answers ---------------------------------------------------------------------------------------------------


def test_every_two_of_different_rank() -> None:
    # Of 4 answers there are 6 pairs; b and d share a rank, which leaves 5.
    found = ranked(WHY, ["a", "b", "c", "d"], [1, 0, 2, 0], head="human")
    assert [(r.a, r.b, r.winner, r.strength) for r in found] == [
        ("a", "b", "b", 1),
        ("a", "c", "a", 1),
        ("a", "d", "b", 1),
        ("b", "c", "a", 2),
        ("c", "d", "b", 2),
    ]
    assert {(r.prompt, r.head) for r in found} == {(WHY, "human")}
    assert ranked(WHY, ["a"], [0]) == []


def test_a_message_tree_with_ranks(tmp_path: Path) -> None:
    def message(name: str, parent: str | None, role: str, rank: int | None = None, **more: Any) -> dict[str, Any]:
        return {"message_id": name, "parent_id": parent, "role": role, "text": name, "rank": rank, **more}

    tree = [
        message("q", None, "prompter"),
        message("best", "q", "assistant", 0),
        message("worst", "q", "assistant", 2),
        message("middle", "q", "assistant", 1),
        message("gone", "q", "assistant", 3, deleted=True),
        message("unranked", "q", "assistant"),
        message("more", "best", "prompter"),
        message("alone", "more", "assistant", 0),
    ]
    found = load_comparisons(written(tmp_path / "t.jsonl", tree))
    assert [(r.a, r.b, r.winner, r.strength) for r in found.rows] == [
        ("best", "worst", "a", 2),
        ("best", "middle", "a", 1),
        ("worst", "middle", "b", 1),
    ]
    # `unranked` has no rank; `alone` is the one answer to its prompt.
    assert found.skipped == {"no rank": 1, "one answer": 1}
    with pytest.raises(DataError, match=r"read by its ranks, .* leave out strength"):
        load_comparisons(tmp_path / "t.jsonl", strength="rank")


def test_equal_ranks_are_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "Why?", "response": name, "rank": rank} for name, rank in (("a", 0), ("b", 1), ("c", 1))]
    found = load_comparisons(written(tmp_path / "p.jsonl", rows))
    assert ([(r.a, r.b) for r in found.rows], found.skipped) == ([("a", "b"), ("a", "c")], {"equal ranks": 1})


def test_answers_to_one_question_in_two_trees_do_not_meet(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Why?", "response": name, "rank": rank, "parent_id": parent}
        for name, rank, parent in (("a", 0, "x"), ("b", 1, "x"), ("c", 0, "y"), ("d", 1, "y"))
    ]
    found = load_comparisons(written(tmp_path / "p.jsonl", rows))
    assert [(r.a, r.b) for r in found.rows] == [("a", "b"), ("c", "d")]


# --- real files, where they are at hand -------------------------------------------------------------------------------


@needs_data
@pytest.mark.parametrize(
    ("name", "options", "kept", "skipped"),
    [
        ("pandalm/pairs_with_ties", {}, 741, {"empty side": 54}),
        ("tulu_human_eval/pairs_with_ties", {"strength": "strength"}, 871, {"equal sides": 31}),
        ("webgpt/pairs_with_ties", {"strength": "score"}, 725, {}),
        ("alpaca_eval/pairs_with_ties", {}, 1945, {"equal sides": 15}),
        ("ultrafeedback_sample/pairs", {"strength": "score"}, 973, {"empty side": 1}),
        ("oasst1/ranked_pairs", {"strength": "rank_gap"}, 1391, {}),
        ("persona_statements/user_ratings", {"profile": "profile"}, 4808, {}),
        (
            "hh_two_objectives/two_objective_pairs",
            {"winner": "human_winner", "where": {"human_objective": "harmless"}},
            1653,
            {"no prompt": 4},
        ),
    ],
)
def test_real_files(name: str, options: dict[str, Any], kept: int, skipped: dict[str, int]) -> None:
    found = load_comparisons(FILES[name], **options)
    assert (len(found.rows), found.skipped) == (kept, skipped)
    if "strength" in options:
        assert all(one.strength is not None and one.strength >= 0 for one in found.rows)
    if "profile" in options:
        assert all(one.profile and one.user for one in found.rows)


@needs_data
def test_ranks_give_the_pairs_that_were_published_as_pairs() -> None:
    def told(rows: tuple[Comparison, ...]) -> set[tuple[str, ...]]:
        both = [(one.a, one.b) if one.winner == "a" else (one.b, one.a) for one in rows]
        return {(better.strip(), worse.strip()) for better, worse in both}

    by_rank = load_comparisons(FILES["oasst1/attribute_ratings"]).rows
    as_pairs = load_comparisons(FILES["oasst1/ranked_pairs"], where={"source": "oasst1-validation-en"}).rows
    assert told(by_rank) == told(as_pairs)
