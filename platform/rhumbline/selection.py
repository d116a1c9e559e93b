"""Selection: which scored completions are kept, and for which direction. Pure functions of records.

    kept = best_of_n(scored, standardiser)                            # DPA: argmax of v . z within each query
    kept = pooled(scored, {"p1": [(1.0, 0.0), (0.8, -0.6)]}, standardiser)
    kept.selected[0].value                                            # the scalar that was maximised
    kept.candidates, kept.duplicates_dropped, kept.groups, kept.unique

Because a reward vector does not depend on a direction, `pooled` ranks all samples of a prompt for any direction at no
cost. Ties go to the first in the order given; samples with the same text count once. N samples, K objectives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rhumbline import config
from rhumbline.directions import Direction
from rhumbline.errors import DirectionError, ScoringError
from rhumbline.records import Query, Scored, Selected
from rhumbline.scalarise import SCALARISATIONS, Array, Scalarisation, Standardiser, linear


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What a selection kept."""

    selected: tuple[Selected, ...]  # in the order of the groups
    candidates: int  # samples that were scored and considered, before duplicates were dropped
    duplicates_dropped: int  # of them, those whose text an earlier one of their group had
    groups: int  # in which one sample was picked per direction

    def counts(self, failed: int) -> dict[str, int]:
        """What the report's summary says of it; `failed` samples never came back, so they are no candidates."""
        return {
            "unique": self.unique,
            "candidates": self.candidates,
            "duplicates_dropped": self.duplicates_dropped,
            "failed": failed,
        }

    @property
    def unique(self) -> int:
        """Distinct completions among `selected`; one may serve several directions."""
        return len({(s.scored.completion.query.iteration, s.scored.completion.id) for s in self.selected})


def select(
    scored: Sequence[Scored], queries: Sequence[Query], settings: config.Selection, standardiser: Standardiser
) -> Selection:
    """By the recipe's rule: `best_of_n` within each query, or `pooled` over a prompt for the directions it was asked under."""
    scalarise = SCALARISATIONS[settings.scalarisation]
    if settings.rule == "best_of_n":
        return best_of_n(scored, standardiser, scalarise)
    return pooled(scored, asked_under(queries), standardiser, scalarise)


def asked_under(queries: Iterable[Query]) -> dict[str, list[Direction]]:
    """Prompt id -> the directions that it was asked under, in order."""
    asked: dict[str, list[Direction]] = {}
    for query in queries:
        if query.direction is not None:
            asked.setdefault(query.prompt.id, []).append(query.direction)
    return asked


def best_of_n(scored: Iterable[Scored], standardiser: Standardiser, scalarise: Scalarisation = linear) -> Selection:
    """The best sample of each query for its own direction, as in the DPA paper. Raises DirectionError, ScoringError."""
    groups: dict[tuple[int, str], list[Scored]] = {}
    for one in scored:
        query = one.completion.query
        if query.direction is None:
            raise DirectionError(
                f"query {query.id} was asked without a direction: best_of_n needs one (selection.rule: pooled)"
            )
        groups.setdefault((query.iteration, query.id), []).append(one)
    selected, dropped = [], 0
    for group in groups.values():
        candidates, duplicates = drop_duplicates(group)
        dropped += duplicates
        direction = group[0].completion.query.direction
        assert direction is not None
        selected.append(_best(candidates, _standardised(candidates, standardiser), direction, scalarise))
    considered = sum(map(len, groups.values()))
    return Selection(selected=tuple(selected), candidates=considered, duplicates_dropped=dropped, groups=len(groups))


