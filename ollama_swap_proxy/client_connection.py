"""One client's connection: aiohttp's RequestHandler, taught what a relay of raw bytes needs.

Owns the limits of request heads, half-closed clients, slow readers, clients that still send when their answer is
complete, what comes behind an offer of another protocol, and who gets Go's refusals. Must not route, must not know
upstream or the gate.

It stands on names of aiohttp that are not documented (``RequestHandler``'s slots, ``request._message``); the tests of
this module and of the relay fail if one of them changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from aiohttp import web
from aiohttp.http_writer import HttpVersion11
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler, RequestPayloadError, _ErrInfo

from ollama_swap_proxy.client_answers import Refusal, refusal_for

if TYPE_CHECKING:
    from ollama_swap_proxy.http_server import ProxyServer

HEAD_LIMIT_BYTES: Final = 2**20 + 4096
"""Largest request head in all, as Go counts it (net/http: DefaultMaxHeaderBytes plus 4096 for its buffer)."""

HEAD_LIMIT_LINES: Final = 10_000
"""Most header lines. Go has no such limit; at its 1 MiB there could be 260,000, which nobody sends in earnest."""

CLIENT_HIGH_WATER_BYTES: Final = 2**20
"""How much of an answer waits in our memory for a slow reader before upstream is held."""

LINGER_S: Final = 0.5
"""How long we read and drop a client's bytes after our FIN, so that no RST overtakes the answer (Go:
rstAvoidanceDelay)."""


_BLANK_LINE: Final = b"\r\n\r\n"


class Flow(Protocol):
    """Whoever writes an answer to a client and can be told to wait."""

    def hold(self) -> None:
        """Stop: the client's buffer is full."""

    def go_on(self) -> None:
        """Go on."""

    def client_finished(self) -> None:
        """Note that the client has sent FIN behind its last request: it may be gone or half-closed."""


