"""jobs/users.py as one runs it, against a server whose tastes are known: accuracies by hand, resuming, faults by exit code."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rhumbline import lease
from tests.rhumbline.users_fakes import TastefulServer, tasteful_server

ROOT = Path(__file__).parents[2]


@pytest.fixture
def server() -> Iterator[TastefulServer]:
    with tasteful_server() as running:
        yield running


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Readers fond of tea, coffee and water: 4 prompts to know them by, 4 to predict, one of which is a riddle to the server."""
    rows = []
    for i in range(8):
        split, asked = ("train", f"prompt {i}") if i < 4 else ("test", "a riddle" if i == 7 else f"prompt {i}")
        answers = {taste: f"answer {i} with {taste}" for taste in ("tea", "coffee", "water")}
        rows.append({"id": f"d{i}", "prompt": asked, "responses": answers, "split": split})
    (tmp_path / "domains.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    document = {
        "name": "drinks",
        "job": "users",
        "people": {
            "kind": "domains",
            "path": str(tmp_path / "domains.jsonl"),
            "portrait": "somebody fond of {domain}",
        },
        "analysis": {"min_common": 1},
        "predict": {"demonstrations": [2], "bootstrap": 100},
    }
    path = tmp_path / "drinks.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def job(recipe: Path, out: Path, *overrides: str, **options: Any) -> None:
    """The job's own function in this process."""
    spec = importlib.util.spec_from_file_location("users_job", ROOT / "jobs" / "users.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(list(overrides), recipe, **{"out": out, "resume": False, "dry_run": False, **options})


def at(server: TastefulServer, *more: str) -> list[str]:
    return [f"endpoint.url={server.url}", "endpoint.model=tasteful", "endpoint.retries=0", *more]


def summary(out: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((out / "report" / "summary.json").read_text())
    return told


def accuracies(out: Path) -> dict[str, float]:
    return {line["predictor"]: line["accuracy"] for line in summary(out)["predictions"]}


def test_accuracies_are_those_that_the_servers_tastes_make(
    recipe: Path, server: TastefulServer, tmp_path: Path
) -> None:
    """Three people at four prompts. Role-played or shown, the server is right but at the riddle: 3/4. Nobody in particular is
    a tie of three whatever the place: 1/3, which is chance. The other two never chose what one did: the majority is never right.
    """
    out = tmp_path / "study"
    job(recipe, out, *at(server))
    assert accuracies(out) == {
        "chance": pytest.approx(1 / 3),
        "majority": 0.0,
        "neighbours-2-information": 0.0,
        "anonymous": pytest.approx(1 / 3),
        "roleplay": 0.75,
        "fewshot-2-information": 0.75,
    }
    assert {line["n"] for line in summary(out)["predictions"]} == {12}
    # Role-play and few-shot ask for each of 12 cases and 3 orders, nobody in particular for 4 prompts and 3 orders.
    assert len(server.bodies) == len(set(server.asked)) == 36 + 36 + 12
    assert server.most_at_once <= 8
    for name in ("counts", "similarity", "graph", "disagreement", "accuracy"):
        assert (out / "report" / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (out / "report" / "data" / f"{name}.csv").exists()
    assert "| roleplay | 12 | 0.750 (" in (out / "report" / "README.md").read_text()
    assert lease.read_status(out)["state"] == "done"


def test_without_an_endpoint_people_are_described_and_the_rest_is_measured(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    job(recipe, out)
    told = summary(out)
    (people,) = told["populations"].values()
    assert (people["users"], people["questions"], people["differed"]) == (3, 8, 1.0)
    assert people["similarity"]["cosine_median"] == pytest.approx(-0.5)
    assert set(accuracies(out)) == {"chance", "majority", "neighbours-2-information"}
    assert not (out / "answers.jsonl").exists()
    with (out / "report" / "data" / "disagreement.csv").open() as file:
        rows = {frozenset((row["user"], row["other"])): row for row in csv.DictReader(file)}
    assert len(rows) == 3
    apart = rows[frozenset(("tea", "coffee"))]
    assert (apart["differed"], apart["compared"], apart["share"]) == ("8", "8", "1.0")


def test_a_survey_is_described_as_if_people_had_answered(recipe: Path, server: TastefulServer, tmp_path: Path) -> None:
    """Played by the server, every two readers choose differently everywhere but at the riddle, where it ties and they pass."""
    out = tmp_path / "study"
    job(recipe, out, *at(server, "survey.questions=8", "predict.methods=[roleplay]", "predict.demonstrations=[]"))
    polled = summary(out)["populations"]["What people would choose, role-played by tasteful"]
    assert (polled["users"], polled["questions"]) == (3, 8)
    assert (polled["choices"], polled["passes"]) == (21, 3)
    assert polled["differed"] == 1.0
    assert (out / "report" / "figures" / "survey-similarity.png").exists()
    assert len(server.bodies) == 3 * 8 * 3  # the predicted cases are among those of the survey


def test_a_stopped_study_goes_on_where_it_was(
    recipe: Path, server: TastefulServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    server.refuse_after = 30
    with pytest.raises(SystemExit) as end:
        job(recipe, out, *at(server))
    assert end.value.code == 1
    assert "the same command with --resume goes on" in capsys.readouterr().err
    kept = len((out / "answers.jsonl").read_text().splitlines())
    assert 30 - 8 < kept <= 30
    assert lease.read_status(out)["state"] == "failed"
    server.refuse_after = None
    with pytest.raises(SystemExit) as end:
        job(recipe, out, *at(server))
    assert end.value.code == 2
    assert "add --resume" in capsys.readouterr().err
    before = len(server.bodies)
    job(recipe, out, *at(server), resume=True)
    assert len(server.bodies) - before == 84 - kept
    assert accuracies(out)["roleplay"] == 0.75
    job(recipe, out, *at(server, "predict.methods=[roleplay]", "predict.bootstrap=50"), resume=True)
    assert len(server.bodies) - before == 84 - kept  # a changed recipe asks nothing that is known
    assert "anonymous" not in accuracies(out)


def test_a_dry_run_says_what_would_be_asked_and_writes_nothing(
    recipe: Path, server: TastefulServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    job(recipe, out, *at(server), dry_run=True)
    told = capsys.readouterr().out
    assert "3 users, 8 questions, 24 choices" in told
    assert f"would ask {server.url} 84 requests; 0 known" in told
    assert not out.exists()
    assert server.bodies == []


def test_cases_that_could_not_be_read_are_noted(recipe: Path, server: TastefulServer, tmp_path: Path) -> None:
    out = tmp_path / "study"
    server.refuse_words = "riddle"
    job(recipe, out, *at(server, "predict.methods=[roleplay]"))
    (line,) = [line for line in summary(out)["predictions"] if line["predictor"] == "roleplay"]
    assert (line["n"], line["accuracy"]) == (9, 1.0)
    assert any(note.startswith("roleplay: 3 of 12 not predicted: refused") for note in summary(out)["notes"])


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["people.path=nowhere.jsonl"], "data file not found: nowhere.jsonl"),
        (["people.portrait=one of {age}", "endpoint.url=http://127.0.0.1:9/v1", "endpoint.model=x"], "people.portrait"),
        (["endpoint.url=http://127.0.0.1:9/v1", "endpoint.model=x"], "nobody answers at http://127.0.0.1:9/v1"),
        (["predict.split=tset"], "no question of split 'tset'"),
        (["rewards=embedded"], "holds a ridge model"),
        (["peple.kind=votes"], "unknown key peple. Did you mean 'people'"),
    ],
)
def test_bad_input_ends_with_one_message(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], says: str
) -> None:
    with pytest.raises(SystemExit) as end:
        job(recipe, tmp_path / "study", *overrides, *(["endpoint.retries=0"] if len(overrides) > 1 else []))
    assert end.value.code == 2
    assert says in capsys.readouterr().err


def test_a_folder_of_something_else_is_left_alone(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(SystemExit) as end:
        job(recipe, tmp_path / "mine", resume=True)
    assert end.value.code == 2
    assert "something else" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_it_runs_as_a_script_without_ray(recipe: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "jobs" / "users.py"), "--recipe", str(recipe), "--dry-run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, env=environment)
    assert "12 choices to predict; demonstrations: 2-information" in done.stdout
    assert not (tmp_path / "studies").exists()
