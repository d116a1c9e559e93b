"""Agreement of two scorers."""

from __future__ import annotations

import numpy as np
import pytest

from rhumbline.cards.agreement import agree, cohens_kappa, pairs_within, verdicts
from rhumbline.cards.sections import agreements


def test_kappa_by_hand() -> None:
    # They agree on 3 of 4; chance: 0.5 * 0.25 + 0.5 * 0.75 = 0.5.
    assert cohens_kappa([0, 0, 1, 1], [0, 1, 1, 1]) == pytest.approx(0.5)
    assert cohens_kappa([0, 1, 2], [0, 1, 2]) == 1
    assert cohens_kappa([0, 1], [1, 0]) == pytest.approx(-1)
    assert cohens_kappa([0, 0], [0, 0]) is None  # chance alone says the same
    assert cohens_kappa([], []) is None


def test_percent_flatters_and_kappa_does_not() -> None:
    rng = np.random.default_rng(0)
    first, second = ((rng.random(4000) > 0.9).astype(int) for _ in range(2))
    found = agree(first, second, np.arange(4000), num_resamples=50, seed=0)
    assert found["percent"]["value"] == pytest.approx(82, abs=2)
    assert abs(found["kappa"]["value"]) < 0.06


def test_verdicts_and_pairs_of_one_prompt() -> None:
    assert verdicts([1.2, 0.0, -3.0]).tolist() == [0, 2, 1]
    assert pairs_within(["p", "q", "p", "p"]).tolist() == [[0, 2], [0, 3], [2, 3]]
    assert pairs_within(["p", "q"]).shape == (0, 2)


def test_each_data_set_has_its_own_line_and_length_is_beside_it() -> None:
    """The thesis's table 13: a scorer may agree on one source and not on another."""
    margins, theirs = [1.0, 2.0, -1.0, 1.0], [3.0, -1.0, -2.0, -5.0]
    lengths = [[9, 1], [1, 9], [1, 9], [1, 9]]  # the longer one: a, b, b, b, as the second scorer says
    sources = ["one", "two", "one", "two"]
    told = agreements({"own": margins}, {"other": theirs}, lengths, list("pqrs"), sources, num_resamples=9, seed=0)
    assert [(one["source"], one["n"]) for one in told] == [("all", 4), ("one", 2), ("two", 2)]
    assert [one["percent"]["value"] for one in told] == [50, 100, 0]
    assert [one["length_percent"]["value"] for one in told] == [100] * 3
    assert told[0]["length_kappa"]["value"] == 1
    assert told[0]["kappa"]["value"] == pytest.approx((0.5 - 0.375) / 0.625)  # chance: 3/4 * 1/4 + 1/4 * 3/4
    (one,) = agreements({"own": margins}, {"other": theirs}, lengths, list("pqrs"), num_resamples=9, seed=0)
    assert one["source"] == "all"