class ClientConnection(RequestHandler):
    """One client's connection."""

    __slots__ = (
        "_dropping",
        "_flow",
        "_head_bytes",
        "_last_payload",
        "_left",
        "_offer",
        "_server",
        "answer_begun",
        "saw_eof",
    )

    def __init__(self, server: ProxyServer, *, loop: asyncio.AbstractEventLoop, **keywords: Any) -> None:
        super().__init__(server, loop=loop, **keywords)
        self._server = server
        self._flow: Flow | None = None
        self._head_bytes = 0
        self._last_payload: StreamReader = EMPTY_PAYLOAD
        self._dropping = False
        self._offer: _Offer | None = None
        self._left: asyncio.Future[None] | None = None
        self.answer_begun = False
        self.saw_eof = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Bound what a slow reader can make us keep."""
        cast("asyncio.Transport", transport).set_write_buffer_limits(high=CLIENT_HIGH_WATER_BYTES)
        super().connection_made(transport)

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

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Hold that a client which closes or half-closes meanwhile has left: its request is cancelled at once.

        Ollama does the same for a queued request: Go cancels its context on FIN (docs/ollama.md).
        """
        if self.saw_eof:
            self._leave()
        self._left = self._loop.create_future()
        try:
            yield
        finally:
            self._left = None

    def may_stay(self) -> bool:
        """Say whether the connection may serve more requests after this one."""
        return bool(self._messages) or not (self.saw_eof or self._server.draining or self._dropping)

    def is_closing_down(self) -> bool:
        """Say whether we ourselves close this connection behind the answer under way."""
        return (self._server.draining or self._dropping) and not self._messages

    async def linger(self) -> None:
        """Send FIN, then read and drop until the client closes too, for ``LINGER_S`` at the longest."""
        transport = self.transport
        if transport is None:
            return
        self._lingering_time = 0.0  # aiohttp's own lingering would read on for 10 s
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
            if message.version is not HttpVersion11 and message.version != (1, 0):
                self._messages[position] = _error(505 if message.version[0] > 1 else 400), EMPTY_PAYLOAD
            elif message.method == "CONNECT":
                self._messages[position] = _error(405), EMPTY_PAYLOAD
            elif self._head_bytes > HEAD_LIMIT_BYTES and _head_bytes(message) > HEAD_LIMIT_BYTES:
                self._messages[position] = _error(431), EMPTY_PAYLOAD
            elif (message.chunked or message.upgrade) and (status := _misframed(message)):
                self._messages[position] = _error(status), EMPTY_PAYLOAD
            elif message.upgrade:
                self._offer = _Offer(message, data if count == 1 else b"")
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
        serving = self._waiter is None and self._request_count > 0  # the handler's task may not have begun yet
        owed = serving or bool(self._messages)
        if self._left is not None or not owed or not self._last_payload.is_eof():
            if self._left is not None and not self._left.done():
                self._left.set_result(None)
            return None
        if self._flow is not None:
            self._flow.client_finished()
        return True

    def _leave(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what cannot be parsed as Go does, and a failed handler with an error of ours.

        After the first byte of an answer nothing may follow: the connection is cut instead.
        """
        if self.answer_begun:
            if self.transport is not None:
                self.transport.abort()
            raise ConnectionError("an answer had begun") from exc
        answer = refusal_for(status, exc, message)
        if not isinstance(answer, Refusal):
            self._server.handler_failed(request, exc)
        return cast("web.StreamResponse", answer)


class _Offer:
    """A request that offers another protocol, while it is being read."""

    __slots__ = ("_chunked", "_end", "_last_bytes")

    def __init__(self, message: Any, data: bytes) -> None:
        """``data`` is the read that its head came in, with nothing in front of it; else empty: then it is unknown."""
        head = -1 if data[:1] in b"\r\n" else data.find(_BLANK_LINE)
        self._chunked = bool(message.chunked)
        self._last_bytes = b""
        self._end = -1
        if head >= 0:
            self._end = head + len(_BLANK_LINE) + int(message.headers.get("Content-Length", "0"))

    def split(self, data: bytes) -> bytes | None:
        """Return what of the next read is behind the request, if the request ends in it; None if that is unknown.

        The end of chunks is only known where a read ends with the first blank line in it.
        """
        end = self._end
        if self._chunked:
            self._end = 0
            tail = self._last_bytes + data[max(end, 0) :]
            self._last_bytes = tail[1 - len(_BLANK_LINE) :]
            return b"" if 0 <= tail.find(_BLANK_LINE) == len(tail) - len(_BLANK_LINE) else None
        self._end = end - len(data)
        return data[end:] if end >= 0 else None


def client_of(request: web.BaseRequest) -> ClientConnection:
    """Return the connection that a request came on."""
    return cast("ClientConnection", request.protocol)


def let_client_send(request: web.BaseRequest) -> None:
    """Answer ``Expect: 100-continue`` ourselves, before we read a body that upstream has not asked for yet.

    Not to HTTP/1.0, and not when the body is already there (it was sent without waiting).
    """
    message = request._message  # noqa: SLF001 - see the module's docstring
    expects = message.headers.get("Expect", "").lower() == "100-continue"
    if expects and message.version >= HttpVersion11 and not request.content.is_eof() and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def _misframed(message: Any) -> int:
    """Return the status for a body that we and Go would not see the same end of, else 0.

    Go takes chunks without any other coding, and in HTTP/1.0 it takes them for the next request (net/http:
    transferReader.parseTransferEncoding).
    """
    codings = message.headers.getall("Transfer-Encoding", ())
    if not codings:
        return 0
    if message.version is not HttpVersion11:
        return 400
    return 0 if message.chunked and len(codings) == 1 and codings[0].lower() == "chunked" else 501


def _error(status: int) -> _ErrInfo:
    return _ErrInfo(status=status, exc=ValueError(str(status)), message="")


def _head_bytes(message: Any) -> int:
    lines = sum(len(name) + len(value) + 4 for name, value in message.raw_headers)
    return int(lines + len(message.method) + len(message.path) + 12)
