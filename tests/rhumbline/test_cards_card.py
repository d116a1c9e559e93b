"""The card as files: its page, its tables, its figures."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from rhumbline.cards import sections
from rhumbline.cards.card import markdown, write
from rhumbline.cards.correlation import measure
from rhumbline.errors import StoreError
from rhumbline.rewards.debias import fit

DRAWS = {"num_resamples": 20, "seed": 0}


def ridge_card() -> dict[str, object]:
    figures = measure([30, 50, 70], [10, 60, 90], [5, 9, 7], ["p", "q", "r"], [50, 50, 50], **DRAWS)
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


def test_the_page_of_ridge_heads_says_what_a_reader_needs(tmp_path: Path) -> None:
    write(tmp_path, ridge_card())
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
    assert aligned(page)
    assert not (tmp_path / "figures").exists()


def aligned(page: str) -> bool:
    """Every table has as many cells in each line."""
    tables = [
        list(lines) for is_table, lines in groupby(page.splitlines(), lambda line: line.startswith("|")) if is_table
    ]
    return len(tables) > 0 and all(len({line.count("|") for line in table}) == 1 for table in tables)


def full_card() -> dict[str, object]:
    """Every section: two heads, one of them without labels, over two data sets; pairs, a comparer, a second scorer."""
    rng = np.random.default_rng(0)
    n = 60
    quality, lengths = rng.normal(size=n), rng.integers(3, 200, size=n)
    scores = np.stack([50 + 9 * quality + rng.normal(size=n), 100 * lengths / (lengths + 60)], axis=1)
    labels = np.stack([np.clip(50 + 20 * quality, 0, 100), np.full(n, np.nan)], axis=1)
    prompts, sources = np.arange(n) // 2, np.where(np.arange(n) % 4 < 2, "one", "two")
    names = ("quality", "verbosity")
    winners = rng.integers(3, size=n)
    sides = np.stack([lengths, lengths[::-1]], axis=1)
    margins = scores - scores[::-1]
    maps = fit(scores, lengths, names)
    after = maps.remove(scores, lengths, names)
    told = sections.rated(names, scores, labels, lengths, prompts, sources, **DRAWS)
    paired = sections.paired(names, margins, ["quality"] * n, winners, sides, prompts, sources, **DRAWS)
    p = rng.dirichlet([2, 2, 2], size=n)
    compared = sections.compared(p, winners, sides, prompts, sources, **DRAWS)
    reliability = {
        **told["reliability"],
        "pairs of quality": paired["reliability"]["quality"],
        **compared["reliability"],
    }
    cost = sections.cost_of_ratings(maps, names, scores, after, labels, lengths, prompts, **DRAWS)
    first = {"quality": margins[:, 0]}
    return {
        "name": "full",
        "command": "rhumbline rewards card full --data x.jsonl",
        "facts": {"Kind": "regression", "Backbone": "`tiny`"},
        "data": {"one": {"licence": "CC0", "test": 30}, "two": {"test": 30}},
        "notes": "Made up.",
        **told,
        **paired,
        **compared,
        **cost,
        "reliability": reliability,
        "cross_validation": {"classes": compared["classes"]},
        "agreement": sections.agreements(first, {"other length": margins[:, 1]}, sides, prompts, **DRAWS),
    }


def test_every_section_has_its_table_and_its_figures(tmp_path: Path) -> None:
    card = full_card()
    write(tmp_path, card)
    page = (tmp_path / "card.md").read_text()
    for title in (
        "Ratings",
        "Error by range of the label",
        "Pairs",
        "Pairs with ties",
        "Cross-validation",
        "Calibration",
        "Length taken off",
        "Agreement with a second scorer",
        "Correlations",
    ):
        assert f"## {title}\n" in page
    assert page.startswith("# Reward model: full\n")
    assert "- Data: two, licence not known; test 30." in page
    assert "| quality: one |" in page
    assert "1.0986" in page
    assert "Of the differences between the two answers of a pair." in page
    assert "nan" not in page
    assert aligned(page)
    assert page == markdown(json.loads((tmp_path / "card.json").read_text()))
    for name in ("accuracy", "reliability", "by_label", "correlations"):
        assert (tmp_path / f"figures/{name}.png").read_bytes().startswith(b"\x89PNG")
        assert len((tmp_path / f"data/{name}.csv").read_text().splitlines()) > 1
        assert f"](figures/{name}.png)" in page


def test_a_head_is_measured_on_the_pairs_that_were_judged_by_it() -> None:
    """Two heads over one file of pairs whose judges disagree: each is right on its own."""
    winners, judged = [0, 1, 0, 1], ["helpful", "harmless"] * 2
    margins = np.array([[1.0, -1.0], [1.0, -1.0], [2.0, -2.0], [2.0, -2.0]])
    sides = [[5, 4]] * 4
    told = sections.paired(
        ("helpful", "harmless", "shared"),
        np.c_[margins, margins[:, :1]],
        judged,
        winners,
        sides,
        list("pqrs"),
        ["x"] * 4,
        **DRAWS,
    )["pairs"]
    assert [told[name]["all"]["accuracy"]["value"] for name in ("helpful", "harmless", "shared")] == [1, 1, 0.5]
    assert told["helpful"]["all"]["n"] == 2
    assert told["shared"]["all"]["n"] == 4  # no pair names it: it is measured on all


def test_the_cost_of_removing_length_is_that_of_the_pairs() -> None:
    """A head that is length and nothing else: without length it knows nothing, and the card says what that costs."""
    lengths = np.arange(2, 82)
    scores = lengths[:, None].astype(float)
    maps = fit(scores, lengths, ["long"])
    sides = np.stack([lengths[40:], lengths[:40]], axis=1)  # the longer answer first
    before = sides[:, :, None].astype(float)
    after = np.stack([maps.remove(before[:, i], sides[:, i], ["long"]) for i in (0, 1)], axis=1)
    told = sections.cost_of_pairs(maps, ["long"], before, after, [0] * 40, sides, np.arange(40), **DRAWS)["debias"][
        "long"
    ]
    assert told["before"]["value"] == 1
    assert told["change"]["value"] == told["after"]["value"] - 1 < 0
    assert told["with_length"]["before"] == 1
    assert abs(told["calibration"]["after"]) < 0.05


def test_a_logit_is_measured_by_its_order_alone() -> None:
    """Its points are no points of the ratings: an error against them would say nothing."""
    labels, lengths, prompts = np.arange(20.0)[:, None] * 5, np.arange(20) % 7 + 1, np.arange(20)
    scores = np.column_stack([labels / 2 + 30, labels / 2 + 30])
    both = np.column_stack([labels, labels])
    told = sections.rated(("logit", "score"), scores, both, lengths, prompts, ["x"] * 20, ranked=["logit"], **DRAWS)
    assert told["ratings"]["logit"]["all"]["spearman"]["value"] == 1
    assert told["ratings"]["logit"]["all"]["mae"] is None
    assert told["ratings"]["score"]["all"]["mae"]["value"] > 0
    for section in ("ranges", "reliability", "by_label"):
        assert list(told[section]) == ["score"]
    page = markdown({"name": "x", "command": "x", "facts": {}, "data": {}, "notes": "", **told})
    assert "only its order can be compared" in page
    assert aligned(page)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(StoreError, match="taken cannot be written"):
        write(tmp_path / "taken", ridge_card())
