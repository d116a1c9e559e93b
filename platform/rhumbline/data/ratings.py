"""Rated answers: what a reward model is fitted on.

for rated in load_ratings("oasst1/attribute_ratings.jsonl.gz", split="train"):
    rated.prompt.messages, rated.response, rated.ratings["helpfulness"]
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rhumbline.data.detect import RATED
from rhumbline.data.load import rows
from rhumbline.data.prompts import prompt_of
from rhumbline.data.samples import samples
from rhumbline.errors import DataError
from rhumbline.records import Prompt

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rated:
    """An answer with at least one rating, each on its data set's own scale."""

    prompt: Prompt  # answers to the same turns share its id
    response: str
    ratings: Mapping[str, float]  # name -> rating; one that was not given is absent, never 0
    source: str  # the row's `source`, else the file's name
    split: str | None  # the row's `split`


def load_ratings(path: str | Path, split: str | None = None, limit: int | None = None) -> list[Rated]:
    """The rated answers of a file, in file order, at most `limit`; answers without any rating are dropped and logged.

    Reads every rated kind of `rhumbline.data.detect`. Raises DataError for a file of another kind, a row without a
    prompt or an answer, and a rating that is no number.
    """
    out: list[Rated] = []
    unrated = 0
    found, stream = samples(rows(path, split), str(path))
    if found.kind not in RATED:
        raise DataError(
            f"{path}: holds {found.kind}, expected rated answers: {'; '.join(sorted(RATED))}. "
            "`rhumbline data inspect` shows which column was taken for what"
        )
    for sample in stream:
        for response, ratings in zip(sample.responses, sample.ratings, strict=True):
            if limit is not None and len(out) >= limit:
                return out
            if not ratings:
                unrated += 1
                continue
            if response is None:
                raise DataError(f"{sample.where} has ratings but no response")
            out.append(
                Rated(
                    prompt=prompt_of(sample.messages, sample.where, sample.prompt_id, sample.reference),
                    response=response,
                    ratings=ratings,
                    source=sample.source if sample.source is not None else Path(path).name,
                    split=sample.split,
                )
            )
    if unrated:
        logger.info("%s: %d rated answers, %d without any rating dropped", path, len(out), unrated)
    if not out:
        raise DataError(f"{path}: no answer in it has a rating")
    return out
