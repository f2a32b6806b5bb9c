"""The listener for clients: sockets of which every connection serves one handler.

Owns the listening sockets, who is connected, and the graceful stop. Must not route, must not know upstream or the gate.
What one connection does is in connection.py, what a handler returns in answers.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from ollama_swap_proxy.listener.answers import Handler
from ollama_swap_proxy.listener.connection import ClientConnection
from ollama_swap_proxy.listener.request import ClientRequest

BACKLOG: Final = 1024
"""Connections the kernel may hold for us; as many as Go asks for where the system allows it, or more."""

FORCED_END_S: Final = 2.0
"""How long aborted requests may take to end (they only have to notice that they are cancelled)."""

HEAD_GRACE_S: Final = 0.5
"""How long a stop waits for the rest of a request's head: nothing has been asked yet, and it may never come. (Go's
Shutdown bears a new connection without a whole head for 5 s.)"""

LOOK_AGAIN_S: Final = 0.02
"""How often a stop looks for connections that have become idle."""


class ProxyServer:
    """Serves one handler on any number of sockets. Build it inside the running loop."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.draining = False
        self.connections: set[ClientConnection] = set()
        self._loop = asyncio.get_running_loop()
        self._cut = 0
        self._sockets: list[asyncio.Server] = []
        self._log = structlog.get_logger()

    async def listen(self, host: str, port: int) -> list[tuple[str, int]]:
        """Listen on every address of ``host``; port 0 takes a free one. Return the addresses. Raises OSError."""
        loop = self._loop
        server = await loop.create_server(
            lambda: ClientConnection(self, loop), host, port, backlog=BACKLOG, reuse_address=True
        )
        self._sockets.append(server)
        return [sock.getsockname()[:2] for sock in server.sockets]

    async def stop(self, grace_s: float, on_drain: Callable[[], None] | None = None) -> int:
        """Stop: no new connections, running requests may end within ``grace_s``, then they are cut.

        ``on_drain`` is called once no new connection can come: the place to answer queued requests. Idle connections
        close at once, those with part of a head after ``HEAD_GRACE_S``, others behind their answer (which says
        ``Connection: close``). Return how many had to be cut.
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
        begun = self._loop.time()
        while self.connections:
            elapsed_s = self._loop.time() - begun
            for connection in self.connections:
                if connection.is_idle() or (elapsed_s >= HEAD_GRACE_S and connection.is_without_request()):
                    connection.close()
            if elapsed_s >= limit_s:
                return False
            await asyncio.sleep(LOOK_AGAIN_S)
        return True

    def abort(self) -> int:
        """Cut every connection now, answers under way too: a second signal. Return how many there were."""
        for connection in self.connections:
            connection.cut()
        self._cut += len(self.connections)
        return len(self.connections)

    # --- what its connections tell it ---

    def connected(self, connection: ClientConnection) -> None:
        """Count a connection in."""
        self.connections.add(connection)

    def disconnected(self, connection: ClientConnection) -> None:
        """Count it out: it is gone."""
        self.connections.discard(connection)

    def handler_failed(self, request: ClientRequest, error: BaseException) -> None:
        """Log a handler's exception; nobody else sees it."""
        self._log.error(
            "handler_failed", method=request.message.method, path=request.message.path.partition("?")[0], exc_info=error
        )
