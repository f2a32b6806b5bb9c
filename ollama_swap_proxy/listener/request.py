"""One request as a handler sees it: its head as it came, and its body, which may still be coming.

Owns the shape, and the answer to ``Expect: 100-continue``. Must not read or judge anything.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from aiohttp.http_parser import RawRequestMessage
from aiohttp.http_writer import HttpVersion11
from aiohttp.streams import StreamReader
from multidict import CIMultiDictProxy


class Flow(Protocol):
    """Whoever writes an answer to a client and can be told to wait."""

    def hold(self) -> None:
        """Stop: the client's buffer is full."""

    def go_on(self) -> None:
        """Go on."""

    def client_finished(self) -> None:
        """Note that the client has sent FIN behind its last request: it may be gone or half-closed."""


class Client(Protocol):
    """The connection that a request came on, as whoever serves it needs it."""

    transport: asyncio.Transport | None
    address: str
    """The client's IP address, or nothing for another kind of socket."""
    answer_begun: bool
    """Set it with the first byte of an answer: from then on no other answer can follow."""
    saw_eof: bool
    """Whether the client has sent FIN."""
    was_cut: bool
    """Whether we ourselves have cut the connection."""

    def begin_flow(self, flow: Flow) -> None:
        """Let ``flow`` hear when to hold and when the client has finished, until ``end_flow``."""

    def end_flow(self) -> None:
        """Forget the flow."""

    def begin_waiting(self) -> None:
        """Hold from now on that a client which closes or half-closes has left: its request is cancelled at once."""

    def end_waiting(self) -> None:
        """End that."""

    def may_stay(self) -> bool:
        """Say whether the connection may serve more requests after this one."""

    def is_closing_down(self) -> bool:
        """Say whether we ourselves close this connection behind the answer under way."""


class ClientRequest:
    """One request. ``message`` is aiohttp's: ``method``, ``path`` (the raw target), ``version``, ``raw_headers``."""

    __slots__ = ("client", "content", "message")

    def __init__(self, message: RawRequestMessage, content: StreamReader, client: Client) -> None:
        self.message = message
        self.content = content
        self.client = client

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        """Return the headers, to be looked up in any case."""
        return self.message.headers

    @property
    def content_length(self) -> int:
        """Return the announced size of the body in bytes, 0 where none is: the parser has seen that it is a number."""
        return int(self.message.headers.get("Content-Length", "0"))

    def let_client_send(self) -> None:
        """Answer ``Expect: 100-continue`` ourselves, before we read a body that upstream has not asked for yet.

        Not to HTTP/1.0, and not when the body is already there (it was sent without waiting).
        """
        message, transport = self.message, self.client.transport
        expects = message.headers.get("Expect", "").lower() == "100-continue"
        if expects and message.version >= HttpVersion11 and not self.content.is_eof() and transport is not None:
            transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
