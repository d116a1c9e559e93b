"""Accuracy on unseen choices, its intervals, the baselines, the plan, and conditional reward models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rhumbline.config.users import Predict, Survey
from rhumbline.errors import ConfigError
from rhumbline.rewards.comparer import Comparer
from rhumbline.rewards.features import Pair
from rhumbline.rewards.network import Network, NetworkSpec
from rhumbline.rewards.objectives import SCALES, Head
from rhumbline.rewards.trained import Schema, comparer_maps, preference_maps, publish
from rhumbline.users import conditional
from rhumbline.users.cases import Plan, filled, survey
from rhumbline.users.demonstrations import completed, informative
from rhumbline.users.population import MISSING, PASSED, Population, User
from rhumbline.users.prediction import (
    Draws,
    accuracy,
    beyond,
    chance,
    credits,
    log_losses,
    majority,
    measured,
    neighbours,
    uniform,
)
from rhumbline.users.roleplay import Case
from rhumbline.users.study import as_chosen
from tests.rhumbline.network_fakes import started, tiny_base
from tests.rhumbline.rewards_fakes import PAIRS
from tests.rhumbline.users_fakes import population, question

NAN = math.nan


def test_credit_is_shared_by_equal_favourites() -> None:
    choices = np.array([[0, 1, 2, PASSED, 0]])
    p = np.array([[[0.6, 0.4, 0.0], [0.5, 0.5, 0.0], [0.4, 0.5, 0.1], [1.0, 0.0, 0.0], [NAN, NAN, NAN]]])
    assert np.array_equal(credits(choices, p), [[1.0, 0.5, 0.0, NAN, NAN]], equal_nan=True)
    assert log_losses(choices, p)[0, :3] == pytest.approx([-math.log(0.6), math.log(2), -math.log(0.1)])


def test_accuracy_is_over_cells_and_its_interval_over_people_and_questions() -> None:
    """One of three people is always wrong. Drawn with replacement, that one is there 0 to 3 times of 3: 0 to 1."""
    values = np.array([[1.0] * 4, [1.0] * 4, [0.0] * 4])
    draws = Draws(num_users=3, num_questions=4, num_resamples=2000, seed=0)
    found = accuracy(values, draws)
    assert found.value == pytest.approx(2 / 3)
    assert (found.low, found.high) == (0.0, 1.0)
    # The variance of the mean of 3 draws of a coin of 2/3.
    assert draws.means(values).std() == pytest.approx(math.sqrt(2 / 9 / 3), rel=0.05)


def test_intervals_see_questions_too() -> None:
    """Everybody is right at one of two questions: were people alone drawn, the interval would be a point."""
    draws = Draws(num_users=30, num_questions=2, num_resamples=500, seed=0)
    found = accuracy(np.tile([1.0, 0.0], (30, 1)), draws)
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)


def test_a_lead_is_paired() -> None:
    rng = np.random.default_rng(0)
    base = (rng.random((20, 20)) < 0.5).astype(float)
    base[0, 0] = NAN
    draws = Draws(num_users=20, num_questions=20, num_resamples=300, seed=0)
    lead = beyond(base, base, draws)
    assert (lead.value, lead.low, lead.high) == (0.0, 0.0, 0.0)
    assert math.isnan(accuracy(np.full((20, 20), NAN), draws).value)


PEOPLE = population([[0, 0, 0], [0, 1, 0], [0, 1, 1], [MISSING, PASSED, 1]])


def test_the_majority_is_that_of_the_others() -> None:
    """q0: everybody says 0, so the others do. q1: without u0, 1 and 1; without u1, 0 and 1. q2: without u0, one 0 and two 1."""
    p = majority(PEOPLE)
    assert p[0, 1].tolist() == [0.0, 1.0]
    assert p[1, 1].tolist() == [0.5, 0.5]
    assert p[0, 2] == pytest.approx([1 / 3, 2 / 3])
    assert np.array_equal(
        credits(PEOPLE.choices_UQ, p), [[1, 0, 0], [1, 0.5, 0], [1, 0.5, 0], [NAN, NAN, 0]], equal_nan=True
    )


def test_who_alone_answered_has_no_majority() -> None:
    assert np.isnan(majority(population([[0], [MISSING]]))[0, 0]).all()


def test_chance_is_one_over_the_options() -> None:
    assert credits(PEOPLE.choices_UQ, chance(PEOPLE))[0].tolist() == [0.5, 0.5, 0.5]
    assert chance(population([[2]], options=5))[0, 0].tolist() == [0.2] * 5


def test_the_uniform_user_speaks_for_all() -> None:
    assert uniform(PEOPLE) is None
    known = replace(PEOPLE, uniform_Q=np.array([0, 1, MISSING]))
    p = uniform(known)
    assert p is not None
    assert np.array_equal(credits(known.choices_UQ, p)[1], [1.0, 1.0, NAN], equal_nan=True)


def test_neighbours_who_answered_alike_have_the_louder_voice() -> None:
    """u0 showed q0 and q1. u1 answered both alike, a voice of 4; u2 and u3 both otherwise, 1/4 each: q2 is 4 to 1/2."""
    people = population([[0, 0, 0], [0, 0, 0], [1, 1, 1], [1, 1, 1]])
    p = neighbours(people, {0: [0, 1]})
    assert p[0, 2] == pytest.approx([4 / 4.5, 0.5 / 4.5])
    assert np.isnan(p[0, :2]).all()  # what was shown is not predicted
    assert np.isnan(p[1:]).all()
    assert credits(people.choices_UQ, majority(people))[0, 2] == 0.0  # and the majority is wrong


def test_lines_name_the_lead_over_the_baseline() -> None:
    draws = Draws(num_users=4, num_questions=3, num_resamples=100, seed=0)
    lines = measured(PEOPLE.choices_UQ, {"chance": chance(PEOPLE), "majority": majority(PEOPLE)}, "majority", draws)
    assert [line["predictor"] for line in lines] == ["chance", "majority"]
    assert [line["n"] for line in lines] == [10, 10]
    assert lines[1]["accuracy"] == pytest.approx(4 / 10)
    assert lines[0]["beyond_majority"] == pytest.approx(0.1)
    assert "beyond_majority" not in lines[1]


# --- demonstrations and plan ------------------------------------------------------------------------------------------


def test_demonstrations_split_people_best_and_then_further() -> None:
    """q1 splits 2 to 2. q0 and q2 split 3 to 1; q3 repeats q1. After q1, q2 parts one of a pair, q3 nobody."""
    people = population([[0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 1], [0, 1, 0, 1]])
    assert informative(people, [0, 1, 2, 3], 2, seed=0) == [1, 2]
    assert informative(people, [3, 0, 2], 1, seed=0) == [3]  # of candidates alone
    every = informative(people, [0, 1, 2, 3], 4, seed=0)
    assert sorted(every) == [0, 1, 2, 3]  # the rest is drawn
    assert informative(people, [], 3, seed=0) == []


def test_a_question_that_few_were_asked_tells_little() -> None:
    """q0 divides the two who were asked, q1 divides all eight: whoever is missing counts with the majority."""
    table = [[u % 2 if u < 2 else MISSING, u % 2] for u in range(8)]
    people = population(table)
    assert completed(people)[:, 0].tolist() == [0, 1, 0, 0, 0, 0, 0, 0]
    assert informative(people, [0, 1], 1, seed=0) == [1]


def split_people() -> Population:
    """Six people, q0 to q3 to know them by, q4 and q5 to predict; u5 answered nothing of the latter."""
    rng = np.random.default_rng(1)
    table = rng.integers(0, 2, size=(6, 6))
    table[5, 4:] = MISSING
    people = population(table.tolist())
    splits = ["train"] * 4 + ["test"] * 2
    return replace(
        people,
        questions=tuple(replace(one, split=split) for one, split in zip(people.questions, splits, strict=True)),
        users=tuple(User(id=user.id, profile={"n": user.id} if u < 3 else {}) for u, user in enumerate(people.users)),
    )


def test_the_plan_predicts_test_questions_from_train_answers() -> None:
    people, settings = split_people(), Predict(demonstrations=[2], choose=["information", "random"])
    plan = Plan.of(people, settings, seed=0)
    assert set(plan.cells) == {(u, q) for u in range(5) for q in (4, 5)}
    asked = plan.asked(people, settings)
    assert list(asked) == ["anonymous", "roleplay", "fewshot-2-information", "fewshot-2-random"]
    assert {u for u, _ in asked["roleplay"]} == {0, 1, 2}  # nothing is known of the others
    for (u, _), case in asked["fewshot-2-information"].items():
        assert len(case.shown) == 2
        for one, choice in case.shown:
            q = int(one.id[1:])
            assert q < 4
            assert choice == people.choices_UQ[u, q]
    # Everybody answered the same questions, so everybody is shown the same ones.
    assert len({tuple(one.id for one, _ in case.shown) for case in asked["fewshot-2-information"].values()}) == 1
    assert not asked["anonymous"][0, 4].told


def test_limits_draw_people_and_questions_and_reach_every_predictor() -> None:
    people, settings = split_people(), Predict(users=2, questions=1)
    plan = Plan.of(people, settings, seed=0)
    assert len(plan.cells) == 2
    assert np.isfinite(plan.only(chance(people))).all(axis=2).sum() == 2


def test_what_is_shown_is_not_predicted_where_both_come_from_all_questions() -> None:
    people = split_people()
    settings = Predict(split=None, known=None, demonstrations=[3])
    plan = Plan.of(people, settings, seed=0)
    found = plan.asked(people, settings)["fewshot-3-information"]
    assert found
    for case in found.values():
        assert case.question.id not in {one.id for one, _ in case.shown}


def test_people_without_profiles_or_other_answers_are_noted() -> None:
    people = split_people().part(questions=[4, 5])
    lonely = replace(people, users=tuple(User(id=user.id) for user in people.users))
    settings = Predict(known="test", users=1)
    notes = Plan.of(lonely, settings, seed=0).notes
    assert any("nobody to play" in note for note in notes)


def test_a_survey_asks_everybody_who_can_be_played_everything() -> None:
    people = split_people()
    crowd, polled = survey(people, Survey(questions=3), seed=0)
    assert [user.id for user in crowd.users] == ["u0", "u1", "u2"]
    assert len(polled) == 9
    assert not crowd.answered.any()
    said = as_chosen(crowd, {(0, 0): np.array([0.2, 0.8]), (1, 0): np.array([0.5, 0.5])})
    assert said.choices_UQ[:, 0].tolist() == [1, PASSED, MISSING]


def test_predictions_of_questions_with_fewer_options_end_in_zeros() -> None:
    p = filled(population([[2, 0]], options=3), {(0, 1): np.array([0.3, 0.7])})
    assert p[0, 1].tolist() == [0.3, 0.7, 0.0]
    assert np.isnan(p[0, 0]).all()


# --- conditional reward models ----------------------------------------------------------------------------------------


def published(tmp_path: Path, spec: NetworkSpec, kind: str, conditional: bool) -> str:
    """A reward network of two layers with random weights, as jobs/reward.py leaves one."""
    folder = tmp_path / f"{kind}-{conditional}"
    started(tiny_base(tmp_path / f"base-{kind}-{conditional}"), spec).save(folder)
    network = Network.load(folder)
    outputs = spec.outputs if kind == "preference" else ("preference",)

    def raw(pairs: Sequence[Pair]) -> np.ndarray:
        if kind == "comparer":
            return Comparer(network).known(pairs)
        return network.raw([network.reader.pair(prompt, text) for prompt, text in pairs])

    schema = Schema(
        kind="comparer" if kind == "comparer" else "preference",
        heads=tuple(Head(name=name, source="test", **SCALES["unit"]) for name in outputs),
        base="tiny",
        fingerprint=network.fingerprint,
        maps=comparer_maps() if kind == "comparer" else preference_maps(raw(PAIRS)),
        conditional=conditional,
    )
    publish(folder, schema, lambda pairs: schema.scores(raw(pairs)))
    return str(folder)


def cases(*profiles: dict[str, str]) -> list[Case]:
    return [Case(user=User(id="x", profile=profile), question=question("why", options=3)) for profile in profiles]


def test_a_preference_model_says_the_softmax_of_its_logits_under_the_profile(tmp_path: Path) -> None:
    spec = NetworkSpec(kind_of_input="pair", outputs=("liked",), max_tokens=512, max_response_tokens=200)
    folder = published(tmp_path, spec, "preference", conditional=True)
    model = conditional.open_conditional(folder)
    old, young = model.probabilities(cases({"age": "90"}, {"age": "9"}))
    assert model.conditional
    assert np.abs(old - young).max() > 1e-6
    network = Network.load(Path(folder))
    one = cases({"age": "90"})[0]
    rows = [network.reader.pair(conditional.prompt_of(one), text, {"age": "90"}) for text in one.question.options]
    logits = network.raw(rows)[:, 0]
    assert old == pytest.approx(np.exp(logits) / np.exp(logits).sum(), abs=1e-5)


def test_a_model_without_profiles_says_the_same_for_everybody(tmp_path: Path) -> None:
    spec = NetworkSpec(kind_of_input="pair", outputs=("a", "b"), max_tokens=512, max_response_tokens=200)
    folder = published(tmp_path, spec, "preference", conditional=False)
    model = conditional.open_conditional(folder, "b")
    old, young = model.probabilities(cases({"age": "90"}, {"age": "9"}))
    assert old == pytest.approx(young, abs=1e-6)
    with pytest.raises(ConfigError, match="rewards_head is not given, the model has a, b"):
        conditional.open_conditional(folder)


def test_a_comparer_says_the_share_of_wins(tmp_path: Path) -> None:
    """Of three options: wins 0-1, 0-2 and 1-2, each with its other side, over 3 contests in all."""
    folder = published(tmp_path, NetworkSpec(kind_of_input="triple", outputs=("a", "b", "tie")), "comparer", True)
    (found,) = conditional.open_conditional(folder).probabilities(cases({"age": "90"}))
    comparer, case = Comparer(Network.load(Path(folder))), cases({"age": "90"})[0]
    prompt, texts = conditional.prompt_of(case), case.question.options

    def win(i: int, j: int) -> float:
        p = comparer.probabilities([prompt], [texts[i]], [texts[j]], [{"age": "90"}])[0]
        return float(p[0] + p[2] / 2)

    by_hand = [win(0, 1) + win(0, 2), win(1, 0) + win(1, 2), win(2, 0) + win(2, 1)]
    assert found == pytest.approx(np.array(by_hand) / 3, abs=1e-5)


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="embedded holds a ridge model, expected a preference model or a comparer"):
        conditional.open_conditional("embedded")
    with pytest.raises(ConfigError, match="no reward model"):
        conditional.open_conditional(str(tmp_path))
