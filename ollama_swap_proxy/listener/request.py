"""One request as a handler sees it: its head as it came, and its body, which may still be coming.

Owns the shapes, and the answer to ``Expect: 100-continue``. Must not read or judge anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final, Protocol, TypeAlias

from multidict import CIMultiDict, CIMultiDictProxy

from ollama_swap_proxy.listener.content import Content

Version: TypeAlias = tuple[int, int]

HTTP_10: Final[Version] = (1, 0)
HTTP_11: Final[Version] = (1, 1)

VERSIONS: Final[Mapping[str, Version]] = {"0.9": (0, 9), "1.0": HTTP_10, "1.1": HTTP_11, "2.0": (2, 0)}
"""All that the parser lets pass, by its name for them: a version may be compared by identity."""


ESCAPED: Final = "surrogateescape"


class RequestHead:
    """A request's head. ``path`` is the raw target; encoded with surrogateescape it gives its bytes back.

    Its lines are in two lists, ``names`` and ``values``, as they came but for white space around the values.
    ``lower_names`` are the names in lower case; ``fields`` the values by these, of several with one name the last.
    ``should_close``: the client wants the connection closed behind the answer. ``chunked`` is the body's framing,
    ``upgrade`` an offer of another protocol.
    """

    __slots__ = (
        "_headers",
        "chunked",
        "fields",
        "lower_names",
        "method",
        "names",
        "path",
        "should_close",
        "upgrade",
        "values",
        "version",
    )

    def __init__(  # noqa: PLR0917 - one is built for each request: keywords cost
        self,
        method: str,
        path: str,
        version: Version,
        names: list[bytes],
        values: list[bytes],
        should_close: bool = False,  # noqa: FBT001, FBT002 - as above
        upgrade: bool = False,  # noqa: FBT001, FBT002 - as above
    ) -> None:
        self.method = method
        self.path = path
        self.version = version
        self.names = names
        self.values = values
        self.lower_names = in_lower_case(names)
        self.fields = fields = dict(zip(self.lower_names, values))  # noqa: B905 - of one length, by the parser
        self.should_close = should_close
        self.chunked = b"transfer-encoding" in fields
        self.upgrade = upgrade
        self._headers: CIMultiDictProxy[str] | None = None

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        """Return the headers, to be looked up in any case; all of one name, too. Built when it is first asked for."""
        if self._headers is None:
            lines = zip(self.names, self.values, strict=True)
            decoded = [(name.decode("ascii"), value.decode("utf-8", ESCAPED)) for name, value in lines]
            self._headers = CIMultiDictProxy(CIMultiDict(decoded))
        return self._headers

    @property
    def host(self) -> str:
        """Return the Host, or nothing."""
        return self.fields.get(b"host", b"").decode("utf-8", ESCAPED)


def in_lower_case(names: list[bytes]) -> list[bytes]:
    """Return names of headers in lower case: in one go, for to call for each costs more than the work."""
    return b"\n".join(names).lower().split(b"\n") if names else []


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
    """One request: its head (``message``), its body, and whose it is."""

    __slots__ = ("client", "content", "message")

    def __init__(self, message: RequestHead, content: Content, client: Client) -> None:
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
        return int(self.message.fields.get(b"content-length", b"0"))

    def let_client_send(self) -> None:
        """Answer ``Expect: 100-continue`` ourselves, before we read a body that upstream has not asked for yet.

        Not to HTTP/1.0, and not when the body is already there (it was sent without waiting).
        """
        message, transport = self.message, self.client.transport
        expects = message.fields.get(b"expect", b"").lower() == b"100-continue"
        if expects and message.version >= HTTP_11 and not self.content.is_eof() and transport is not None:
            transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
