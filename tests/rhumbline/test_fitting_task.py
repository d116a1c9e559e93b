"""From files to tasks: what is drawn together, on which side of the splits, with which targets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rhumbline.errors import DataError
from rhumbline.fitting.recipe import RewardRecipe
from rhumbline.fitting.task import Split, build, load, save
from tests.rhumbline.reward_tasks import task_of


def recipe_of(tmp_path: Path, rows: list[dict[str, Any]], kind: str, **sections: Any) -> RewardRecipe:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"path": str(path), "licence": "CC0"}
    compared = {"comparisons": {"mine": {**data, **sections.pop("data", {})}}}
    rated = {"ratings": {"mine": {**data, "heads": {"good": {}, "kind": {}}}}}
    base: dict[str, Any] = {"name": "r", "kind": kind, "validation": 0.3}
    own = rated if kind in ("regression", "absolute") else compared
    return RewardRecipe.model_validate({**base, **own, **sections})


def rated(count: int) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"question {i // 2}",
            "response": f"answer {i}",
            "ratings": {"good": i % 11 / 10, **({"kind": 0.5} if i % 3 else {})},
            "split": "test" if i >= count - 8 else "train",
        }
        for i in range(count)
    ]


def ranked(count: int) -> list[dict[str, Any]]:
    """Three pairs of three answers to each prompt."""
    return [
        {
            "prompt": f"question {i}",
            "chosen": f"{better} {i}",
            "rejected": f"{worse} {i}",
            "gap": gap,
            "split": "test" if i >= count - 4 else "train",
        }
        for i in range(count)
        for better, worse, gap in (("best", "fair", 1), ("best", "worst", 2), ("fair", "worst", 1))
    ]


def judged(count: int) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"question {i}",
            "response_a": f"one {i}",
            "response_b": f"two {i}",
            "winner": ("a", "b", "tie")[i % 3],
            "profile": {"age": "9"},
            "split": "test" if i >= count - 6 else "train",
        }
        for i in range(count)
    ]


def test_an_answer_is_a_unit_and_conversations_are_on_one_side(tmp_path: Path) -> None:
    task = build(recipe_of(tmp_path, rated(40), "regression"))
    assert task.targets["labels"].shape == (40, 2)
    assert np.isnan(task.targets["labels"][0, 1])
    assert task.targets["labels"][1].tolist() == [10.0, 50.0]
    sides: dict[str, set[str]] = {}
    for group, split in zip(task.groups, task.splits, strict=True):
        sides.setdefault(group, set()).add(split)
    assert all(len(own) == 1 for own in sides.values())
    assert len(task.within("test")) == 8
    assert 2 <= len(task.within("validation")) <= 20
    assert task.counts["mine"]["train"] == 32


def test_all_pairs_of_a_prompt_are_one_unit_and_answers_are_read_once(tmp_path: Path) -> None:
    task = build(recipe_of(tmp_path, ranked(20), "preference", data={"strength": "gap"}, loss={"per": "prompt"}))
    assert len(task.members) == 20
    assert all(len(own) == 3 for own in task.members)
    assert [task.inputs[i].answer for i in task.members[4]] == ["best 4", "fair 4", "worst 4"]
    t = {name: values[12:15].tolist() for name, values in task.targets.items()}
    assert (t["unit"], t["better"], t["worse"]) == ([4, 4, 4], [0, 0, 1], [1, 2, 2])
    assert (t["strength"], t["weight"]) == ([1, 2, 1], pytest.approx([1 / 3] * 3))


def test_two_data_sets_of_one_file_share_their_answers(tmp_path: Path) -> None:
    rows = [{**row, "other": "b", "by": "people"} for row in judged(30)]
    recipe = recipe_of(tmp_path, rows, "preference", data={"head": "first"})
    path = recipe.comparisons["mine"].path
    recipe = RewardRecipe.model_validate(
        {
            **recipe.model_dump(),
            "comparisons": {
                "one": {"path": path, "licence": "CC0", "head": "first"},
                "two": {"path": path, "licence": "CC0", "head": "second", "winner": "other", "where": {"by": "people"}},
            },
        }
    )
    task = build(recipe)
    assert recipe.outputs() == ("first", "second")
    assert len(task.inputs) == 60
    assert len(task.members) == 30
    heads = task.targets["head"]
    assert ((heads == 0).sum(), (heads == 1).sum()) == (20, 30)  # a tie orders nothing
    assert task.targets["source"].tolist() == heads.tolist()  # a unit has pairs of both data sets
    assert task.counts["one"]["tie"] == 10


def test_a_comparison_is_read_in_both_orders(tmp_path: Path) -> None:
    task = build(recipe_of(tmp_path, judged(30), "comparer", data={"profile": "profile"}, folds=3))
    first, second = (task.inputs[i] for i in task.members[1])
    assert (first.answer, first.other, first.profile) == ("one 1", "two 1", "age: 9")
    assert (second.answer, second.other) == ("two 1", "one 1")
    assert task.targets["winner"][:3].tolist() == [0, 1, 2]
    tested: list[str] = []
    for fold in range(3):
        part = task.fold(fold)
        assert len(part.members) == 24  # the test rows are gone
        held, seen = ({part.groups[u] for u in part.within(split)} for split in ("test", "train"))
        assert not held & seen
        tested += [part.groups[u] for u in part.within("test")]
        u = part.within("test")[0]
        assert part.targets["winner"][u] == int(part.inputs[part.members[u][0]].answer.split()[1]) % 3
    assert sorted(tested) == sorted(g for g, split in zip(task.groups, task.splits, strict=True) if split != "test")


def test_uneven_labels_are_drawn_as_the_recipe_says(tmp_path: Path) -> None:
    plain = build(recipe_of(tmp_path, rated(60), "absolute", absolute={"label": "good"}))
    wanted = {"label": "good", "oversample": 3, "loss_weight_strength": 0.75}
    task = build(recipe_of(tmp_path, rated(60), "absolute", absolute=wanted))

    def low(u: int) -> bool:
        return bool(task.targets["labels"][u] <= 0.4)

    train = task.within("train")
    assert sum(map(low, train)) == 3 * sum(plain.targets["labels"][u] <= 0.4 for u in plain.within("train"))
    assert task.read_by(task.within("test")) == plain.read_by(plain.within("test"))
    wanted_weight = max(1, 0.75 * len(train) / sum(map(low, train)))
    assert [task.targets["weights"][u] for u in train if low(u)] == pytest.approx(
        [wanted_weight] * sum(map(low, train))
    )
    assert {float(task.targets["weights"][u]) for u in train if not low(u)} == {1.0}


def test_paraphrases_are_trained_on_and_nothing_else_changes(tmp_path: Path) -> None:
    plain = build(recipe_of(tmp_path, rated(60), "absolute", absolute={"label": "good"}))
    file = tmp_path / "words.jsonl"
    made = [
        {"response": f"answer {i}", "paraphrase": f"reply {i} {n}", "similarity": 0.9}
        for i in range(60)
        for n in range(3)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in made))
    wanted = {"label": "good", "paraphrase": {"path": str(file), "per_answer": 2}}
    task = build(recipe_of(tmp_path, rated(60), "absolute", absolute=wanted))
    labels = {task.inputs[task.members[u][0]].answer: task.targets["labels"][u] for u in range(len(task.members))}
    low = [u for u in plain.within("train") if plain.targets["labels"][u] <= 0.4]
    new = [u for u in task.within("train") if task.inputs[task.members[u][0]].answer.startswith("reply")]
    assert len(new) == 2 * len(low) == task.counts["mine"]["paraphrases"]
    for u in new:
        said = task.inputs[task.members[u][0]]
        original = f"answer {said.answer.split()[1]}"
        assert labels[said.answer] == pytest.approx(max(0, labels[original] - 0.1))
        (own,) = (v for v in range(len(task.members)) if task.inputs[task.members[v][0]].answer == original)
        assert (said.prompt, task.groups[u], task.sources[u], task.splits[own]) == (
            task.inputs[task.members[own][0]].prompt,
            task.groups[own],
            "mine",
            "train",
        )
    held: tuple[Split, ...] = ("validation", "test")
    for split in held:
        read, before = task.read_by(task.within(split)), plain.read_by(plain.within(split))
        assert [task.inputs[i] for i in read] == [plain.inputs[i] for i in before]
    assert build(recipe_of(tmp_path, rated(60), "absolute", absolute=wanted)).inputs == task.inputs
    other = build(recipe_of(tmp_path, rated(60), "absolute", absolute=wanted, seed=1))
    assert other.inputs != task.inputs  # others of the three are drawn


def test_a_weighting_needs_all_of_its_ratings(tmp_path: Path) -> None:
    task = build(recipe_of(tmp_path, rated(60), "absolute", absolute={"weights": {"good": 0.5, "kind": 0.5}}))
    assert len(task.members) == 40  # every third answer lacks one
    assert task.inputs[task.members[0][0]].answer in {f"answer {i}" for i in range(60) if i % 3}


@pytest.mark.parametrize("kind", ["regression", "absolute", "preference", "comparer"])
def test_a_worker_reads_what_was_written(tmp_path: Path, kind: str) -> None:
    task = task_of(kind)
    save(task, tmp_path / "task.json")
    again = load(tmp_path / "task.json")
    for name in ("kind", "inputs", "members", "splits", "groups", "sources", "folds", "counts"):
        assert getattr(again, name) == getattr(task, name)
    assert again.targets.keys() == task.targets.keys()
    for name, values in task.targets.items():
        np.testing.assert_array_equal(again.targets[name], values)


def test_what_cannot_be_trained_on_is_said(tmp_path: Path) -> None:
    few = rated(10)
    for row in few:
        row["prompt"] = "the same" if row["split"] == "train" else row["prompt"]
    with pytest.raises(DataError, match=r"validation, a share of|no row is left to train on"):
        build(recipe_of(tmp_path, few, "regression"))
    only = [{**row, "ratings": {"good": 0.5}} for row in rated(40)]
    only[-1]["ratings"]["kind"] = 0.1
    with pytest.raises(DataError, match="kind"):
        build(recipe_of(tmp_path, only, "regression"))


def test_every_class_is_in_what_is_trained_on(tmp_path: Path) -> None:
    decided = [row for row in judged(30) if row["winner"] != "tie"]
    with pytest.raises(DataError, match=r"no training row ends in a tie.*\(a \d+, b \d+\): set loss\.ties=false"):
        build(recipe_of(tmp_path, decided, "comparer"))
    assert build(recipe_of(tmp_path, decided, "comparer", loss={"ties": False})).within("train")
    always_a = [{**row, "winner": "a" if row["winner"] == "b" else row["winner"]} for row in judged(30)]
    assert build(recipe_of(tmp_path, always_a, "comparer")).within("train")  # swapped in training, a is b as well
    with pytest.raises(DataError, match=r"no training row ends in 'b'.*loss\.swap=none .* set alternate or both"):
        build(recipe_of(tmp_path, always_a, "comparer", loss={"swap": "none"}))
    with pytest.raises(DataError, match=r"training rows end in tie \d+ alone"):
        build(recipe_of(tmp_path, [{**row, "winner": "tie"} for row in judged(30)], "comparer"))


def test_a_head_that_validation_took_all_pairs_of(tmp_path: Path) -> None:
    rows = [{**row, "goal": "kind"} for row in ranked(30)]
    plain = build(recipe_of(tmp_path, rows, "preference"))
    held = plain.inputs[plain.members[plain.within("validation")[0]][0]].prompt.messages[0].content
    for row in rows:
        row["goal"] = "safe" if row["prompt"] == held else "kind"
    path = tmp_path / "rows.jsonl"
    data = {
        name: {"path": str(path), "licence": "CC0", "head": name, "where": {"goal": name}, "test": test}
        for name, test in (("kind", "test"), ("safe", None))
    }
    recipe = recipe_of(tmp_path, rows, "preference")
    with pytest.raises(DataError, match=r"head safe: no pair that is trained on.*comparisons\.safe"):
        build(RewardRecipe.model_validate({**recipe.model_dump(), "comparisons": data}))


def test_early_stopping_needs_a_figure_that_is_defined(tmp_path: Path) -> None:
    flat = [{**row, "ratings": {"good": 0.5, "kind": 0.5}} for row in rated(40)]
    stopping = {"every": 5, "metric": "spearman"}
    with pytest.raises(DataError, match="early_stopping: spearman is not defined on the validation split"):
        build(recipe_of(tmp_path, flat, "regression", early_stopping=stopping))
    with pytest.raises(DataError, match="two different labels"):
        build(recipe_of(tmp_path, flat, "absolute", absolute={"label": "good"}, early_stopping=stopping))
    assert build(recipe_of(tmp_path, flat, "regression", early_stopping={"every": 5})).within("train")


def test_a_fold_that_leaves_nothing_is_named(tmp_path: Path) -> None:
    rows = judged(40)
    whole = build(recipe_of(tmp_path, rows, "comparer", folds=2))
    # Validation of one conversation: the fold that tests it has none left to stop by.
    _, *others = [whole.inputs[whole.members[u][0]].prompt.messages[0].content for u in whole.within("validation")]
    few = [row for row in rows if row["prompt"] not in others]
    with pytest.raises(DataError, match=r"fold \d of 2: none of \d+ training units falls into validation"):
        build(recipe_of(tmp_path, few, "comparer", folds=2))


@pytest.mark.parametrize("loss", [{"margin": "strength"}, {"scale_by_strength": True}])
def test_a_loss_by_strength_needs_one(tmp_path: Path, loss: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"loss\..*strength would do nothing: .*comparisons\.\*\.strength"):
        build(recipe_of(tmp_path, ranked(20), "preference", loss=loss))
    assert build(recipe_of(tmp_path, ranked(20), "preference", loss=loss, data={"strength": "gap"})).within("train")
