"""The report of a run: one self-contained page, its figures, their data, and a summary for machines. The last stage.

    stage = {"name": "t=1 generate", "seconds": 300.0, "items": 2400, "tokens": 120_000, "tokens_per_s": 400.0}
    write_report(run_dir / "report", ReportInput(
        name="smol", method="Directional preference alignment", base_model="SmolLM2-135M-Instruct",
        evaluations=[t0.to_json(), t2.to_json()], initial_policy=initial.to_json(), samples=samples, stages=[stage],
        selected=kept.counts(failed=0), recipe={"samples": 16}, versions=versions))

    report/index.html  summary.json  figures/*.png  data/*.csv

All input is plain data. Whatever came from a person or a model is escaped; the page loads nothing from anywhere.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from rhumbline.durable import replace, to_json
from rhumbline.errors import StoreError
from rhumbline.evaluation import interactive, plots
from rhumbline.evaluation.gains import hypervolume_gain
from rhumbline.evaluation.headline import (
    headlines,
    say_direction,
    say_interval,
    say_number,
    say_seconds,
    say_unit,
    verdict,
)
from rhumbline.evaluation.health import Finding
from rhumbline.evaluation.samples import browser

JSON = Mapping[str, Any]
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportInput:
    """Everything that a report shows. Objectives, signs and the reference point are those of the evaluations."""

    name: str  # of the run
    method: str
    base_model: str
    evaluations: Sequence[JSON]  # PolicyEvaluation.to_json(), by iteration; at least one
    initial_policy: JSON | None = None  # the same, asked without a direction
    samples: Sequence[JSON] = ()  # evaluation.samples.pick, of every evaluation
    stages: Sequence[JSON] = ()  # name, seconds, items, tokens, tokens_per_s; None where it does not apply
    selected: JSON = field(default_factory=dict)  # unique, candidates, duplicates_dropped, failed
    budget: JSON = field(default_factory=dict)  # what -> number: prompts, samples, training steps
    recipe: JSON = field(default_factory=dict)  # dotted key -> value: what a reader should know of the recipe
    health: Sequence[Finding] = ()  # health.check_health
    notes: Sequence[str] = ()  # what a reader must be told, such as 'started from the shipped adapter'
    plots: Sequence[plots.Plot] = ()  # figures besides those of every report
    versions: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    command: str = ""  # that made the run


def write_report(folder: str | Path, report: ReportInput) -> Path:
    """Write the report's files, each replaced atomically, and return the page's path. Raises StoreError."""
    folder = Path(folder)
    drawn = [*plots.draw(report.evaluations, report.initial_policy), *report.plots]
    files: dict[str, bytes] = {"summary.json": (to_json(summary(report), indent=2) + "\n").encode()}
    for plot in drawn:
        files[f"figures/{plot.name}.png"] = plots.png(plot.figure)
        files[f"data/{plot.name}.csv"] = _csv(plot.rows)
    files["index.html"] = page(report, drawn).encode()
    try:
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            replace(path, content)
    except OSError as e:
        raise StoreError(f"report {folder} cannot be written: {e.strerror or e}; free some space and resume") from e
    return folder / "index.html"


def summary(report: ReportInput) -> dict[str, Any]:
    """summary.json: the figures of the page for machines. Intervals are {value, low, high}; null is 'not defined'."""
    first = report.evaluations[0]
    return {
        "name": report.name,
        "method": report.method,
        "base_model": report.base_model,
        "objectives": first["objectives"],
        "signs": first["signs"],
        "scale": first["scale"],
        "reference_point": first["reference_point"],
        "iterations": [
            _iteration(evaluation)
            | {
                "hypervolume_gain_over_first": _gain(evaluation, first),
                "hypervolume_gain_over_initial": _gain(evaluation, report.initial_policy),
            }
            for evaluation in report.evaluations
        ],
        "initial_policy": None if report.initial_policy is None else _iteration(report.initial_policy),
        "stages": list(report.stages),
        "selected": report.selected,
        "budget": report.budget,
        "recipe": report.recipe,
        "health": [{"level": finding.level, "message": finding.message} for finding in report.health],
        "notes": list(report.notes),
        "versions": report.versions,
        "seed": report.seed,
        "command": report.command,
    }


def page(report: ReportInput, drawn: Sequence[plots.Plot]) -> str:
    """index.html: styles, script, plotly and data all inside."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": say_number, "interval": say_interval, "seconds": say_seconds}
    environment.filters |= {"direction": say_direction, "unit": say_unit}
    data = {
        "front": interactive.front(report.evaluations, report.initial_policy, report.samples),
        "samples": browser(report.samples),
        "objectives": report.evaluations[0]["objectives"],
    }
    return environment.get_template("report.html.j2").render(
        report=report,
        summary=summary(report),
        headlines=headlines(report.evaluations, report.initial_policy),
        winner=report.evaluations[-1]["win_rate_head"],
        verdict=verdict(report.health),
        figures=[(plot, Markup(plots.svg(plot.figure, plot.alt))) for plot in drawn],
        everyone=[*([] if report.initial_policy is None else [report.initial_policy]), *report.evaluations],
        data=_script_safe(data),
        plotly=Markup(get_plotlyjs()),
    )


def _script_safe(data: JSON) -> Markup:
    """JSON that can stand inside a script element: no `<`, `>` or `&`, so neither `</script>` nor `<!--` can
    occur."""
    text = json.dumps(json.loads(to_json(data)), separators=(",", ":"))  # ASCII only, NaN already null
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _iteration(evaluation: JSON) -> dict[str, Any]:
    return {key: value for key, value in evaluation.items() if key not in ("per_prompt", "signs", "scale")}


def _gain(later: JSON, earlier: JSON | None) -> dict[str, Any] | None:
    gain = None if earlier is None or earlier is later else hypervolume_gain(later, earlier)
    return None if gain is None else gain.to_json()


def _csv(rows: Sequence[JSON]) -> bytes:
    out = io.StringIO(newline="")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(out, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()
