"""Directions: parsing, the sampling laws against what they promise, and the projection against brute force."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rhumbline import config
from rhumbline.directions import (
    Cone,
    angle_between_deg,
    angle_deg,
    from_angle_deg,
    normalise,
    parse,
    region,
    text,
)
from rhumbline.errors import DirectionError

NAMES = ("helpfulness", "verbosity")
PRESETS = {"concise": {"helpfulness": 0.8, "verbosity": -0.6}}
PAPER = Cone(NAMES, from_angle_deg(-22.5), 22.5)
weights = st.floats(-1e3, 1e3).filter(lambda w: w == 0 or abs(w) > 1e-6)


def vectors(smallest: int = 2, largest: int = 5) -> st.SearchStrategy[list[float]]:
    return st.lists(weights, min_size=smallest, max_size=largest).filter(any)


@st.composite
def cones_and_vectors(draw: st.DrawFn) -> tuple[Cone, list[float]]:
    K = draw(st.integers(2, 4))
    axis, v = draw(vectors(K, K)), draw(vectors(K, K))
    return Cone(tuple(f"o{k}" for k in range(K)), tuple(axis), draw(st.floats(1.0, 179.0))), v


def test_normalise_forgets_length_at_any_scale() -> None:
    assert normalise([3, 4]) == (0.6, 0.8)
    assert normalise([3e300, 4e300]) == pytest.approx((0.6, 0.8))
    assert normalise([3e-320, 4e-320]) == pytest.approx((0.6, 0.8), rel=1e-3)  # subnormal numbers have few digits
    assert str(normalise([1.0, -0.0])) == "(1.0, 0.0)"


@pytest.mark.parametrize("bad", [[0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0], [1.0], []])
def test_normalise_refuses_what_points_nowhere(bad: list[float]) -> None:
    with pytest.raises(DirectionError):
        normalise(bad)


@given(vectors())
@settings(deadline=None)
def test_normalise_gives_unit_vectors(v: list[float]) -> None:
    assert math.hypot(*normalise(v)) == pytest.approx(1.0, abs=1e-12)


@given(st.floats(-179.9, 180.0))
def test_angles_come_back(degrees: float) -> None:
    assert angle_deg(from_angle_deg(degrees)) == pytest.approx(degrees, abs=1e-9)


def test_angle_between_is_accurate_where_arccos_is_not() -> None:
    assert angle_between_deg((1.0, 0.0), from_angle_deg(-90)) == pytest.approx(90)
    assert angle_between_deg((1.0, 0.0), from_angle_deg(1e-7)) == pytest.approx(1e-7, rel=1e-6)


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ("helpfulness=0.8,verbosity=-0.6", (0.8, -0.6)),
        (" verbosity = -3 , helpfulness = 4 ", (0.8, -0.6)),
        ("helpfulness=2", (1.0, 0.0)),
        ("helpfulness=0.8,verbosity=−0.6", (0.8, -0.6)),  # the minus sign of a word processor
        ("-37deg", (math.cos(math.radians(37)), -math.sin(math.radians(37)))),
        ("-37°", (math.cos(math.radians(37)), -math.sin(math.radians(37)))),
        ("-90 degrees", (0.0, -1.0)),
        ("concise", (0.8, -0.6)),
        ("0.8,-0.6", (0.8, -0.6)),
        ({"helpfulness": 4, "verbosity": -3}, (0.8, -0.6)),
        ([4, -3], (0.8, -0.6)),
    ],
)
def test_parse(wish: Any, expected: tuple[float, ...]) -> None:
    assert parse(wish, NAMES, PRESETS) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ("helpfullness=1", "unknown objective 'helpfullness'. Did you mean 'helpfulness'?"),
        ({"helpfullness": 1.0}, "Did you mean 'helpfulness'?"),
        ("consise", "Did you mean 'concise'?"),
        ("helpfulness=nan", "finite"),
        ("helpfulness=inf,verbosity=1", "finite"),
        ({"helpfulness": math.nan}, "finite"),
        ({"helpfulness": "much"}, "expected a number, got 'much'"),
        ({"helpfulness": None}, "expected a number"),
        ({"helpfulness": 10**400}, "expected a number"),
        ("helpfulness=0,verbosity=0", "all zero"),
        ({}, "all zero"),
        ("helpfulness=1,helpfulness=2", "twice"),
        ("helpfulness=", "expected a number"),
        ("", "cannot be read"),
        ("0.8,-0.6,0.1", "direction has 3 weights, the recipe names 2 objectives"),
        ([1.0, 0.0, 0.0], "direction has 3 weights, the recipe names 2 objectives"),
        ([1.0], "direction has 1 weights"),
    ],
)
def test_parse_says_what_is_wrong(wish: Any, says: str) -> None:
    with pytest.raises(DirectionError) as error:
        parse(wish, NAMES, PRESETS)
    assert says in str(error.value)


def test_degrees_need_two_objectives() -> None:
    with pytest.raises(DirectionError, match="an angle needs 2 objectives, there are 3"):
        parse("-37deg", ("a", "b", "c"))


@given(vectors())
@settings(deadline=None)
def test_text_is_what_parse_reads(v: list[float]) -> None:
    names = [f"o{k}" for k in range(len(v))]
    unit = normalise(v)
    assert angle_between_deg(parse(text(unit, names), names), unit) < 0.1


def test_region_of_the_papers_arc() -> None:
    cone = region(config.Directions(), NAMES)
    assert (cone.names, cone.half_angle_deg) == (NAMES, 22.5)
    assert angle_deg(cone.axis) == pytest.approx(-22.5)


def test_region_of_one_fixed_direction_is_no_other_s() -> None:
    cone = region(config.Directions(angle_deg=(-45, 0), fixed={"helpfulness": 1, "verbosity": -1}), NAMES)
    assert (angle_deg(cone.axis), cone.half_angle_deg) == (pytest.approx(-45), 1.0)
    assert not cone.contains(from_angle_deg(-20))


def test_region_of_an_axis() -> None:
    cone = region(config.Directions(axis={"a": 1, "c": -1}, half_angle_deg=30), ["a", "b", "c"])
    assert cone.axis == pytest.approx((math.sqrt(0.5), 0, -math.sqrt(0.5)))
    with pytest.raises(DirectionError, match=r"directions\.axis"):
        region(config.Directions(), ["a", "b", "c"])


@pytest.mark.parametrize(
    ("axis", "half"), [((1.0, 0.0, 0.0), 30.0), ((1.0, 0.0), 0.0), ((1.0, 0.0), 181.0), ((1.0, 0.0), math.nan)]
)
def test_cones_that_cannot_be(axis: tuple[float, ...], half: float) -> None:
    with pytest.raises(DirectionError):
        Cone(NAMES, axis, half)


def test_projection_worked_by_hand() -> None:
    # The region is [-45, 0] degrees: 30 goes to 0, -60 to -45, -20 stays.
    assert PAPER.project(from_angle_deg(30)) == (pytest.approx((1.0, 0.0), abs=1e-12), True)
    assert PAPER.project(from_angle_deg(-60))[0] == pytest.approx(from_angle_deg(-45))
    assert PAPER.project((3.0, -1.0)) == (pytest.approx(normalise((3.0, -1.0))), False)
    assert PAPER.contains(from_angle_deg(0))
    assert PAPER.contains(from_angle_deg(-45))
    assert not PAPER.contains(from_angle_deg(0.01))
    assert PAPER.project((0.0, 2.0))[1]
    opposite = tuple(-c for c in PAPER.axis)
    assert PAPER.project(opposite) == (PAPER.axis, True)
    with pytest.raises(DirectionError, match="3 weights"):
        PAPER.project((1.0, 0.0, 0.0))


@given(cones_and_vectors())
@settings(deadline=None, max_examples=60)
def test_no_direction_of_the_cone_is_nearer_than_the_projection(case: tuple[Cone, list[float]]) -> None:
    cone, v = case
    unit = normalise(v)
    nearest, projected = cone.project(v)
    assert math.hypot(*nearest) == pytest.approx(1.0)
    assert angle_between_deg(nearest, cone.axis) <= cone.half_angle_deg + 1e-6
    assert projected == (angle_between_deg(unit, cone.axis) > cone.half_angle_deg + 6e-8)
    if angle_between_deg(unit, cone.axis) < 179.99:  # opposite to the axis every edge is as near
        others = cone.sample(np.random.default_rng(0), 500)
        assert np.max(others @ np.asarray(unit)) <= np.dot(nearest, unit) + 1e-9


@given(cones_and_vectors())
@settings(deadline=None, max_examples=60)
def test_projecting_twice_is_projecting_once(case: tuple[Cone, list[float]]) -> None:
    cone, v = case
    once = cone.project(v)[0]
    assert cone.project(once) == (pytest.approx(once, abs=1e-12), False)


@given(cones_and_vectors(), st.sampled_from(["uniform", "dirichlet", "grid"]), st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_every_law_stays_in_the_cone(case: tuple[Cone, list[float]], law: Any, n: int) -> None:
    cone, _ = case
    drawn = cone.sample(np.random.default_rng(1), n, law)
    assert drawn.shape == (n, len(cone.names))
    assert all(cone.contains(v) for v in drawn)
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1.0)
    again = cone.sample(np.random.default_rng(1), n, law)
    np.testing.assert_array_equal(drawn, again)


def test_two_objectives_draw_a_uniform_angle() -> None:
    angles = [angle_deg(v) for v in PAPER.sample(np.random.default_rng(3), 4000)]
    assert stats.kstest(angles, stats.uniform(-45, 45).cdf).pvalue > 0.01


@pytest.mark.parametrize("K", [3, 4, 5])
@pytest.mark.parametrize("half_angle_deg", [20.0, 100.0])
def test_the_cap_is_drawn_uniformly(K: int, half_angle_deg: float) -> None:
    """Against rejection: normal vectors are uniform on the sphere, so those that fall in the cone are uniform in it."""
    axis = normalise([1.0, -2.0, 0.5, 1.0, 3.0][:K])
    cone = Cone(tuple("abcde"[:K]), axis, half_angle_deg)
    drawn = cone.sample(np.random.default_rng(5), 3000)
    sphere = np.random.default_rng(6).standard_normal((400_000, K))
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    kept = sphere[sphere @ np.asarray(axis) >= math.cos(math.radians(half_angle_deg))][:6000]
    assert len(kept) > 300
    for probe in np.vstack([axis, np.eye(K)]):  # the polar angle and every coordinate
        assert stats.ks_2samp(drawn @ probe, kept @ probe).pvalue > 1e-3


def test_the_cap_of_the_ordinary_sphere_is_uniform_in_height() -> None:
    # Archimedes: on S^2 the height over a plane is uniform, here between cos 60 = 0.5 and 1.
    cone = Cone(("a", "b", "c"), (0.0, 0.0, 1.0), 60.0)
    heights = cone.sample(np.random.default_rng(7), 4000)[:, 2]
    assert stats.kstest(heights, stats.uniform(0.5, 0.5).cdf).pvalue > 0.01


def test_dirichlet_weights_take_the_signs_of_the_axis() -> None:
    wide = Cone(NAMES, normalise((1.0, -1.0)), 45.0)  # 0 to -90 degrees: nothing is projected
    drawn = wide.sample(np.random.default_rng(0), 2000, "dirichlet", concentration=[9.0, 1.0])
    simplex = np.abs(drawn) / np.abs(drawn).sum(axis=1, keepdims=True)
    assert np.all(drawn[:, 0] >= 0)
    assert np.all(drawn[:, 1] <= 0)
    np.testing.assert_allclose(simplex.mean(axis=0), [0.9, 0.1], atol=0.01)  # the mean of Dirichlet(9, 1)


def test_grid_runs_from_the_high_angle_to_the_low_one() -> None:
    grid = PAPER.grid(7)
    assert [angle_deg(v) for v in grid] == pytest.approx([0, -7.5, -15, -22.5, -30, -37.5, -45])
    assert tuple(grid[0]) == (1.0, 0.0)
    assert angle_deg(PAPER.grid(1)[0]) == pytest.approx(-22.5)
    with pytest.raises(DirectionError):
        PAPER.grid(0)


def test_a_full_circle_has_no_double_point() -> None:
    circle = Cone(NAMES, (1.0, 0.0), 180.0).grid(4)
    assert len({tuple(np.round(v, 9) + 0.0) for v in circle}) == 4


def test_grid_of_three_objectives_is_spread_and_nested() -> None:
    cone = Cone(("a", "b", "c"), (1.0, 1.0, 1.0), 40.0)
    grid = cone.grid(9)
    assert tuple(grid[0]) == cone.axis
    np.testing.assert_array_equal(grid[:5], cone.grid(5))

    def closest_deg(points: np.ndarray) -> float:
        return min(angle_between_deg(p, q) for i, p in enumerate(points) for q in points[:i])

    chance = max(closest_deg(cone.sample(np.random.default_rng(seed), 9)) for seed in range(20))
    assert closest_deg(grid) > chance
    assert closest_deg(grid) > 20


def test_grid_law_uses_every_point_before_any_comes_again() -> None:
    drawn = PAPER.sample(np.random.default_rng(0), 8, "grid", grid=4)
    for half in (drawn[:4], drawn[4:]):
        assert sorted(round(angle_deg(v), 6) for v in half) == [-45, -30, -15, 0]


@given(cones_and_vectors())
@settings(deadline=None, max_examples=30)
def test_a_cone_survives_json(case: tuple[Cone, list[float]]) -> None:
    cone, _ = case
    back = Cone.from_dict(json.loads(json.dumps(cone.to_dict())))
    assert back.names == cone.names
    assert back.axis == pytest.approx(cone.axis, abs=1e-15)
    assert back.half_angle_deg == cone.half_angle_deg


def test_steering_data_without_a_region_is_refused() -> None:
    with pytest.raises(DirectionError, match="not a trained region"):
        Cone.from_dict({"objectives": ["a", "b"]})
