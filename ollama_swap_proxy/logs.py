"""How log lines look and where they go: for eyes on a terminal, else one JSON object a line, on stderr.

Owns the set-up, which `configure` does once at start and nothing does on import. Must not decide what is logged. Never
a prompt or an answer: tracebacks come without local variables, because bodies are among them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any, Literal, TextIO, cast

import orjson
import structlog
from structlog.typing import Processor, WrappedLogger

LogFormat = Literal["auto", "pretty", "json"]


def configure(log_format: LogFormat = "auto", level: str = "info", stream: TextIO | None = None) -> None:
    """Set up structlog, and what the libraries say by `logging` with it.

    ``auto`` is pretty when the stream (stderr by default) is a terminal. Libraries are heard from warning on, ourselves
    from ``level`` on.
    """
    stream = stream or sys.stderr
    terminal = stream.isatty()
    pretty = log_format == "pretty" or (log_format == "auto" and terminal)
    shared, rendering = _pretty(colors=terminal) if pretty else ([], [_json_lines])
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[_Each([*shared, *rendering])] if pretty else rendering,
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=True,
    )
    _redirect_libraries(stream, shared, rendering, max(number, logging.WARNING))


def _json_lines(logger: WrappedLogger, level: str, event: MutableMapping[str, Any]) -> str:
    """Give the line: time of day, level and what happened come first. With ``many`` one for each.

    One processor for all of it, because each costs a fifth of the whole line, and every request has a line.
    """
    if "exc_info" in event:
        event = structlog.processors.format_exc_info(logger, level, event)
    many = event.pop("many", None)
    head = {"timestamp": datetime.now(UTC).isoformat()[:-6] + "Z", "level": level, "event": event.get("event", "")}
    return _dump({**head, **event}) if many is None else _dump_many(head, many)


def _dump_many(head: dict[str, Any], many: list[dict[str, Any]]) -> str:
    """Write one line for each of ``many`` (none of them empty) behind what they share, which is written only once."""
    with contextlib.suppress(TypeError):
        shared = orjson.dumps(head)[:-1] + b","
        lines = b"\n".join([shared + orjson.dumps(fields)[1:] for fields in many])
        if lines.isascii():
            return lines.decode()
    return "\n".join([_dump({**head, **fields}) for fields in many])


def _dump(fields: dict[str, Any]) -> str:
    """Write in ASCII, which every stream takes: orjson escapes nothing else, and no lone surrogate at all."""
    with contextlib.suppress(TypeError):
        line = orjson.dumps(fields, default=repr)
        if line.isascii():
            return line.decode()
    return json.dumps(fields, default=repr)


class _Each:
    """Turns one event into one line by a chain, and one with ``many`` into as many."""

    def __init__(self, chain: list[Processor]) -> None:
        self._chain = chain

    def __call__(self, logger: WrappedLogger, level: str, event: MutableMapping[str, Any]) -> str:
        name, many = event.get("event", ""), event.pop("many", None)
        if many is None:
            return self._line(logger, level, event)
        return "\n".join([self._line(logger, level, {"event": name, **fields}) for fields in many])

    def _line(self, logger: WrappedLogger, level: str, event: Any) -> str:
        for process in self._chain:
            event = process(logger, level, event)
        return cast("str", event)


def _pretty(*, colors: bool) -> tuple[list[Processor], list[Processor]]:
    stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)
    return [structlog.processors.add_log_level, stamp], [
        _escape_controls,
        structlog.dev.ConsoleRenderer(
            colors=colors, exception_formatter=structlog.dev.plain_traceback, pad_event_to=20, sort_keys=False
        ),
    ]


def _escape_controls(_: WrappedLogger, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Keep what a client wrote (a model's name, a path) from steering the terminal."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable() and key != "exception":
            event[key] = value.encode("unicode_escape").decode("ascii")
    return event


def _redirect_libraries(stream: TextIO, shared: list[Processor], rendering: list[Processor], level: int) -> None:
    handler = logging.StreamHandler(stream)
    remove = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared], processors=[remove, *rendering]
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
