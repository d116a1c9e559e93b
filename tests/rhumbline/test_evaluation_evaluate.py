"""Evaluations from scored answers: means and orders by hand, intervals that answer to the data, gains in pairs."""

import json

import numpy as np
import pytest

from rhumbline.errors import ScoringError
from rhumbline.evaluation.evaluate import PolicyEvaluation
from rhumbline.evaluation.gains import directional_gain, hypervolume_gain
from rhumbline.evaluation.grouping import angle_deg, group
from tests.rhumbline.evaluation_fakes import REFERENCE, SIGNS, answer, arc, evaluation, obedient

NEAR, FAR = arc([0.0, -45.0])


def two_by_two() -> list:
    """Two directions, two prompts; the second prompt has two samples at 0 degrees."""
    return [
        answer("b", NEAR, (60, 50), length=40, index=1, text="red green"),
        answer("b", NEAR, (70, 70), length=60, index=1, sample=1, text="red blue", finished=False),
        answer("a", NEAR, (50, 40), length=30, index=1, text="one two"),
        answer("a", FAR, (40, 20), length=10, text="one"),
        answer("b", FAR, (42, 30), length=20, text="red"),
    ]


def test_grouping_by_hand() -> None:
    grouped = group(two_by_two(), num_objectives=2, kl={"b/d1/s0": 4.0, "b/d1/s1": 6.0})
    assert grouped.prompts == ("a", "b")
    assert [angle_deg(v) for v in grouped.vectors] == [0.0, -45.0]  # falling angle, whatever the order of asking
    assert grouped.rewards[0].tolist() == [[50, 40], [65, 60]]  # cells are means over samples
    assert grouped.rewards[1].tolist() == [[40, 20], [42, 30]]
    assert grouped.length.tolist() == [[30, 50], [10, 20]]
    assert grouped.kl[0, 1] == 5.0
    assert np.isnan(grouped.kl[0, 0])
    assert grouped.num_answers == (3, 2)
    assert grouped.finished_share == pytest.approx((2 / 3, 1.0))
    # neighbours: 'one two' / 'one' 1/2, 'red green' / 'red' 1/2, 'red blue' / 'red' 1/2
    # own: 'red green' / 'red blue' 1/3
    assert grouped.neighbour_overlap == pytest.approx((0.5,))
    assert grouped.own_overlap == pytest.approx(1 / 3)
    assert grouped.missing == 0


def test_a_direction_that_was_rounded_on_the_way_is_the_same_direction() -> None:
    nearly = (FAR[0] + 1e-9, FAR[1])
    assert len(group([answer("a", FAR, (1, 2)), answer("b", nearly, (1, 2))], num_objectives=2).vectors) == 1


def test_more_objectives_keep_the_order_of_asking_and_put_no_direction_last() -> None:
    vectors = [(0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)]
    scored = [answer("a", v, (1, 2, 3), index=i) for i, v in enumerate(vectors)] + [answer("a", None, (1, 2, 3))]
    assert group(scored[::-1], num_objectives=3).vectors == (*vectors, None)
    assert angle_deg(vectors[0]) is None


def test_missing_cells_are_counted_and_left_out() -> None:
    grouped = group(two_by_two()[:-1], num_objectives=2)
    assert grouped.missing == 1
    assert np.isnan(grouped.rewards[1, 1]).all()
    result = PolicyEvaluation.from_scored(
        two_by_two()[:-1], t=1, label="t=1", signs=SIGNS, reference_point=REFERENCE, bootstrap=50
    )
    assert result.directions[1].rewards["helpfulness"].value == 40.0


def test_evaluation_by_hand() -> None:
    result = PolicyEvaluation.from_scored(
        two_by_two(),
        t=1,
        label="t=1",
        signs=SIGNS,
        reference_point={"helpfulness": 40.0, "verbosity": 60.0},
        bootstrap=300,
    )
    near, far = result.directions
    assert (near.rewards["helpfulness"].value, near.rewards["verbosity"].value) == (57.5, 50.0)
    assert (far.rewards["helpfulness"].value, far.rewards["verbosity"].value) == (41.0, 25.0)
    assert (near.pareto, far.pareto) == (True, True)  # more helpful against shorter
    # over (40, 60): boxes 17.5 x 10 and 1 x 35, which share 1 x 10
    assert result.hypervolume.value == pytest.approx(175 + 35 - 10)
    assert result.length_ratio is not None
    assert result.length_ratio.value == pytest.approx(15 / 40)
    assert result.spearman is not None
    assert result.spearman["verbosity"].value == pytest.approx(1.0)
    assert result.monotonicity_violations == {"helpfulness": 0, "verbosity": 0}
    # v(0) = (1, 0): 57.5 against 41, no regret; v(-45) = (.71, -.71): own 11.31 against 5.30, no regret
    assert (near.regret, far.regret) == (0.0, 0.0)
    assert near.kl is None
    # means lie between the prompts' own values: 50 and 65 at 0 degrees
    assert 50.0 <= near.rewards["helpfulness"].low <= 57.5 <= near.rewards["helpfulness"].high <= 65.0


