"""Held-out prompts under the profile of who judged them: found where the prompts are the pairs' own, said as in training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rhumbline import config
from rhumbline.data.chat import prepare
from rhumbline.data.comparisons import load_comparisons
from rhumbline.errors import DataError
from rhumbline.examples import pairs_of_people
from rhumbline.plan import Plan
from rhumbline.profiles import under_profiles
from rhumbline.queries import ask_all
from tests.rhumbline.chat_fakes import CHATML, byte_tokenizer


@pytest.fixture
def people(tmp_path: Path) -> Path:
    rows: list[dict[str, Any]] = [
        {"prompt": f"Question {i}?", "chosen": "Yes.", "rejected": "No.", "person": {"age": str(20 + i)}}
        for i in range(12)
    ]
    rows[0]["person"] = None
    rows.append(rows[3] | {"chosen": "Never.", "person": {"age": "99"}})  # asked by another one, later
    path = tmp_path / "people.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe(file: Path, **prompts: Any) -> config.DpoRecipe:
    raw = {
        "job": "dpo",
        "rewards": {
            "sources": [{"kind": "rules", "heads": {"long": {"rule": "verbosity"}, "loops": {"rule": "repetition"}}}],
            "objectives": {"long": {"heads": {"long": 1.0}}, "calm": {"heads": {"loops": -1.0}}},
        },
        "pairs": {"people": {"path": str(file), "profile": "person"}},
        "prompts": {"path": str(file), "evaluation": 9, **prompts},
        "directions": {"fixed": {"long": 1.0}, "said": False, "per_prompt": 1},
        "initial": {"strategy": "none"},
        "sampling": {"max_tokens": 8},
        "evaluation": {"sampling": {"max_tokens": 8}},
    }
    return config.validate(raw, "people.yaml", kind=config.DpoRecipe)


def test_a_held_out_prompt_is_asked_in_the_words_of_the_pairs(people: Path) -> None:
    plan = Plan.make(recipe(people))
    held = plan.splits.evaluation
    texts = {prompt.id: prompt.messages[0].content for prompt in held}
    assert {texts[id_] for id_ in plan.profiles} == set(texts.values()) - {"Question 0?"}
    queries = under_profiles(ask_all(held, [None], plan.codec, iteration=0, seed=0), plan.profiles)
    trained = pairs_of_people(load_comparisons(people, profile="person").rows)
    said = {pair.messages[-1].content: pair.messages for pair in reversed(trained)}  # the first of a prompt
    for query in queries:
        assert query.messages == said[query.prompt.messages[0].content]
        assert query.prompt.messages[0].role == "user"  # the prompt itself never holds it
    asked = next(query for query in queries if texts[query.prompt.id] != "Question 0?")
    assert asked.messages[0].content.startswith("You answer this person.\n\nage: ")


def test_prompts_from_elsewhere_name_nobody(people: Path) -> None:
    assert Plan.make(recipe(people, path="embedded", limit=30)).profiles == {}


def test_a_profile_counts_towards_the_length_of_a_prompt(people: Path) -> None:
    tokenizer = prepare(byte_tokenizer(CHATML))
    plan = Plan.make(recipe(people))
    plan.check_prompts(tokenizer)
    longest = max(len(f"Question {i}?") for i in range(12))
    with pytest.raises(DataError, match="max_prompt_tokens"):
        Plan.make(recipe(people, max_prompt_tokens=longest + 40)).check_prompts(tokenizer)
