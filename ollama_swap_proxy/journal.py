"""The one log line of each request: what it tells, and when it is written.

Owns the account of a request under way and its canonical line. Must not hold a request up: lines are written a few
together, up to `TOGETHER_S` behind the answers that they tell of, so a step of a swap may come before a request that
ended earlier. Their timestamp is that of the writing. Never a prompt or an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Final

import structlog

from ollama_swap_proxy.core.endpoints import Dialect
from ollama_swap_proxy.upstream.exchange import Exchange

TOGETHER_S: Final = 0.01
"""How long a line waits for others, at most: one write for several, and off the way of the next request."""

MOST_TOGETHER: Final = 32
"""So many lines are written at once, at most: they hold the event loop for less than half a millisecond."""

_PRECISION: Final = 10_000
"""Times are cut to such parts of a second: written out below, for that costs a tenth of what `round` does."""

_QUIET: Final = ("", "client_left")


class Journey(Exchange):
    """What the line of one request tells, its exchange too. Times are the loop's seconds.

    ``klass`` is its class, empty where it needs none. ``changed`` is what was changed in its body. ``why`` says why it
    was passed on without a lease.
    """

    klass: str = ""
    changed: str = ""
    model: str = ""
    gated: bool = False
    why: str = ""
    waited_s: float = 0.0
    swapped: bool = False
    error: str = ""
    ended_at: float = 0.0

    def __init__(  # noqa: PLR0917 - one is built for each request: keywords cost
        self,
        id: int,  # noqa: A002 - the name in the line
        method: str,
        path: str,
        dialect: Dialect,
        client: str,
        began_at: float,
    ) -> None:
        self.id = id
        self.method = method
        self.path = path
        self.dialect = dialect
        self.client = client
        self.began_at = began_at


class Journal:
    """Writes the lines. Build it inside the running loop, with the logs set up; `write` what is left at the end."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._log = structlog.get_logger("app")
        self._tells_all = self._log.is_enabled_for(logging.DEBUG)
        self._told: list[Journey] = []
        self._quiet: list[Journey] = []
        self._timer: asyncio.TimerHandle | None = None

    def end(self, journey: Journey) -> None:
        """Take a request that is over. One that went through without a lease or an error is told at debug only."""
        is_told = journey.gated or journey.error not in _QUIET
        if not (is_told or self._tells_all):
            return
        journey.ended_at = self._loop.time()
        (self._told if is_told else self._quiet).append(journey)
        if len(self._told) + len(self._quiet) >= MOST_TOGETHER:
            self.write()
        elif self._timer is None:
            self._timer = self._loop.call_later(TOGETHER_S, self.write)

    def write(self) -> None:
        """Write what has not been written yet: those told at info in the order of their ends, then those at debug."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        told, quiet = self._told, self._quiet
        self._told, self._quiet = [], []
        with contextlib.suppress(OSError):  # a log that cannot be written (a full disk) costs no request
            if told:
                self._log.info("request", many=[_line(journey) for journey in told])
            if quiet:
                self._log.debug("request", many=[_line(journey) for journey in quiet])


def _line(journey: Journey) -> dict[str, object]:
    first_byte_at, began_at = journey.first_byte_at, journey.began_at
    return {
        "id": journey.id,
        "method": journey.method,
        "path": journey.path.partition("?")[0],
        "dialect": journey.dialect,
        "client": journey.client,
        "class": journey.klass,
        "model": journey.model,
        "status": journey.status,
        "error": journey.error or journey.cut_code or ("cut" if journey.cut else ""),
        "passed": journey.why,
        "changed": journey.changed,
        "waited_s": journey.waited_s * _PRECISION // 1 / _PRECISION,
        "swapped": journey.swapped,
        "first_byte_s": None if first_byte_at is None else (first_byte_at - began_at) * _PRECISION // 1 / _PRECISION,
        "total_s": (journey.ended_at - began_at) * _PRECISION // 1 / _PRECISION,
        "request_bytes": journey.request_bytes,
        "response_bytes": journey.response_bytes,
    }
