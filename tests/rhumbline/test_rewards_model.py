"""RewardModel: sources side by side, objectives, the cache, and errors that never become rewards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from rhumbline import config
from rhumbline.config import Objective
from rhumbline.errors import ConfigError, ScoringError
from rhumbline.records import Prompt
from rhumbline.rewards.debias import LengthMap, LengthMaps
from rhumbline.rewards.features import Pair
from rhumbline.rewards.model import RewardModel
from rhumbline.rewards.objectives import SCALES, Head, Objectives
from tests.rhumbline.rewards_fakes import PAIRS, ask

RULES = {
    "sources": [
        {"kind": "rules", "heads": {"long": {"rule": "verbosity", "options": {"half": 10}}}},
        {"kind": "rules", "heads": {"loops": {"rule": "repetition"}, "lists": {"rule": "lists"}}},
    ],
    "objectives": {
        "brevity": {"heads": {"long": -1.0}},
        "order": {"heads": {"lists": 0.5, "loops": -0.5}},
    },
}


class Counting:
    """A source that scores the length of the text, and counts what it was asked."""

    def __init__(self, scores: float | None = None) -> None:
        self.heads = (Head(name="count", source="test", **SCALES["unit"]),)
        self.id, self.asked, self.scores = "counting", [], scores

    def setup(self) -> None: ...

    def score(self, pairs: Sequence[Pair]) -> np.ndarray:
        self.asked += [(prompt.id, text) for prompt, text in pairs]
        return np.array([[float(len(text)) if self.scores is None else self.scores] for _, text in pairs])


def model_of(source: Counting) -> RewardModel:
    return RewardModel([source], Objectives.build({"x": Objective(heads={"count": 2.0})}, source.heads))


def build(rewards: object = RULES) -> RewardModel:
    return RewardModel.build(config.Rewards.model_validate(rewards), tokenise=str.split)


def test_heads_stand_side_by_side_and_objectives_map_them() -> None:
    model = build()
    model.setup()
    assert [head.name for head in model.heads] == ["long", "loops", "lists"]
    assert model.names == ("brevity", "order")
    batch = [(ask("q"), "a b c d e f g h i j"), (ask("q"), "- a\n- a b"), (ask("q"), "")]
    # verbosity 10 / 20, 5 / 15, 0; no trigram twice; lists 0, 100, 0
    assert model.score_heads(batch).tolist() == [[50, 0, 0], [pytest.approx(100 / 3), 0, 100], [0, 0, 0]]
    rewards_NK = model.score(batch)
    assert rewards_NK.dtype == np.float64
    assert rewards_NK.tolist() == [[-50, 0], [pytest.approx(-100 / 3), 50], [0, 0]]


def test_an_empty_batch_gives_an_empty_matrix() -> None:
    assert build().score([]).shape == (0, 2)


def test_each_pair_is_scored_once() -> None:
    source = Counting()
    model = model_of(source)
    a, b, elsewhere = (ask("p"), "a"), (ask("p"), "bb"), (ask("q"), "a")
    assert model.score([a, b, a, elsewhere]).tolist() == [[2], [4], [2], [2]]
    assert source.asked == [("p", "a"), ("p", "bb"), ("q", "a")]
    assert model.score([b, a]).tolist() == [[4], [2]]
    assert len(source.asked) == 3
    model.score([(ask("p", reference="r"), "a")])  # a rule may read the reference, so this is another pair
    assert len(source.asked) == 4
    model.score([(Prompt(id="other", messages=ask("p").messages), "a")])  # and a comparer looks one up by the id
    assert len(source.asked) == 5


def test_a_full_cache_forgets_and_still_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rhumbline.rewards.model.CACHE_LIMIT", 2)
    source = Counting()
    model = model_of(source)
    for texts in (["a", "bb"], ["bb", "ccc"], ["a"]):
        assert model.score([(ask("p"), text) for text in texts]).ravel().tolist() == [2 * len(text) for text in texts]
    assert [text for _, text in source.asked] == ["a", "bb", "ccc", "a"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_are_refused_with_head_and_prompt(bad: float) -> None:
    source = Counting(bad)
    with pytest.raises(ScoringError, match=f"head count gave {bad} to an answer to prompt p"):
        model_of(source).score([(ask("p"), "a")])


def test_an_error_is_an_error_and_nothing_is_remembered() -> None:
    source = Counting()
    model = model_of(source)
    source.score = lambda pairs: 1 / 0
    with pytest.raises(ScoringError, match="ZeroDivisionError"):
        model.score([(ask("p"), "a")])
    del source.score
    assert model.score([(ask("p"), "a")]).tolist() == [[2]]


def test_a_source_that_loses_rows_is_refused() -> None:
    source = Counting()
    source.score = lambda pairs: np.zeros((len(pairs) - 1, 1))
    with pytest.raises(ScoringError, match=r"shape \(1, 1\), expected \(2, 1\)"):
        model_of(source).score([(ask("p"), "a"), (ask("p"), "b")])


def test_the_id_follows_what_rewards_depend_on() -> None:
    same, flipped = build().id, {**RULES, "objectives": dict(reversed(RULES["objectives"].items()))}
    assert same == build({**RULES, "token_budget": 128, "standardise": False}).id
    assert same != build(flipped).id
    assert same != build({**RULES, "objectives": {**RULES["objectives"], "brevity": {"heads": {"long": -0.9}}}}).id
    sources = [
        {"kind": "rules", "heads": {"long": {"rule": "verbosity", "options": {"half": 11}}}},
        RULES["sources"][1],
    ]
    assert same != build({**RULES, "sources": sources}).id


def test_faults_of_the_recipe_come_at_once_and_by_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rewards\.sources\.1\.path: .* holds no regression reward model"):
        build({**RULES, "sources": [RULES["sources"][0], {"kind": "regression", "path": str(tmp_path)}]})
    with pytest.raises(ConfigError, match=r"rewards\.objectives\.order\.heads\.lists = 0\.5: no source"):
        build({**RULES, "sources": RULES["sources"][:1]})
    with pytest.raises(ConfigError, match="two heads are called 'long'"):
        build({**RULES, "sources": [*RULES["sources"], RULES["sources"][0]]})


def test_the_embedded_heads_and_rules_together_need_no_backbone_to_be_described() -> None:
    rewards = {
        "sources": [{"kind": "regression"}, RULES["sources"][0]],
        "objectives": {
            "helpfulness": {"heads": {"helpfulness": 1.0}},
            "verbosity": {"heads": {"long": 1.0}, "sign": -1},
        },
    }
    model = build(rewards)
    assert model.names == ("helpfulness", "verbosity")
    assert model.id == build(rewards).id
    assert len(model.id) == 16


def test_length_maps_are_in_the_id_and_their_faults_are_named_by_key(tmp_path: Path) -> None:
    def model(head: str = "helpfulness", value: float = 5.0, name: str = "length.json") -> RewardModel:
        longer = LengthMap(knots=(0.0, 10.0), values=(-value, value), before=0.5, after=0.0)
        LengthMaps(maps={head: longer}, n=20).save(tmp_path / "length.json")
        return build(
            {
                "sources": [RULES["sources"][0], {"kind": "regression", "length_removed": str(tmp_path / name)}],
                "objectives": {
                    "helpfulness": {"heads": {"helpfulness": 1.0}},
                    "verbosity": {"heads": {"long": 1.0}, "sign": -1},
                },
            }
        )

    assert model().id == model().id
    assert model().id != model(value=4.0).id
    with pytest.raises(ConfigError, match=r"^rewards\.sources\.1\.length_removed: no length maps at .*none\.json"):
        model(name="none.json")
    where = (
        r"^rewards\.sources\.1\.length_removed: a length map is for the head 'helpfulnes', and there is none\. Did you"
    )
    with pytest.raises(ConfigError, match=where):
        model(head="helpfulnes")


@pytest.mark.slow
def test_the_real_model_tells_good_answers_from_bad_ones() -> None:
    model = RewardModel.build(
        config.Rewards.model_validate(
            {
                "sources": [{"kind": "regression"}, RULES["sources"][0]],
                "objectives": {"helpfulness": {"heads": {"helpfulness": 1.0}}, "verbosity": {"heads": {"long": 1.0}}},
            }
        )
    )
    model.setup()  # the invariance and probe checks, on the real backbone
    question = ask("How can I make my tomato plants give more fruit?")
    good = (
        "Give them at least six hours of sun a day and water deeply at the base two or three times a week. Pinch out the "
        "side shoots, feed with a tomato fertiliser once the first fruit has set, and stake the plants so that air moves."
    )
    bad = "lol idk tomato tomato, go away. that is a stupid question and i am not going to tell you anything at all, sorry."
    refusal = "I'm sorry, I don't understand."
    rewards_NK = model.score([(question, good), (question, bad), (question, refusal), *PAIRS])
    assert np.isfinite(rewards_NK).all()
    assert rewards_NK[0, 0] > rewards_NK[1, 0] + 5
    assert rewards_NK[0, 0] > rewards_NK[2, 0] + 5
    assert rewards_NK[0, 1] > rewards_NK[2, 1]


HELD_OUT = {**RULES, "objectives": {"brevity": {"heads": {"long": -1.0}}, "length": {"heads": {"long": 1.0}}}}


def test_a_source_of_no_objective_is_asked_for_its_head_alone() -> None:
    trained, judge = Counting(), Counting()
    judge.heads = (Head(name="judge", source="test", **SCALES["unit"]),)
    heads = [*trained.heads, *judge.heads]
    model = RewardModel([trained, judge], Objectives.build({"x": Objective(heads={"count": 2.0})}, heads))
    batch = [(ask("p"), "a"), (ask("p"), "bb")]
    assert model.score(batch).tolist() == [[2], [4]]
    assert judge.asked == []
    assert model.score_head(batch, "judge").tolist() == [1, 2]
    assert len(trained.asked) == len(judge.asked) == 2
    assert model.score_head(batch, "count").tolist() == [1, 2]
    assert model.score_heads(batch).tolist() == [[1, 1], [2, 2]]
    assert len(trained.asked) == len(judge.asked) == 2  # all of it remembered


def test_a_held_out_source_is_no_part_of_what_was_trained_on() -> None:
    alone = {**HELD_OUT, "sources": HELD_OUT["sources"][:1]}
    assert build(HELD_OUT).id == build(alone).id
    assert build().id != build(HELD_OUT).id


def test_a_head_that_no_source_gives_is_named_with_its_key() -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.win_rate\.head: no source of rewards\.sources gives the head"):
        build().source_of("loop", "evaluation.win_rate.head")
    with pytest.raises(ConfigError, match=r"Did you mean 'loops'\? Known heads: long, loops, lists"):
        build().score_head([], "loop")
