"""One direction per request: who wins, what is refused and how, and what becomes of what is asked."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rhumbline.directions import Cone, angle_between_deg, angle_deg, normalise
from rhumbline.serving.requests import CODES, MAX_TEXT, Sources, SteeringBody, SteeringRefused, read_body
from rhumbline.serving.resolve import Resolved, resolve
from rhumbline.serving.served import Served
from tests.rhumbline.steering_fakes import NAMES, contract, served, served_3, soups

SERVED = served()
PROFILES: Mapping[str, Mapping[str, float]] = {
    "anna": {"helpfulness": 1.0, "verbosity": -0.2},
    "other": {"honesty": 1.0},
}


def asked(**sources: Any) -> Resolved:
    body = sources.pop("body", None)
    given = Sources(body=None if body is None else read_body(body), **sources)
    return resolve(given, SERVED, PROFILES.get)


def refused(**sources: Any) -> SteeringRefused:
    with pytest.raises(SteeringRefused) as error:
        asked(**sources)
    assert error.value.code in CODES
    assert len(error.value.message) < 1000
    return error.value


# --- precedence -------------------------------------------------------------------------------------------------------

# Every source with a direction of its own, highest first.
EACH: dict[str, tuple[dict[str, Any], float]] = {
    "body": ({"body": {"degrees": -1}}, -1),
    "header": ({"header": "-10deg"}, -10),
    "metadata": ({"metadata": "-22deg"}, -22),
    "verbosity": ({"verbosity": "low"}, math.nan),
    "alias": ({"alias": "-30deg"}, -30),
    "profile": ({"profile": "anna"}, math.degrees(math.atan2(-0.2, 1))),
    "default": ({}, -22.5),
}


@pytest.mark.parametrize(("first", "second"), list(combinations(EACH, 2)))
def test_of_two_sources_the_higher_wins_and_the_echo_says_so(first: str, second: str) -> None:
    one = asked(**EACH[first][0], **EACH[second][0])
    assert one.source == first
    explicit = second not in ("profile", "default") and not (first == "verbosity" and second == "alias")
    assert one.overruled == ((second,) if explicit or (first, second) == ("verbosity", "alias") else ())
    if first != "verbosity":
        assert angle_deg(one.requested) == pytest.approx(EACH[first][1])


def test_all_sources_at_once() -> None:
    everything: dict[str, Any] = {}
    for source, _ in EACH.values():
        everything |= source
    one = asked(**everything)
    assert (one.source, one.overruled) == ("body", ("header", "metadata", "verbosity", "alias"))


def test_sources_that_agree_overrule_nobody() -> None:
    one = asked(
        body={"weights": {"helpfulness": 8, "verbosity": -6}},
        header="helpfulness=0.8,verbosity=-0.6",
        alias="-36.87deg",
    )
    assert (one.source, one.overruled) == ("body", ())


def test_a_body_of_options_alone_leaves_the_direction_to_others() -> None:
    one = asked(body={"best_of": 4, "return_rewards": True}, alias="concise")
    assert (one.source, one.options.best_of) == ("alias", 4)
    assert angle_deg(one.effective) == pytest.approx(-45)


def test_an_overruled_source_must_make_sense_too() -> None:
    assert refused(body={"preset": "concise"}, header="helpfullness=1").code == "unknown_objective"


# --- what is asked for ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "degrees"),
    [
        ({"body": {"weights": {"helpfulness": 0.8, "verbosity": -0.6}}}, math.degrees(math.atan2(-0.6, 0.8))),
        ({"body": {"weights": {"helpfulness": 3}}}, 0),
        ({"body": {"preset": "concise"}}, -45),
        ({"body": {"degrees": {"verbosity": -37}}}, -37),
        ({"body": {"degrees": {"helpfulness": 53}}}, -37),  # the rest goes the way of the axis, to less verbosity
        ({"body": {"degrees": -37}}, -37),
        ({"body": {"profile": "anna"}}, EACH["profile"][1]),
        ({"header": "helpfulness=0.8, verbosity=-0.6"}, math.degrees(math.atan2(-0.6, 0.8))),
        ({"header": "0.8,-0.6"}, math.degrees(math.atan2(-0.6, 0.8))),
        ({"metadata": "concise"}, -45),
        ({"alias": "helpfulness=0.8,verbosity=-0.6"}, math.degrees(math.atan2(-0.6, 0.8))),
    ],
)
def test_every_way_to_say_it(source: dict[str, Any], degrees: float) -> None:
    one = asked(**source)
    assert angle_deg(one.requested) == pytest.approx(degrees, abs=1e-6)
    assert angle_between_deg(one.effective, one.requested) <= SERVED.codec.precision_deg
    assert not one.projected
    assert one.line is not None
    assert SERVED.codec.parse(one.line) == one.effective  # exactly what the policy is told
    assert (one.model, one.method, one.template_version) == ("smol", "dpa", "dpa-int100/1")


def test_outside_the_cone_it_is_projected_or_refused() -> None:
    one = asked(body={"weights": {"verbosity": 1.0}})
    assert one.requested == (0.0, 1.0)
    assert (one.effective, one.projected, one.snapped) == ((1.0, 0.0), True, False)
    error = refused(body={"weights": {"verbosity": 1.0}, "out_of_range": "error"})
    assert (error.param, error.code) == ("steering", "out_of_range")
    assert "90.0 degrees outside" in error.message
    assert "helpfulness 1, verbosity 0" in error.message
    asked(body={"preset": "concise", "out_of_range": "error"})  # the edge itself is trained


def test_it_is_snapped_to_the_words_and_says_so() -> None:
    one = asked(body={"degrees": -15})
    assert one.snapped  # 97 and -26 are not quite -15 degrees
    assert one.effective == normalise((97, -26))
    assert not asked(body={"weights": {"helpfulness": 4, "verbosity": -3}}).snapped


def test_soups_take_the_nearest_mixture() -> None:
    mixed = soups()
    one = resolve(Sources(header="-20deg"), mixed)
    assert (one.line, one.model, one.method, one.template_version) == (None, "smol-mix-2", "soups", None)
    assert angle_deg(one.effective) == pytest.approx(-15)
    assert one.snapped
    assert resolve(Sources(body=read_body({"weights": {"verbosity": -1}})), mixed).model == "smol-mix-4"


def test_verbosity_turns_what_lower_sources_ask_for() -> None:
    assert angle_deg(asked(verbosity="low").requested) == pytest.approx(-42.5)  # 20 degrees from the default, -22.5
    assert angle_deg(asked(verbosity="high").requested) == pytest.approx(-2.5)
    assert asked(verbosity="medium").requested == asked().requested
    assert angle_deg(asked(verbosity="low", alias="-5deg").requested) == pytest.approx(-25)
    assert angle_deg(asked(verbosity="high", profile="anna").requested) == pytest.approx(EACH["profile"][1] + 20)
    assert asked(verbosity="medium", alias="concise").overruled == ()
    assert refused(verbosity="extreme").param == "verbosity"
    turned = resolve(Sources(verbosity="low"), served_3()).requested
    assert turned == pytest.approx((math.cos(math.radians(20)) / 2**0.5, -math.sin(math.radians(20)), turned[0]))


def test_verbosity_means_nothing_without_such_an_objective() -> None:
    names = ("quality", "safety")
    other = Served.of(contract(names, Cone(names, (1, 1), 45)), name="other", folder=Path("nowhere"))
    one = resolve(Sources(verbosity="anything at all"), other)
    assert one.source == "default"
    assert one.notes == ("verbosity was not used: this model has no objective of that name (quality, safety).",)


def test_degrees_of_three_objectives() -> None:
    three = served_3()
    one = resolve(Sources(body=read_body({"degrees": {"verbosity": -30}})), three)
    # sin(-30) = -0.5, and sqrt(0.75) shared by helpfulness and safety as the axis shares it: equally
    assert one.requested == pytest.approx((math.sqrt(0.375), -0.5, math.sqrt(0.375)))
    with pytest.raises(SteeringRefused, match="One angle needs two objectives, this model has 3"):
        resolve(Sources(body=read_body({"degrees": 10})), three)
    with pytest.raises(SteeringRefused, match="leave one out"):
        resolve(Sources(body=read_body({"degrees": {"helpfulness": 60, "safety": 60}})), three)  # 0.75 + 0.75 > 1


def test_a_profile_that_is_bound_but_unusable_is_left_out_with_a_note() -> None:
    for name in ("gone", "other"):
        one = asked(profile=name)
        assert one.source == "default"
        assert name in one.notes[0]
    assert refused(body={"profile": "gone"}).code == "unknown_profile"
    assert refused(body={"profile": "other"}).param == "steering.profile"


# --- what is refused --------------------------------------------------------------------------------------------------

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"weights": {"helpfullness": 1.0}}, "steering.weights.helpfullness", "unknown_objective"),
        ({"degrees": {"helpfullness": 1.0}}, "steering.degrees.helpfullness", "unknown_objective"),
        ({"weights": {"helpfulness": NAN}}, "steering.weights.helpfulness", "invalid_weights"),
        ({"weights": {"helpfulness": INF}}, "steering.weights.helpfulness", "invalid_weights"),
        ({"weights": {"helpfulness": True}}, "steering.weights.helpfulness", "invalid_weights"),
        ({"weights": {"helpfulness": "0.8"}}, "steering.weights.helpfulness", "invalid_weights"),
        ({"weights": {"helpfulness": None}}, "steering.weights.helpfulness", "invalid_weights"),
        ({"weights": {"helpfulness": [1]}}, "steering.weights.helpfulness", "invalid_weights"),
        ({"weights": {"helpfulness": 10**400}}, "steering.weights.helpfulness", "invalid_weights"),
        ({"weights": {"helpfulness": 0, "verbosity": 0.0}}, "steering.weights", "invalid_weights"),
        ({"weights": {}}, "steering.weights", "invalid_weights"),
        ({"weights": [0.8, -0.6]}, "steering.weights", "invalid_weights"),
        ({"weights": {f"o{i}": 1.0 for i in range(10_000)}}, "steering.weights", "invalid_weights"),
        ({"degrees": NAN}, "steering.degrees", "invalid_weights"),
        ({"degrees": "ten"}, "steering.degrees", "invalid_weights"),
        ({"degrees": {"verbosity": 91}}, "steering.degrees.verbosity", "invalid_weights"),
        ({"preset": "consise"}, "steering.preset", "unknown_preset"),
        ({"preset": 3}, "steering.preset", "invalid_value"),
        ({"preset": "x" * 1000}, "steering.preset", "too_long"),
        ({"weights": {"x" * 1000: 1.0}}, None, "too_long"),
        ({"preset": "concise", "degrees": 3}, "steering", "ambiguous_direction"),
        ({"wieghts": {}}, "steering.wieghts", "unknown_field"),
        ({"out_of_range": "ignore"}, "steering.out_of_range", "invalid_value"),
        ({"best_of": 0}, "steering.best_of", "invalid_value"),
        ({"best_of": 10**6}, "steering.best_of", "invalid_value"),
        ({"best_of": True}, "steering.best_of", "invalid_value"),
        ({"best_of": 2.5}, "steering.best_of", "invalid_value"),
        ({"return_rewards": 1}, "steering.return_rewards", "invalid_value"),
        ({"neighbours_deg": 60, "best_of": 4}, "steering.neighbours_deg", "invalid_value"),
        ({"neighbours_deg": 10}, "steering.neighbours_deg", "invalid_value"),  # of one answer there are no neighbours
        ("concise", "steering", "invalid_value"),
        (None, "steering", "invalid_value"),
        ([], "steering", "invalid_value"),
    ],
)
def test_a_body_that_is_no_wish(body: Any, param: str | None, code: str) -> None:
    with pytest.raises(SteeringRefused) as error:
        resolve(Sources(body=read_body(body)), SERVED)
    assert error.value.code == code
    assert code in CODES
    assert param is None or error.value.param == param
    assert len(error.value.message) < 500
    assert len(error.value.param) < 300


def test_the_message_of_the_interface() -> None:
    error = refused(body={"weights": {"helpfullness": 1.0}})
    assert (
        error.message == "Unknown objective 'helpfullness'. Did you mean 'helpfulness'? Known: helpfulness, verbosity."
    )
    assert "Did you mean 'concise'?" in refused(body={"preset": "consise"}).message
    assert "Did you mean 'weights'?" in refused(body={"wieghts": 1}).message
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.message, copy.param, copy.code) == (error.message, error.param, error.code)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "invalid_weights"),
        ("consise", "unknown_preset"),
        ("helpfullness=1", "unknown_objective"),
        ("helpfulness=nan", "invalid_weights"),
        ("helpfulness=inf", "invalid_weights"),
        ("helpfulness=", "invalid_weights"),
        ("helpfulness=0,verbosity=0", "invalid_weights"),
        ("helpfulness=1,helpfulness=2", "invalid_weights"),
        ("1,2,3", "invalid_weights"),
        ("," * 300, "invalid_weights"),
        ("\x00\x1b[31m", "invalid_weights"),
        ("\x00", "unknown_preset"),
        ("x" * (MAX_TEXT + 1), "too_long"),
    ],
)
@pytest.mark.parametrize(
    ("source", "param"), [("header", "X-Steering"), ("metadata", "metadata.steering"), ("alias", "model")]
)
def test_text_that_is_no_wish(source: str, param: str, text: str, code: str) -> None:
    error = refused(**{source: text})
    assert error.code == code
    assert error.param.split(".helpfull")[0] == param


# --- properties -------------------------------------------------------------------------------------------------------

weight = st.floats(-1e6, 1e6).filter(lambda w: w == 0 or abs(w) > 1e-6)


@given(st.tuples(weight, weight).filter(any), st.floats(1e-3, 1e3))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=100)
def test_any_weights_come_out_as_words_for_the_nearest_trained_direction(
    weights: tuple[float, float], scale: float
) -> None:
    body = {"weights": dict(zip(NAMES, weights, strict=True))}
    one = asked(body=body)
    nearest, projected = SERVED.cone.project(weights)
    assert one.projected == projected
    assert angle_between_deg(one.effective, nearest) <= SERVED.codec.precision_deg + 1e-6
    again = asked(body={"weights": {name: w * scale for name, w in body["weights"].items()}})
    assert angle_between_deg(again.requested, one.requested) < 1e-4  # a direction has no length
    echoed = asked(body={"weights": dict(zip(NAMES, one.effective, strict=True))})
    assert angle_between_deg(echoed.effective, one.effective) <= 2 * SERVED.codec.precision_deg


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["helpfulness", "x", ""]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*SteeringBody.model_fields, "x"]), json_values, max_size=4))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=300)
def test_whatever_json_says_it_is_read_or_refused_with_a_documented_code(raw: dict[str, Any]) -> None:
    one: Resolved | SteeringRefused
    try:
        one = resolve(Sources(body=read_body(raw)), SERVED, PROFILES.get)
    except SteeringRefused as e:
        one = e
    if isinstance(one, SteeringRefused):
        assert one.code in CODES
        assert one.param.startswith("steering")
        json.dumps([one.message, one.param])
    else:
        assert math.hypot(*one.effective) == pytest.approx(1)
        assert SERVED.cone.project(one.effective)[0] == pytest.approx(one.effective, abs=0.01)


@given(st.text(max_size=60))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=200)
def test_whatever_a_header_says_it_is_read_or_refused(text: str) -> None:
    try:
        said = asked(header=text).source
    except SteeringRefused as e:
        said = e.code
    assert said in {"header", *CODES}
