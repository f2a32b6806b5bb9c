"""One connection to upstream: the protocol that reads answers.

Owns the socket, where an answer's head and body end, and whether a connection may be used again. The parser (llhttp, by
httptools) sees every byte but only to tell those; the bytes themselves are handed on as they came. Must not know the
client, must not repeat a request, must not change a byte.
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

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from ollama_swap_proxy.upstream.heads import AnswerHead, end_of_head, end_of_last_blank

HEAD_LIMIT_BYTES: Final = 10 * 2**20
"""Largest head of an answer, with what 1xx answers came in the same read; as Go's clients take it (net/http,
Transport.MaxResponseHeaderBytes)."""

_UNASKED: Final = "it sent an answer that nobody asked for"

WRITE_HIGH_WATER_BYTES: Final = 2**18
"""How much of a request body waits in our memory for upstream before its sender is held."""


class UpstreamFailed(Exception):  # noqa: N818 - a fact in the past tense, like the core's events
    """Upstream could not be reached, or its answer broke off; the text says which, without the address."""


class AnswerSink(Protocol):
    """Who wants the answer to one request. Calls come in this order; after ``ended`` or ``broke`` there are none."""

    def interim_came(self, raw: bytes) -> None:
        """Take a whole 1xx answer."""

    def head_came(self, head: AnswerHead, raw: bytes) -> None:
        """Take the final head, with what came behind it in the same read."""

    def body_came(self, raw: bytes) -> None:
        """Take more of the body: framing and trailers included."""

    def ended(self, body_bytes: int, *, persistent: bool) -> None:
        """Note that the answer is complete. ``persistent``: upstream keeps the connection open."""

    def broke(self, reason: str) -> None:
        """Note that no more will come, although the answer is not complete."""


class UpstreamConnection(asyncio.Protocol):
    """One socket to upstream; one request at a time. ``on_...`` are its parser's calls, made while that is fed."""

    __slots__ = (
        "_body_bytes",
        "_fed_bytes",
        "_has_body",
        "_head",
        "_heads",
        "_held",
        "_is_begun",
        "_is_complete",
        "_loop",
        "_parser",
        "_persistent",
        "_poll",
        "_sink",
        "_status",
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
        self._head: AnswerHead | None = None
        self._heads: list[tuple[int, bool]] = []
        """Of those that came in the read that is parsed: status, and whether the connection stays open behind it."""
        self._status = 0
        self._body_bytes = 0
        self._is_begun = False
        self._is_complete = False
        self._held = bytearray()
        """Of a head that is not complete: all that has come, of which the parser has seen the first ``_fed_bytes``."""
        self._fed_bytes = 0
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
        self._head = None
        self._body_bytes = 0
        self._is_complete = False
        if self._parser is None or not self._has_body:  # behind a HEAD it would count on a body
            self._parser = HttpResponseParser(self)
            self._parser.set_dangerous_leniencies(
                lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
            )
        self._has_body = has_body

    def received_bytes(self) -> int:
        """Return the bytes of the answer's body so far, without framing."""
        return self._body_bytes

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
        if self._held and not (data := self._joined(data)):
            return
        seen_bytes = self._body_bytes
        try:
            parser.feed_data(data)
        except HttpParserUpgrade:
            self._break(_UNASKED)
            return
        except HttpParserError as error:
            if self._has_body or not self._heads or self._heads[-1][0] < 200:
                self._break(f"it sent what is no HTTP answer ({error})")
                return
            # It counted on a body behind an answer to HEAD; the head is whole, and what follows it is not passed on.
        if self._head is not None and not self._heads:
            if self._is_complete and self._is_begun:
                data = data[: self._end_of_answer(self._head, data, self._body_bytes - seen_bytes)]
            sink.body_came(data)
        elif not self._take_heads(sink, data):
            return
        if self._is_complete or not self._has_body:
            self._end(sink, persistent=self._persistent and not self._is_begun)

    def _joined(self, data: bytes) -> bytes:
        """Return what the parser is to see of the head that comes, nothing until a line is complete.

        The parser joins what comes of a line: read by read that would cost the square of its length.
        """
        self._held += data
        if b"\n" not in data and len(self._held) <= HEAD_LIMIT_BYTES:
            return b""
        return bytes(self._held[self._fed_bytes :])

    def _take_heads(self, sink: AnswerSink, data: bytes) -> bool:
        """Hand on the 1xx answers and the final head that ``data`` completes; say whether that one is there."""
        heads, self._heads = self._heads, []
        if not heads:
            self._hold(b"" if self._held else data)
            return False
        if self._held:
            data = bytes(self._held)
            self._held.clear()
        for number, (status, stays) in enumerate(heads, start=1):
            is_final = status >= 200
            if status == 101 or self._head is not None or (is_final and number < len(heads)):
                self._break(_UNASKED)
                return False
            data = data.lstrip(b"\r\n")  # blank lines in front of an answer are none of it
            end = end_of_head(data)
            raw = data[:end]
            if b"\0" in raw:
                self._break("it sent what is no HTTP answer (a zero byte in its head)")
                return False
            if is_final:
                self._head = head = AnswerHead(status, raw, persistent=stays)
                self._persistent = stays
                if not self._has_body:
                    self._persistent = head.says_persistent and len(data) == end
                    self._is_begun, self._body_bytes = False, 0
                    data = raw
                elif self._is_complete and self._is_begun:
                    data = data[: self._end_of_answer(head, data, end + self._body_bytes)]
                sink.head_came(head, data)
                return True
            sink.interim_came(raw)
            data = data[end:]
        self._hold(data)
        return False

    def _hold(self, data: bytes) -> None:
        """Keep a part of a head, which the parser has seen."""
        self._held += data
        self._fed_bytes = len(self._held)
        if self._fed_bytes > HEAD_LIMIT_BYTES:
            self._break("its answer's head is too large")

    @staticmethod
    def _end_of_answer(head: AnswerHead, data: bytes, counted: int) -> int:
        """Return where in ``data`` the answer ends behind which another head begins.

        ``counted`` is that for an answer without chunks. These end with a blank line (its first line feed may have
        come before), and the other head is not complete: it has none.
        """
        return end_of_last_blank(b"\n" + data) - 1 if head.is_streamed else counted

    def _end(self, sink: AnswerSink, *, persistent: bool) -> None:
        self._sink = None
        sink.ended(self._body_bytes, persistent=persistent)

    def _break(self, reason: str) -> None:
        sink = self._sink
        self.abort()
        if sink is not None:
            sink.broke(reason)

    def eof_received(self) -> None:
        """End an answer that lasts until EOF, or note that it was cut. The transport closes itself."""
        sink, head = self._sink, self._head
        if sink is None:
            return
        if head is None:
            self._break("it closed the connection without an answer")
        elif head.is_framed:
            self._break("it closed the connection in mid-answer")
        else:
            self._end(sink, persistent=False)

    # --- its parser's calls ---

    def on_message_begin(self) -> None:
        """Note that an answer begins."""
        self._is_begun = True

    def on_headers_complete(self) -> None:
        """Note what a head says."""
        if self._parser is not None:
            self._status = self._parser.get_status_code()
            self._body_bytes = 0
            self._heads.append((self._status, self._parser.should_keep_alive()))

    def on_body(self, data: bytes) -> None:
        """Count."""
        self._body_bytes += len(data)

    def on_message_complete(self) -> None:
        """Note that an answer is complete: a 1xx answer, or the final one."""
        self._is_begun = False
        self._is_complete = self._status >= 200

    def connection_lost(self, exc: BaseException | None) -> None:
        """Leave the pool; tell the sink if it was still waiting."""
        self.transport = None
        self._parser = None  # it knows us, too
        self.resume_writing()
        self._when_lost(self)
        sink, self._sink = self._sink, None
        if sink is not None:
            when = "without an answer" if self._head is None else "in mid-answer"
            sink.broke(f"the connection was lost {when} ({cause(exc)})")


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
