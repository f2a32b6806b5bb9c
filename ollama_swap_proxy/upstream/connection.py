"""One connection to upstream: the protocol that reads answers.

Owns the socket, where an answer's head and body end, and whether a connection may be used again. aiohttp's parser
sees every byte but only to tell those; the bytes themselves are handed on as they came. Must not know the client,
must not repeat a request, must not change a byte.
"""

from __future__ import annotations

import asyncio
import errno
import re
import select
import socket
import ssl
from collections.abc import Callable
from typing import Final, Protocol, cast

from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpResponseParser, RawResponseMessage
from aiohttp.http_writer import HttpVersion11
from aiohttp.streams import StreamReader

from ollama_swap_proxy.upstream.heads import end_of_head

HEAD_LIMIT_BYTES: Final = 2**20
"""Longest line of an answer's head; Go's clients take 1 MiB (net/http, Transport.MaxResponseHeaderBytes is 10 MiB)."""

HEAD_LIMIT_LINES: Final = 10_000
"""Most header lines of an answer."""

WRITE_HIGH_WATER_BYTES: Final = 2**18
"""How much of a request body waits in our memory for upstream before its sender is held."""


class UpstreamFailed(Exception):  # noqa: N818 - a fact in the past tense, like the core's events
    """Upstream could not be reached, or its answer broke off; the text says which, without the address."""


class AnswerSink(Protocol):
    """Who wants the answer to one request. Calls come in this order; after ``ended`` or ``broke`` there are none."""

    def interim_came(self, raw: bytes) -> None:
        """Take a whole 1xx answer."""

    def head_came(self, message: RawResponseMessage, raw: bytes) -> None:
        """Take the final head, with what came behind it in the same read."""

    def body_came(self, raw: bytes) -> None:
        """Take more of the body: framing and trailers included."""

    def ended(self, body_bytes: int, *, persistent: bool) -> None:
        """Note that the answer is complete. ``persistent``: upstream keeps the connection open."""

    def broke(self, reason: str) -> None:
        """Note that no more will come, although the answer is not complete."""


class _NoFlowControl:
    """What aiohttp's payload asks of its protocol; we empty it after each read, so there is nothing to control."""

    __slots__ = ()
    _reading_paused = False

    def pause_reading(self) -> None:
        """Do nothing: the flow is controlled by the client's transport, not by the parser's copy."""

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002 - aiohttp's own shape
        """Do nothing, as above."""


_NO_FLOW_CONTROL: Final = cast("BaseProtocol", _NoFlowControl())


