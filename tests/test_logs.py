"""Log lines as data: their two forms, what never gets into them, and what one costs."""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from ollama_swap_proxy import logs


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def _lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_off_a_terminal_each_line_is_one_json_object() -> None:
    stream = io.StringIO()
    logs.configure("auto", "info", stream)
    structlog.get_logger().info("request", model="sim-a", status=200, waited_s=0.25, swapped=False)
    (line,) = _lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "request", "level": "info", "model": "sim-a", "status": 200, "waited_s": 0.25, "swapped": False,
    }  # fmt: skip


def test_on_a_terminal_lines_are_for_eyes_unless_json_is_asked_for() -> None:
    stream = _Terminal()
    logs.configure("auto", "info", stream)
    structlog.get_logger().info("swap_decided", target="sim-a")
    assert "swap_decided" in stream.getvalue()
    assert not stream.getvalue().startswith("{")
    structlog.reset_defaults()
    stream = _Terminal()
    logs.configure("json", "info", stream)
    structlog.get_logger().info("swap_decided", target="sim-a")
    assert _lines(stream)[0]["target"] == "sim-a"


def test_lines_below_the_level_are_not_written() -> None:
    stream = io.StringIO()
    logs.configure("json", "warning", stream)
    structlog.get_logger().info("request")
    structlog.get_logger().warning("swap_given_up")
    assert [line["event"] for line in _lines(stream)] == ["swap_given_up"]


def test_libraries_write_into_the_same_lines_from_warning_on() -> None:
    stream = io.StringIO()
    logs.configure("json", "info", stream)
    logging.getLogger("aiohttp.server").error("broken %s", "pipe")
    logging.getLogger("aiohttp.access").info("not wanted")
    (line,) = _lines(stream)
    assert (line["event"], line["level"], line["logger"]) == ("broken pipe", "error", "aiohttp.server")


@pytest.mark.parametrize("log_format", ["json", "pretty"])
def test_a_traceback_never_shows_local_variables(log_format: logs.LogFormat) -> None:
    stream = _Terminal()
    logs.configure(log_format, "info", stream)
    body = "what the client asked"
    try:
        raise RuntimeError("broken")  # noqa: TRY301  # the traceback is the point
    except RuntimeError:
        structlog.get_logger().exception("failed")
        logging.getLogger("aiohttp.server").exception("failed too")
    assert stream.getvalue().count("RuntimeError: broken") == 2
    assert body not in stream.getvalue()


def test_what_a_client_wrote_cannot_steer_the_terminal() -> None:
    stream = io.StringIO()
    logs.configure("pretty", "info", stream)
    structlog.get_logger().info("request", model="a\x1b[2Jb\nforged line")
    assert "\x1b" not in stream.getvalue()
    assert len(stream.getvalue().splitlines()) == 1


def test_any_text_makes_a_line_whatever_the_stream_can_encode() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    logs.configure("json", "info", stream)
    structlog.get_logger().info("request", path="/é\udce9", model="模型")
    stream.seek(0)
    assert json.loads(stream.read())["model"] == "模型"


def test_a_request_line_costs_less_than_30_microseconds() -> None:
    logs.configure("json", "info", io.StringIO())
    log = structlog.get_logger()
    costs_us = []
    for _ in range(5):
        started = time.perf_counter()
        for number in range(400):
            log.info(
                "request", id=number, model="llama3.2:3b", dialect="native", method="POST", path="/api/chat",
                status=200, waited_s=0.001, swapped=False, bytes_in=1234, bytes_out=5678, took_s=1.2, first_byte_s=0.1,
            )  # fmt: skip
        costs_us.append((time.perf_counter() - started) / 400 * 1e6)
    assert min(costs_us) < 30
