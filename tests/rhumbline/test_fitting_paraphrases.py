"""Paraphrases out of a file: which are taken, what their labels become, and what is wrong with a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rhumbline.errors import ConfigError, DataError
from rhumbline.fitting.absolute_labels import Labelled
from rhumbline.fitting.paraphrases import paraphrased
from rhumbline.fitting.recipe import Paraphrases
from rhumbline.fitting.similarity import SentenceEncoder
from tests.rhumbline.network_fakes import tiny_encoder
from tests.rhumbline.rewards_fakes import ask, tiny_backbone


def wanted(tmp_path: Path, rows: list[dict[str, Any]], **options: Any) -> Paraphrases:
    path = tmp_path / "words.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Paraphrases(path=str(path), **options)


def answer(text: str, label: float = 0.4, prompt: str = "q") -> Labelled:
    return Labelled(prompt=ask(prompt), response=text, label=label, source="mine")


ROWS = [
    {"response": "no", "paraphrase": "nope", "similarity": 0.9},
    {"response": "no", "paraphrase": "not at all", "similarity": 0.5},
    {"response": " yes ", "paraphrase": "yes", "similarity": 1.0},
]


def test_labels_are_lowered_and_origins_kept(tmp_path: Path) -> None:
    answers = [answer("no"), answer("no", 0.1, "other"), answer("yes"), answer("maybe")]
    made = paraphrased(answers, wanted(tmp_path, ROWS, per_answer=2), seed=0)
    assert [(one.response, one.prompt.id, one.source) for one in made.rows] == [
        ("nope", "q", "mine"),
        ("not at all", "q", "mine"),
        ("nope", "other", "mine"),
        ("not at all", "other", "mine"),
    ]
    assert [one.label for one in made.rows] == pytest.approx([0.3, 0.0, 0.0, 0.0])  # .4 - .1; .4 - .5 and less: 0
    assert made.skipped == {"not in the file": 1, "unchanged": 1}
    half = paraphrased(answers, wanted(tmp_path, ROWS, per_answer=2, lower_by=0.5), seed=0)
    assert [one.label for one in half.rows] == pytest.approx([0.35, 0.15, 0.05, 0.0])


def test_a_draw_depends_on_the_seed_alone(tmp_path: Path) -> None:
    answers, one_each = [answer("no", prompt=f"q{i}") for i in range(40)], wanted(tmp_path, ROWS)
    texts = [[one.response for one in paraphrased(answers, one_each, seed).rows] for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    assert {*texts[0]} == {"nope", "not at all"}
    assert len(texts[0]) == 40


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"response": "no", "paraphrase": "nope", "similarity": 1.5}], r"row 1: similarity is 1\.5, expected"),
        ([{"response": "no", "paraphrase": None}], "row 1: expected texts in the columns response and paraphrase"),
        ([{"answer": "no", "paraphrase": "x"}], "found answer, paraphrase"),
        ([{"response": "No!", "paraphrase": "nope", "similarity": 1}], "none of 1 answers with a label up to"),
        ([{"response": "no", "paraphrase": "nope"}], r"1 paraphrases .* have no `similarity`.*paraphrase\.encoder"),
    ],
)
def test_faults_name_the_row_or_the_key(tmp_path: Path, rows: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(DataError, match=f"absolute.paraphrase.*{said}"):
        paraphrased([answer("no")], wanted(tmp_path, rows), seed=0)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not found.*absolute\.paraphrase\.path=FILE"):
        paraphrased([answer("no")], Paraphrases(path=str(tmp_path / "none.jsonl")), seed=0)
    assert paraphrased([], wanted(tmp_path, ROWS), seed=0).rows == ()


def test_an_encoder_says_what_the_file_does_not(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "encoder")
    rows = [{"response": "no", "paraphrase": "nope"}, {"response": "yes", "paraphrase": "yes it is", "similarity": 0.7}]
    made = paraphrased([answer("no"), answer("yes")], wanted(tmp_path, rows, encoder=str(folder)), seed=0)
    (alike,) = SentenceEncoder(str(folder))(["no"], ["nope"])
    assert [one.label for one in made.rows] == pytest.approx([max(0, 0.4 - (1 - alike)), 0.1], abs=1e-6)


def test_the_similarity_is_the_cosine_of_means_whatever_is_beside_it(tmp_path: Path) -> None:
    import torch

    encoder = SentenceEncoder(str(tiny_encoder(tmp_path / "encoder")))
    with torch.no_grad():
        means = [
            encoder.model(**encoder.tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
            for text in ("no", "nope, not at all")
        ]
    by_hand = float(torch.nn.functional.cosine_similarity(*means, dim=0))
    said = encoder(["no", "no", "a"], ["nope, not at all", "no", "a much longer text than the others " * 5])
    assert said[:2] == pytest.approx([by_hand, 1.0], abs=1e-4)
    assert encoder(["no"], ["x " * 900])[0] < 1.0  # cut to what the encoder reads
    decoder = SentenceEncoder(str(tiny_backbone(tmp_path / "decoder")))
    assert decoder(["no"], ["no"]) == pytest.approx([1.0], abs=1e-4)


def test_an_encoder_that_is_none_is_named_by_its_key(tmp_path: Path) -> None:
    rows = [{"response": "no", "paraphrase": "nope"}]
    with pytest.raises(ConfigError, match=r"absolute\.paraphrase\.encoder: .*no such folder"):
        paraphrased([answer("no")], wanted(tmp_path, rows, encoder=str(tmp_path / "none")), seed=0)
