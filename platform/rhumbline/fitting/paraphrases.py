"""Paraphrases out of a file: more answers of the low end for an absolute model. Between a generator's file and `task`.

    made = paraphrased(answers, recipe.absolute.paraphrase, seed=0)
    made.rows[0].response, made.rows[0].label            # other words, and a label lowered by what they lost
    made.skipped                                         # {'not in the file': 310, 'unchanged': 2}

The file has a row per paraphrase: `response` as it stands in the ratings, `paraphrase`, and `similarity` in 0..1 where whoever
made it knows it; elsewhere a sentence encoder says it (absolute.paraphrase.encoder). Any generator can write it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from rhumbline.data.load import rows
from rhumbline.errors import ConfigError, DataError
from rhumbline.fitting.absolute_labels import Labelled, Paraphrased, Similarity, paraphrase
from rhumbline.fitting.recipe import Paraphrases

logger = logging.getLogger(__name__)

_KEY = "absolute.paraphrase"
_COLUMNS = ("response", "paraphrase")


def paraphrased(answers: Sequence[Labelled], wanted: Paraphrases, seed: int) -> Paraphrased:
    """Paraphrases of these answers, at most `per_answer` of each, drawn by `seed` where the file has more.

    An answer that occurs in several places is paraphrased in each. Raises DataError for a file that cannot be read, a row
    without its texts, a similarity outside 0..1, one that nobody states, and where no answer is in the file.
    """
    known = _read(wanted.path)
    skipped: Counter[str] = Counter()
    rng = np.random.default_rng(seed)
    asked: list[Labelled] = []
    texts: list[str] = []
    stated: dict[tuple[str, str], float | None] = {}
    for answer in answers:
        found = known.get(answer.response.strip(), [])
        if not found:
            skipped["not in the file"] += 1
        for i in sorted(rng.permutation(len(found))[: wanted.per_answer].tolist()):
            text, alike = found[i]
            asked.append(answer)
            texts.append(text)
            stated[answer.response, text] = alike
    if answers and not asked:
        raise DataError(
            f"{_KEY}: none of {len(answers)} answers with a label up to absolute.low is in {wanted.path}: its column "
            "`response` has to repeat them as they are"
        )
    made = paraphrase(asked, lambda _: texts, _similarity(stated, wanted), lower_by=wanted.lower_by)
    skipped.update(made.skipped)
    logger.info(
        "%s: %d paraphrases of %d answers, left out: %s", wanted.path, len(made.rows), len(answers), dict(skipped)
    )
    return Paraphrased(rows=made.rows, skipped=dict(skipped))


def _similarity(stated: dict[tuple[str, str], float | None], wanted: Paraphrases) -> Similarity:
    """What the file states, and for the rest what the encoder says."""

    def similarity(originals: Sequence[str], texts: Sequence[str]) -> list[float]:
        pairs = list(zip(originals, texts, strict=True))
        open_ones = [pair for pair in dict.fromkeys(pairs) if stated[pair] is None]
        if open_ones and wanted.encoder is None:
            raise DataError(
                f"{_KEY}: {len(open_ones)} paraphrases in {wanted.path} have no `similarity`: give one in 0 to 1, or name a "
                f"sentence encoder ({_KEY}.encoder)"
            )
        said: dict[tuple[str, str], float] = {pair: alike for pair, alike in stated.items() if alike is not None}
        if open_ones:
            from rhumbline.fitting.similarity import SentenceEncoder  # torch

            assert wanted.encoder is not None
            try:
                encoder = SentenceEncoder(wanted.encoder)
            except ConfigError as e:
                raise ConfigError(f"{_KEY}.encoder: {e}") from None
            left, right = zip(*open_ones, strict=True)
            said |= dict(zip(open_ones, encoder(left, right), strict=True))
        return [said[pair] for pair in pairs]

    return similarity


def _read(path: str) -> dict[str, list[tuple[str, float | None]]]:
    """Answer -> its paraphrases, each with its similarity where the row states one."""
    out: dict[str, list[tuple[str, float | None]]] = {}
    try:
        for number, row in enumerate(rows(path), start=1):
            where = f"{path}: row {number}"
            texts = [row.get(column) for column in _COLUMNS]
            if not all(isinstance(text, str) for text in texts):
                raise DataError(
                    f"{where}: expected texts in the columns response and paraphrase, found {', '.join(map(str, row))}"
                )
            response, text = map(str, texts)
            out.setdefault(response.strip(), []).append((text, _number(row.get("similarity"), where)))
    except DataError as e:
        raise DataError(f"{_KEY}: {e}. Another file is named by {_KEY}.path=FILE") from None
    return out


def _number(cell: Any, where: str) -> float | None:
    if cell is None or cell != cell:  # NaN, as tables write what is missing
        return None
    if isinstance(cell, bool) or not isinstance(cell, (int, float)) or not 0 <= cell <= 1:
        raise DataError(f"{where}: similarity is {cell!r}, expected a number from 0 to 1")
    return float(cell)
