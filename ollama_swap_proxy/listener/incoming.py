"""What comes on one client's connection: bytes in, requests out.

Owns the parser, the queue of pipelined requests, the limits of heads, what comes behind an offer of another protocol,
and when the client is held. Must not serve or answer anything.

It stands on aiohttp's request parser, and is what that asks of a protocol: ``connected``, ``_reading_paused``,
``pause_reading`` and ``resume_reading``, which the parser's bodies call.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, TypeAlias, cast

from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser, RawRequestMessage
from aiohttp.http_writer import HttpVersion11
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestPayloadError

from ollama_swap_proxy.listener.answers import Refusal, unreadable
from ollama_swap_proxy.listener.screening import HEAD_LIMIT_BYTES, HEAD_LIMIT_LINES, refused

if TYPE_CHECKING:
    from aiohttp.base_protocol import BaseProtocol

BODY_LOW_WATER_BYTES: Final = 2**18
"""A body of which more than twice as much waits to be read holds the client, until less than this is left."""

QUEUE_LIMIT: Final = 32
"""So many pipelined requests wait at most; then the client is held until half of them have been taken."""

Arrival: TypeAlias = tuple[RawRequestMessage, StreamReader] | Refusal
"""A request's head and its body, which may still be coming; or what is said to something that cannot be read."""


class Incoming:
    """The requests that come on one connection. ``transport`` is theirs, None where there is none (any more).

    ``count`` is how many have come. ``partial_bytes`` is how much of the next one's head has come, where it came in a
    read of its own. ``is_open``: more requests may come; after something unreadable none does.
    """

    __slots__ = (
        "_body",
        "_is_full",
        "_is_offer",
        "_parser",
        "_reading_paused",
        "count",
        "is_open",
        "partial_bytes",
        "queue",
        "transport",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._parser: HttpRequestParser | None = HttpRequestParser(
            cast("BaseProtocol", self),
            loop,
            BODY_LOW_WATER_BYTES,
            max_line_size=HEAD_LIMIT_BYTES,  # the limit that counts is the one on the whole head
            max_field_size=HEAD_LIMIT_BYTES,
            max_headers=HEAD_LIMIT_LINES,
            auto_decompress=False,
            max_msg_queue_size=1,  # it stops behind each request: none is lost in front of something malformed
        )
        self._body: StreamReader | None = None
        self._is_offer = False
        self._is_full = False
        self._reading_paused = False
        self.transport: asyncio.Transport | None = None
        self.queue: deque[Arrival] = deque()
        self.is_open = True
        self.count = 0
        self.partial_bytes = 0

    def feed(self, data: bytes) -> None:
        """Queue the requests whose heads are in ``data`` or in what the parser has kept."""
        if self._parser is None:
            return
        try:
            self._parse(self._parser, data)
        except HttpProcessingError as error:
            self._give_up(400, error)

    def _parse(self, parser: HttpRequestParser, data: bytes) -> None:
        """Go from request to request: the parser stops behind each and keeps the rest.

        Behind one that offers another protocol it gives the rest back: we decline, so that is the next request.
        """
        size = len(data)
        while True:
            messages, is_behind_offer, data = parser.feed_data(data)
            if messages:
                (request,) = messages
                message, body = request
                unusual = message.version is not HttpVersion11 or message.chunked or message.upgrade
                if (unusual or self.partial_bytes) and self._refuses(message, size):
                    return
                self._body = body
                self.count += 1
                self.queue.append(request)
            elif self._body is None and not is_behind_offer:
                if size:
                    self._wait_for_head(size)
                return
            if self._body is not None:
                if not self._body.is_eof():
                    return
                self._body = None
                parser.message_consumed()
                if (self._is_offer or len(self.queue) >= QUEUE_LIMIT) and not self._goes_on(parser):
                    return
            if is_behind_offer:
                parser.set_upgraded(False)
            size = 0  # how much of what is left belongs to the next head is not known

    def _refuses(self, message: RawRequestMessage, size: int) -> bool:
        """Look closer at a request; ``size`` is that of the read in which its head ended, in bytes."""
        if status := refused(message, self.partial_bytes + size):
            self._give_up(status)
            return True
        self._is_offer = message.upgrade
        self.partial_bytes = 0
        return False

    def _wait_for_head(self, size: int) -> None:
        self.partial_bytes += size
        if self.partial_bytes > HEAD_LIMIT_BYTES:
            self._give_up(431)

    def _goes_on(self, parser: HttpRequestParser) -> bool:
        """Have the parser give back what is behind an offer; say whether there is room for another request."""
        if self._is_offer:
            self._is_offer = False
            parser.set_upgraded(True)
        if len(self.queue) >= QUEUE_LIMIT:
            self._is_full = True
            self._hold_client()
        return not self._is_full

    def take(self) -> Arrival:
        """Return the next one of the queue; read on where the client was held because too many waited."""
        coming = self.queue.popleft()
        if self._is_full and len(self.queue) <= QUEUE_LIMIT // 2:
            self._is_full = False
            self.feed(b"")
            self._let_client_go_on()
        return coming

    def end(self) -> None:
        """Drop from now on whatever comes."""
        self._parser = None
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

    def _give_up(self, status: int, error: BaseException | None = None) -> None:
        """End behind something that cannot be read: a body's reader hears of it, else it is refused in its turn."""
        self.end()
        body, self._body = self._body, None
        if body is None:
            self.queue.append(unreadable(status, error))
        else:
            body.set_exception(RequestPayloadError("malformed request body"))

    # --- what the parser and its bodies ask for ---

    @property
    def connected(self) -> bool:
        """Say whether the connection is open."""
        return self.transport is not None

    def pause_reading(self) -> None:
        """Hold the client: too much of a body waits to be read."""
        self._reading_paused = True
        self._hold_client()

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: ARG002, FBT001, FBT002 - aiohttp's own shape
        """Let the client go on if it was held for a body, which asks for it after each read and at its end."""
        if self._reading_paused:
            self._reading_paused = False
            self._let_client_go_on()

    def _hold_client(self) -> None:
        if self.transport is not None:
            self.transport.pause_reading()

    def _let_client_go_on(self) -> None:
        if not (self._is_full or self._reading_paused) and self.transport is not None:
            self.transport.resume_reading()
