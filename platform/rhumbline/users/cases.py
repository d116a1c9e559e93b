"""Which choices are predicted, and what each predictor knows of the person: the plan of jobs/users.py. Over `population`.

    plan = Plan.of(people, recipe.predict, seed=0)
    plan.cells                             # (user, question) indices, the same for every predictor
    for name, cases in plan.asked(people, recipe.predict).items():       # 'roleplay', 'fewshot-4-information', ...
        ...                                # {(u, q): Case}
    people, cases = survey(people, recipe.survey, seed=0)                # everybody at the same questions

U users, Q questions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rhumbline.config.users import Predict, Survey
from rhumbline.users.demonstrations import at_random, informative
from rhumbline.users.population import MISSING, Floats, Population
from rhumbline.users.roleplay import Case

Cell = tuple[int, int]  # user, question
Shown = Mapping[int, tuple[int, ...]]  # user -> questions whose answers are shown, in order


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """Cells to predict, and demonstrations of each number and way of choosing them."""

    cells: tuple[Cell, ...]
    shown: Mapping[str, Shown]  # '4-information' -> demonstrations; users without any are not in it
    notes: tuple[str, ...]  # what is left out, and why

    @classmethod
    def of(cls, people: Population, predict: Predict, seed: int) -> Plan:
        """Draw the cells and choose the demonstrations. Raises DataError where a split has no question."""
        rng = np.random.default_rng(seed)
        asked_Q = people.in_split(predict.split)
        choosers = np.flatnonzero(people.chosen[:, asked_Q].any(axis=1))
        users = np.sort(rng.permutation(choosers)[: predict.users])
        cells: list[Cell] = []
        for u in users.tolist():
            chose = asked_Q[people.chosen[u, asked_Q]]
            cells += [(u, int(q)) for q in np.sort(rng.permutation(chose)[: predict.questions])]
        shown: dict[str, Shown] = {}
        notes: list[str] = []
        for number in predict.demonstrations:
            for way in predict.choose:
                found = _shown(people, predict, users.tolist(), number, way, seed)
                if found:
                    shown[f"{number}-{way}"] = found
        if predict.demonstrations and not shown:
            notes.append(
                "fewshot and neighbours: nobody has an answer besides the ones to be predicted, so none can be shown"
            )
        if "roleplay" in predict.methods and not any(user.profile or user.history for user in people.users):
            notes.append("roleplay: nothing is known about these people but their choices, so there is nobody to play")
        return cls(cells=tuple(cells), shown=shown, notes=tuple(notes))

    def asked(self, people: Population, predict: Predict) -> dict[str, dict[Cell, Case]]:
        """Predictor -> cell -> what a language model is asked. Cells whose answer is shown are not asked."""
        out: dict[str, dict[Cell, Case]] = {}
        for method in predict.methods:
            if method == "fewshot":
                for name, shown in self.shown.items():
                    out[f"fewshot-{name}"] = {
                        (u, q): Case(
                            user=people.users[u],
                            question=people.questions[q],
                            shown=tuple((people.questions[i], int(people.choices_UQ[u, i])) for i in shown[u]),
                        )
                        for u, q in self.cells
                        if u in shown and q not in shown[u]
                    }
            else:
                told = method == "roleplay"
                out[method] = {
                    (u, q): Case(user=people.users[u], question=people.questions[q], told=told)
                    for u, q in self.cells
                    if not told or people.users[u].profile or people.users[u].history
                }
        return {name: cases for name, cases in out.items() if cases}

    def only(self, p_UQA: Floats) -> Floats:
        """(U, Q, A) the predictions of the plan's cells, NaN elsewhere: what makes every predictor answer for the same."""
        out = np.full_like(p_UQA, np.nan)
        if self.cells:
            u, q = np.array(self.cells).T
            out[u, q] = p_UQA[u, q]
        return out


def filled(people: Population, found: Mapping[Cell, Floats]) -> Floats:
    """(U, Q, A) predictions of some cells, NaN elsewhere; zero for options that a question does not have."""
    out = np.full((*people.choices_UQ.shape, int(people.num_options.max(initial=0))), np.nan)
    for (u, q), p_A in found.items():
        out[u, q] = 0.0
        out[u, q, : len(p_A)] = p_A
    return out


def survey(people: Population, settings: Survey, seed: int) -> tuple[Population, dict[Cell, Case]]:
    """Users and questions of a survey, nobody having answered yet, and who is asked what: everybody everything.

    Users of whom nothing is known are left out, because nobody could play them.
    """
    playable = [u for u, user in enumerate(people.users) if user.profile or user.history]
    chosen = people.part(users=playable).drawn(settings.users, settings.questions, seed)
    empty = Population(
        name=f"{people.name}, role-played",
        users=chosen.users,
        questions=chosen.questions,
        choices_UQ=np.full_like(chosen.choices_UQ, MISSING),
    )
    cases = {
        (u, q): Case(user=user, question=question)
        for u, user in enumerate(empty.users)
        for q, question in enumerate(empty.questions)
    }
    return empty, cases


def _shown(
    people: Population, predict: Predict, users: list[int], number: int, way: str, seed: int
) -> dict[int, tuple[int, ...]]:
    known_Q = people.in_split(predict.known)
    kept: dict[bytes, list[int]] = {}  # people who answered the same questions are shown the same ones
    out: dict[int, tuple[int, ...]] = {}
    for u in users:
        candidates = known_Q[people.chosen[u, known_Q]]
        if way == "information":
            key = candidates.tobytes()
            if key not in kept:
                kept[key] = informative(people, candidates, number, seed)
            found = kept[key]
        else:
            found = at_random(candidates, number, int(np.random.default_rng((seed, u)).integers(2**31)))
        if found:
            out[u] = tuple(found)
    return out
