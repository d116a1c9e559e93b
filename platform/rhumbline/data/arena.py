"""What files of battles say in a way of their own: who won, and rounds as JSON. Below `samples` and `comparisons`.

winner_of({"winner": "model_a"}, "winner", "row 1")                                          # 'a'
winner_of({"winner_model_a": 0, "winner_model_b": 0, "winner_tie": 1}, None, "row 1")        # 'tie'
rounds('["Why?", "And then?"]')                                                              # ('Why?', 'And then?')

Numbers are refused as winners: 1 is the first answer in one data set, the second in another and a yes in a third.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from rhumbline.errors import DataError

Winner = Literal["a", "b", "tie"]
# Chatbot Arena's words beside our own; 'both bad' is a tie as to which is better.
WINNERS: Mapping[str, Winner] = {
    "a": "a",
    "b": "b",
    "tie": "tie",
    "model_a": "a",
    "model_b": "b",
    "tie (bothbad)": "tie",
    "both_bad": "tie",
}
ONE_HOT: Mapping[str, Winner] = {"winner_model_a": "a", "winner_model_b": "b", "winner_tie": "tie"}


def says_winner(columns: Iterable[str]) -> bool:
    """Whether the winner stands where `winner_of` looks by itself: in `winner`, or in Chatbot Arena's three columns."""
    named = set(columns)
    return "winner" in named or named >= ONE_HOT.keys()


def winner_of(row: Mapping[str, Any], column: str | None, where: str) -> Winner | None:
    """Who won, by the text in `column`; None for `column`: by `winner`, else by the three columns of zeros and a one.

    None where nobody said. Raises DataError for any other word, and for zeros and ones that do not name one winner.
    """
    if column is None and "winner" not in row:
        return _one_hot(row, where)
    cell = row.get("winner" if column is None else column)
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return None
    word = cell.strip().lower() if isinstance(cell, str) else ""
    if word not in WINNERS:
        raise DataError(f"{where}: {column or 'winner'} is {cell!r}, expected one of {', '.join(WINNERS)}")
    return WINNERS[word]


def rounds(cell: Any) -> tuple[str | None, ...] | None:
    """The texts in a JSON list of texts and nulls, as Chatbot Arena's tables write several rounds; None: it is none."""
    if not isinstance(cell, str) or not cell.lstrip().startswith("["):
        return None
    try:
        found = json.loads(cell)
    except ValueError:
        return None
    if not found or not isinstance(found, list) or not all(text is None or isinstance(text, str) for text in found):
        return None
    return tuple(found)


def _one_hot(row: Mapping[str, Any], where: str) -> Winner | None:
    cells = {column: row.get(column) for column in ONE_HOT}
    if all(cell is None for cell in cells.values()):
        return None
    chosen = [column for column, cell in cells.items() if cell == 1]
    if len(chosen) != 1 or not all(cell in (0, 1) for cell in cells.values()):
        said = ", ".join(f"{column} {cell!r}" for column, cell in cells.items())
        raise DataError(f"{where}: expected one 1 and two 0, found {said}")
    return ONE_HOT[chosen[0]]
