"""What a handler returns: an answer already relayed, an answer of our own, or a refusal in Go's words.

Owns the bytes of answers that do not come from upstream, and whether a client's connection outlives its answer. Must
not decide that an answer is due.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from email.utils import formatdate
from http import HTTPStatus
from typing import Final, Protocol

from ollama_swap_proxy.errors import Dialect, ProxyError
from ollama_swap_proxy.listener.request import HTTP_11, Client, ClientRequest

_BODILESS: Final = (204, 304)


class Answer(Protocol):
    """What a client's connection asks of an answer.

    ``persistent``: neither side wants the connection closed behind it. ``lingers``: the client may still be sending, so
    it is heard out before the connection closes, and can read the answer. Both are asked for once it has been sent.
    """

    persistent: bool
    lingers: bool

    def send(self, client: Client, request: ClientRequest | None) -> None:
        """Write what has not been written yet. The request is None where it could not be read."""


Handler = Callable[[ClientRequest], Awaitable[Answer]]


class Relayed:
    """Upstream's answer, already written to the client byte for byte (or cut, where upstream cut it)."""

    __slots__ = ("lingers", "persistent")

    def __init__(self, *, persistent: bool, unread: bool = False) -> None:
        """``unread``: the client is still sending a body nobody wants."""
        self.persistent = persistent
        self.lingers = unread and not persistent

    def send(self, client: Client, request: ClientRequest | None) -> None:
        """Do nothing: it is written."""


class OwnAnswer:
    """An answer of ours. ``headers`` are written as given; Date, Content-Length and Connection are added to them."""

    __slots__ = ("body", "headers", "lingers", "persistent", "status")

    def __init__(self, status: int, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.persistent = False
        self.lingers = False

    @classmethod
    def of_error(cls, error: ProxyError, dialect: Dialect = Dialect.NATIVE) -> OwnAnswer:
        """Return an error of ours in the caller's dialect."""
        return cls(error.status, error.headers(), error.body(dialect))

    def send(self, client: Client, request: ClientRequest | None) -> None:
        """Write the whole answer: in the request's HTTP version as Go does, without a body where there can be none."""
        modern, body = True, self.body
        if request is not None:
            message = request.message
            self.lingers = not request.content.is_eof()
            self.persistent = not message.should_close and not self.lingers
            modern = message.version >= HTTP_11
            body = b"" if message.method == "HEAD" or self.status in _BODILESS else body
        head = self._head(modern=modern, stays=self.persistent and client.may_stay())
        if client.transport is not None:
            client.transport.write(head + body)

    def _head(self, *, modern: bool, stays: bool) -> bytes:
        lines = [f"HTTP/1.{1 if modern else 0} {self.status} {_phrase(self.status)}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        lines.append(f"Date: {formatdate(usegmt=True)}")
        if self.status not in _BODILESS:
            lines.append(f"Content-Length: {len(self.body)}")
        if not stays:
            lines += ["Connection: close"] if modern else []
        elif not modern:
            lines.append("Connection: keep-alive")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


class Refusal:
    """A request that never got as far as a handler, refused byte for byte as Go's server does it; then closed."""

    __slots__ = ("raw",)

    persistent = False
    lingers = True

    def __init__(self, status: int, reason: str = "", *, text: str = "") -> None:
        """``reason`` follows the phrase on the status line and in the body (net/http: statusError)."""
        phrase = f"{status} {_phrase(status)}"
        if reason:
            phrase = f"{phrase}: {reason}"
        kind = "Content-Type: text/plain; charset=utf-8\r\nConnection: close"
        self.raw = f"HTTP/1.1 {phrase}\r\n{kind}\r\n\r\n{text or phrase}".encode()

    def send(self, client: Client, request: ClientRequest | None) -> None:  # noqa: ARG002 - an answer's shape
        """Write it."""
        if client.transport is not None:
            client.transport.write(self.raw)


_TEXTS: Final = {
    405: ("", "405 method not allowed"),  # gin's words (routing.json); CONNECT has no meaning to Ollama
    501: ("", "Unsupported transfer encoding"),
    505: ("unsupported protocol version", ""),
}
"""Reason and body of what the connection itself refuses."""

_MEANT: Final = (("Invalid HTTP version", 505), ("Transfer-Encoding", 501))
"""Where Go's server says more than "400 Bad Request" to what the parser refuses (net/http, server.go, conn.serve and
readRequest): what the parser's text contains, and the status."""


def unreadable(status: int, text: str = "") -> Refusal:
    """Return the answer to a request that could not be read: ``status`` is ours, or 400 for the parser's ``text``."""
    status = next((meant for contained, meant in _MEANT if contained in text), status)
    reason, body = _TEXTS.get(status, ("", ""))
    return Refusal(status, reason, text=body)


def failed(error: BaseException) -> OwnAnswer:
    """Return the answer to a request whose handler failed."""
    ours = (
        error if isinstance(error, ProxyError) else ProxyError("internal_error", 500, "the proxy failed; see its log")
    )
    return OwnAnswer.of_error(ours)
