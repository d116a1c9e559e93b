"""What the tests of the playground share: a browser for each file of them, because starting one takes seconds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from tests.rhumbline.playground_pages import launched

    with launched() as made:
        yield made
