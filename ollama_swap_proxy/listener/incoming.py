"""What comes on one client's connection: bytes in, requests out.

Owns the parser, the queue of pipelined requests, the limits of what comes between bodies, what comes behind an offer of
another protocol, and when the client is held. Must not serve or answer anything.

It stands on httptools (llhttp): `on_url` and what follows it are the parser's calls, made while `feed` runs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, TypeAlias

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpRequestParser

from ollama_swap_proxy.listener.answers import Refusal, unreadable
from ollama_swap_proxy.listener.content import Content
from ollama_swap_proxy.listener.request import ESCAPED, HTTP_11, VERSIONS, RequestHead
from ollama_swap_proxy.listener.screening import (
    HEAD_LIMIT_BYTES,
    HEAD_LIMIT_LINES,
    OLD_WEBSOCKET,
    is_odd_line,
    refused,
)

QUEUE_LIMIT: Final = 32
"""So many pipelined requests wait at most, and those of one piece; then the client is held until half are taken."""

PIECE_BYTES: Final = 2**15
"""How much is parsed at a time: the parser does not stop behind a request, and there may be one in 18 bytes."""

Arrival: TypeAlias = tuple[RequestHead, Content] | Refusal
"""A request's head and its body, which may still be coming; or what is said to something that cannot be read."""


class _Unacceptable(Exception):  # noqa: N818 - never leaves this module
    """Stops the parser behind a head that is refused."""

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal


