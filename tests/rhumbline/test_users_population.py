"""People's choices: how files become users x questions, and what is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import TypeAdapter

from rhumbline.config import dump
from rhumbline.config.users import Source, UsersRecipe, load_users
from rhumbline.errors import ConfigError, DataError
from rhumbline.users.people_data import read
from rhumbline.users.population import MISSING, PASSED, Population, of_answers
from rhumbline.users.tastes import clustered_tastes, random_tastes
from tests.rhumbline.users_fakes import population, question

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "jobs" / "recipes" / "users").glob("*.yaml"))


def lines(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def people(kind: str, path: str, **fields: Any) -> Population:
    return read(TypeAdapter(Source).validate_python({"kind": kind, "path": path, **fields}), seed=0)


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_every_shipped_recipe_loads_and_its_dump_is_itself(path: Path) -> None:
    recipe = load_users(path)
    assert UsersRecipe.model_validate(yaml.safe_load(dump(recipe))) == recipe
    assert recipe.endpoint is None


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["people.kind=voters"], "people"),
        (["people.min_answer=3"], "Did you mean 'min_answers'"),
        (["survey.questions=3"], "endpoint.url"),
        (["predict.demonstrations=[2,2]"], "predict.demonstrations says something twice"),
        (["predict.demonstrations=[0]"], "predict.demonstrations"),
        (["job=sft"], "it says job: sft, expected job: users"),
        (["endpoint.url=http://localhost:1/v1"], "endpoint.model is required"),
    ],
)
def test_a_wrong_recipe_is_refused_by_its_key(overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace(".", r"\.")):
        load_users(ROOT / "jobs/recipes/users/polis.yaml", overrides)


def test_clusters_are_of_four_ratings() -> None:
    with pytest.raises(ConfigError, match=r"people\.ratings names 2"):
        load_users(ROOT / "jobs/recipes/users/simulated.yaml", ["people.ratings=[coherence, fluency]"])


def test_signs_have_the_cosine_one_for_the_same_choice_and_mean_zero_by_chance() -> None:
    """Of three options: x = e_a - 1/3, x.x = 2/3 for the same and -1/3 for another one: cosines 1 and -1/2."""
    signs_UQA = population([[0], [0], [1], [2], [PASSED], [MISSING]], options=3).signs()
    product = signs_UQA[:, 0] @ signs_UQA[:, 0].T
    assert product[0, 1] == pytest.approx(2 / 3)
    assert product[0, 2] / product[0, 0] == pytest.approx(-0.5)
    assert product[0, :4].sum() - product[0, 1] == pytest.approx(0)  # one of each option
    assert (signs_UQA[4:] == 0).all()


def test_people_and_questions_with_too_few_choices_drop_out_by_turns() -> None:
    """u2 chose once and goes; then q2 has nobody but u1 left and goes; then u1 has one choice left, and two are asked for."""
    table = [[0, 1, MISSING, 0], [0, MISSING, 1, MISSING], [MISSING, MISSING, 0, PASSED], [1, 0, MISSING, 1]]
    left = population(table).with_least(min_answers=2, min_users=2)
    assert [user.id for user in left.users] == ["u0", "u3"]
    assert [one.id for one in left.questions] == ["q0", "q1", "q3"]
    with pytest.raises(DataError, match=r"people\.min_answers"):
        population(table).with_least(min_answers=9, min_users=1)


def test_pairs_keep_two_options_and_forget_who_wanted_another() -> None:
    before = population([[0, 1], [1, 1], [2, 0], [PASSED, 2]], options=3)
    after = before.in_pairs(seed=4)
    for q, one in enumerate(after.questions):
        assert len(set(one.options)) == 2
        for u in range(4):
            was = before.choices_UQ[u, q]
            wanted = before.questions[q].options[was] if was >= 0 else None
            now = after.choices_UQ[u, q]
            if wanted in one.options:
                assert one.options[now] == wanted
            else:
                assert now == (PASSED if was == PASSED else MISSING)


def test_drawing_is_by_the_seed_and_one_limit_does_not_move_the_other() -> None:
    many = population(np.zeros((9, 9), dtype=int).tolist())
    some = many.drawn(3, 4, seed=1)
    assert [user.id for user in some.users] == [user.id for user in many.drawn(3, None, seed=1).users]
    assert [one.id for one in some.questions] == [one.id for one in many.drawn(None, 4, seed=1).questions]
    assert some.choices_UQ.shape == (3, 4)


def test_an_unknown_split_is_named_with_those_that_there_are() -> None:
    split = of_answers("x", [], [question("a", split="train")], [])
    with pytest.raises(DataError, match=r"no question of split 'trian'.* Did you mean 'train'"):
        split.in_split("trian")


def test_votes_become_choices_and_groups_are_no_profile(tmp_path: Path) -> None:
    items = lines(
        tmp_path / "items.jsonl",
        {"item_id": "i0", "conversation": "c", "topic": "Parks", "response": "More trees.", "split": "test"},
        {"item_id": "i1", "conversation": "other", "response": "No.", "split": "train"},
    )
    users = lines(tmp_path / "users.jsonl", {"user_id": "ann", "profile": {"opinion_group": "1"}})
    votes = lines(
        tmp_path / "votes.jsonl",
        *({"user_id": user, "item_id": "i0", "score": score} for user, score in (("ann", 1), ("bob", -1), ("cy", 0))),
        {"user_id": "ann", "item_id": "i1", "score": 1},
    )
    found = people("votes", votes, items=items, users=users, where={"conversation": "c"})
    assert [user.id for user in found.users] == ["ann", "bob"]  # cy only passed
    assert found.choices_UQ.tolist() == [[0], [1]]
    assert (found.users[0].group, dict(found.users[0].profile)) == ("1", {})
    assert "More trees." in found.questions[0].messages[0].content
    assert found.questions[0].split == "test"
    with pytest.raises(DataError, match="conversation is 'd'"):
        people("votes", votes, items=items, where={"conversation": "d"})


def test_a_score_that_is_no_vote_is_refused(tmp_path: Path) -> None:
    items = lines(tmp_path / "items.jsonl", {"item_id": "i0", "response": "More trees."})
    votes = lines(tmp_path / "votes.jsonl", {"user_id": "ann", "item_id": "i0", "score": 5})
    with pytest.raises(DataError, match=r"a score of 5, expected 1 \(agree\)"):
        people("votes", votes, items=items)


def test_personas_domains_and_judges(tmp_path: Path) -> None:
    said = {"user_id": "calm", "profile": {"persona": "calm"}, "prompt": "Would you say 'ah'?", "split": "test"}
    found = people("statements", lines(tmp_path / "s.jsonl", {**said, "chosen": "No", "rejected": "Yes"}))
    assert found.choices_UQ.tolist() == [[1]]
    assert found.questions[0].options == ("Yes", "No")

    row = {"id": "d0", "prompt": "Why?", "responses": {"law": "By statute.", "poem": "O why."}, "split": "train"}
    found = people("domains", lines(tmp_path / "d.jsonl", row))
    assert found.choices_UQ.tolist() == [[0], [1]]
    assert found.users[1].profile == {"domain": "poem"}

    pair = {"id": "h0", "prompt": "\n\nHuman: Hi\n\nAssistant:", "response_a": "Yes.", "response_b": "No."}
    seen = {"human_objective": "helpful", "human_winner": "a", "model_objective": "harmless", "model_winner": "b"}
    found = people("objectives", lines(tmp_path / "h.jsonl", {**pair, **seen}))
    assert [user.id for user in found.users] == ["human:helpful", "model:harmless"]
    assert found.choices_UQ.tolist() == [[0], [1]]


def test_a_history_replaces_the_stated_preference(tmp_path: Path) -> None:
    row = {"id": "p0", "user_id": "eve", "profile": {"preference": "no planes"}, "prompt": "How do I get there?"}
    path = lines(tmp_path / "p.jsonl", {**row, "options": ["Fly", "Sail", "Walk"], "aligned_option": 1})
    past = lines(tmp_path / "h.jsonl", {"user_id": "eve", "messages": [{"role": "user", "content": "I took a ship."}]})
    assert people("preferences", path).users[0].profile == {"preference": "no planes"}
    found = people("preferences", path, history=past)
    assert not found.users[0].profile
    assert found.users[0].history[0].content == "I took a ship."
    assert found.choices_UQ.tolist() == [[1]]
    with pytest.raises(DataError, match=r"no conversation of user 'eve'"):
        people("preferences", path, history=lines(tmp_path / "n.jsonl", {"user_id": "x", "messages": []}))


def test_one_id_with_two_preferences_is_two_people(tmp_path: Path) -> None:
    row = {"user_id": "eve", "prompt": "How?", "options": ["Fly", "Sail"], "aligned_option": 1}
    wants = ["no planes", "no planes", "no ships"]
    path = lines(
        tmp_path / "p.jsonl", *({**row, "id": f"p{i}", "profile": {"preference": want}} for i, want in enumerate(wants))
    )
    found = people("preferences", path)
    assert [(user.id, user.profile["preference"]) for user in found.users] == [
        ("eve", "no planes"),
        ("eve-2", "no ships"),
    ]
    assert found.choices_UQ.tolist() == [[1, 1, MISSING], [MISSING, MISSING, 1]]

    said = [{"role": "user", "content": "I swim."}], [{"role": "user", "content": "I walk."}]
    past = lines(
        tmp_path / "h.jsonl",
        {"user_id": "eve", "profile": {"preference": "no ships"}, "messages": said[0]},
        {"user_id": "eve", "profile": {"preference": "no aeroplanes"}, "messages": said[1]},
    )
    found = people("preferences", path, history=past)  # whose the second one is nobody can say
    assert [user.history[0].content for user in found.users] == ["I swim."]
    assert [one.id for one in found.questions] == ["p2"]


def test_named_judges_of_comparisons(tmp_path: Path) -> None:
    pair = {"prompt": "Why?", "response_a": "Because.", "response_b": "Ask later."}
    swapped = {"prompt": "Why?", "response_a": "Ask later.", "response_b": "Because."}
    path = lines(
        tmp_path / "c.jsonl",
        {**pair, "winner": "a", "user_id": "j1"},
        {**swapped, "winner": "b", "user_id": "j2"},  # the same answers the other way round: the same question
        {**pair, "winner": "tie", "user_id": "j3"},
        {**pair, "winner": "b", "user_id": "j1"},  # changed their mind: the first time counts
    )
    found = people("comparisons", path)
    assert len(found.questions) == 1
    assert [found.questions[0].options[c] for c in found.choices_UQ[:, 0]] == ["Because.", "Because."]  # j3 only tied


def test_simulated_people_choose_by_their_weights_among_answers_that_nobody_dominates(tmp_path: Path) -> None:
    """(4, 1) and (1, 4) divide people at w = 1/2; (1, 1) is dominated and (4, 1) again is the same answer in other words."""
    rated = [("left", (4.0, 1.0)), ("right", (1.0, 4.0)), ("poor", (1.0, 1.0)), ("left too", (4.0, 1.0))]
    path = lines(
        tmp_path / "r.jsonl",
        *({"prompt": "Q", "response": text, "ratings": {"x": x, "y": y}, "split": "test"} for text, (x, y) in rated),
        {"prompt": "easy", "response": "good", "ratings": {"x": 5.0, "y": 5.0}},
        {"prompt": "easy", "response": "bad", "ratings": {"x": 1.0, "y": 1.0}},
    )
    found = people("simulated", path, num_users=50)
    assert len(found.questions) == 1
    assert sorted(found.questions[0].options)[1] == "right"
    assert "poor" not in found.questions[0].options
    left = next(a for a, text in enumerate(found.questions[0].options) if text.startswith("left"))
    weights_UK = random_tastes(2, num_users=50, seed=0)
    assert ((found.choices_UQ[:-1, 0] == left) == (weights_UK[:-1, 0] > 0.5)).all()
    assert found.users[-1].id == "uniform"
    assert found.uniform_Q is not None
    with pytest.raises(DataError, match="no rating 'z'"):
        people("simulated", path, ratings=["x", "z"])


def test_clusters_are_the_reports() -> None:
    weights_UK, groups = clustered_tastes(num_users=100, seed=0)
    assert [groups.count(name) for name in ("0", "1", "2", "uniform")] == [49, 30, 20, 1]
    assert weights_UK.sum(axis=1) == pytest.approx(np.ones(100))
    assert weights_UK[-1].tolist() == [0.25] * 4
    means = np.array([weights_UK[np.array(groups) == name].mean(axis=0) for name in ("0", "1", "2")])
    assert means[1] == pytest.approx([0.07, 0.03, 0.60, 0.30], abs=0.08)
    assert means[2] == pytest.approx([0.75, 0.05, 0.12, 0.08], abs=0.08)


def test_ids_that_are_given_twice_or_unknown_are_refused() -> None:
    with pytest.raises(DataError, match="the question 'a' is there twice"):
        of_answers("x", [], [question("a"), question("a")], [])
    with pytest.raises(DataError, match="one of which is not in the data"):
        of_answers("x", [], [question("a")], [("eve", "a", 0)])
