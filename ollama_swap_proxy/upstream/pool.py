"""The pool of connections to one upstream.

Owns which connection a request gets, opening new ones, and how long idle ones are kept. Must not send anything, must
not repeat a request.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from typing import Final

from yarl import URL

from ollama_swap_proxy.upstream.connection import UpstreamConnection, UpstreamFailed, cause

IDLE_LIMIT_S: Final = 60.0
"""An idle connection older than this is not used again: something between us and a remote upstream may have forgotten
it. Ollama itself never closes an idle connection (Go's http.Server without IdleTimeout and ReadTimeout)."""


class UpstreamPool:
    """Connections to one upstream. Their number has no limit: Ollama has its own and tells clients of it."""

    def __init__(self, url: URL, *, connect_timeout_s: float, idle_limit_s: float = IDLE_LIMIT_S) -> None:
        if url.host is None or url.port is None:
            raise ValueError(f"not the URL of a server: {url}")
        self._host, self._port = url.host, url.port
        self._connect_timeout_s = connect_timeout_s
        self._idle_limit_s = idle_limit_s
        self._loop = asyncio.get_running_loop()
        self._idle: deque[UpstreamConnection] = deque()
        self._all: set[UpstreamConnection] = set()
        self._tls = ssl.create_default_context() if url.scheme == "https" else None

    def take(self) -> UpstreamConnection | None:
        """Return the idle connection used last, if it is surely alive, else None."""
        while self._idle:
            connection = self._idle.pop()
            if time.monotonic() - connection.idle_since < self._idle_limit_s and connection.is_surely_alive():
                return connection
            connection.abort()
        return None

    async def connect(self) -> UpstreamConnection:
        """Open a connection. Raises UpstreamFailed, after ``connect_timeout_s`` at the latest."""
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await self._loop.create_connection(
                    lambda: UpstreamConnection(self._loop, self._forget),
                    self._host,
                    self._port,
                    ssl=self._tls,
                )
        except TimeoutError:
            raise UpstreamFailed(f"no connection within {self._connect_timeout_s:g} s") from None
        except OSError as error:
            raise UpstreamFailed(cause(error)) from error
        self._all.add(connection)
        return connection

    def give_back(self, connection: UpstreamConnection) -> None:
        """Keep a connection, whose answer has ended, for the next request."""
        if connection.reading_held:
            connection.go_on_reading()
        connection.idle_since = time.monotonic()
        self._idle.append(connection)
        while connection.idle_since - self._idle[0].idle_since >= self._idle_limit_s:
            self._idle.popleft().abort()

    def _forget(self, connection: UpstreamConnection) -> None:
        """Drop a connection that was lost."""
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def close(self) -> None:
        """Close every connection, busy ones too."""
        for connection in tuple(self._all):
            connection.abort()
