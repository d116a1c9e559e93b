"""Slow tests of jobs start whole Ray clusters: their bound ends what hangs, also where something else has the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE, SLOW_S = Path(__file__).parent, 900


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:  # of the whole session
        slow = item.path.is_relative_to(HERE) and item.get_closest_marker("slow") is not None
        if slow and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(SLOW_S))
