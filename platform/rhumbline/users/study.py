"""The folder of jobs/users.py, and a survey's answers as choices. Over `endpoint` and `population`.

book = open_book(Path("studies/polis"), recipe, resume=False)
crowd = as_chosen(crowd, answers)      # role-played probabilities become choices
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from rhumbline import durable
from rhumbline.config import dump
from rhumbline.config.users import UsersRecipe
from rhumbline.errors import RunError, StoreError
from rhumbline.users.cases import Cell
from rhumbline.users.endpoint import AnswerBook
from rhumbline.users.population import PASSED, Floats, Population

ANSWERS = "answers.jsonl"
RECIPE = "recipe.resolved.yaml"


def open_book(out: Path, recipe: UsersRecipe, resume: bool) -> AnswerBook:
    """Make the folder, write the recipe, and open the answers that are there.

    A folder with answers needs `resume`; its recipe may have changed, because answers are filed by what was asked. Raises
    RunError without it and for a folder of something else, StoreError where it cannot be written.
    """
    present = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if present and RECIPE not in present:
        raise RunError(f"{out} holds something else than a study of jobs/users.py: choose another --out")
    if present and not resume:
        raise RunError(f"{out} holds a study already: add --resume to go on with its answers, or choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        durable.replace(out / RECIPE, dump(recipe).encode())
    except OSError as e:
        raise StoreError(f"{out} cannot be written: {e} (--out)") from None
    return AnswerBook(out / ANSWERS)


def as_chosen(crowd: Population, answers: Mapping[Cell, Floats]) -> Population:
    """The population with every user's likeliest option as the choice; PASSED where several are equally likely."""
    choices_UQ = np.array(crowd.choices_UQ)
    for (u, q), p_A in answers.items():
        best = np.flatnonzero(p_A >= p_A.max() - 1e-9)
        choices_UQ[u, q] = best[0] if len(best) == 1 else PASSED
    return replace(crowd, choices_UQ=choices_UQ)
