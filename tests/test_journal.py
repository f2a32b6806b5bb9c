"""The lines of requests: when they are written, and which."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from ollama_swap_proxy import journal, logs
from ollama_swap_proxy.core.endpoints import Dialect
from ollama_swap_proxy.journal import MOST_TOGETHER, Journal, Journey


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def journey(number: int, *, gated: bool = True, error: str = "") -> Journey:
    made = Journey(number, "POST", "/api/chat?secret=1", Dialect.NATIVE, "127.0.0.1", began_at=0.0)
    made.gated, made.error = gated, error
    return made


def journal_at(level: str, form: logs.LogFormat = "json") -> tuple[Journal, io.StringIO]:
    stream = io.StringIO()
    logs.configure(form, level, stream)
    return Journal(), stream


def written(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


async def test_a_line_comes_a_moment_later_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "TOGETHER_S", 0.001)
    lines, stream = journal_at("info")
    lines.end(journey(1))
    lines.end(journey(2))
    assert written(stream) == []
    await asyncio.sleep(0.01)
    assert [line["id"] for line in written(stream)] == [1, 2]
    lines.end(journey(3))
    await asyncio.sleep(0.01)
    assert [line["id"] for line in written(stream)] == [1, 2, 3]


async def test_as_many_as_are_written_together_wait_for_no_moment() -> None:
    lines, stream = journal_at("info")
    for number in range(MOST_TOGETHER):
        assert written(stream) == []
        lines.end(journey(number))
    assert [line["id"] for line in written(stream)] == list(range(MOST_TOGETHER))


async def test_the_end_writes_what_is_left() -> None:
    lines, stream = journal_at("info")
    lines.end(journey(1))
    lines.write()
    (line,) = written(stream)
    assert list(line)[:3] == ["timestamp", "level", "event"]
    assert (line["event"], line["level"], line["path"], line["dialect"]) == ("request", "info", "/api/chat", "native")
    lines.write()
    assert len(written(stream)) == 1


async def test_times_are_cut_to_a_tenth_of_a_millisecond() -> None:
    lines, stream = journal_at("info")
    told = journey(1)
    told.began_at, told.waited_s, told.first_byte_at = lines._loop.time() - 2.00009, 1.23459, None
    lines.end(told)
    told.first_byte_at = told.began_at + 0.00029
    lines.write()
    (line,) = written(stream)
    assert (line["waited_s"], line["first_byte_s"]) == (1.2345, 0.0002)
    assert line["total_s"] == round(line["total_s"], 4)
    assert 2.0 <= line["total_s"] < 3.0


@pytest.mark.parametrize("level", ["info", "debug"])
async def test_what_went_through_without_a_lease_or_an_error_is_told_at_debug_only(level: str) -> None:
    lines, stream = journal_at(level)
    lines.end(journey(1, gated=False))
    lines.end(journey(2, gated=False, error="client_left"))
    lines.end(journey(3, gated=False, error="upstream_down"))
    lines.write()
    expected = {(3, "info")} if level == "info" else {(1, "debug"), (2, "debug"), (3, "info")}
    assert {(line["id"], line["level"]) for line in written(stream)} == expected


async def test_for_eyes_each_request_has_a_line_of_its_own_too() -> None:
    lines, stream = journal_at("info", "pretty")
    lines.end(journey(1))
    lines.end(journey(2))
    lines.write()
    first, second = stream.getvalue().splitlines()
    assert "request" in first
    assert "id=1" in first
    assert "id=2" in second


@pytest.mark.parametrize("model", ["模型", "\udce9"])
async def test_lines_that_are_written_together_are_ascii_and_whole_whatever_one_of_them_tells(model: str) -> None:
    lines, stream = journal_at("info")
    for number, name in enumerate(["small", model, "small"]):
        told = journey(number)
        told.model = name
        lines.end(told)
    lines.write()
    assert stream.getvalue().isascii()
    assert [(line["event"], line["id"], line["model"]) for line in written(stream)] == [
        ("request", 0, "small"),
        ("request", 1, model),
        ("request", 2, "small"),
    ]


class FullDisk(io.StringIO):
    """A stream that takes nothing."""

    def write(self, text: str) -> int:  # noqa: ARG002  # a stream's shape
        raise OSError(28, "No space left on device")


async def test_a_log_that_cannot_be_written_costs_no_request_and_keeps_nothing() -> None:
    logs.configure("json", "info", FullDisk())
    lines = Journal()
    for number in range(5 * MOST_TOGETHER):
        lines.end(journey(number))
    assert lines._told == []
