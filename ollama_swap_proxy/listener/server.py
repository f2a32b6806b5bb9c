"""The listener for clients: aiohttp's low-level server, set up for a relay that writes raw bytes.

Owns the listening sockets, the server's settings and the graceful stop. Must not route, must not know upstream or the
gate. What one connection does is in connection.py, what a handler returns in answers.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast

import structlog
from aiohttp import web

from ollama_swap_proxy.listener.answers import Handler
from ollama_swap_proxy.listener.connection import ClientConnection
from ollama_swap_proxy.listener.request import ClientRequest
from ollama_swap_proxy.listener.screening import HEAD_LIMIT_LINES

LINE_LIMIT_BYTES: Final = 2**20 + 4096
"""Largest line of a head: the limit that counts is the one on the whole head (screening.HEAD_LIMIT_BYTES)."""

BACKLOG: Final = 1024
"""Connections the kernel may hold for us; as many as Go asks for where the system allows it, or more."""

FORCED_END_S: Final = 2.0
"""How long aborted requests may take to end (they only have to notice that they are cancelled)."""

LOOK_AGAIN_S: Final = 0.02
"""How often a stop looks for connections that have become idle."""


class ProxyServer(web.Server):
    """Serves one handler on any number of sockets. Build it inside the running loop."""

    def __init__(self, handler: Handler) -> None:
        """Raise TypeError or RuntimeError if this aiohttp does not take the settings (it would drop all in silence)."""
        super().__init__(
            cast("Any", None),  # `ClientConnection.start` calls the handler by itself
            handler_cancellation=True,  # a client that leaves cancels its handler: nothing else would notice
            access_log=None,
            keepalive_timeout=0,  # the connection has its own limit for idle ones
            auto_decompress=False,
            max_line_size=LINE_LIMIT_BYTES,
            max_field_size=LINE_LIMIT_BYTES,
            max_headers=HEAD_LIMIT_LINES,
        )
        self.handler = handler
        self.draining = False
        self._cut = 0
        self._sockets: list[asyncio.Server] = []
        self._log = structlog.get_logger()
        probe = self()
        limits = (probe.max_line_size, probe.max_field_size, probe.max_headers)
        if limits != (LINE_LIMIT_BYTES, LINE_LIMIT_BYTES, HEAD_LIMIT_LINES) or probe.access_logger is not None:
            raise RuntimeError("aiohttp has dropped the server's settings: this version cannot be used")

    def __call__(self) -> ClientConnection:
        """Return the protocol for a new connection; unlike aiohttp's own, never with fewer settings."""
        return ClientConnection(self, loop=self._loop, **self._kwargs)

    async def listen(self, host: str, port: int) -> list[tuple[str, int]]:
        """Listen on every address of ``host``; port 0 takes a free one. Return the addresses. Raises OSError."""
        server = await self._loop.create_server(self, host, port, backlog=BACKLOG, reuse_address=True)
        self._sockets.append(server)
        return [sock.getsockname()[:2] for sock in server.sockets]

    async def stop(self, grace_s: float, on_drain: Callable[[], None] | None = None) -> int:
        """Stop: no new connections, running requests may end within ``grace_s``, then they are cut.

        ``on_drain`` is called once no new connection can come: the place to answer queued requests. Idle connections
        close at once, others behind their answer (which says ``Connection: close``). Return how many had to be cut.

        aiohttp's own way is not used: it throws away the input of uploads that are under way.
        """
        self.draining = True
        for server in self._sockets:
            server.close()
        self._sockets.clear()
        if on_drain is not None:
            on_drain()
        if not await self._wait_until_none(grace_s):
            self.abort()
            await self._wait_until_none(FORCED_END_S)
        return self._cut

    async def _wait_until_none(self, limit_s: float) -> bool:
        deadline = self._loop.time() + limit_s
        while self._connections:
            for connection in self.connections:
                if cast("ClientConnection", connection).is_idle():
                    connection.force_close()
            if self._loop.time() >= deadline:
                return False
            await asyncio.sleep(LOOK_AGAIN_S)
        return True

    def abort(self) -> int:
        """Cut every connection now, answers under way too: a second signal. Return how many there were."""
        connections = self.connections
        for connection in connections:
            cast("ClientConnection", connection).cut()
        self._cut += len(connections)
        return len(connections)

    def handler_failed(self, request: ClientRequest, error: BaseException) -> None:
        """Log a handler's exception; nobody else sees it."""
        self._log.error(
            "handler_failed", method=request.message.method, path=request.message.path.partition("?")[0], exc_info=error
        )
