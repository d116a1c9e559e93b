"""The model card of a checkpoint: README.md with Hugging Face's header and a section on steering. Beside the weights.

Numbers and their intervals are those of the report, so the card says nothing that the report does not.

    write_card(run_dir / "README.md", report, CardSteering(
        codec="dpa-int100", example="helpfulness=0.8,verbosity=-0.6", system_prompt=codec_words,
        region="angles from -45 to 0 degrees", presets={"concise": {"helpfulness": 0.8, "verbosity": -0.6}}))
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rhumbline.durable import replace
from rhumbline.errors import StoreError
from rhumbline.evaluation.headline import headlines, say_direction, say_interval, say_number, verdict
from rhumbline.evaluation.report import TEMPLATES, ReportInput


@dataclass(frozen=True, slots=True, kw_only=True)
class CardSteering:
    """How the model is asked for a direction."""

    codec: str  # name and version
    example: str  # a direction as people write it
    system_prompt: str  # exactly what the codec says for `example`
    region: str  # the trained directions, in words
    presets: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def write_card(
    path: str | Path,
    report: ReportInput,
    steering: CardSteering | None,
    *,
    license_id: str = "apache-2.0",
    base_model_id: str | None = None,
    datasets: tuple[str, ...] = (),
) -> Path:
    """Write the card atomically. `steering` None: of a policy that no prompt steers.

    `base_model_id` and `datasets` are hub names, left out where there are none.
    """
    header = ModelCardData(
        base_model=base_model_id,
        datasets=list(datasets) or None,
        library_name="transformers",
        license=license_id,
        pipeline_tag="text-generation",
        tags=["rhumbline", "alignment", "steerable", "preference-direction"],
    ).to_yaml()
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=False,  # Markdown: what people wrote goes through `plain`
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": say_number, "interval": say_interval, "direction": say_direction, "md": plain}
    text = environment.get_template("card.md.j2").render(
        header=header.strip(),
        report=report,
        steering=steering,
        last=report.evaluations[-1],
        headlines=[*headlines(report.evaluations, report.initial_policy), verdict(report.health)],
        fence="" if steering is None else _fence(steering.system_prompt),
    )
    path = Path(path)
    try:
        replace(path, text.encode())
    except OSError as e:
        raise StoreError(f"model card {path} cannot be written: {e.strerror or e}") from e
    return path


def plain(value: object) -> str:
    """Text that means itself in Markdown: one line, its HTML and table marks escaped."""
    text = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", text)


def _fence(text: str) -> str:
    """A code fence longer than any run of backticks in the text, so the text cannot close it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    return "`" * max(3, longest + 1)