class UpstreamConnection(asyncio.Protocol):
    """One socket to upstream; one request at a time."""

    __slots__ = (
        "_has_body",
        "_held",
        "_loop",
        "_parser",
        "_payload",
        "_persistent",
        "_poll",
        "_sink",
        "_when_lost",
        "_writable",
        "idle_since",
        "reading_held",
        "transport",
        "write_paused",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, when_lost: Callable[[UpstreamConnection], None]) -> None:
        self._when_lost = when_lost
        self._loop = loop
        self._sink: AnswerSink | None = None
        self._parser: HttpResponseParser | None = None
        self._payload: StreamReader | None = None
        self._held = b""
        self._has_body = True
        self._persistent = False
        self.write_paused = False
        self._writable: asyncio.Future[None] | None = None
        self._poll: select.poll | None = None
        self.idle_since = 0.0
        self.reading_held = False
        self.transport: asyncio.Transport | None = None

    def ask(self, data: bytes, sink: AnswerSink, *, has_body: bool) -> None:
        """Send a request, or its beginning; ``sink`` takes its answer. ``has_body`` is False for HEAD."""
        if self.transport is not None:
            self.transport.write(data)
        # All else comes behind the write: upstream is at work meanwhile.
        self._sink = sink
        self._payload = None
        self._held = b""
        if self._parser is not None and has_body and self._has_body:
            return  # it is behind a complete answer, and ready for the next
        self._has_body = has_body
        self._parser = HttpResponseParser(
            _NO_FLOW_CONTROL,
            self._loop,
            HEAD_LIMIT_BYTES,
            max_line_size=HEAD_LIMIT_BYTES,
            max_field_size=HEAD_LIMIT_BYTES,
            max_headers=HEAD_LIMIT_LINES,
            response_with_body=has_body,
            read_until_eof=True,
            auto_decompress=False,
        )

    def received_bytes(self) -> int:
        """Return the bytes of the answer's body so far, without framing."""
        return 0 if self._payload is None else self._payload.total_bytes

    def write(self, data: bytes) -> None:
        """Send more of the request; it waits in memory when the socket is full (see ``writable``)."""
        if self.transport is not None:
            self.transport.write(data)

    async def writable(self) -> None:
        """Wait until upstream takes more. Returns at once when it does, and when the connection is gone."""
        while self.write_paused and self.transport is not None:
            if self._writable is None:
                self._writable = self._loop.create_future()
            await self._writable

    def finish_writing(self) -> None:
        """Send FIN behind what was written: the client has done so too."""
        if self.transport is not None and self.transport.can_write_eof():
            self.transport.write_eof()

    def hold_reading(self) -> None:
        """Read no more of the answer for now: its client is slow."""
        self.reading_held = True
        if self.transport is not None:
            self.transport.pause_reading()

    def go_on_reading(self) -> None:
        """Read again."""
        self.reading_held = False
        if self.transport is not None:
            self.transport.resume_reading()

    def is_surely_alive(self) -> bool:
        """Say whether an idle connection can take a request: neither closed nor with anything to read, not even EOF."""
        if self.transport is None or self.transport.is_closing():
            return False
        if self._poll is None:
            self._poll = select.poll()
            sock: socket.socket = self.transport.get_extra_info("socket")
            self._poll.register(sock.fileno(), select.POLLIN)
        return not self._poll.poll(0)

    def abort(self) -> None:
        """Close at once, whatever is unsent or unread. The sink hears nothing more."""
        self._sink = None
        if self.transport is not None:
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport (asyncio has switched Nagle's algorithm off already)."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=WRITE_HIGH_WATER_BYTES)

    def pause_writing(self) -> None:
        """Note that upstream takes no more for now."""
        self.write_paused = True

    def resume_writing(self) -> None:
        """Wake the sender."""
        self.write_paused = False
        waiter, self._writable = self._writable, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Hand the bytes to the sink; the parser says what they are."""
        sink, parser = self._sink, self._parser
        if sink is None or parser is None:
            self.abort()  # bytes that nobody asked for: whose answer they are is unknowable
            return
        try:
            messages, _, _ = parser.feed_data(data)
        except HttpProcessingError as error:
            self._break(f"it sent what is no HTTP answer ({type(error).__name__})")
            return
        payload = self._payload
        if payload is not None and not messages:
            sink.body_came(data)
        else:
            if self._held:
                data, self._held = self._held + data, b""
            payload = self._take_messages(sink, messages, data)
            if payload is None:
                return
        if payload.is_eof():
            self._persistent = self._persistent and _is_at_rest(parser)
            self._end(sink, payload.total_bytes)
        else:
            payload.read_nowait()  # the parser's copy: not needed, and it would grow

    def _take_messages(
        self, sink: AnswerSink, messages: list[tuple[RawResponseMessage, StreamReader]], data: bytes
    ) -> StreamReader | None:
        """Hand on the 1xx answers and the final head in ``data``; return the final one's payload, or None if not
        there.
        """
        for number, (message, payload) in enumerate(messages, start=1):
            final = message.code >= 200
            if message.code == 101 or self._payload is not None or (final and number < len(messages)):
                self._break("it sent an answer that nobody asked for")
                return None
            if final:
                self._payload = payload
                self._persistent = not message.should_close if self._has_body else _keeps_after_head(message)
                sink.head_came(message, data)
                return payload
            end = end_of_head(data)
            sink.interim_came(data[:end])
            data = data[end:]
        self._held = data
        return None

    def _end(self, sink: AnswerSink, body_bytes: int) -> None:
        self._sink = None
        sink.ended(body_bytes, persistent=self._persistent)

    def _break(self, reason: str) -> None:
        sink = self._sink
        self.abort()
        if sink is not None:
            sink.broke(reason)

    def eof_received(self) -> None:
        """End an answer that lasts until EOF, or note that it was cut. The transport closes itself."""
        sink, payload, parser = self._sink, self._payload, self._parser
        if sink is None or parser is None:
            return
        if payload is None:
            self._break("it closed the connection without an answer")
            return
        try:
            parser.feed_eof()
        except HttpProcessingError:
            self._break("it closed the connection in mid-answer")
            return
        self._persistent = False
        self._end(sink, payload.total_bytes)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Leave the pool; tell the sink if it was still waiting."""
        self.transport = None
        self.resume_writing()
        self._when_lost(self)
        sink, self._sink = self._sink, None
        if sink is not None:
            when = "without an answer" if self._payload is None else "in mid-answer"
            sink.broke(f"the connection was lost {when} ({cause(exc)})")


def _is_at_rest(parser: HttpResponseParser) -> bool:
    """Say whether nothing came behind the answer's end: the beginning of another one would be lost, and break it."""
    try:
        return parser.feed_eof() is None
    except HttpProcessingError:
        return False


def _keeps_after_head(message: RawResponseMessage) -> bool:
    """Say whether upstream keeps the connection after a HEAD: the parser would count on a body that never comes."""
    tokens = [token.strip().lower() for token in ",".join(message.headers.getall("Connection", ())).split(",")]
    return "close" not in tokens and (message.version >= HttpVersion11 or "keep-alive" in tokens)


def cause(exc: BaseException | None) -> str:
    """Name what went wrong in words that no client takes for a missing server (see errors.py)."""
    if isinstance(exc, socket.gaierror):
        return "its name is not known"
    if isinstance(exc, ssl.SSLError):
        return f"TLS failed: {exc.reason}"
    number = exc.errno if isinstance(exc, OSError) else None
    if number is None and (several := re.search(r"\[Errno (\d+)\]", str(exc))):
        number = int(several[1])  # asyncio tried more than one address and only kept the texts
    if number == errno.ECONNREFUSED:
        return "nothing listens there"
    if number is None:
        return type(exc).__name__ if exc is not None else "closed"
    return errno.errorcode.get(number, f"error {number}")
