"""Pairs on which heads are judged contrarily, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rhumbline.cards.conflicts import conflicts

NAMES = ["helpful", "harmless"]
DRAWS = {"num_resamples": 50, "seed": 0}


def test_by_hand() -> None:
    """Pair 0-1: helpful says 0, harmless 1 (stated with the sides exchanged). Pair 2-3: both say 2. Pair 4-5: a tie by one."""
    texts = [(0, 1), (1, 0), (2, 3), (2, 3), (4, 5), (4, 5)]
    judged = ["helpful", "harmless", "helpful", "harmless", "helpful", "harmless"]
    winners = [0, 0, 0, 0, 0, 2]
    margins = np.array([[1.0, -9], [-1, 2], [1, 1], [1, 1], [1, 1], [1, 1]])
    told = conflicts(NAMES, margins, judged, winners, texts, ["p", "p", "q", "q", "r", "r"], **DRAWS)
    assert told is not None
    assert (told["n"], told["pairs"], told["one_score"]) == (2, 1, 0.5)
    assert told["accuracy"]["value"] == told["all_right"]["value"] == 1.0


def test_no_single_score_is_right_on_more_than_its_share() -> None:
    """Both heads give the same score: one of two contrary judgements is right, whatever the score is."""
    rng = np.random.default_rng(0)
    texts, judged, winners, margins, prompts = [], [], [], [], []
    for pair in range(40):
        score = float(rng.normal())
        for head in NAMES:
            texts.append((2 * pair, 2 * pair + 1))
            judged.append(head)
            winners.append(int(head == "harmless"))
            margins.append([score, score])
            prompts.append(str(pair))
    told = conflicts(NAMES, margins, judged, winners, texts, prompts, **DRAWS)
    assert told is not None
    assert told["accuracy"]["value"] == told["one_score"] == 0.5
    assert told["all_right"]["value"] == 0.0


def test_people_who_disagree_about_one_head_are_no_conflict_of_heads() -> None:
    texts, judged = [(0, 1), (0, 1)], ["helpful", "helpful"]
    assert conflicts(NAMES, [[1, 1], [1, 1]], judged, [0, 1], texts, ["p", "p"], **DRAWS) is None


def test_a_majority_raises_what_one_score_can_reach() -> None:
    """Two judges of the first head against one of the second: a single score is right for two of three."""
    texts, judged = [(0, 1)] * 3, ["helpful", "helpful", "harmless"]
    told = conflicts(NAMES, np.ones((3, 2)), judged, [0, 0, 1], texts, ["p"] * 3, **DRAWS)
    assert told is not None
    assert told["one_score"] == pytest.approx(2 / 3)
    assert told["accuracy"]["value"] == pytest.approx(2 / 3)
