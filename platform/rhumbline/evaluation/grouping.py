"""Scored answers laid out as arrays over (direction, prompt): the first step of every evaluation.

D directions, P prompts, K objectives in recipe order. With two objectives the directions are ordered by angle from
high to low (0 before -45 degrees), otherwise as they were asked; answers asked without a direction come last, with
`vector` None.

    grouped = group(scored, num_objectives=2, kl={"p1/d0/s0": 3.1})
    grouped.rewards                        # means over the samples of a cell; NaN where a cell has no answer
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise, product

import numpy as np
import numpy.typing as npt

from rhumbline import directions
from rhumbline.errors import ScoringError
from rhumbline.evaluation.controllability import word_overlap
from rhumbline.records import Scored

FloatArray = npt.NDArray[np.float64]
Vector = tuple[float, ...]
Cells = dict[tuple[int, int], list[Scored]]  # (direction, prompt) -> its answers, by sample index


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grouped:
    """One evaluation as arrays. Cells are means over samples, so every prompt weighs the same."""

    vectors: tuple[Vector | None, ...]  # (D,) unit vectors; None: asked without a direction
    prompts: tuple[str, ...]  # (P,) ids, sorted, so that two evaluations of the same prompts pair up
    rewards: FloatArray  # (D, P, K) 0-100
    length: FloatArray  # (D, P) response tokens, the end token included
    kl: FloatArray  # (D, P) nats per response; NaN where not measured
    wins: FloatArray  # (D, P) share of wins over the initial policy's answers; NaN where not measured
    num_answers: tuple[int, ...]  # (D,)
    finished_share: tuple[float, ...]  # (D,) of answers that ended by themselves
    neighbour_overlap: tuple[float, ...]  # mean Jaccard of words between neighbouring directions' answers to a prompt
    own_overlap: float | None  # the same between two answers to one direction and prompt: what collapse looks like
    missing: int  # cells without an answer


def group(
    scored: Sequence[Scored],
    *,
    num_objectives: int,
    kl: Mapping[str, float] | None = None,
    wins: Mapping[str, float] | None = None,
) -> Grouped:
    """Lay out scored answers; `kl` and `wins` are by completion id.

    Raises ScoringError where there are none, or rewards are not K finite numbers.
    """
    if not scored:
        raise ScoringError("nothing to evaluate: no answer was scored; see the failures of generation and scoring")
    for s in scored:
        if len(s.rewards) != num_objectives or not np.all(np.isfinite(s.rewards)):
            raise ScoringError(f"{s.completion.id}: expected {num_objectives} finite rewards, found {list(s.rewards)}")
    vectors = _order(scored, num_objectives)
    prompts = tuple(sorted({s.completion.query.prompt.id for s in scored}))
    cells = _cells(scored, vectors, prompts)
    D, P = len(vectors), len(prompts)
    nats, shares = {} if kl is None else kl, {} if wins is None else wins
    by_direction = [[s for p in range(P) for s in cells.get((d, p), ())] for d in range(D)]
    directed = [d for d, vector in enumerate(vectors) if vector is not None]
    own = list(_within(cells))
    return Grouped(
        vectors=vectors,
        prompts=prompts,
        rewards=_table(cells, (D, P, num_objectives), lambda s: s.rewards),
        length=_table(cells, (D, P, 1), lambda s: [len(s.completion.token_ids)])[..., 0],
        kl=_table(cells, (D, P, 1), lambda s: [nats.get(s.completion.id, np.nan)])[..., 0],
        wins=_table(cells, (D, P, 1), lambda s: [shares.get(s.completion.id, np.nan)])[..., 0],
        num_answers=tuple(len(answers) for answers in by_direction),
        finished_share=tuple(sum(s.completion.finish_reason == "stop" for s in a) / len(a) for a in by_direction),
        neighbour_overlap=tuple(_mean(_between(cells, a, b, P)) for a, b in pairwise(directed)),
        own_overlap=_mean(own) if own else None,
        missing=D * P - len(cells),
    )


def angle_deg(vector: Vector | None) -> float | None:
    """The angle of a direction over two objectives, to a thousandth of a degree; otherwise None."""
    if vector is None or len(vector) != 2:
        return None
    return round(directions.angle_deg(vector), 3) + 0.0  # + 0.0: never -0.0


def _order(scored: Sequence[Scored], num_objectives: int) -> tuple[Vector | None, ...]:
    first_index: dict[Vector | None, int] = {}
    for s in scored:
        query = s.completion.query
        vector = _key(query.direction)
        first_index[vector] = min(first_index.get(vector, query.direction_index), query.direction_index)
    if num_objectives == 2:
        return tuple(sorted(first_index, key=lambda v: (v is None, -(angle_deg(v) or 0.0))))
    return tuple(sorted(first_index, key=lambda v: (v is None, first_index[v])))


def _key(direction: Vector | None) -> Vector | None:
    # Directions are compared after rounding: a Parquet file or a codec must not split one direction in two.
    return None if direction is None else tuple(round(float(w), 6) + 0.0 for w in direction)


def _cells(scored: Sequence[Scored], vectors: Sequence[Vector | None], prompts: Sequence[str]) -> Cells:
    direction_at, prompt_at = {v: d for d, v in enumerate(vectors)}, {id_: p for p, id_ in enumerate(prompts)}
    cells: Cells = defaultdict(list)
    for s in sorted(scored, key=lambda s: s.completion.sample_index):
        query = s.completion.query
        cells[direction_at[_key(query.direction)], prompt_at[query.prompt.id]].append(s)
    return dict(cells)


def _table(cells: Cells, shape: tuple[int, int, int], value: Callable[[Scored], Sequence[float]]) -> FloatArray:
    out = np.full(shape, np.nan)
    for cell, answers in cells.items():
        out[cell] = np.mean([value(s) for s in answers], axis=0)
    return out


def _between(cells: Cells, a: int, b: int, num_prompts: int) -> list[float]:
    return [
        word_overlap(x.completion.text, y.completion.text)
        for p in range(num_prompts)
        for x, y in product(cells.get((a, p), ()), cells.get((b, p), ()))
    ]


def _within(cells: Cells) -> Iterator[float]:
    for answers in cells.values():
        for x, y in combinations(answers, 2):
            yield word_overlap(x.completion.text, y.completion.text)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
