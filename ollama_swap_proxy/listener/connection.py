"""One client's connection: its requests served one after another, until one side ends it.

Owns half-closed clients, slow readers, clients that still send when their answer is complete, and the connection's end.
Must not read requests (`incoming` does), must not route, must not know upstream or the gate.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final, Protocol, cast

from ollama_swap_proxy.listener.answers import Answer, Handler, Refusal, failed
from ollama_swap_proxy.listener.content import Content, MalformedBody
from ollama_swap_proxy.listener.incoming import Arrival, Incoming
from ollama_swap_proxy.listener.late_body import drop
from ollama_swap_proxy.listener.request import ClientRequest, Flow
from ollama_swap_proxy.prompt import Prompt

CLIENT_HIGH_WATER_BYTES: Final = 2**20
"""How much of an answer waits in our memory for a slow reader before upstream is held."""

LINGER_S: Final = 0.5
"""How long we read and drop a client's bytes after our FIN, so that no RST overtakes the answer (Go:
rstAvoidanceDelay)."""

IDLE_LIMIT_S: Final = 3600.0
"""A connection without a request for so long is closed, after twice as long at the latest. Go's server has no limit;
without one, clients that vanished without a FIN would stay for ever."""


class Listener(Protocol):
    """The server that a connection belongs to. ``draining``: it is being stopped, and keeps no connection."""

    handler: Handler
    draining: bool

    def connected(self, connection: ClientConnection) -> None:
        """Count a connection in."""

    def disconnected(self, connection: ClientConnection) -> None:
        """Count it out: it is gone."""

    def handler_failed(self, request: ClientRequest, error: BaseException) -> None:
        """Log a handler's exception."""


