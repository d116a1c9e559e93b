"""Which bundle of a placement group each actor goes into, where a run is held in one (a trial of a search).

    with slots({"generator": [1], "learner": [2, 3]}):     # in the trial, before its job starts actors
        ray.remote(Rank).options(**slot("learner", 1))     # its second learner goes into bundle 3

Left to itself Ray takes any bundle with room, so a small actor may sit in the bundle of a large one, which then waits for ever
beside bundles that are each too small for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from ray.util import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

_BY_ROLE: ContextVar[Mapping[str, Sequence[int]] | None] = ContextVar("slots", default=None)


@contextmanager
def slots(by_role: Mapping[str, Sequence[int]]) -> Iterator[None]:
    """Within it `slot` knows the bundles of every role, by number."""
    token = _BY_ROLE.set(by_role)
    try:
        yield
    finally:
        _BY_ROLE.reset(token)


def slot(role: str, index: int) -> dict[str, Any]:
    """Options that put the index-th actor of a role into its own bundle; none where the run is not held in a group."""
    own = (_BY_ROLE.get() or {}).get(role, ())
    group = get_current_placement_group() if index < len(own) else None
    if group is None:
        return {}
    strategy = PlacementGroupSchedulingStrategy(
        placement_group=group, placement_group_bundle_index=own[index], placement_group_capture_child_tasks=True
    )
    return {"scheduling_strategy": strategy}