def pooled(
    scored: Iterable[Scored],
    directions: Mapping[str, Sequence[Direction]],
    standardiser: Standardiser,
    scalarise: Scalarisation = linear,
) -> Selection:
    """The best of all samples of a prompt for each of the prompt's `directions`, whatever they were sampled under.

    Prompts come in the order of `directions`; one whose samples all failed is left out.
    """
    pools: dict[str, list[Scored]] = {}
    for one in scored:
        pools.setdefault(one.completion.query.prompt.id, []).append(one)
    selected, considered, dropped, groups = [], 0, 0, 0
    for prompt_id, wanted in directions.items():
        if prompt_id not in pools:
            continue
        candidates, duplicates = drop_duplicates(pools[prompt_id])
        z_NK = _standardised(candidates, standardiser)
        considered += len(pools[prompt_id])
        dropped += duplicates
        groups += 1
        selected += [_best(candidates, z_NK, direction, scalarise) for direction in wanted]
    return Selection(selected=tuple(selected), candidates=considered, duplicates_dropped=dropped, groups=groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extremes:
    """The samples of a prompt as one direction ranks them: the best, the worst, and all that are worth less than the best."""

    direction: Direction
    best: Scored
    worst: Scored
    others: tuple[Scored, ...]  # all whose value is below the best one, in the order given
    other_values: tuple[float, ...]  # of `others`: v . z, by what ranked them
    best_value: float
    worst_value: float
    gaps: tuple[float, ...]  # (K,) standardised rewards of the best less those of the worst

    @property
    def gap(self) -> float:
        """Of the values of best and worst."""
        return self.best_value - self.worst_value


def extremes(
    scored: Iterable[Scored],
    directions: Mapping[str, Sequence[Direction]],
    standardiser: Standardiser,
    scalarise: Scalarisation = linear,
    *,
    ranked_by: Direction | None = None,
) -> list[Extremes]:
    """Best and worst of all samples of a prompt for each of the prompt's `directions`, as `pooled` picks the best.

    A direction that a prompt names twice counts once. ranked_by: what ranks the samples instead of the direction that they are
    kept for, such as the one objective whose pairs MODPO learns. Prompts with one distinct sample have no pair and are left out,
    as are those of which all samples failed.
    """
    pools: dict[str, list[Scored]] = {}
    for one in scored:
        pools.setdefault(one.completion.query.prompt.id, []).append(one)
    out = []
    for prompt_id, wanted in directions.items():
        candidates, _ = drop_duplicates(pools.get(prompt_id, []))
        if len(candidates) < 2:
            continue
        z_NK = _standardised(candidates, standardiser)
        for direction in dict.fromkeys(tuple(float(v) for v in one) for one in wanted):
            value_N = scalarise(z_NK, np.asarray(direction if ranked_by is None else ranked_by, dtype=np.float64))
            high, low = int(np.argmax(value_N)), int(np.argmin(value_N))
            below = [n for n in range(len(candidates)) if value_N[n] < value_N[high]]
            out.append(
                Extremes(
                    direction=direction,
                    best=candidates[high],
                    worst=candidates[low],
                    others=tuple(candidates[n] for n in below),
                    other_values=tuple(float(value_N[n]) for n in below),
                    best_value=float(value_N[high]),
                    worst_value=float(value_N[low]),
                    gaps=tuple((z_NK[high] - z_NK[low]).tolist()),
                )
            )
    return out


def drop_duplicates(group: Sequence[Scored]) -> tuple[list[Scored], int]:
    """(the first of each text in order, how many were dropped). Compare within one prompt only."""
    first: dict[str, Scored] = {}
    for one in group:
        first.setdefault(one.completion.text, one)
    return list(first.values()), len(group) - len(first)


def _standardised(candidates: Sequence[Scored], standardiser: Standardiser) -> Array:
    rewards_NK = np.array([one.rewards for one in candidates], dtype=np.float64)
    if not np.all(np.isfinite(rewards_NK)):
        bad = next(one for one in candidates if not np.all(np.isfinite(one.rewards)))
        raise ScoringError(
            f"completion {bad.completion.id} has rewards {bad.rewards}: a failed score must not reach selection"
        )
    return standardiser(rewards_NK)


def _best(candidates: Sequence[Scored], z_NK: Array, direction: Direction, scalarise: Scalarisation) -> Selected:
    value_N = scalarise(z_NK, np.asarray(direction, dtype=np.float64))
    index = int(np.argmax(value_N))  # the first of equals
    return Selected(
        scored=candidates[index],
        direction=tuple(float(v) for v in direction),
        value=float(value_N[index]),
        num_candidates=len(candidates),
    )
