"""The options that every benchmark has, so that they mean the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Pairs = Annotated[int, typer.Option(min=1, help="runs of each side")]
Threads = Annotated[int, typer.Option(min=1, help="of torch, for all sides")]
Seed = Annotated[int, typer.Option(help="of texts, order and weights")]
Out = Annotated[Path | None, typer.Option(help="CSV of every run; default build/benchmarks/NAME.csv")]

# Of benchmarks whose texts may come from a file.
Data = Annotated[
    str | None,
    typer.Option(help="file of prompts with answers, as `rhumbline rewards score` reads it; default: made here"),
]
Split = Annotated[str | None, typer.Option(help="of --data: the rows to read")]
