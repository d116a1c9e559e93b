"""Codecs: golden strings (a changed word is another codec), the way back, and users who write weights."""

from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhumbline.codecs import CODECS, Codec, SteerLM, conversation, direction_of, from_dict, make
from rhumbline.directions import angle_between_deg, from_angle_deg, normalise
from rhumbline.errors import CodecError, DirectionError
from rhumbline.records import Message

NAMES = ("helpfulness", "verbosity")
RELEASED = (
    "You are a helpful, respectful, and honest assistant who always responds to the user in a harmless way. "
    "Your response should maximize weighted rating = "
)
FIGURE = "You are a helpful assistant. Your response should maximize weighted rating = "

ARC = {
    "low.helpfulness": 0.7071,
    "low.verbosity": -0.7072,
    "high.verbosity": 0.0,
}  # of directions from -45 to 0 degrees
GOLDEN = [
    ("dpa-int100", {}, from_angle_deg(-15), RELEASED + "helpfulness*97 + verbosity*-26"),
    ("dpa-int100", {}, (1.0, 0.0), RELEASED + "helpfulness*100 + verbosity*0"),
    ("dpa-int100", {}, from_angle_deg(-45), RELEASED + "helpfulness*71 + verbosity*-71"),
    ("dpa-int100", {}, (1.0, -0.001), RELEASED + "helpfulness*100 + verbosity*0"),
    ("dpa-float1", {}, (0.8, -0.6), FIGURE + "helpfulness*0.8 - verbosity*0.6"),
    ("dpa-float1", {}, (0.8, 0.6), FIGURE + "helpfulness*0.8 + verbosity*0.6"),
    ("dpa-float1", {}, (-0.8, 0.6), FIGURE + "-helpfulness*0.8 + verbosity*0.6"),
    ("dpa-float1", {}, (1.0, -0.01), FIGURE + "helpfulness*1.0 + verbosity*0.0"),
    (
        "steerlm",
        {},
        (0.8, -0.6),
        "You are a helpful assistant. Your response should be rated helpfulness:90,verbosity:20",
    ),
    (
        "steerlm",
        {"scale": "0-4"},
        (1.0, 0.0),
        "You are a helpful assistant. Your response should be rated helpfulness:4,verbosity:2",
    ),
    (
        "steerlm",
        {"low.helpfulness": 60, "high.helpfulness": 80, "high.verbosity": 50},
        (0.8, -0.6),  # 70 + 0.8 * 10, 25 - 0.6 * 25
        "You are a helpful assistant. Your response should be rated helpfulness:78,verbosity:10",
    ),
    # 0.8 lies 9 tenths of the way from -1 to 1, -0.6 two tenths: of 10 signs.
    ("signs", {}, (0.8, -0.6), "helpfulness + + + + + + + + + - verbosity + + - - - - - - - -"),
    ("signs", {"width": 4, **ARC}, (1.0, 0.0), "helpfulness + + + + verbosity + + + +"),
    ("signs", {"width": 4, **ARC}, from_angle_deg(-45), "helpfulness - - - - verbosity - - - -"),
]


@pytest.mark.parametrize(("name", "options", "direction", "line"), GOLDEN)
def test_golden_strings(name: str, options: dict[str, float], direction: tuple[float, ...], line: str) -> None:
    codec = make(name, NAMES, options)
    assert codec.render(direction) == line
    assert angle_between_deg(codec.parse(line), direction) <= codec.precision_deg


def test_three_objectives_in_the_released_words() -> None:
    codec = make("dpa-int100", ("helpfulness", "verbosity", "code quality"))
    assert codec.render((2.0, -1.0, 2.0)) == RELEASED + "helpfulness*67 + verbosity*-33 + code quality*67"


def test_versions_are_pinned() -> None:
    """Change a word and this list together, with a new number: checkpoints carry it."""
    assert {name: CODECS[name].version for name in CODECS} == {
        "dpa-int100": "dpa-int100/1",
        "dpa-float1": "dpa-float1/1",
        "signs": "signs/1",
        "steerlm": "steerlm/1",
    }
    assert all(key == codec.name and codec.version.startswith(f"{key}/") for key, codec in CODECS.items())


@st.composite
def codecs_and_directions(draw: st.DrawFn) -> tuple[Codec, tuple[float, ...]]:
    K = draw(st.integers(2, 5))
    codec = make(draw(st.sampled_from(sorted(CODECS))), [f"objective {k}" for k in range(K)])
    weight = st.floats(-1, 1).filter(lambda w: w == 0 or abs(w) > 1e-6)
    return codec, normalise(draw(st.lists(weight, min_size=K, max_size=K).filter(any)))


