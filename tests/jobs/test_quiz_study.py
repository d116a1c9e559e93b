"""The study as a job: its folder, that its files agree, and what it refuses."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def study(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "jobs/quiz_study.py", *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_a_small_study(tmp_path: Path) -> None:
    out = tmp_path / "study"
    done = study("--out", str(out), "--objectives", "2", "--persons", "10", "--calibrated", "10", "--questions", "6")
    assert done.returncode == 0, done.stderr
    assert f"study: {out / 'summary.json'}" in done.stdout
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert summary["asked"] == {"objectives": [2], "persons": 10, "calibrated": 10, "questions": 6, "seed": 0}
    (target,) = summary["targets"]
    assert (target["objectives"], target["asked"], target["below_deg"]) == (2, 6, 6.0)
    assert target["met"] is (target["error"] < 6)
    assert (out / "figures" / "error.png").read_bytes().startswith(b"\x89PNG")
    for name in ("choosing", "paired", "people", "calibration", "assumptions"):
        with (out / "data" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == len(summary[name]) > 0
    methods = {row["method"] for row in summary["choosing"]}
    assert methods == {"bald", "d_optimal", "greedy", "random"}
    assert len(summary["choosing"]) == 4 * 7  # 0 to 6 questions
    assert {(row["less"], row["asked"]) for row in summary["paired"]} == {
        (method, asked) for method in methods - {"bald"} for asked in (3, 6)
    }
    assert {row["manner"] for row in summary["people"]} == {"consistent", "with_ties", "noisy", "inconsistent"}
    assert [row["mean_questions"] for row in summary["calibration"] if row["asked"] == "at the stop"]

    again = study("--out", str(out))
    assert again.returncode == 2
    assert f"{out} is not empty" in again.stderr


def test_what_cannot_be_studied_is_refused(tmp_path: Path) -> None:
    done = study("--out", str(tmp_path / "x"), "--objectives", "1")
    assert done.returncode == 2
    assert "--objectives must lie in 2..8, got [1]" in done.stderr
    assert not (tmp_path / "x").exists()
