"""Taking length off a head: its rank correlation goes, what it knows stays."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy import stats

from rhumbline.errors import ConfigError, DataError
from rhumbline.records import Message, Prompt
from rhumbline.rewards.debias import TARGET, LengthMaps, LengthRemoved, fit
from rhumbline.rewards.objectives import SCALES, Head

if TYPE_CHECKING:
    from rhumbline.rewards.features import Pair

ASKED = Prompt(id="q", messages=(Message(role="user", content="q"),))


def lengths_of(n: int, seed: int = 0) -> np.ndarray:
    return np.exp(np.random.default_rng(seed).normal(5, 1, n)).astype(int)


SHAPES = {
    "rising": lambda x, e: 50 + 8 * x + 5 * e,
    "falling": lambda x, e: 50 - 8 * x + 5 * e,
    "saturating": lambda x, e: 80 / (1 + np.exp(3 - x)) + 2 * e,
    "heavy tails": lambda x, e: 10 * x + 5 * e / np.abs(np.random.default_rng(3).normal(size=len(x))),
    "barely": lambda x, e: 0.3 * x + 5 * e,
    "nothing but length": lambda x, e: x,
    "wild means": lambda x, e: x + 0.01 * e - np.where((x > x.mean()) & (np.arange(len(x)) % 9 == 0), 500, 0),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_no_rank_correlation_is_left(shape: str) -> None:
    lengths = lengths_of(400)
    scores = SHAPES[shape](np.log(lengths), np.random.default_rng(1).normal(size=400))
    maps = fit(scores[:, None], lengths, ["x"])
    after = maps.remove(scores[:, None], lengths, ["x"])[:, 0]
    left = stats.spearmanr(after, lengths).statistic
    assert abs(left) < TARGET
    assert maps.maps["x"].after == pytest.approx(left)
    assert after.mean() == pytest.approx(scores.mean())  # the head stays where it is on 0-100
    steps = np.diff(maps.maps["x"].values)
    assert (steps >= -1e-9).all() or (steps <= 1e-9).all()


def test_knowledge_beside_length_stays() -> None:
    lengths, quality = lengths_of(500), np.random.default_rng(2).normal(size=500)
    scores = 50 + 6 * np.log(lengths) + 5 * quality
    after = fit(scores[:, None], lengths, ["x"]).remove(scores[:, None], lengths, ["x"])[:, 0]
    assert stats.spearmanr(after, quality).statistic > 0.95 > stats.spearmanr(scores, quality).statistic


def test_other_answers_of_the_same_kind_lose_it_too() -> None:
    scores = {
        seed: SHAPES["rising"](np.log(lengths_of(2000, seed)), np.random.default_rng(9 + seed).normal(size=2000))
        for seed in (0, 1)
    }
    maps = fit(scores[0][:, None], lengths_of(2000, 0), ["x"])
    after = maps.remove(scores[1][:, None], lengths_of(2000, 1), ["x"])[:, 0]
    assert abs(stats.spearmanr(after, lengths_of(2000, 1)).statistic) < 0.1
    longest = maps.remove([[1.0], [1.0]], [10**6, 10**7], ["x"])  # level beyond what was seen
    assert longest[0] == longest[1]


def test_a_head_that_never_varies_and_one_without_a_map_stay() -> None:
    lengths = lengths_of(50)
    maps = fit(np.full((50, 1), 3.0), lengths, ["still"])
    assert maps.maps["still"].before is None
    assert maps.remove([[3.0, 7.0]], [9], ["still", "other"]).tolist() == [[3, 7]]


def test_too_little_to_learn_from() -> None:
    with pytest.raises(DataError, match="19 answers"):
        fit(np.zeros((19, 1)), np.arange(19), ["x"])
    with pytest.raises(DataError, match="of 1 lengths"):
        fit(np.zeros((30, 1)), np.full(30, 7), ["x"])


class Lengths:
    """A source whose score is the length, and which says when it was set up."""

    heads = (Head(name="long", source="test", **SCALES["unit"]),)
    id = "lengths"
    ready = False

    def setup(self) -> None:
        self.ready = True

    def score(self, pairs: Sequence[Pair]) -> np.ndarray:
        return np.array([[float(len(text))] for _, text in pairs])


def test_it_is_a_source_and_is_kept_in_a_file(tmp_path: Path) -> None:
    texts = ["x" * n for n in range(1, 60)]
    source = Lengths()
    maps = fit(source.score([(ASKED, text) for text in texts]), [len(text) for text in texts], ["long"])
    again = LengthMaps.load(maps.save(tmp_path / "new" / "length.json"))
    assert (again, again.id) == (maps, maps.id)
    wrapped = LengthRemoved(source, again)
    wrapped.setup()
    assert source.ready
    assert wrapped.heads == source.heads
    assert wrapped.id != source.id
    pairs = [(ASKED, "x" * 7), (ASKED, "x" * 33)]
    np.testing.assert_allclose(wrapped.score(pairs), source.score(pairs) - maps.maps["long"]([7, 33])[:, None])


def test_maps_of_another_model_or_another_file_are_refused(tmp_path: Path) -> None:
    maps = fit(lengths_of(40)[:, None], lengths_of(40), ["lomg"])
    with pytest.raises(ConfigError, match=r"'lomg'.* Did you mean 'long'"):
        LengthRemoved(Lengths(), maps)
    with pytest.raises(ConfigError, match="rewards debias"):
        LengthMaps.load(tmp_path / "none.json")
    (tmp_path / "other.json").write_text('{"format": 1}')
    with pytest.raises(ConfigError, match="cannot be read as length maps"):
        LengthMaps.load(tmp_path / "other.json")
    good = maps.to_dict()
    for change in ({"values": [1.0]}, {"knots": good["heads"]["lomg"]["knots"][::-1]}, {"knots": [], "values": []}):
        heads = {"lomg": {**good["heads"]["lomg"], **change}}
        (tmp_path / "other.json").write_text(json.dumps({**good, "heads": heads}))
        with pytest.raises(ConfigError, match=r"cannot be read as length maps: ValueError: expected"):
            LengthMaps.load(tmp_path / "other.json")