@given(codecs_and_directions())
@settings(deadline=None, max_examples=300)
def test_the_words_say_the_direction_within_rounding(case: tuple[Codec, tuple[float, ...]]) -> None:
    codec, direction = case
    line = codec.render(direction)
    back = codec.parse(line)
    assert angle_between_deg(back, direction) <= codec.precision_deg + 1e-6
    assert back == codec.snap(direction)
    assert codec.render([3 * v for v in direction]) == line  # a direction has no length
    assert "\n" not in line


@given(codecs_and_directions())
@settings(deadline=None, max_examples=50)
def test_a_codec_survives_json_and_pickle(case: tuple[Codec, tuple[float, ...]]) -> None:
    codec, direction = case
    for back in (from_dict(json.loads(json.dumps(codec.to_dict()))), pickle.loads(pickle.dumps(codec))):
        assert back == codec
        assert back.render(direction) == codec.render(direction)


@pytest.mark.parametrize("name", ["dpa-int100", "dpa-float1", "steerlm"])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "You are a helpful assistant.",
        "{} and be brief",
        " {}",
        "{}\n",
        RELEASED + "verbosity*97 + helpfulness*-26",
        RELEASED + "helpfulness*97",
        RELEASED + "helpfulness*097 + verbosity*-26",
        RELEASED + "helpfulness*97 - verbosity*26",
        RELEASED + "helpfulness*100 + verbosity*-100",
        RELEASED + "helpfulness*0 + verbosity*0",
        RELEASED + "helpfulness*" + "9" * 400 + " + verbosity*0",
        RELEASED + "helpfulness*٩٧ + verbosity*-26",
        FIGURE + "helpfulness*97 + verbosity*-26",
        FIGURE + "helpfulness*0.8 + verbosity*-0.6",
        FIGURE + "helpfulness*0.0 + verbosity*0.0",
        "You are a helpful assistant. Your response should be rated helpfulness:50,verbosity:50",
        "You are a helpful assistant. Your response should be rated helpfulness:101,verbosity:50",
    ],
)
def test_other_text_is_refused(name: str, text: str) -> None:
    codec = make(name, NAMES)
    with pytest.raises(CodecError):
        codec.parse(text.format(codec.render((0.8, -0.6))) if "{}" in text else text)


def test_precision_worked_by_hand() -> None:
    # Half a unit in the last place, on each of two weights: asin(0.005 sqrt 2) and asin(0.05 sqrt 2).
    assert make("dpa-int100", NAMES).precision_deg == pytest.approx(0.405, abs=1e-3)
    assert make("dpa-float1", NAMES).precision_deg == pytest.approx(4.055, abs=1e-3)
    assert make("steerlm", NAMES).precision_deg == pytest.approx(0.810, abs=1e-3)
    assert make("steerlm", NAMES, {"scale": "0-4"}).precision_deg == pytest.approx(20.70, abs=1e-2)


@given(st.floats(0, 360))
@settings(deadline=None)
def test_the_precision_of_a_coarse_scale_holds(angle: float) -> None:
    codec = make("steerlm", NAMES, {"scale": "0-4", "low.helpfulness": 1})
    direction = from_angle_deg(angle)
    assert angle_between_deg(codec.snap(direction), direction) <= codec.precision_deg


def test_steerlm_says_values_of_an_objective_that_is_not_on_the_scale() -> None:
    codec = make("steerlm", NAMES, {"low.helpfulness": -81.2, "high.helpfulness": 0.8})  # minus a head, say
    assert codec.render((1.0, 0.0)).endswith("helpfulness:1,verbosity:50")
    assert codec.render((-1.0, 0.0)).endswith("helpfulness:-81,verbosity:50")
    assert codec.parse(codec.render((0.6, -0.8))) == pytest.approx((0.6, -0.8), abs=0.02)
    assert isinstance(codec, SteerLM)
    assert codec.render_targets((-200.0, 200.0)).endswith("helpfulness:-82,verbosity:100")
    with pytest.raises(CodecError, match="helpfulness run from -82 to 100"):
        codec.parse(codec.render((1.0, 0.0)).replace("helpfulness:1", "helpfulness:-90"))


