"""Labels of the absolute reward model: weightings, resampling, loss weights and paraphrases, with numbers by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from rhumbline.errors import ConfigError, DataError
from rhumbline.fitting.absolute_labels import (
    WEIGHTINGS,
    Labelled,
    aggregate,
    loss_weights,
    paraphrase,
    resample,
    weighting,
)
from rhumbline.records import Message, Prompt

NAMES = ["quality", "helpfulness", "creativity", "humor", "violence", "toxicity"]
NAN = float("nan")


# --- aggregation ------------------------------------------------------------------------------------------------------


def rated(*answers: list[float]) -> dict[str, list[float]]:
    """One list of six ratings per answer, as columns."""
    return dict(zip(NAMES, map(list, zip(*answers, strict=True)), strict=True))


def test_the_thesis_weightings_by_hand() -> None:
    # w2: .4*.8 + .25*.6 + .15*.4 + .05*.2 - .05*.1 - .1*.3 = .505, plus .15 for what is not wanted at all: .655.
    # w3: .4*.8 + .35*.6 + .15*.4 - .1*.3 = .56, plus .1: .66.
    ratings = rated([0.8, 0.6, 0.4, 0.2, 0.1, 0.3])
    np.testing.assert_allclose(aggregate(ratings, weighting("w2")), [0.655])
    np.testing.assert_allclose(aggregate(ratings, weighting("w3")), [0.66])
    np.testing.assert_allclose(aggregate(ratings, weighting("quality")), [0.8])
    np.testing.assert_allclose(aggregate(ratings, {"humor": 0.5, "quality": -0.5}), [0.5 * 0.2 + 0.5 * 0.2])


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_the_best_is_1_and_the_worst_is_0(name: str) -> None:
    # The reference code takes the plain sum: the worst answer is below 0 there, and is dropped.
    ratings = rated([1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1])
    np.testing.assert_allclose(aggregate(ratings, weighting(name)), [1, 0], atol=1e-12)


def test_a_missing_rating_is_a_missing_label_only_where_it_weighs() -> None:
    ratings = rated([1, 1, 1, NAN, NAN, 0], [NAN, 1, 1, 1, 0, 0])
    np.testing.assert_allclose(aggregate(ratings, weighting("w3")), [1, NAN])
    np.testing.assert_allclose(aggregate(ratings, weighting("w2")), [NAN, NAN])
    np.testing.assert_allclose(aggregate({"quality": [0.3]}, {"quality": 1.0, "humor": 0.0}), [0.3])


def test_faults_of_weights_and_ratings() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown weighting 'qualty'\. Did you mean 'quality'.*Known: w2, w3, quality"
    ):
        weighting("qualty")
    with pytest.raises(ConfigError, match=r"add up to 0\.9, expected 1"):
        aggregate({"quality": [1.0], "humor": [1.0]}, {"quality": 0.5, "humor": -0.4})
    with pytest.raises(ConfigError, match=r"no rating 'qualty'\. Did you mean 'quality'"):
        aggregate({"quality": [1.0]}, {"qualty": 1.0})
    with pytest.raises(DataError, match="a rating of quality is 4, expected 0 to 1"):
        aggregate({"quality": [1.0, 4.0]}, {"quality": 1.0})


# --- uneven labels ----------------------------------------------------------------------------------------------------


def test_the_low_end_is_repeated_and_the_middle_thinned_evenly() -> None:
    # Low: rows 0, 1 (0.4 belongs to it). High: rows 2, 3 (0.9 belongs to it). Middle: ten rows in each of five bins.
    middle = [0.4 + 0.1 * b + 0.009 * (i + 1) for b in range(5) for i in range(10)]
    labels = np.array([0.1, 0.4, 0.9, 1.0, *middle, NAN])
    chosen = resample(labels, oversample=2, undersample_to=20, seed=1)
    assert chosen.tolist() == sorted(chosen)
    assert [np.count_nonzero(chosen == i) for i in range(4)] == [2, 2, 1, 1]
    kept = chosen[chosen >= 4]
    assert len(set(kept.tolist())) == len(kept) == 20
    assert np.bincount((kept - 4) // 10).tolist() == [4, 4, 4, 4, 4]
    assert len(labels) - 1 not in chosen  # NaN
    assert resample(labels, undersample_to=20, seed=1).tolist() != resample(labels, undersample_to=20, seed=2).tolist()
    assert resample(labels, oversample=2, undersample_to=20, seed=1).tolist() == chosen.tolist()
    assert resample(labels).tolist() == list(range(len(labels) - 1))


def test_a_bin_with_too_few_gives_all_and_the_others_make_up_for_it() -> None:
    # The reference code raises here: it asks every bin for its share. 1 + 2 + 5 + 5 + 5 = 18; of 12 the small bins give
    # 1 and 2, and the other three 3 each.
    sizes = [1, 2, 5, 5, 5]
    labels = np.concatenate([0.4 + 0.1 * b + np.linspace(0.01, 0.09, n) for b, n in enumerate(sizes)])
    bins = np.repeat(np.arange(5), sizes)
    chosen = resample(labels, undersample_to=12)
    assert np.bincount(bins[chosen], minlength=5).tolist() == [1, 2, 3, 3, 3]
    for wanted in range(1, 30):
        counts = np.bincount(bins[resample(labels, undersample_to=wanted)], minlength=5)
        assert counts.sum() == min(wanted, 18)
        assert all(0 <= n <= size for n, size in zip(counts, sizes, strict=True))
        assert max(counts) - min(n for n, size in zip(counts, sizes, strict=True) if n < size or n == max(counts)) <= 1


def test_resampling_nothing() -> None:
    assert resample([], oversample=2, undersample_to=3).tolist() == []
    assert resample([0.1, 0.2], oversample=3, undersample_to=3).tolist() == [0, 0, 0, 1, 1, 1]


def test_loss_weights() -> None:
    # Ten rows, two of them low: N / N_low = 5; at 75% 3.75. The thesis: 42956 / 8208 = 5.23.
    labels = [0.1, 0.4, *[0.6] * 8]
    np.testing.assert_allclose(loss_weights(labels, strength=0.75), [3.75, 3.75, *[1] * 8])
    np.testing.assert_allclose(loss_weights([*labels, NAN], strength=0.5), [2.5, 2.5, *[1] * 8, 0])
    np.testing.assert_allclose(loss_weights(labels, strength=0), [1] * 10)
    np.testing.assert_allclose(loss_weights([0.1, 0.2, 0.9], strength=0.5), [1, 1, 1])  # no minority: not below 1
    np.testing.assert_allclose(loss_weights([0.6, 0.7], strength=0.75), [1, 1])
    low = np.repeat([0.1, 0.6], [8208, 42956 - 8208])
    assert loss_weights(low, strength=1)[0] == pytest.approx(5.23, abs=0.005)


# --- paraphrases ------------------------------------------------------------------------------------------------------


def asked(text: str) -> Prompt:
    return Prompt(id=text, messages=(Message(role="user", content=text),))


def test_paraphrases_lose_what_they_do_not_say() -> None:
    answers = [
        Labelled(prompt=asked("p"), response=text, label=label)
        for text, label in (("same", 0.3), ("blank", 0.3), ("near", 0.333), ("far", 0.25), ("over", 0.2))
    ]
    said = {"same": " same ", "blank": " ", "near": "NEAR", "far": "x", "over": "OVER"}
    alike = {"near": 0.867, "far": 0.1, "over": 1.0000001}

    def paraphraser(pairs: Sequence[tuple[Prompt, str]]) -> list[str]:
        assert all(prompt == asked("p") for prompt, _ in pairs)
        return [said[text] for _, text in pairs]

    def similarity(originals: Sequence[str], texts: Sequence[str]) -> list[float]:
        assert list(texts) == [said[text] for text in originals]
        return [alike[text] for text in originals]

    found = paraphrase(answers, paraphraser, similarity)
    assert found.skipped == {"unchanged": 1, "empty": 1}
    assert [(row.response, row.prompt.id) for row in found.rows] == [("NEAR", "p"), ("x", "p"), ("OVER", "p")]
    # .333 - .133 = .2, as the first line of the thesis' table 4; .25 - .9 is below 0; a cosine above 1 is 1.
    np.testing.assert_allclose([row.label for row in found.rows], [0.2, 0.0, 0.2])
    lowered = paraphrase(answers, paraphraser, similarity, lower_by=0.5)
    np.testing.assert_allclose([row.label for row in lowered.rows], [0.333 - 0.5 * 0.133, 0, 0.2])


def test_callables_that_do_not_keep_their_word() -> None:
    answers = [Labelled(prompt=asked("p"), response="a", label=0.1)]

    def one(originals: Sequence[str], texts: Sequence[str]) -> list[float]:
        return [1.0] * len(texts)

    with pytest.raises(DataError, match="paraphraser: gave 2 results for 1 answers"):
        paraphrase(answers, lambda pairs: ["b", "c"], one)
    with pytest.raises(DataError, match="similarity: gave 0 results for 1 answers"):
        paraphrase(answers, lambda pairs: ["b"], lambda originals, texts: [])
    with pytest.raises(DataError, match="similarity: gave a value that is no number"):
        paraphrase(answers, lambda pairs: ["b"], lambda originals, texts: [NAN])
    assert paraphrase([], lambda pairs: [], one).rows == ()
