"""A data file as Rhumbline understands it: `rhumbline data inspect PATH`.

print("\\n".join(inspect("ratings.jsonl.gz").lines()))
inspect("ratings.jsonl.gz", tokenizer, max_tokens=1024).too_long
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rhumbline.data.chat import cut, encode, render
from rhumbline.data.detect import Kind
from rhumbline.data.load import Row, rows
from rhumbline.data.samples import Sample, samples
from rhumbline.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_RENDERED_ROWS = 3
_RENDERED_CHARACTERS = 800  # of a block or turn


@dataclass(frozen=True, slots=True, kw_only=True)
class RatingSummary:
    """One rating over a file."""

    count: int
    low: float
    mean: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What a file holds. `lines()` says it to a person."""

    path: str
    kind: Kind
    columns: Mapping[str, str]  # part -> column
    unused: tuple[str, ...]
    rows: int
    samples: int  # rows, except for message trees: one per answer
    prompts: int  # distinct
    responses: int
    duplicates: int  # samples that say exactly what an earlier one said, ratings aside
    empties: int  # samples without a prompt that a user speaks last, or with a blank or missing answer
    too_long: int | None  # prompt and longest answer above max_tokens; None: not counted
    max_tokens: int | None
    refused: int  # samples whose turns the chat template cannot render
    first_refusal: str | None
    token_quantiles: Mapping[float, int] | None  # QUANTILES of prompt and longest answer, tokens; None: no tokenizer
    ratings: Mapping[str, RatingSummary]
    winners: Mapping[str, int] | None  # a, b, tie -> samples, of pairs whose winner is named; None: no such pairs
    rendered: tuple[str, ...]  # the first three samples; long texts are cut in the middle

    def lines(self) -> list[str]:
        """The report, line by line."""
        mapping = ", ".join(part if part == column else f"{part} <- {column}" for part, column in self.columns.items())
        out = [
            f"{self.path}",
            f"type         {self.kind}",
            f"columns      {mapping}",
            f"unused       {', '.join(self.unused) or 'none'}",
            f"rows         {self.rows}" + ("" if self.samples == self.rows else f" ({self.samples} samples)"),
            f"prompts      {self.prompts} distinct, {self.responses} answers",
            f"duplicates   {self.duplicates}",
            f"empties      {self.empties}",
        ]
        if self.too_long is None:
            out.append(
                "too long     not counted: " + ("no tokenizer" if self.token_quantiles is None else "no limit given")
            )
        else:
            out.append(f"too long     {self.too_long} above {self.max_tokens} tokens")
        if self.token_quantiles:
            out.append("tokens       " + ", ".join(f"{q:.0%}: {n}" for q, n in self.token_quantiles.items()))
        if self.refused:
            out.append(f"refused      {self.refused} by the chat template; first: {self.first_refusal}")
        if self.winners is not None:
            said = ", ".join(f"{winner} {count}" for winner, count in self.winners.items() if count)
            out.append(
                f"winners      {said or 'not in a column of that name: a recipe says which one (winner: COLUMN)'}"
            )
        width = max((len(name) for name in self.ratings), default=0)
        out += [
            f"rating       {name:<{width}}  {s.count} answers, {s.low:g} to {s.high:g}, mean {s.mean:.3g}"
            for name, s in self.ratings.items()
        ]
        for number, text in enumerate(self.rendered, start=1):
            out += ["", f"--- sample {number} ---", *text.splitlines()]
        return out


