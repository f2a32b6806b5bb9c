"""What the end-to-end tests share: a stage with both servers on it, and the log lines of the proxy."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from tests.end_to_end.stage import Stage, staged


@pytest.fixture(autouse=True)
def lines() -> Iterator[list[dict[str, Any]]]:
    """Every log line of the test. A line of level error is a defect: a test that expects one takes it out."""
    structlog.reset_defaults()
    with capture_logs() as captured:
        yield captured
    errors = [line for line in captured if line["log_level"] == "error"]
    assert not errors


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    """The proxy with default settings before models of which no two fit together."""
    async with staged() as stage:
        yield stage
