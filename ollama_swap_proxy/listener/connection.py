"""One client's connection: aiohttp's RequestHandler, taught what a relay of raw bytes needs.

Owns the limits of request heads, half-closed clients, slow readers, clients that still send when their answer is
complete, what comes behind an offer of another protocol, and who gets Go's refusals. Must not route, must not know
upstream or the gate.

It stands on names of aiohttp that are not documented (``RequestHandler``'s slots); the tests of this package and of the
relay fail if one of them changes.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final, cast

from aiohttp import web
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler, RequestPayloadError, _ErrInfo

from ollama_swap_proxy.listener.answers import Answer, Listener, Refusal, failed, unreadable
from ollama_swap_proxy.listener.late_body import drop
from ollama_swap_proxy.listener.offers import Offer
from ollama_swap_proxy.listener.request import ClientRequest, Flow
from ollama_swap_proxy.listener.screening import HEAD_LIMIT_BYTES, refused
from ollama_swap_proxy.prompt import Prompt

CLIENT_HIGH_WATER_BYTES: Final = 2**20
"""How much of an answer waits in our memory for a slow reader before upstream is held."""

LINGER_S: Final = 0.5
"""How long we read and drop a client's bytes after our FIN, so that no RST overtakes the answer (Go:
rstAvoidanceDelay)."""

IDLE_LIMIT_S: Final = 3600.0
"""A connection without a request for so long is closed, after twice as long at the latest. Go's server has no limit;
without one, clients that vanished without a FIN would stay for ever."""


class ClientConnection(RequestHandler):
    """One client's connection."""

    __slots__ = (
        "_dropping",
        "_flow",
        "_head_bytes",
        "_idle_timer",
        "_last_payload",
        "_left",
        "_next",
        "_offer",
        "_server",
        "_wire",
        "address",
        "answer_begun",
        "saw_eof",
        "waits",
        "was_cut",
    )

    def __init__(self, server: Listener, *, loop: asyncio.AbstractEventLoop, **keywords: Any) -> None:
        super().__init__(cast("web.Server", server), loop=loop, **keywords)
        self._server = server
        self._flow: Flow | None = None
        self._head_bytes = 0
        self._last_payload: StreamReader = EMPTY_PAYLOAD
        self._dropping = False
        self._offer: Offer | None = None
        self._left: asyncio.Future[None] | None = None
        self._next: Prompt[None] = Prompt(loop)
        self._wire: asyncio.Transport | None = None
        self.address = ""
        self.answer_begun = False
        self.saw_eof = False
        self.waits = False
        self.was_cut = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Bound what a slow reader can make us keep."""
        self._wire = cast("asyncio.Transport", transport)
        self._wire.set_write_buffer_limits(high=CLIENT_HIGH_WATER_BYTES)
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if isinstance(peer, tuple) else ""
        super().connection_made(transport)
        self._close_if_idle(-1)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Cancel what is under way."""
        self._idle_timer.cancel()
        super().connection_lost(exc)

    async def start(self) -> None:
        """Serve this connection's requests one after another, until one side ends it.

        In place of aiohttp's own, which makes a task of every request and answers failures in its own words. Cancelled
        when the connection is lost, and the handler with it.
        """
        try:
            while not self._force_close:
                if self._messages or self._paused:
                    await self._give_way()
                if not self._messages:
                    self._next = Prompt(self._loop)
                    # aiohttp sets its result when it has parsed a request; `data_received` wakes behind the screening.
                    self._waiter = cast("asyncio.Future[None]", self._next)
                    try:
                        await self._next
                    finally:
                        self._waiter = None
                message, content = self._take_message()
                request: ClientRequest | None = None
                answer: Answer | None
                if isinstance(message, _ErrInfo):
                    answer = unreadable(message.status, message.exc, message.message)
                else:
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
                if answer.lingers or not content.is_eof():
                    await self._hear_out(answer, content)
                if not (answer.persistent and content.is_eof() and self.may_stay()) or self._close:
                    break
        finally:
            self._task_handler = None
            self.force_close()

    async def _give_way(self) -> None:
        """Let the loop turn between pipelined requests, and wait for a client that does not read its answers."""
        await asyncio.sleep(0)
        if self._paused:
            with contextlib.suppress(ConnectionError):
                await self._drain_helper()

    def _take_message(self) -> tuple[Any, StreamReader]:
        """Return the next request, and let the parser make room for another one behind it."""
        message, content = self._messages.popleft()
        if self._parser is not None:
            self._parser.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()
        return message, content

    async def _hear_out(self, answer: Answer, content: StreamReader) -> None:
        """Let a client read its answer although it still sends."""
        if answer.lingers:
            await self._linger()
        else:
            await drop(content)

    def _failure(self, request: ClientRequest, error: Exception) -> Answer | None:
        """Return the answer to a handler's failure, or None where the client's connection broke."""
        if isinstance(error, ConnectionError):
            return None
        if isinstance(error, RequestPayloadError):
            return Refusal(400)
        self._server.handler_failed(request, error)
        return failed(error)

    def _close_if_idle(self, requests_before: int) -> None:
        """Close a connection without a request since the last look, and look again: costs nothing per request.

        ``requests_before`` is the count of requests at the last look, -1 where there was none.
        """
        if self._request_count == requests_before and self.is_idle():
            self.force_close()
        else:
            self._idle_timer = self._loop.call_later(IDLE_LIMIT_S, self._close_if_idle, self._request_count)

    # --- for whoever answers ---

    def begin_flow(self, flow: Flow) -> None:
        """Let ``flow`` hear when to hold and when the client has finished, until ``end_flow``."""
        self._flow = flow
        if self._paused:
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
        if self.saw_eof and self.transport is not None:
            self.transport.close()

    def end_waiting(self) -> None:
        """End that."""
        self.waits = False

    def may_stay(self) -> bool:
        """Say whether the connection may serve more requests after this one."""
        return bool(self._messages) or not (self.saw_eof or self._server.draining or self._dropping)

    def is_closing_down(self) -> bool:
        """Say whether we ourselves close this connection behind the answer under way."""
        return (self._server.draining or self._dropping) and not self._messages

    async def _linger(self) -> None:
        """Send FIN, then read and drop until the client closes too, for ``LINGER_S`` at the longest."""
        transport = self.transport
        if transport is None:
            return
        self._dropping = True
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

    def cut(self) -> None:
        """Cut the connection now, an answer under way too, or one that the client has not read: we are being stopped.

        By a reference of our own: aiohttp forgets a transport that it closes, though it may never be done.
        """
        self.was_cut = True
        if self._wire is not None:
            self._wire.abort()

    def is_idle(self) -> bool:
        """Say whether nothing of a request has come and nothing is owed."""
        return self._waiter is not None and not self._messages and not self._head_bytes

    # --- asyncio's calls ---

    def pause_writing(self) -> None:
        """Hold upstream: the client reads slower than it answers."""
        super().pause_writing()
        if self._flow is not None:
            self._flow.hold()

    def resume_writing(self) -> None:
        """Let upstream go on."""
        super().resume_writing()
        if self._flow is not None:
            self._flow.go_on()

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002 - aiohttp's own shape
        """Read on where reading was held; aiohttp asks for it after each read of a body, and would parse anew."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def data_received(self, data: bytes) -> None:
        """Parse, with Go's limit on the whole head and Go's refusals."""
        if self._dropping:
            return
        self._parse(data)
        while (self._offer is not None or self._upgraded) and (behind := self._behind_offer(data)):
            data = behind
            self._parse(data)
        if self._waiter is not None and self._next.done():
            self._next.wake()

    def _parse(self, data: bytes) -> None:
        at_head = self._last_payload.is_eof()
        if at_head:
            self._head_bytes += len(data)
        before = self._request_count
        super().data_received(data)
        if self._request_count != before:
            self._screen(self._request_count - before, data if at_head else b"")
        elif self._head_bytes > HEAD_LIMIT_BYTES:
            self._refuse(431)

    def _screen(self, count: int, data: bytes) -> None:
        """Look at the ``count`` messages that have just come; ``data`` is the read they came in, if no body did."""
        for position in range(-count, 0):
            message, payload = self._messages[position]
            if isinstance(message, _ErrInfo):
                if not self._last_payload.is_eof():  # the body of the message before is what cannot be read
                    self._last_payload.set_exception(RequestPayloadError("malformed request body"))
                continue
            if status := refused(message, self._head_bytes):
                self._messages[position] = _error(status), EMPTY_PAYLOAD
            elif message.upgrade:
                self._offer = Offer(message, data if count == 1 else b"")
            self._last_payload = payload
        self._head_bytes = 0

    def _behind_offer(self, data: bytes) -> bytes:
        """Return what came behind a request that offers another protocol: the parser stops there, and we decline.

        It hands that back for a websocket and forgets it for all others. Where it cannot be told what was forgotten,
        the connection ends behind the answer.
        """
        behind: bytes | None = b""
        if self._offer is not None:
            behind = self._offer.split(data)
            if not self._last_payload.is_eof():
                return b""
            self._offer = None
        if self._upgraded and self._parser is not None:
            self._parser.set_upgraded(False)
            self._upgraded = False
            behind, self._message_tail = self._message_tail, b""
        elif behind is None or (behind and len(self._messages) + 1 >= self._max_msg_queue_size):
            self._dropping = True  # with a full queue the parser forgets it later
            return b""
        return behind

    def _refuse(self, status: int) -> None:
        self._dropping = True
        self._messages.append((_error(status), EMPTY_PAYLOAD))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Keep a half-closed client's connection for its answers; close one that is owed nothing.

        Go's server sends the whole answer to a half-closed client, too, and tells the handler that the client left.
        """
        self.saw_eof = True
        serving = self._waiter is None and self._request_count > 0  # `_waiter` is None before `start` has begun, too
        owed = serving or bool(self._messages)
        if self.waits or self._left is not None or not owed or not self._last_payload.is_eof():
            if self._left is not None and not self._left.done():
                self._left.set_result(None)
            return None
        if self._flow is not None:
            self._flow.client_finished()
        return True


def _error(status: int) -> _ErrInfo:
    return _ErrInfo(status=status, exc=ValueError(str(status)), message="")
