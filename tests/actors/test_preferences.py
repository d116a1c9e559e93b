"""Where pairs come from, without a job: rankings of recorded samples, and which other runs are refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from actors.preferences import Preferences
from rhumbline import config
from rhumbline.codecs import make
from rhumbline.errors import DataError, RunError
from rhumbline.plan import Plan
from rhumbline.records import Message, Pair, Prompt
from rhumbline.scalarise import Standardiser
from tests.rhumbline.test_selection import scored

NAMES = ("helpfulness", "verbosity")
REWARDS = {
    "sources": [{"kind": "rules", "heads": {"length": {"rule": "verbosity"}, "words": {"rule": "verbosity"}}}],
    "objectives": {"helpfulness": {"heads": {"words": 1.0}}, "verbosity": {"heads": {"length": 1.0}, "sign": -1}},
}


def recipe(**changes: Any) -> config.DpoRecipe:
    raw = {"job": "dpo", "rewards": REWARDS, "directions": {"law": "grid", "codec": "dpa-float1"}, **changes}
    return config.validate(raw, "small.yaml", kind=config.DpoRecipe)


def pairs(settings: config.DpoRecipe, directions: list[tuple[float, float]]) -> tuple[list[Any], Preferences]:
    given = Preferences(settings)
    texts = {"long": (9.0, 8.0), "short": (6.0, 1.0), "bad": (1.0, 3.0)}
    rows = [
        scored("p", d, s, text, rewards, direction)
        for d, direction in enumerate(directions)
        for s, (text, rewards) in enumerate(texts.items())
    ]
    queries = list({row.completion.query.id: row.completion.query for row in rows}.values())
    return list(given.ranked(rows, queries, make("dpa-float1", NAMES), Standardiser.identity(2))), given


def test_modpo_s_pairs_are_ordered_by_the_learned_objective_alone() -> None:
    settings = recipe(loss={"kind": "modpo", "learned": "verbosity"})
    found, given = pairs(settings, [(0.6, -0.8), (0.8, 0.6), (1.0, 0.0)])
    # Less verbosity is wanted first, then more; the third direction says nothing about it.
    assert [(one.chosen, one.rejected) for one in found] == [("long", "short"), ("short", "long")]
    assert [one.direction for one in found] == [(0.8, 0.6), (0.6, -0.8)]
    assert [one.gaps for one in found] == [(3.0, 7.0), (-3.0, -7.0)]
    assert given.notes == ["1 directions give verbosity (loss.learned) no weight: they made no pair."]


def test_no_pair_of_samples_left_says_how_many_rankings_there_were_and_what_to_change() -> None:
    # Under (1, 0) the answers are worth 9, 6 and 1: no two of them are 10 apart.
    with pytest.raises(
        DataError, match=r"no pair is left: of 1 rankings .* 10 apart \(gap\): raise samples, or lower gap"
    ):
        pairs(recipe(gap=10.0), [(1.0, 0.0)])
    assert len(pairs(recipe(gap=8.0), [(1.0, 0.0)])[0]) == 1


def test_no_judged_pair_left_says_why_and_which_keys_to_look_at(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "response_a": "a", "response_b": "b", "winner": "tie"} for i in range(3)]
    rows.append({"prompt": "held", "response_a": "a", "response_b": "b", "winner": "a"})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    held = Prompt(id="x", messages=(Message(role="user", content="held"),))
    plan: Any = SimpleNamespace(splits=SimpleNamespace(evaluation=(held,), left_out=()))
    given = Preferences(recipe(pairs={"mine": {"path": str(tmp_path / "pairs.jsonl")}}))
    with pytest.raises(DataError) as error:
        given.check(plan)  # before anything is started
    assert str(error.value) == (
        "no pair is left of mine (pairs): 0 judged pairs; 3 ties and 1 about held-out prompts were left out. Look at where, "
        "split and limit in pairs.mine, hold fewer prompts out (prompts.evaluation), or give another file"
    )


def test_pairs_of_people_are_read_before_anything_starts_and_once(tmp_path: Path) -> None:
    plan: Any = SimpleNamespace(splits=SimpleNamespace(evaluation=(), left_out=()))
    file = tmp_path / "pairs.jsonl"
    with pytest.raises(DataError, match=f"not found: {file}"):
        Preferences(recipe(pairs={"mine": {"path": str(file)}})).check(plan)
    file.write_text(json.dumps({"prompt": "q", "chosen": "a", "rejected": "b"}) + "\n")
    given = Preferences(recipe(pairs={"mine": {"path": str(file)}}))
    given.check(plan)
    file.unlink()
    assert len(given.samples(plan, Standardiser.identity(2))) == 1


def test_a_direction_that_is_not_said_stands_in_no_prompt() -> None:
    fixed = {"law": "grid", "codec": "dpa-float1", "fixed": {"helpfulness": 1.0}, "said": False}
    (silent,), _ = pairs(recipe(directions=fixed), [(1.0, 0.0), (1.0, 0.0)])
    assert isinstance(silent, Pair)
    assert [message.role for message in silent.messages] == ["user"]
    (said,), _ = pairs(recipe(), [(1.0, 0.0)])
    assert [message.role for message in said.messages] == ["system", "user"]


@pytest.mark.parametrize(
    ("state", "model", "says"),
    [
        ("failed", "m1", "is failed, expected done"),
        ("done", "m2", "scored by the reward model m2, the recipe's is m1"),
        ("done", None, r"the reward model \(unknown\)"),
        ("done", "m1", ""),
    ],
)
def test_samples_of_a_run_that_is_unfinished_or_scored_otherwise_are_refused(
    tmp_path: Path, state: str, model: str | None, says: str
) -> None:
    run, settings = tmp_path / "other", recipe(store={"run": str(tmp_path / "other")})
    run.mkdir()
    (run / "recipe.resolved.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    (run / "status.json").write_text(json.dumps({"state": state}))
    (run / "inputs.json").write_text(json.dumps({} if model is None else {"reward model": model}))
    plan: Any = SimpleNamespace(inputs=lambda: {"reward model": "m1"})
    asked: Plan = plan
    if not says:
        Preferences(settings).check(asked)
        return
    with pytest.raises(RunError, match=says):
        Preferences(settings).check(asked)


def test_system_turns_of_people_s_pairs_cannot_write_control_marks(tmp_path: Path) -> None:
    from tests.fakes import tiny_policy

    row = {
        "prompt": [{"role": "system", "content": "Be <|im_end|> kind."}, {"role": "user", "content": "Why?"}],
        "chosen": "a",
        "rejected": "b",
    }
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    tiny_policy(tmp_path / "policy")
    settings = recipe(
        pairs={"mine": {"path": str(tmp_path / "pairs.jsonl")}}, policy={"initial": str(tmp_path / "policy")}
    )
    given = Preferences(settings)
    plan: Any = SimpleNamespace(splits=SimpleNamespace(evaluation=(), left_out=()))
    (pair,) = given.samples(plan, Standardiser.identity(2))
    assert "<|im_end|>" not in pair.messages[0].content
    assert pair.messages[0].content.startswith("Be ")
    assert len(given.trained_on) == 1
