"""What the end-to-end tests share: a stage with both servers on it, and the log lines of the proxy."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, MutableMapping
from typing import Any, NoReturn

import pytest
import structlog

from ollama_swap_proxy import journal
from tests.end_to_end.stage import Stage, staged


@pytest.fixture(autouse=True)
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """Every log line of the test. A line of level error is a defect: a test that expects one takes it out."""
    structlog.reset_defaults()
    monkeypatch.setattr(journal, "TOGETHER_S", 0.0)
    captured: list[dict[str, Any]] = []

    def capture(_: object, level: str, event: MutableMapping[str, Any]) -> NoReturn:
        many = event.pop("many", [{}])
        captured.extend({**event, **fields, "log_level": level} for fields in many)
        raise structlog.DropEvent

    structlog.configure(processors=[capture])
    yield captured
    structlog.reset_defaults()
    errors = [line for line in captured if line["log_level"] == "error"]
    assert not errors


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    """The proxy with default settings before models of which no two fit together."""
    async with staged() as stage:
        yield stage