class ClientConnection(asyncio.Protocol):
    """One client's connection."""

    __slots__ = (
        "_drained",
        "_flow",
        "_idle_timer",
        "_incoming",
        "_left",
        "_loop",
        "_next",
        "_server",
        "_task",
        "_writing_paused",
        "address",
        "answer_begun",
        "saw_eof",
        "transport",
        "waits",
        "was_cut",
    )

    def __init__(self, server: Listener, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._loop = loop
        self._incoming = Incoming()
        self._next: Prompt[Arrival] | None = None
        """The next request, as long as none is being served."""
        self._task: asyncio.Task[None] | None = None
        self._flow: Flow | None = None
        self._left: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._writing_paused = False
        self.transport: asyncio.Transport | None = None
        self.address = ""
        self.answer_begun = False
        self.saw_eof = False
        self.waits = False
        self.was_cut = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Bound what a slow reader can make us keep, and begin to serve."""
        self.transport = self._incoming.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=CLIENT_HIGH_WATER_BYTES)
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if isinstance(peer, tuple) else ""
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._server.connected(self)
        self._close_if_idle(-1)
        self._task = self._loop.create_task(self._serve(), name="client's connection")

    def connection_lost(self, exc: BaseException | None) -> None:  # noqa: ARG002 - asyncio's shape
        """Cancel what is under way."""
        self._idle_timer.cancel()
        self.transport = self._incoming.transport = None
        self._incoming.end()
        self._server.disconnected(self)
        task, self._task = self._task, None  # it knows us, too: nothing is left to the garbage collector
        if task is not None:
            task.cancel()

    # --- requests one after another ---

    async def _serve(self) -> None:
        """Serve this connection's requests until one side ends it. Cancelled when the connection is lost."""
        incoming = self._incoming
        try:
            while True:
                if (incoming.queue or self._writing_paused) and not await self._give_way():
                    break
                if incoming.queue:
                    coming = incoming.take()
                else:
                    self._next = Prompt(self._loop)
                    coming = await self._next
                request: ClientRequest | None = None
                answer: Answer | None
                if isinstance(coming, Refusal):
                    answer, content = coming, Content(None)
                else:
                    message, content = coming
                    request = ClientRequest(message, content, self)
                    try:
                        answer = await self._server.handler(request)
                    except Exception as error:  # noqa: BLE001 - the server logs it, and the client must hear something
                        answer = self._failure(request, error)
                if self.answer_begun or answer is None:
                    if self.transport is not None:
                        self.transport.abort()  # after the first byte of an answer nothing may follow
                    break
                answer.send(self, request)
                if (answer.lingers or not content.is_eof()) and not await self._hear_out(answer, content):
                    break
                if not (answer.persistent and self.may_stay()):
                    break
        finally:
            self.close()

    async def _give_way(self) -> bool:
        """Let the loop turn between pipelined requests, and wait for a client that does not read its answers.

        Return whether another request is there or may come: the client may have finished meanwhile.
        """
        await asyncio.sleep(0)
        if self._writing_paused:
            self._drained = self._loop.create_future()
            await self._drained
        return self.may_stay()

    async def _hear_out(self, answer: Answer, content: Content) -> bool:
        """Let a client read its answer although it still sends; say whether the body has ended meanwhile."""
        if answer.lingers:
            await self._linger()
        else:
            await drop(content)
        return content.is_eof()

    def _failure(self, request: ClientRequest, error: Exception) -> Answer | None:
        """Return the answer to a handler's failure, or None where the client's connection broke."""
        if isinstance(error, ConnectionError):
            return None
        if isinstance(error, MalformedBody):
            return Refusal(400)
        self._server.handler_failed(request, error)
        return failed(error)

    async def _linger(self) -> None:
        """Send FIN, then read and drop until the client closes too, for ``LINGER_S`` at the longest."""
        transport = self.transport
        if transport is None:
            return
        self._incoming.end()
        self._left = self._loop.create_future()
        if transport.can_write_eof():
            transport.write_eof()
        transport.resume_reading()
        if self.saw_eof:
            return
        try:
            async with asyncio.timeout(LINGER_S):
                await self._left
        except TimeoutError:
            pass
        finally:
            self._left = None

    def _close_if_idle(self, requests_before: int) -> None:
        """Close a connection without a request since the last look, and look again: costs nothing per request.

        ``requests_before`` is the count of requests at the last look, -1 where there was none.
        """
        if self._incoming.count == requests_before and self.is_idle():
            self.close()
        else:
            self._idle_timer = self._loop.call_later(IDLE_LIMIT_S, self._close_if_idle, self._incoming.count)

    # --- for the server ---

    def is_idle(self) -> bool:
        """Say whether nothing of a request has come and nothing is owed."""
        return self._next is not None and not self._incoming.partial_bytes

    def is_without_request(self) -> bool:
        """Say whether nothing is owed, though part of a head may have come."""
        return self._next is not None

    def close(self) -> None:
        """Close the connection behind what has been written."""
        if self.transport is not None:
            self.transport.close()

    def cut(self) -> None:
        """Cut the connection now, an answer under way or unread too: we are being stopped."""
        self.was_cut = True
        if self.transport is not None:
            self.transport.abort()

    # --- for whoever answers ---

    def begin_flow(self, flow: Flow) -> None:
        """Let ``flow`` hear when to hold and when the client has finished, until ``end_flow``."""
        self._flow = flow
        if self._writing_paused:
            flow.hold()
        if self.saw_eof:
            flow.client_finished()

    def end_flow(self) -> None:
        """Forget the flow."""
        self._flow = None

    def begin_waiting(self) -> None:
        """Hold from now on that a client which closes or half-closes has left: its request is cancelled at once.

        Ollama does the same for a queued request: Go cancels its context on FIN (docs/ollama.md).
        """
        self.waits = True
        if self.saw_eof:
            self.close()

    def end_waiting(self) -> None:
        """End that."""
        self.waits = False

    def may_stay(self) -> bool:
        """Say whether the connection may serve more requests after this one."""
        return bool(self._incoming.queue) or not (self.saw_eof or self._server.draining or not self._incoming.is_open)

    def is_closing_down(self) -> bool:
        """Say whether we ourselves close this connection behind the answer under way."""
        return (self._server.draining or not self._incoming.is_open) and not self._incoming.queue

    # --- asyncio's calls ---

    def data_received(self, data: bytes) -> None:
        """Serve the request that has come, if none is being served."""
        incoming = self._incoming
        incoming.feed(data)
        if incoming.queue and (upcoming := self._next) is not None:
            self._next = None
            upcoming.tell(incoming.queue.popleft())

    def eof_received(self) -> bool:
        """Keep a half-closed client's connection for its answers; close one that is owed nothing.

        A FIN within the body of the request being served ends that one; within a later one's, only the later one.
        Go's server sends the whole answer to a half-closed client, too, and tells the handler that the client left.
        """
        self.saw_eof = True
        if self._left is not None and not self._left.done():
            self._left.set_result(None)
        is_whole = self._incoming.finish()
        owed = bool(self._incoming.queue) or (self._incoming.count > 0 and self._next is None)
        if self.waits or self._left is not None or not (owed and is_whole):
            return False
        if self._flow is not None:
            self._flow.client_finished()
        return True

    def pause_writing(self) -> None:
        """Hold upstream: the client reads slower than it answers."""
        self._writing_paused = True
        if self._flow is not None:
            self._flow.hold()

    def resume_writing(self) -> None:
        """Let upstream go on."""
        self._writing_paused = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if self._flow is not None:
            self._flow.go_on()
