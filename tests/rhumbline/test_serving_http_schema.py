"""schemathesis against the API's own description: whatever it makes up, the status is documented and no answer is a 500.

Not by its pytest plug-in, which follows pytest's inner attributes and breaks with its newer versions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from rhumbline.serving.app import create_app
from rhumbline.serving.settings import Settings
from rhumbline.users.store import People
from tests.rhumbline.serving_fakes import FakeEngine, FakeRewards, questions, served


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("people")
    app = create_app(
        served(),
        FakeEngine(),
        rewards=FakeRewards(),
        keys=None,
        people=People(f"sqlite:///{folder}/people.sqlite"),
        settings=Settings(burst=10**9, requests_per_minute=1e9),
        questions=questions(),
    )
    return schemathesis.openapi.from_asgi("/openapi.json", app)


CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_server_is_what_its_page_says(described: Any) -> None:
    operations = [result.ok() for result in described.get_all_operations()]
    assert len(operations) >= 19
    for operation in operations:

        @settings(
            max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(case=operation.as_strategy())
        def holds(case: Any) -> None:
            case.call_and_validate(checks=CHECKS)

        holds()
