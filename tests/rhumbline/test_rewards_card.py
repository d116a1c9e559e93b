"""The card's figures by hand, and its page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from rhumbline.rewards.card import LengthOnly, markdown, measure, partial_spearman, write

LEVEL = LengthOnly(slope=0.0, intercept=50.0)


def test_figures_by_hand() -> None:
    # |30 - 10| + |50 - 60| + |70 - 90| = 50 over 3; the row without a label counts nowhere.
    figures = measure(
        [30, 50, 70, 0], [10, 60, 90, np.nan], [5, 9, 7, 1], ["p", "q", "r", "s"], LEVEL, num_resamples=200, seed=0
    )
    assert (figures["n"], figures["prompts"]) == (3, 3)
    assert figures["mae"]["value"] == pytest.approx(50 / 3)
    assert figures["length_only_mae"]["value"] == pytest.approx((40 + 10 + 40) / 3)
    assert figures["spearman"]["value"] == pytest.approx(1)
    assert figures["label_with_length"]["value"] == pytest.approx(0.5)  # ranks 1 2 3 and 1 3 2
    assert figures["length_only_spearman"] == {"value": None, "low": None, "high": None}  # a level line ranks nothing
    low, high = figures["mae"]["low"], figures["mae"]["high"]
    assert 10 <= low <= 50 / 3 <= high <= 20


def test_intervals_are_over_prompts_not_answers() -> None:
    """Forty copies of one prompt's answer are one observation: the interval stays as wide as without them."""
    rng = np.random.default_rng(0)
    scores, labels, lengths = rng.normal(size=12), rng.normal(size=12), rng.integers(1, 50, 12)
    prompts = np.arange(12)
    few = measure(scores, labels, lengths, prompts, LEVEL, num_resamples=400, seed=1)
    many = measure(*(np.repeat(x, 40) for x in (scores, labels, lengths, prompts)), LEVEL, num_resamples=400, seed=1)
    assert many["mae"] == pytest.approx(few["mae"])


def test_the_same_seed_gives_the_same_intervals() -> None:
    rng = np.random.default_rng(0)
    data = (rng.normal(size=30), rng.normal(size=30), rng.integers(1, 50, 30), np.arange(30) // 3)
    first, again, other = (measure(*data, LEVEL, num_resamples=50, seed=s) for s in (1, 1, 2))
    assert first == again
    assert first["spearman"]["low"] != other["spearman"]["low"]


def test_partial_correlation_equals_that_of_the_residuals() -> None:
    rng = np.random.default_rng(4)
    length = rng.normal(size=200)
    a, b = length + rng.normal(size=200), length + rng.normal(size=200)
    ranks = [stats.rankdata(x) for x in (a, b, length)]

    def residual(y: np.ndarray) -> np.ndarray:
        line = stats.linregress(ranks[2], y)
        return y - line.slope * ranks[2]

    wanted = stats.pearsonr(residual(ranks[0]), residual(ranks[1])).statistic
    assert partial_spearman(a, b, length) == pytest.approx(wanted)
    assert abs(wanted) < 0.2 < stats.spearmanr(a, b).statistic  # they have nothing but length in common
    assert partial_spearman(a, length, length) is None


def test_length_only_is_a_line_on_log_length() -> None:
    lengths = np.array([1, 3, 9, 40])
    line = LengthOnly.fit([*(5 + 2 * np.log1p(lengths)), np.nan], [*lengths, 7])
    assert (line.slope, line.intercept) == pytest.approx((2, 5))
    assert line([0]) == pytest.approx([5])
    assert LengthOnly.fit([1, 3], [4, 4]) == LengthOnly(0.0, 2.0)


def card() -> dict[str, object]:
    figures = measure([30, 50, 70], [10, 60, 90], [5, 9, 7], ["p", "q", "r"], LEVEL, num_resamples=20, seed=0)
    return {
        "name": "mine",
        "command": "python jobs/reward.py --recipe mine.yaml",
        "backbone": "embedded",
        "fingerprint": {"num_hidden_layers": 30},
        "features": {"layer": 15, "pooling": ["mean"], "max_tokens": 384, "max_response_tokens": 256},
        "length_removed": 0.5,
        "data": {"oasst1": {"licence": "Apache-2.0", "train": 3, "test": 0, "dropped": 2}},
        "heads": {"kind": {"alpha": 100.0, "test": {"n": 0, "prompts": 0}, "held_out": figures}},
        "notes": "Knows little.",
    }


def test_the_page_says_what_a_reader_needs(tmp_path: Path) -> None:
    write(tmp_path, card())
    page = (tmp_path / "card.md").read_text()
    for part in (
        "python jobs/reward.py --recipe mine.yaml",
        "Apache-2.0",
        "layer 15 of 30",
        "tested on 2.",
        "16.7 [",
    ):
        assert part in page
    assert "| kind | 0 |" in page  # an empty test split is said, not invented
    assert page == markdown(json.loads((tmp_path / "card.json").read_text()))
    tables = [line for line in page.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in tables}) == 1
