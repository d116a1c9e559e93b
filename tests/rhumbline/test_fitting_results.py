"""What of a trained network's outputs goes to the card."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rhumbline.fitting import results
from tests.rhumbline.reward_tasks import recipe_of, task_of


def test_a_pair_is_counted_for_the_data_set_that_judged_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two data sets over the same answers share their units: what a unit began with says nothing about its other pairs."""
    told: dict[str, Any] = {}

    def paired(
        names: list[str], gaps_PH: Any, heads: Any, winners: Any, lengths: Any, groups: Any, sources: Any, **_: Any
    ) -> dict[str, Any]:
        told.update(names=names, gaps=gaps_PH, heads=heads.tolist(), winners=winners, groups=groups, sources=sources)
        return {}

    monkeypatch.setattr(results.sections, "paired", paired)
    task, recipe = task_of("preference"), recipe_of("preference", Path("none"))
    # In each unit the answers score 2, 1, 0 by the first head and 0, 1, 2 by the second: all pairs are right.
    scores_M2 = np.array([[2.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    outputs_NH = np.tile(scores_M2, (len(task.members), 1))
    schema: Any = SimpleNamespace(heads=recipe.heads())
    results._paired(recipe, task, outputs_NH, schema, {"num_resamples": 5, "seed": 0})
    assert told["names"] == ["good", "long"]
    assert told["heads"] == ["good", "good", "good", "long"] * 8
    assert told["sources"] == ["mine", "mine", "mine", "yours"] * 8
    assert told["groups"] == [task.groups[u] for u in task.within("test") for _ in range(4)]
    place = {"good": 0, "long": 1}
    gaps_P = np.array([gap[place[head]] for gap, head in zip(told["gaps"], told["heads"], strict=True)])
    assert ((gaps_P > 0) == (told["winners"] == 0)).all()
