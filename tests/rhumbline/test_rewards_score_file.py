"""Scoring a file line by line: what is written, and how it goes on after a kill."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from rhumbline import config
from rhumbline.errors import ConfigError, DataError
from rhumbline.rewards import score_file as module
from rhumbline.rewards.model import RewardModel
from rhumbline.rewards.score_file import score_file

RULES = {
    "sources": [{"kind": "rules", "heads": {"long": {"rule": "verbosity", "options": {"half": 10}}}}],
    "objectives": {"verbosity": {"heads": {"long": 1.0}}, "brevity": {"heads": {"long": -1.0}}},
}


def model(rewards: object = RULES) -> RewardModel:
    return RewardModel.build(config.Rewards.model_validate(rewards), tokenise=str.split)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [{"prompt": f"q{i}", "response": "a " * i} for i in range(1, 21)]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_a_line_per_answer_with_a_column_per_objective(data: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "new" / name
    assert score_file(model(), data, out) == 20
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file)) if name.endswith(".csv") else [json.loads(line) for line in file]
    assert len(rows) == 20
    assert list(rows[0]) == ["row", "answer", "prompt_id", "verbosity", "brevity"]
    assert (int(rows[9]["row"]), int(rows[9]["answer"])) == (10, 0)
    assert float(rows[9]["verbosity"]) == pytest.approx(50)  # 10 words, half 10
    assert float(rows[9]["brevity"]) == pytest.approx(-50)


def test_both_sides_of_a_pair_are_scored(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "Why?", "chosen": "a b", "rejected": "c"}) + "\n")
    assert score_file(model(), path, tmp_path / "out.jsonl") == 2
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["row"], row["answer"]) for row in rows] == [(1, 0), (1, 1)]
    assert rows[0]["verbosity"] > rows[1]["verbosity"]


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_it_goes_on_behind_a_torn_line_and_ends_as_if_undisturbed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(module, "CHUNK", 3)
    whole, torn = tmp_path / f"whole-{name}", tmp_path / name
    score_file(model(), data, whole)
    content = whole.read_bytes()
    reported: list[int] = []
    for cut in (0, 5, len(content) // 2, len(content) - 1, len(content)):
        torn.write_bytes(content[:cut])
        assert score_file(model(), data, torn, report=reported.append) == 20
        assert torn.read_bytes() == content
    assert reported[0] == 3  # the first cut left nothing
    assert reported[-1] == 20  # and the last one left nothing to do


def test_another_models_or_datas_lines_are_not_continued(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    score_file(model(), data, out, limit=5)
    half = {**RULES, "sources": [{"kind": "rules", "heads": {"long": {"rule": "verbosity", "options": {"half": 90}}}}]}
    with pytest.raises(DataError, match="last line has verbosity"):
        score_file(model(half), data, out)
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"prompt": "else", "response": "x"}) + "\n")
    with pytest.raises(DataError, match="has 5 scored answers, the data has 1"):
        score_file(model(), other, out)
    before = out.read_bytes()
    assert score_file(model(), data, out) == 20
    assert out.read_bytes().startswith(before)
    for name, text in (("x.csv", "a,b\n1,2\n"), ("x.jsonl", '{"a": 1}\n')):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match="not the beginning of this work"):
            score_file(model(), data, tmp_path / name)
        assert (tmp_path / name).read_text() == text


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl"])
def test_a_file_of_one_line_without_an_end_is_not_taken_for_a_torn_one(data: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"mine": 1}')
    with pytest.raises(DataError, match="not the beginning of this work"):
        score_file(model(), data, tmp_path / name)
    assert (tmp_path / name).read_text() == '{"mine": 1}'


def test_what_is_refused_stays_as_it_was(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    score_file(model(), data, out, limit=5)
    out.write_bytes(out.read_bytes() + b'{"row": 6, "ans')
    before = out.read_bytes()
    with pytest.raises(DataError, match="has 5 scored answers, the data has 3"):
        score_file(model(), data, out, limit=3)
    assert out.read_bytes() == before


def test_ids_that_utf_8_has_no_bytes_for(tmp_path: Path) -> None:
    path, out = tmp_path / "answers.jsonl", tmp_path / "out.csv"
    rows = [{"prompt_id": f"\ud800 {i}", "prompt": f"q{i}", "response": "a"} for i in range(2)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert score_file(model(), path, out) == 2
    assert score_file(model(), path, out) == 2  # its last line is compared with the data's
    assert out.read_text().splitlines()[1].startswith("1,0,? 0,")


def test_data_without_answers_and_a_column_twice(tmp_path: Path, data: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Why?"}\n')
    with pytest.raises(DataError, match="no answers"):
        score_file(model(), prompts, tmp_path / "out.jsonl")
    named = {**RULES, "objectives": {"row": {"heads": {"long": 1.0}}, "brevity": {"heads": {"long": -1.0}}}}
    with pytest.raises(ConfigError, match="'row'"):
        score_file(model(named), data, tmp_path / "out.jsonl")