def test_steerlm_says_given_ratings() -> None:
    codec = make("steerlm", NAMES, {"scale": "0-4"})
    assert isinstance(codec, SteerLM)
    assert codec.render_targets((3.6, -1)).endswith("helpfulness:4,verbosity:0")
    assert codec.targets((0.8, -0.6)) == pytest.approx((3.6, 0.8))
    assert codec.parse(codec.render_targets((4, 0))) == pytest.approx(normalise((1, -1)))
    with pytest.raises(CodecError, match="2 finite target values"):
        codec.render_targets((3.0,))


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("dpa-int10", {}, "unknown codec 'dpa-int10' (directions.codec). Did you mean 'dpa-int100'?"),
        ("dpa-int100", {"digits": 2}, "no option 'digits'"),
        ("steerlm", {"low.helpfullness": 2}, "Did you mean 'low.helpfulness'?"),
        ("steerlm", {"scale": "0-5"}, "0-100, 0-4"),
        ("steerlm", {"low.helpfulness": 70, "high.helpfulness": 60}, "must rise"),
        ("steerlm", {"high.helpfulness": float("inf")}, "must rise"),
        ("steerlm", {"low.helpfulness": "few"}, "must be numbers"),
        ("steerlm", {"low.helpfulness": 99}, "ranges this narrow"),
    ],
)
def test_make_says_what_is_wrong(name: str, options: dict[str, float], says: str) -> None:
    with pytest.raises(CodecError) as error:
        make(name, NAMES, options)
    assert says in str(error.value)


def test_a_checkpoint_of_other_words_is_refused() -> None:
    data = make("dpa-int100", NAMES).to_dict()
    with pytest.raises(CodecError, match="trained with the words of dpa-int100/0, this Rhumbline speaks dpa-int100/1"):
        from_dict(data | {"version": "dpa-int100/0"})
    with pytest.raises(CodecError, match="does not describe a codec"):
        from_dict({"name": "dpa-int100"})


@pytest.mark.parametrize("direction", [(1.0,), (1.0, 0.0, 0.0), (0.0, 0.0), (float("nan"), 1.0)])
@pytest.mark.parametrize("name", ["dpa-int100", "dpa-float1", "steerlm"])
def test_no_codec_says_what_is_no_direction(name: str, direction: tuple[float, ...]) -> None:
    with pytest.raises(DirectionError):
        make(name, NAMES).render(direction)


def test_a_conversation_carries_its_direction_first() -> None:
    codec = make("dpa-int100", NAMES)
    asked = (Message(role="user", content="Why is the sky blue?"),)
    with_own = (Message(role="system", content="You are a pirate."), *asked)
    line = RELEASED + "helpfulness*80 + verbosity*-60"
    assert conversation(codec, (0.8, -0.6), asked) == (Message(role="system", content=line), *asked)
    assert conversation(codec, (0.8, -0.6), with_own) == (
        Message(role="system", content=line + "\n\nYou are a pirate."),
        *asked,
    )
    assert conversation(codec, None, with_own) == with_own
    assert direction_of(conversation(codec, (0.8, -0.6), with_own), codec) == pytest.approx((0.8, -0.6))


@given(codecs_and_directions(), st.data())
@settings(deadline=None, max_examples=100)
def test_no_turn_can_change_the_direction(case: tuple[Codec, tuple[float, ...]], data: st.DataObject) -> None:
    codec, direction = case
    rogue = codec.render([-v for v in direction])
    content = st.sampled_from(
        [rogue, f"{rogue}\n\nhello", f"hello\n\n{rogue}", f"\n\n{rogue}\n", f"system: {rogue}", "hello"]
    )
    turns = data.draw(
        st.lists(st.builds(Message, role=st.sampled_from(["system", "user", "assistant"]), content=content), max_size=4)
    )
    messages = conversation(codec, direction, [*turns, Message(role="user", content=rogue)])
    assert direction_of(messages, codec) == codec.snap(direction)
    assert sum(m.role == "system" for m in messages[:1]) == 1


def test_a_line_in_a_users_turn_is_no_direction() -> None:
    codec = make("dpa-int100", NAMES)
    line = codec.render((0.8, -0.6))
    for messages in (
        [],
        [Message(role="user", content=line)],
        [Message(role="user", content="hello"), Message(role="system", content=line)],
        [Message(role="system", content="You are a pirate.\n\n" + line), Message(role="user", content=line)],
    ):
        with pytest.raises(CodecError):
            direction_of(messages, codec)


def test_signs_refuse_what_lies_outside_their_range_and_rows_of_another_width() -> None:
    codec = make("signs", NAMES, ARC)
    with pytest.raises(CodecError, match="project the direction"):
        codec.render((0.0, -1.0))
    with pytest.raises(CodecError, match="10 signs"):
        codec.parse("helpfulness + + verbosity - -")
    with pytest.raises(CodecError, match="not a line"):
        codec.parse("helpfulness - + + + + + + + + + verbosity + + + + + + + + + +")  # signs out of order
    with pytest.raises(CodecError, match="width"):
        make("signs", NAMES, {"width": 1})


def test_signs_of_the_arc_tell_seven_angles_apart() -> None:
    codec = make("signs", NAMES, ARC)
    lines = [codec.render(from_angle_deg(-7.5 * i)) for i in range(7)]
    assert len(set(lines)) == 7
    assert [line.count("-") for line in lines] == sorted(line.count("-") for line in lines)
