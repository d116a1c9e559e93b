"""Agreement of two scorers."""

from __future__ import annotations

import numpy as np
import pytest

from rhumbline.cards.agreement import agree, cohens_kappa, pairs_within, verdicts


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
