"""Comparisons of all data sets of a recipe: splits without leaks, folds, classes, and faults named by their key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rhumbline.errors import DataError
from rhumbline.fitting.comparisons import fold_of, gather_comparisons
from rhumbline.fitting.recipe import RewardRecipe


def battle(prompt: str, winner: str = "a", split: str = "train", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "response_a": "yes", "response_b": "no", "winner": winner, "split": split, **more}


def recipe_of(tmp_path: Path, rows: list[dict[str, Any]], kind: str = "comparer", **changes: Any) -> RewardRecipe:
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    data = changes.pop("comparisons", {"mine": {}})
    comparisons = {name: {"path": str(file), "licence": "CC0", **given} for name, given in data.items()}
    return RewardRecipe.model_validate({"name": "r", "kind": kind, "comparisons": comparisons, **changes})


ROWS = [battle("a", "a"), battle("a", "tie"), battle("b", "b"), battle("c", "tie"), battle("d", "b", "test")]


def test_rows_of_both_splits(tmp_path: Path) -> None:
    contests = gather_comparisons(recipe_of(tmp_path, ROWS))
    assert [one.winner for one in contests.rows] == ["a", "tie", "b", "tie", "b"]
    assert contests.train_N.tolist() == [True] * 4 + [False]
    assert contests.groups_N[0] == contests.groups_N[1] != contests.groups_N[2]
    assert contests.folds_N.tolist() == [-1] * 5
    assert contests.counts("mine") == {"train": 4, "test": 1, "dropped": 0}


@pytest.mark.parametrize(("kind", "changes"), [("preference", {}), ("comparer", {"loss": {"ties": False}})])
def test_ties_are_left_out_where_they_are_not_learned(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    contests = gather_comparisons(recipe_of(tmp_path, ROWS, kind, **changes))
    assert [one.winner for one in contests.rows] == ["a", "b", "b"]
    assert contests.dropped == {"mine": {"tie": 2}}


def test_a_conversation_that_is_tested_on_is_not_trained_on(tmp_path: Path) -> None:
    longer = battle("", "a")
    longer["messages"] = [{"role": r, "content": c} for r, c in (("user", "d"), ("assistant", "yes"), ("user", "more"))]
    del longer["prompt"]
    rows = [{**row, "messages": [{"role": "user", "content": row["prompt"]}]} for row in ROWS] + [longer]
    contests = gather_comparisons(recipe_of(tmp_path, rows))
    assert contests.dropped == {"mine": {"tested on": 1}}
    assert not set(contests.groups_N[contests.train_N]) & set(contests.groups_N[~contests.train_N])


def test_what_the_reader_left_out_is_counted_too(tmp_path: Path) -> None:
    equal = battle("e") | {"response_b": "yes"}
    contests = gather_comparisons(recipe_of(tmp_path, [*ROWS, equal, equal | {"split": "test"}]))
    assert contests.dropped == {"mine": {"equal sides": 2}}


def test_two_heads_over_one_file(tmp_path: Path) -> None:
    rows = [battle(p, "a", s, goal=g) for p, g in (("a", "kind"), ("b", "safe")) for s in ("train",)]
    rows += [battle("c", "b", "test", goal="kind")]
    data = {
        "k": {"head": "kind", "where": {"goal": "kind"}},
        "s": {"head": "safe", "where": {"goal": "safe"}, "test": None},
    }
    contests = gather_comparisons(recipe_of(tmp_path, rows, "preference", comparisons=data))
    assert [(one.head, source) for one, source in zip(contests.rows, contests.sources_N, strict=True)] == [
        ("kind", "k"),
        ("kind", "k"),
        ("safe", "s"),
    ]


def test_without_a_test_split_every_tenth_conversation_is_held_out(tmp_path: Path) -> None:
    rows = [battle(f"question {i // 2}", "ab"[i % 2]) for i in range(400)]
    contests = gather_comparisons(recipe_of(tmp_path, rows, "preference", comparisons={"mine": {"test": None}}))
    held_out = set(contests.groups_N[~contests.train_N])
    assert 8 <= len(held_out) <= 36  # of 200, expected 20
    assert not held_out & set(contests.groups_N[contests.train_N])


def test_folds_hold_whole_conversations_and_training_rows_only(tmp_path: Path) -> None:
    rows = [battle(f"question {i // 3}", ("a", "b", "tie")[i % 3]) for i in range(60)] + [battle("z", split="test")]
    contests = gather_comparisons(recipe_of(tmp_path, rows, folds=4, seed=3))
    assert contests.folds_N[-1] == -1
    folds_N = contests.folds_N[contests.train_N]
    assert np.bincount(folds_N).tolist() == [15, 15, 15, 15]
    for group in set(contests.groups_N[contests.train_N]):
        assert len(set(folds_N[contests.groups_N[contests.train_N] == group])) == 1
    again = gather_comparisons(recipe_of(tmp_path, rows, folds=4, seed=3))
    other = gather_comparisons(recipe_of(tmp_path, rows, folds=4, seed=4))
    assert again.folds_N.tolist() == contests.folds_N.tolist() != other.folds_N.tolist()


def test_folds_do_not_depend_on_the_order_of_rows() -> None:
    groups = [f"g{i % 7}" for i in range(40)]
    assert fold_of(groups, 3, 0) == fold_of(groups[::-1], 3, 0)
    sizes = np.zeros(3)
    for group in groups:
        sizes[fold_of(groups, 3, 0)[group]] += 1
    assert sizes.max() - sizes.min() <= 6  # no more than the largest group
    with pytest.raises(DataError, match="7 conversations are too few for 8 folds"):
        fold_of(groups, 8, 0)


def test_faults_in_the_data_are_named_by_key(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"comparisons\.mine: no training row is left; left out: tie 1"):
        gather_comparisons(recipe_of(tmp_path, [battle("a", "tie"), battle("d", split="test")], "preference"))
    with pytest.raises(DataError, match=r"comparisons\.mine: .*no column 'winer' \(winner\)\. Did you mean 'winner'"):
        gather_comparisons(recipe_of(tmp_path, ROWS, comparisons={"mine": {"winner": "winer"}}))
    with pytest.raises(DataError, match=r"comparisons\.mine: .*not found.*comparisons\.mine\.path=FILE"):
        gather_comparisons(recipe_of(tmp_path, ROWS, comparisons={"mine": {"path": str(tmp_path / "missing.jsonl")}}))