def inspect(
    path: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_tokens: int | None = None,
    split: str | None = None,
) -> Inspection:
    """Read a whole file and count.

    Raises DataError where it cannot be read or is no known kind; faulty samples are counted. With a tokenizer,
    lengths are those of the encoded sample, end token included, and samples are rendered with their mask.
    """
    counted = _Counted(rows(path, split))
    found, stream = samples(counted, str(path))
    seen: set[object] = set()
    prompts: set[object] = set()
    lengths: list[int] = []
    ratings: dict[str, list[float]] = {}
    winners: dict[str, int] = {"a": 0, "b": 0, "tie": 0}
    rendered: list[str] = []
    total = responses = duplicates = empties = refused = 0
    first_refusal: str | None = None
    for sample in stream:
        total += 1
        responses += len(sample.responses)
        if sample.winner is not None:
            winners[sample.winner] += 1
        for given in sample.ratings:
            for name, value in given.items():
                ratings.setdefault(name, []).append(value)
        if _is_empty(sample):
            empties += 1
            continue
        said = (sample.messages, sample.responses)
        duplicates += said in seen
        seen.add(said)
        prompts.add(sample.messages)
        try:
            length, text = _encoded(sample, tokenizer) if tokenizer is not None else (None, _plain(sample))
        except DataError as e:
            refused += 1
            first_refusal = first_refusal if first_refusal is not None else f"{sample.where}: {e}"
            continue
        if length is not None:
            lengths.append(length)
        if len(rendered) < _RENDERED_ROWS:
            rendered.append(_with_judgement(text, sample))
    counts_length = tokenizer is not None and max_tokens is not None
    return Inspection(
        path=str(path),
        kind=found.kind,
        columns={**found.columns, **{name: name for name in found.ratings}},
        unused=found.unused,
        rows=counted.number,
        samples=total,
        prompts=len(prompts),
        responses=responses,
        duplicates=duplicates,
        empties=empties,
        too_long=sum(n > max_tokens for n in lengths) if counts_length and max_tokens is not None else None,
        max_tokens=max_tokens,
        refused=refused,
        first_refusal=first_refusal,
        token_quantiles=_quantiles(lengths) if tokenizer is not None else None,
        ratings={
            name: RatingSummary(count=len(v), low=min(v), mean=sum(v) / len(v), high=max(v))
            for name, v in ratings.items()
        },
        winners=winners if found.kind is Kind.TIES else None,
        rendered=tuple(rendered),
    )


class _Counted:
    """An iterator that knows how many rows it gave."""

    def __init__(self, source: Iterator[Row]) -> None:
        self.source = source
        self.number = 0

    def __iter__(self) -> Iterator[Row]:
        for row in self.source:
            self.number += 1
            yield row


def _is_empty(sample: Sample) -> bool:
    asked = sample.messages and sample.messages[-1].role == "user" and sample.messages[-1].content.strip()
    return not asked or any(r is None or not r.strip() for r in sample.responses)


def _encoded(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> tuple[int, str]:
    """Tokens of the prompt with its longest answer (alone where there is none), and the first answer rendered."""
    answers = [r for r in sample.responses if r is not None]
    encoded = [encode(sample.messages, r, tokenizer) for r in answers] or [
        encode(sample.messages, "", tokenizer, complete=False)
    ]
    return max(len(e) for e in encoded), render(encoded[0], tokenizer, _RENDERED_CHARACTERS)


def _plain(sample: Sample) -> str:
    said = [(m.role, m.content) for m in sample.messages] + [("assistant", r or "") for r in sample.responses[:1]]
    return "\n".join(f"{role}: {cut(content, _RENDERED_CHARACTERS)}" for role, content in said)


def _with_judgement(text: str, sample: Sample) -> str:
    more = len(sample.responses) - 1
    text += f"\n(and {more} more answer{'s' if more > 1 else ''})" if more > 0 else ""
    if sample.winner is not None:
        text += f"\nwinner: {sample.winner}"
    if sample.ratings:
        text += "\nratings: " + (", ".join(f"{k}={v:g}" for k, v in sample.ratings[0].items()) or "none")
    return text


def _quantiles(lengths: list[int]) -> dict[float, int]:
    if not lengths:
        return {}
    return {q: int(np.quantile(lengths, q, method="inverted_cdf")) for q in QUANTILES}
