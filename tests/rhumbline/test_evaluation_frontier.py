"""Fronts against brute force: pairwise dominance, counted unit cells, and numbers worked by hand."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rhumbline.evaluation.frontier import (
    coverage,
    epsilon_indicator,
    hypervolume,
    igd_plus,
    maximised,
    nondominated_union,
    pareto_set,
    reference_point,
)


def integer_points(num_objectives: int, low: int = -1, high: int = 4):
    """Few distinct coordinates, so that ties and duplicates are common."""
    return st.integers(1, 7).flatmap(
        lambda n: arrays(np.float64, (n, num_objectives), elements=st.integers(low, high).map(float))
    )


points_23 = st.sampled_from([2, 3]).flatmap(integer_points)
points_234 = st.sampled_from([2, 3, 4]).flatmap(integer_points)


def cells_dominated(points: np.ndarray, size: int) -> int:
    """Hypervolume over the origin by counting unit cells of a grid: exact for integer points."""
    corners = np.array(list(product(range(1, size + 1), repeat=points.shape[1])))
    return int(sum(np.any(np.all(points >= corner, axis=1)) for corner in corners))


def test_hypervolume_of_two_boxes_by_hand() -> None:
    # boxes 10 x 20 = 200 and 15 x 10 = 150 over (60, -60); they share 10 x 10 = 100; union 250
    points = maximised([[70.0, 40.0], [75.0, 50.0]], [1, -1])
    assert hypervolume(points, [60.0, -60.0]) == pytest.approx(250.0)


def test_papers_fronts_keep_their_order() -> None:
    """Figure values of the DPA paper (metrics 3.1), reference (-60 verbosity, 60 helpfulness)."""
    t4 = [(42.4, 69.3), (44.2, 71.2), (46.3, 73.0), (49.5, 75.3), (52.8, 77.8)]
    t4 += [(54.5, 78.9), (56.3, 79.8), (56.9, 80.0), (58.2, 80.55), (58.5, 80.5)]
    t0 = [(41.2, 63.4), (45.4, 67.7), (50.5, 71.1), (54.5, 73.0), (58.7, 75.0)]
    value = {
        k: hypervolume(maximised(v, [-1, 1]), [-60, 60]) for k, v in {"t4": t4, "t0": t0, "sft": [(50, 66.9)]}.items()
    }
    assert value["t4"] == pytest.approx(271.5, abs=0.1)
    assert value["t0"] == pytest.approx(172.0, abs=0.1)
    assert value["sft"] == pytest.approx(69.0)


def test_point_below_the_reference_takes_nothing_from_the_others() -> None:
    assert hypervolume([[1.0, 1.0], [2.0, -1.0]], [0.0, 0.0]) == pytest.approx(1.0)  # the defect of another project: 0
    assert hypervolume([[0.0, 5.0]], [0.0, 0.0]) == 0.0


@settings(max_examples=150, deadline=None)
@given(points_23)
def test_hypervolume_equals_counted_cells(points: np.ndarray) -> None:
    assert hypervolume(points, np.zeros(points.shape[1])) == pytest.approx(cells_dominated(points, 4))


@settings(max_examples=150, deadline=None)
@given(points_234, st.data())
def test_hypervolume_never_shrinks_when_a_point_is_added(points: np.ndarray, data: st.DataObject) -> None:
    new = data.draw(arrays(np.float64, (1, points.shape[1]), elements=st.floats(-2, 5)))
    reference = np.full(points.shape[1], -0.5)
    assert hypervolume(np.vstack([points, new]), reference) >= hypervolume(points, reference) - 1e-9


@settings(max_examples=100, deadline=None)
@given(points_234, st.randoms(use_true_random=False))
def test_hypervolume_ignores_the_order_of_points_and_objectives(points: np.ndarray, random) -> None:
    reference = np.linspace(-0.9, -0.1, points.shape[1])
    rows, columns = list(range(len(points))), list(range(points.shape[1]))
    random.shuffle(rows)
    random.shuffle(columns)
    shuffled = hypervolume(points[rows][:, columns], reference[columns])
    assert shuffled == pytest.approx(hypervolume(points, reference))


@settings(max_examples=100, deadline=None)
@given(points_234)
def test_dominated_points_and_duplicates_add_no_volume(points: np.ndarray) -> None:
    reference = np.full(points.shape[1], -2.0)
    front = points[pareto_set(points)]
    assert hypervolume(front, reference) == pytest.approx(hypervolume(np.vstack([points, points]), reference))


@settings(max_examples=200, deadline=None)
@given(points_234)
def test_pareto_set_equals_pairwise_dominance(points: np.ndarray) -> None:
    dominated = [any(np.all(a >= b) and np.any(a > b) for a in points) for b in points]
    assert pareto_set(points).tolist() == [not d for d in dominated]


def test_pareto_set_is_strict_and_keeps_duplicates() -> None:
    # (5, 9.99) is within 1% of the range of (5, 10), and dominated all the same
    assert pareto_set([[5.0, 10.0], [5.0, 9.99], [5.0, 10.0], [0.0, 11.0]]).tolist() == [True, False, True, True]


def test_reference_point_of_a_minimised_objective() -> None:
    # verbosity between 20 and 90 with sign -1: maximised coordinates run from -90 to -20, so the reference is -97
    low, high = maximised([40.0, 90.0], [1, -1]), maximised([80.0, 20.0], [1, -1])
    assert reference_point(low, high - low).tolist() == pytest.approx([36.0, -97.0])


@settings(max_examples=100, deadline=None)
@given(integer_points(3), integer_points(3))
def test_distances_to_a_front_against_their_definitions(points: np.ndarray, others: np.ndarray) -> None:
    front = nondominated_union(points, others)
    shortfall = [[np.linalg.norm(np.maximum(z - a, 0)) for a in points] for z in front]
    assert igd_plus(points, front) == pytest.approx(np.mean(np.min(shortfall, axis=1)), abs=1e-9)
    shift = [[np.max(z - a) for a in points] for z in front]
    assert epsilon_indicator(points, front) == pytest.approx(np.max(np.min(shift, axis=1)), abs=1e-9)
    covered = [any(np.all(a >= b) for a in points) for b in others]
    assert coverage(points, others) == pytest.approx(np.mean(covered))


def test_nondominated_union_by_hand() -> None:
    union = nondominated_union([[1.0, 5.0], [3.0, 3.0]], [[3.0, 3.0], [2.0, 2.0], [5.0, 1.0]])
    assert union.tolist() == [[1.0, 5.0], [3.0, 3.0], [5.0, 1.0]]
    assert igd_plus([[3.0, 3.0]], union) == pytest.approx(4 / 3)  # shortfalls 2, 0, 2
    assert epsilon_indicator([[3.0, 3.0]], union) == pytest.approx(2.0)
    assert coverage([[3.0, 3.0]], [[3.0, 3.0], [2.0, 2.0], [5.0, 1.0]]) == pytest.approx(2 / 3)


@pytest.mark.parametrize("bad", [[[1.0, float("nan")]], [1.0, 2.0]])
def test_points_must_be_finite_rows(bad: list) -> None:
    with pytest.raises(AssertionError):
        hypervolume(bad, [0.0, 0.0])
