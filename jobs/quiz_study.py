#!/usr/bin/env python
"""How well the quiz finds a direction, on simulated people: error against questions, ways to choose, calibration.

    python jobs/quiz_study.py --out studies/quiz
    python jobs/quiz_study.py --out studies/smoke --objectives 2 --persons 40 --calibrated 60

    choosing      K = 2..5, each way to choose on the same consistent people, pools and luck; paired differences
    people        BALD with other people: Dirichlet, clusters, ties, noisy, inconsistent
    calibration   how often the 90% credible region holds the truth
    assumptions   BALD where the quiz knows beta, and where pairs are not matched

Writes summary.json, data/*.csv and figures/error.png. One process on one core, no Ray: minutes.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rhumbline.cli import user_errors
from rhumbline.errors import ConfigError

if TYPE_CHECKING:
    from rhumbline.users.trials import Trial

Rows = list[dict[str, Any]]
TARGETS = {2: (6, 6.0), 3: (9, 12.0)}  # K: after so many questions, a median error below so many degrees


def main(
    out: Annotated[Path, typer.Option(help="a new or empty folder")] = Path("studies/quiz"),
    objectives: Annotated[list[int] | None, typer.Option(help="K; several allowed. 2 3 4 5 by default")] = None,
    persons: Annotated[int, typer.Option(help="simulated people of each comparison", min=10)] = 200,
    calibrated: Annotated[int, typer.Option(help="simulated people of each calibration", min=10)] = 500,
    questions: Annotated[int, typer.Option(help="of the curves", min=1)] = 15,
    seed: Annotated[int, typer.Option(help="of people, pools, luck and particles")] = 0,
) -> None:
    """Measure the quiz on simulated people."""
    with user_errors():
        counts = sorted(set(objectives or [2, 3, 4, 5]))
        if not counts or not 2 <= min(counts) <= max(counts) <= 8:
            raise ConfigError(f"--objectives must lie in 2..8, got {counts}")
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(f"{out} is not empty: give a new folder (--out)")
        began = time.monotonic()
        choosing, pairs = compare(counts, persons, questions, seed)
        people = populations(counts, persons, seed)
        calibration = calibrate(counts, calibrated, seed)
        assumptions = assume(counts, persons, seed)
        tables = {
            "choosing": choosing,
            "paired": pairs,
            "people": people,
            "calibration": calibration,
            "assumptions": assumptions,
        }
        asked = {
            "objectives": counts,
            "persons": persons,
            "calibrated": calibrated,
            "questions": questions,
            "seed": seed,
        }
        write(out, tables, asked, time.monotonic() - began)


def compare(counts: list[int], persons: int, questions: int, seed: int) -> tuple[Rows, Rows]:
    """Every way to choose, on the same consistent people."""
    from rhumbline.users.questions import CHOOSERS
    from rhumbline.users.trials import Setting, paired, summary

    rows: Rows = []
    differences: Rows = []
    for K in counts:
        asked = max(questions, 3 * K, 6)
        trials = {
            name: tell(Setting(objectives=K, method=name, persons=persons, questions=asked, seed=seed))
            for name in CHOOSERS
        }
        rows += [row for trial in trials.values() for row in summary(trial)]
        for at in sorted({3, 6, 9, 12, 15, max(6, 3 * K)}):
            if at <= asked:
                differences += [paired(trials["bald"], trials[other], at) for other in trials if other != "bald"]
    return rows, differences


def populations(counts: list[int], persons: int, seed: int) -> Rows:
    """The quiz, as long as it lasts, with other people than those it is made for."""
    from rhumbline.users.trials import Setting, at_stop, summary

    rows: Rows = []
    for K in counts:
        kinds = [("dirichlet", "consistent"), *([("clusters", "consistent")] if K == 4 else [])]
        kinds += [("uniform", manner) for manner in ("with_ties", "noisy", "inconsistent")]
        for law, manner in kinds:
            trial = tell(Setting(objectives=K, law=law, manner=manner, persons=persons, seed=seed))
            rows += [summary(trial)[-1], at_stop(trial)]
        trial = tell(Setting(objectives=K, ties=True, persons=persons, seed=seed))  # offered, and never called
        rows += [summary(trial)[-1], at_stop(trial)]
    return rows


def calibrate(counts: list[int], persons: int, seed: int) -> Rows:
    """Coverage after every answer, and where the quiz stops."""
    from rhumbline.users.trials import Setting, at_stop, summary

    rows: Rows = []
    for K in counts:
        for manner in ("assumed", "consistent"):
            trial = tell(Setting(objectives=K, manner=manner, persons=persons, seed=seed + 100))  # other people
            rows += [*summary(trial), at_stop(trial)]
    return rows


def assume(counts: list[int], persons: int, seed: int) -> Rows:
    """What not knowing beta costs, and what matching costs."""
    from rhumbline.users.trials import Setting, summary

    rows: Rows = []
    for K in counts:
        for known, matching in ((True, True), (False, False)):  # neither is what `compare` has done
            trial = tell(Setting(objectives=K, persons=persons, seed=seed, beta_known=known, matching=matching))
            rows.append(summary(trial)[-1])
    return rows


def tell(setting: Any) -> Trial:
    """Take one trial and say what came of it."""
    from rhumbline.users.trials import summary, take

    began = time.monotonic()
    trial = take(setting)
    last = summary(trial, bootstrap=50)[-1]
    print(
        f"K={setting.objectives} {setting.method:<10}{setting.manner:<13}{setting.law:<10} after {last['asked']:>2}: "
        f"median error {last['error']:.1f} degrees, 90% half-angle {last['half_angle']:.1f}, coverage {last['coverage']:.3f} "
        f"({time.monotonic() - began:.0f} s)",
        flush=True,
    )
    return trial


def write(out: Path, tables: dict[str, Rows], asked: dict[str, Any], seconds: float) -> None:
    """The folder: tables, figure, then the summary, whose presence says that all is there."""
    import matplotlib

    from rhumbline import durable
    from rhumbline.cards.figures import STYLE, csv_of, png
    from rhumbline.users.trials import curves_figure

    for folder in ("data", "figures"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        durable.replace(out / "data" / f"{name}.csv", csv_of(rows))
    with matplotlib.rc_context(STYLE):
        durable.replace(out / "figures" / "error.png", png(curves_figure(tables["choosing"])))
    targets = [
        {"objectives": K, "asked": t, "below_deg": bound, **{k: row[k] for k in ("error", "error_low", "error_high")}}
        for K, (t, bound) in TARGETS.items()
        for row in tables["choosing"]
        if (row["objectives"], row["asked"], row["method"]) == (K, t, "bald")
    ]
    targets = [{**one, "met": one["error"] < one["below_deg"]} for one in targets]
    summary = {"asked": asked, "targets": targets, "seconds": round(seconds, 1), **tables}
    durable.replace(out / "summary.json", (durable.to_json(summary, indent=1) + "\n").encode())
    for one in targets:
        said = "met" if one["met"] else "missed"
        print(
            f"target K={one['objectives']}: {one['error']:.1f} < {one['below_deg']:g} degrees after {one['asked']}: {said}"
        )
    print(f"study: {out / 'summary.json'}")


if __name__ == "__main__":
    typer.run(main)
