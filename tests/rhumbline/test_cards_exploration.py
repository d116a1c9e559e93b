"""What comparisons hold: tables with numbers by hand, and their files."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from rhumbline.cards.exploration import draw, length_effect, tables, wilson, write
from rhumbline.data.comparisons import Comparison
from rhumbline.errors import StoreError
from rhumbline.records import Message, Prompt

WHY = Prompt(id="why", messages=(Message(role="user", content="Why?"),))


def battle(winner: str, models: tuple[str | None, str | None] = ("m", "n"), a: int = 10, b: int = 20) -> Comparison:
    return Comparison(prompt=WHY, a="a" * a, b="b" * b, winner=winner, models=models, source="s")


ROWS = [
    battle("a"),
    battle("tie"),
    battle("b", ("n", "m")),  # m won again, from the other side
    battle("b", ("m", "o")),
    battle("a", ("o", "o")),
    battle("a", (None, "o")),
]


def test_wilson_by_hand() -> None:
    # 8 of 10: (.8 + 1.9208/10 -+ 1.96 sqrt(.016 + .9604/100)) / 1.38416 with z = 1.96, z^2 = 3.8416: .490 and .943.
    np.testing.assert_allclose(wilson(8, 10), (0.4902, 0.9433), atol=1e-4)
    assert wilson(0, 10) == (0.0, pytest.approx(0.2775, abs=1e-4))
    assert wilson(0, 0) is None


def test_models() -> None:
    found = {row["model"]: row for row in tables(ROWS)["models"]}
    assert list(found) == ["m", "n", "o"]  # by battles: 4, 3, 2
    m = found["m"]
    assert (m["battles"], m["wins"], m["losses"], m["ties"], m["against_itself"]) == (4, 2, 1, 1, 0)
    assert m["win_rate"] == 2.5 / 4
    assert (m["win_rate_low"], m["win_rate_high"]) == wilson(2.5, 4)
    assert (found["n"]["win_rate"], found["o"]["win_rate"]) == (0.5 / 3, 1.0)
    assert (found["o"]["battles"], found["o"]["against_itself"]) == (2, 1)


def test_pairs_do_not_depend_on_the_side() -> None:
    first, *rest = tables(ROWS)["pairs"]
    assert (first["first"], first["second"], first["battles"]) == ("m", "n", 3)
    assert (first["first_wins"], first["second_wins"], first["ties"]) == (2, 0, 1)
    assert first["first_win_rate"] == 2.5 / 3
    assert [(row["first"], row["second"]) for row in rest] == [("m", "o"), ("o", "o")]
    assert tables([row.swapped() for row in ROWS])["pairs"] == tables(ROWS)["pairs"]


def test_length_table() -> None:
    # Longer by 2 in five rows, of which b won 2, a won 2 (the shorter) and one was a tie; one row of equal lengths is left
    # out; one is 1.05 times as long and won.
    rows = [battle(w) for w in ("a", "a", "b", "b", "tie")] + [battle("a", a=10, b=10), battle("a", a=210, b=200)]
    found = {row["ratio_from"]: row for row in tables(rows)["length"]}
    assert (found[1.0]["comparisons"], found[1.0]["longer"]) == (1, 1.0)
    assert (found[2.0]["longer_wins"], found[2.0]["shorter_wins"], found[2.0]["ties"]) == (2, 2, 1)
    assert found[2.0]["longer"] == 0.5
    assert found[4.0]["longer"] is None
    assert found[4.0]["ratio_to"] is None


def test_length_effect_by_hand() -> None:
    # All ratios are 2, so x = 1 and the slope is the log odds of 3 to 1; its information is 4 * .75 * .25.
    rows = [battle("b"), battle("b"), battle("b"), battle("a"), battle("tie")]
    effect = length_effect(rows)
    assert effect["longer"] == 0.75
    assert effect["slope_per_doubling"] == pytest.approx(math.log(3))
    assert effect["slope_per_doubling_high"] == pytest.approx(math.log(3) + 1.959964 / math.sqrt(0.75))
    assert length_effect([row.swapped() for row in rows]) == effect
    always = length_effect([battle("b"), battle("b")])
    assert (always["longer"], always["slope_per_doubling"], always["slope_per_doubling_low"]) == (1.0, None, None)
    assert length_effect([battle("a", a=5, b=5)])["longer"] is None


def test_the_slope_is_where_the_likelihood_is_flat() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for ratio in (2, 3, 5, 8, 40) * 60:
        rows.append(
            battle("b" if rng.random() < 1 / (1 + math.exp(-0.7 * math.log2(ratio))) else "a", a=10, b=10 * ratio)
        )
    slope = length_effect(rows)["slope_per_doubling"]
    assert slope is not None
    x = np.array([math.log2(len(row.b) / len(row.a)) for row in rows])
    y = np.array([row.winner == "b" for row in rows])
    assert abs(float((x * (y - 1 / (1 + np.exp(-slope * x)))).sum())) < 1e-8
    assert slope == pytest.approx(0.7, abs=0.25)


def test_overview() -> None:
    (row,) = tables(ROWS)["overview"]
    assert (row["source"], row["comparisons"], row["prompts"], row["users"]) == ("s", 6, 1, 0)
    assert (row["a"], row["b"], row["tie"], row["position_a"]) == (3, 2, 1, 0.6)
    assert row["median_characters"] == 15


def test_files(tmp_path: Path) -> None:
    rows = [*ROWS, battle("a", ("$x_1$ \\frac", "m"))]  # names are no formulas
    paths = write(tmp_path / "new" / "folder", rows)
    assert [path.name for path in paths] == [
        *("overview.csv", "models.csv", "pairs.csv", "length.csv"),
        *("models.png", "pairs.png", "length.png"),
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths[4:])
    with paths[1].open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["model"] for row in read] == ["m", "n", "o", "$x_1$ \\frac"]
    nameless = [battle("a", (None, None))]
    assert [drawn.name for drawn in draw(tables(nameless))] == ["length"]
    assert [path.name for path in write(tmp_path, nameless)] == ["overview.csv", "length.csv", "length.png"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(StoreError, match="taken cannot be written"):
        write(tmp_path / "taken", ROWS)
