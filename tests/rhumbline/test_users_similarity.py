"""Cosines over common questions, the graph of mutual neighbours, clusters."""

from __future__ import annotations

import numpy as np
import pytest

from rhumbline.users import similarity
from rhumbline.users.population import MISSING, PASSED
from tests.rhumbline.users_fakes import population


def test_cosine_is_over_the_questions_that_both_answered() -> None:
    """u0 and u1: three in common, + + -, so 1/3. u0 and u2: two in common, one a pass of u2: 1 / (sqrt 2 sqrt 1)."""
    people = population([[0, 0, 0, 0], [0, 0, 1, MISSING], [0, PASSED, MISSING, MISSING]])
    found = similarity.similarity(people)
    assert found.cosine_UU[0, 1] == pytest.approx(1 / 3)
    assert found.cosine_UU[0, 2] == pytest.approx(1 / np.sqrt(2))
    assert found.common_UU.tolist() == [[4, 3, 2], [3, 3, 2], [2, 2, 2]]
    assert np.array_equal(found.cosine_UU, found.cosine_UU.T)
    fewer = similarity.similarity(people, min_common=3).cosine_UU
    assert np.isnan(fewer[0, 2])
    assert fewer[2, 2] == 1.0


def test_who_only_passed_is_like_nobody() -> None:
    found = similarity.similarity(population([[0, 1], [PASSED, PASSED]]))
    assert np.isnan(found.cosine_UU[0, 1])


def test_cosine_of_more_options_is_minus_one_over_the_others_for_another_choice() -> None:
    found = similarity.similarity(population([[0, 0], [0, 1], [3, 2]], options=5))
    assert found.cosine_UU[0, 1] == pytest.approx((1 - 1 / 4) / 2)
    assert found.cosine_UU[0, 2] == pytest.approx(-1 / 4)


def test_an_edge_needs_both_sides() -> None:
    """With one neighbour each: 0's nearest is 1 and 1's is 0: an edge. 2's nearest is 1, but 1 prefers 0: none."""
    cosine = np.array([[1.0, 0.9, 0.1], [0.9, 1.0, 0.8], [0.1, 0.8, 1.0]])
    edges = similarity.mutual_neighbours(cosine, 1)
    assert edges.tolist() == [[False, True, False], [True, False, False], [False, False, False]]
    assert similarity.components(edges).tolist() == [0, 0, 1]
    all_of_them = similarity.mutual_neighbours(cosine, 5)
    assert all_of_them.sum() == 6
    assert not all_of_them.diagonal().any()


def test_people_who_cannot_be_compared_are_nobodys_neighbours() -> None:
    cosine = np.array([[1.0, np.nan, 0.2], [np.nan, 1.0, np.nan], [0.2, np.nan, 1.0]])
    edges = similarity.mutual_neighbours(cosine, 2)
    assert edges.tolist() == [[False, False, True], [False, False, False], [True, False, False]]


def test_edges_are_symmetric_and_nobody_has_more_than_k() -> None:
    rng = np.random.default_rng(0)
    people = population(rng.integers(0, 2, size=(40, 25)).tolist())
    edges = similarity.mutual_neighbours(similarity.similarity(people).cosine_UU, 5)
    assert (edges == edges.T).all()
    assert edges.sum(axis=1).max() <= 5


def test_two_parties_are_two_clusters_in_which_the_graph_lies() -> None:
    """Parties of 12 and 8 that answer oppositely, each answer flipped with probability 0.1."""
    rng = np.random.default_rng(3)
    party = np.array([0] * 12 + [1] * 8)
    choices = (party[:, None] + (rng.random((20, 40)) < 0.1)) % 2
    found = similarity.similarity(population(choices.tolist()))
    labels, silhouettes = similarity.clusters(found.cosine_UU, None, most=6, seed=0)
    assert labels.tolist() == party.tolist()  # label 0 is the larger one
    assert max(silhouettes, key=lambda count: silhouettes[count]) == 2
    assert similarity.agreement_with_groups(labels, [str(p) for p in party]) == pytest.approx(1.0)
    edges = similarity.mutual_neighbours(found.cosine_UU, 5)
    assert not edges[party[:, None] != party].any()
    order = similarity.order_by_nearness(found.cosine_UU)
    assert (np.diff(party[order]) != 0).sum() == 1  # side by side


def test_positions_give_back_the_similarity() -> None:
    """Three people at right angles: centred and multiplied out, the leading coordinates are the whole centred matrix."""
    cosine = np.eye(3)
    points = similarity.positions(cosine, 3)
    centred = cosine - 1 / 3
    assert points @ points.T == pytest.approx(centred, abs=1e-9)


def test_groups_that_nobody_knows_are_not_agreed_with() -> None:
    assert similarity.agreement_with_groups(np.array([0, 1]), [None, None]) is None
    assert similarity.agreement_with_groups(np.array([0, 1]), ["a", "a"]) is None


def test_two_people_or_equal_ones_are_one_cluster() -> None:
    for choices in ([[0], [1]], [[0, 1]] * 5):
        labels, tried = similarity.clusters(similarity.similarity(population(choices)).cosine_UU, None, most=3, seed=0)
        assert (labels.tolist(), tried) == ([0] * len(choices), {})