def test_regret_is_counted_in_the_units_of_selection() -> None:
    """A prompt that is not the best for its own direction: v(-45) earns more when asked for 0 degrees."""
    scored = [answer("a", NEAR, (90, 20), index=0), answer("a", FAR, (50, 30), index=1)]
    scale = {"helpfulness": 10.0, "verbosity": 5.0}
    result = PolicyEvaluation.from_scored(
        scored, t=1, label="t=1", signs=SIGNS, reference_point=REFERENCE, scale=scale, bootstrap=20
    )
    # standardised (9, 4) and (5, 6): for (.7071, -.7071) that is 3.536 against -.7071
    assert result.directions[1].regret == pytest.approx(4.2426, abs=1e-4)
    assert result.own_direction_regret is not None
    assert result.own_direction_regret.value == pytest.approx(2.1213, abs=1e-4)


def test_a_policy_that_obeys_is_told_from_one_that_does_not() -> None:
    good, deaf = evaluation(1, obedient(1.0)), evaluation(1, obedient(0.0))
    assert good.spearman is not None
    assert good.length_ratio is not None
    assert good.angular_error_deg is not None
    assert good.spearman["verbosity"].low > 0.9
    assert good.length_ratio.high < 0.7
    assert deaf.length_ratio is not None
    assert deaf.angular_error_deg is not None
    assert deaf.length_ratio.low < 1.0 < deaf.length_ratio.high
    assert good.angular_error_deg.value < deaf.angular_error_deg.value


def test_a_policy_asked_without_a_direction_is_one_point() -> None:
    result = evaluation(None, obedient(angles_deg=None))
    assert [entry.vector for entry in result.directions] == [None]
    assert result.directions[0].pareto
    assert (result.spearman, result.length_ratio, result.own_direction_regret) == (None, None, None)
    point = result.directions[0].rewards
    area = (point["helpfulness"].value - 20.0) * (95.0 - point["verbosity"].value)
    assert result.hypervolume.value == pytest.approx(area)


def test_more_prompts_give_narrower_intervals() -> None:
    few, many = evaluation(1, obedient(num_prompts=10)), evaluation(1, obedient(num_prompts=90))
    assert many.hypervolume.high - many.hypervolume.low < 0.6 * (few.hypervolume.high - few.hypervolume.low)


def test_order_of_the_answers_does_not_matter() -> None:
    scored = obedient()
    shuffled = [scored[i] for i in np.random.default_rng(0).permutation(len(scored))]
    assert evaluation(1, scored).to_json() == evaluation(1, shuffled).to_json()


def test_json_is_plain_and_complete() -> None:
    data = evaluation(1, obedient()).to_json()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    first = data["directions"][0]
    assert {"angle_deg", "vector", "rewards", "length", "kl", "n", "finished_share", "pareto"} <= set(first)
    assert (first["angle_deg"], first["n"], first["kl"]["value"]) == (0.0, 40, 6.0)
    assert len(data["per_prompt"]["prompts"]) == 20


def test_hypervolume_gain_is_paired() -> None:
    """Every answer a little better: the gain is sure, although the two intervals overlap."""
    low = evaluation(0, obedient(quality=50.0)).to_json()
    high = evaluation(1, obedient(quality=51.0)).to_json()
    assert high["hypervolume"]["low"] < low["hypervolume"]["high"]
    gain = hypervolume_gain(high, low)
    assert gain is not None
    assert gain.value == pytest.approx(high["hypervolume"]["value"] - low["hypervolume"]["value"])
    assert gain.low > 0
    nothing = hypervolume_gain(low, low)
    assert nothing is not None
    assert (nothing.value, nothing.low, nothing.high) == (0.0, 0.0, 0.0)


def test_evaluations_that_cannot_be_compared_give_no_gain() -> None:
    base = evaluation(0, obedient()).to_json()
    assert hypervolume_gain(base, base | {"reference_point": {"helpfulness": 0.0, "verbosity": 95.0}}) is None
    assert hypervolume_gain(base, evaluation(0, obedient(num_prompts=5)).to_json()) is None


def test_directional_gain_by_hand() -> None:
    scored = [answer("a", NEAR, (60, 50), index=0), answer("a", FAR, (50, 20), index=1)]
    steered = evaluation(1, scored).to_json()
    initial = evaluation(None, [answer("a", None, (50, 40))]).to_json()
    near, far = directional_gain(steered, initial)
    assert near is not None
    assert far is not None
    assert near.value == pytest.approx((60 - 50) / 5)
    assert far.value == pytest.approx(0.70711 * 0 - 0.70711 * (20 - 40) / 20, abs=1e-4)
    alone = directional_gain(steered, None)[0]
    assert alone is not None
    assert alone.value == pytest.approx(60 / 5)
    assert directional_gain(initial, None) == [None]


@pytest.mark.parametrize(
    "scored", [[], [answer("a", NEAR, (1, 2, 3))], [answer("a", NEAR, (1, float("nan")))]], ids=["none", "three", "nan"]
)
def test_what_cannot_be_evaluated_is_a_scoring_error(scored: list) -> None:
    with pytest.raises(ScoringError):
        group(scored, num_objectives=2)