class Incoming:
    """The requests that come on one connection. ``transport`` is theirs, None where there is none (any more).

    ``count`` is how many have come. ``partial_bytes`` is how much of the next one's head (or of what stands between a
    body's chunks, or behind them) has come, where it came in a read of its own. ``is_open``: more requests may come;
    after something unreadable none does.
    """

    __slots__ = (
        "_body",
        "_frame",
        "_head",
        "_is_body_held",
        "_is_full",
        "_is_stand_in",
        "_kept",
        "_line",
        "_names",
        "_parser",
        "_piece",
        "_quiet_bytes",
        "_rest",
        "_target",
        "_values",
        "count",
        "is_open",
        "partial_bytes",
        "queue",
        "transport",
    )

    def __init__(self) -> None:
        self._parser: HttpRequestParser | None = HttpRequestParser(self)
        self._target = b""
        self._names: list[bytes] = []
        self._values: list[bytes] = []
        self._head: RequestHead | None = None
        """Of a request that is not queued yet: it may still turn out to be malformed."""
        self._body: Content | None = None
        """What has come of a body, until it is whole."""
        self._frame = b""
        self._is_stand_in = False
        self._quiet_bytes = 0
        """Size of the piece that is parsed, until something is complete in it."""
        self._piece: bytes | memoryview = b""
        """What is parsed."""
        self._line = bytearray()
        """What came before it of a head, until a header has come: the request line is in it."""
        self._kept = bytearray()
        self._rest: memoryview | None = None
        self._is_full = False
        self._is_body_held = False
        self.transport: asyncio.Transport | None = None
        self.queue: deque[Arrival] = deque()
        self.is_open = True
        self.count = 0
        self.partial_bytes = 0

    def feed(self, data: bytes) -> None:
        """Queue the requests whose heads are complete with ``data``."""
        if self.partial_bytes:
            if b"\n" not in data and self.partial_bytes + len(data) <= HEAD_LIMIT_BYTES:
                # The parser joins what comes of a line: read by read that would cost the square of its length.
                self._kept += data
                self.partial_bytes += len(data)
                return
            if self._kept:
                self.partial_bytes -= len(self._kept)
                data = bytes(self._kept) + data
                self._kept.clear()
        if len(data) <= PIECE_BYTES:
            self._parse(data)
        else:
            self._parse_in_pieces(memoryview(data))

    def _parse_in_pieces(self, data: memoryview) -> None:
        while data and not self._is_full:
            self._parse(data[:PIECE_BYTES])
            data = data[PIECE_BYTES:]
        self._rest = data if self._is_full else None

    def _parse(self, data: bytes | memoryview) -> None:
        parser = self._parser
        if parser is None:
            return
        self._quiet_bytes = len(data)
        self._piece = data
        try:
            while True:
                try:
                    parser.feed_data(data)
                    break
                except HttpParserUpgrade as offer:
                    data = data[offer.args[0] :]
                    parser = self._decline(parser)
        except HttpParserError as error:
            self._give_up(_refusal_of(error))
            return
        finally:
            self._piece = b""
        if self._head is not None:
            self._body = self._body or Content(self)
            self._queue_up(self._head, self._body)
        elif self._quiet_bytes:
            self._wait(data)
        if len(self.queue) >= QUEUE_LIMIT:
            self._is_full = True
            self._hold_client()

    def _decline(self, parser: HttpRequestParser) -> HttpRequestParser:
        """Go on behind an offer of another protocol, where the parser has stopped: return the one that goes on.

        It takes no body to be there. Where there is one, a new parser reads it behind a stand-in for the offer's head.
        """
        if self._frame:
            frame, self._frame = self._frame, b""
            self._is_stand_in = True
            parser = self._parser = HttpRequestParser(self)
            parser.feed_data(frame)
        return parser

    def _wait(self, data: bytes | memoryview) -> None:
        """Count a read that completed nothing."""
        self.partial_bytes += len(data)
        if self._body is None and not self._names:
            self._line += data
        if self.partial_bytes > HEAD_LIMIT_BYTES or len(self._names) > HEAD_LIMIT_LINES:
            self._give_up(unreadable(431))

    def _queue_up(self, head: RequestHead, body: Content) -> None:
        self._head = None
        self.count += 1
        self.queue.append((head, body))

    def take(self) -> Arrival:
        """Return the next one of the queue; read on where the client was held because too many waited."""
        coming = self.queue.popleft()
        if self._is_full and len(self.queue) <= QUEUE_LIMIT // 2:
            self._is_full = False
            if self._rest is not None:
                self._parse_in_pieces(self._rest)
            self._let_client_go_on()
        return coming

    def end(self) -> None:
        """Drop from now on whatever comes."""
        self._parser = None
        self._rest = None
        self.is_open = False

    def finish(self) -> bool:
        """Note the client's FIN: a queued request whose body it cut is dropped. Return False if it cut one taken."""
        if self._body is None:
            return True
        if not self.queue:
            return False
        self.queue.pop()  # nothing is queued behind a body that still comes
        self._body = None
        return True

    def _give_up(self, refusal: Refusal) -> None:
        """End behind something that cannot be read: a body's reader hears of it, else it is refused in its turn."""
        self.end()
        head, body, self._head, self._body = self._head, self._body, None, None
        if body is None or head is not None:
            self.queue.append(refusal)
        else:
            body.fail()

    # --- the parser's calls ---

    def on_url(self, target: bytes) -> None:
        """Take a request's target, or a part of it."""
        self._target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a line of a head, or one behind a body's chunks. White space behind the value is still there."""
        self._names.append(name)
        self._values.append(value.rstrip(b" \t"))

    def on_headers_complete(self) -> None:
        """Build the head, unless it is refused: raising stops the parser."""
        parser, names, values, target = self._parser, self._names, self._values, self._target
        read_bytes, self._quiet_bytes = self.partial_bytes + self._quiet_bytes, 0
        self._names, self._values, self._target = [], [], b""
        if self._is_stand_in or parser is None:
            self._is_stand_in = False
            return
        method = parser.get_method()
        self._head = head = RequestHead(
            method.decode(),
            target.decode("utf-8", ESCAPED),
            VERSIONS[parser.get_http_version()],
            names,
            values,
            not parser.should_keep_alive(),
            parser.should_upgrade(),
        )
        fields = head.fields
        piece = self._piece
        is_plain = (
            head.version is HTTP_11
            and isinstance(piece, bytes)
            and not self._line
            and piece.startswith(target + b" HTTP/", len(method) + 1)
            and not (head.chunked or head.upgrade or read_bytes > PIECE_BYTES or OLD_WEBSOCKET in fields)
            and len(fields) == len(names)
            and target[:1] == b"/"
            and b"host" in fields
        )
        if not is_plain:
            came = b"".join((self._line, piece))
            self._line.clear()
            refusal = unreadable(400) if is_odd_line(came, method, target) else refused(head, read_bytes)
            if refusal is not None:
                raise _Unacceptable(refusal)
        self.partial_bytes = 0
        if head.upgrade:
            self._frame = _stand_in_for(head)

    def on_chunk_header(self) -> None:
        """Note that a chunk begins."""
        self._quiet_bytes = 0
        self.partial_bytes = 0

    def on_body(self, data: bytes) -> None:
        """Take a piece of a body."""
        self._quiet_bytes = 0
        if self._body is None:
            self._body = Content(self, data)
        else:
            self._body.feed(data)

    def on_message_complete(self) -> None:
        """Queue a request that was whole in one piece, or end its body."""
        if self._frame:
            return  # the parser does not know that there is a body
        body, self._body = self._body, None
        if body is not None:
            body.end()
        if self._head is not None:
            self._queue_up(self._head, body or Content(None))
        if self._names:
            self._names, self._values = [], []  # trailers
        self._quiet_bytes = 0
        self.partial_bytes = 0

    # --- what a body asks for ---

    def hold_body(self) -> None:
        """Hold the client: too much of a body waits to be read."""
        self._is_body_held = True
        self._hold_client()

    def go_on_with_body(self) -> None:
        """Let the client go on if it was held for a body."""
        if self._is_body_held:
            self._is_body_held = False
            self._let_client_go_on()

    def _hold_client(self) -> None:
        if self.transport is not None:
            self.transport.pause_reading()

    def _let_client_go_on(self) -> None:
        if not (self._is_full or self._is_body_held) and self.transport is not None:
            self.transport.resume_reading()


def _stand_in_for(head: RequestHead) -> bytes:
    """Return a head without the offer for the parser to read the body behind; nothing where there is none."""
    if head.chunked:
        framing = b"Transfer-Encoding: chunked"
    elif head.fields.get(b"content-length", b"").lstrip(b"0"):
        framing = b"Content-Length: " + head.fields[b"content-length"]
    else:
        return b""
    closing = b"Connection: close\r\n" if head.should_close else b""
    return b"POST / HTTP/1.1\r\n" + closing + framing + b"\r\n\r\n"


def _refusal_of(error: HttpParserError) -> Refusal:
    """Return what is said to what the parser has stopped at. Raises what has failed in a call of the parser's."""
    if not isinstance(error, HttpParserCallbackError):
        return unreadable(400, str(error))
    cause = error.__context__
    if isinstance(cause, _Unacceptable):
        return cause.refusal
    raise cause or error
