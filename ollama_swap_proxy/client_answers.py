"""What a handler returns: an answer already relayed, an answer of our own, or a refusal in Go's words.

Owns the bytes of answers that do not come from upstream, and whether a client's connection outlives its answer. Must
not decide that an answer is due. These classes have what aiohttp's RequestHandler asks of a response (``prepare``,
``write_eof``, ``keep_alive``, ``status``, ``body_length``) and nothing else, so that no header is added behind our
back.
"""

from __future__ import annotations

from collections.abc import Sequence
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Protocol, cast

from aiohttp import web
from aiohttp.http_writer import HttpVersion11
from aiohttp.web_protocol import RequestPayloadError

from ollama_swap_proxy.errors import Dialect, ProxyError

if TYPE_CHECKING:
    from ollama_swap_proxy.http_server import ClientConnection


_BODILESS: Final = (204, 304)


class Answer(Protocol):
    """What aiohttp's RequestHandler asks of a response."""

    status: int
    body_length: int

    @property
    def keep_alive(self) -> bool:
        """Say whether the connection stays open behind this answer."""

    async def prepare(self, request: web.BaseRequest) -> None:
        """Write the head, and here the body too."""

    async def write_eof(self) -> None:
        """Do what is to be done behind the last byte."""


class Relayed:
    """Upstream's answer, already written to the client byte for byte (or cut, where upstream cut it)."""

    __slots__ = ("_client", "_persistent", "_unread", "body_length", "status")

    def __init__(
        self, client: ClientConnection, *, status: int, body_length: int, persistent: bool, unread: bool = False
    ) -> None:
        """``persistent``: neither side said close. ``unread``: the client is still sending a body nobody wants."""
        self._client = client
        self._persistent = persistent
        self._unread = unread
        self.status = status
        self.body_length = body_length

    @property
    def keep_alive(self) -> bool:
        """Mirror upstream, unless the client or our own stop ends the connection."""
        return self._persistent and self._client.may_stay()

    async def prepare(self, request: web.BaseRequest) -> None:
        """Do nothing: it is written."""

    async def write_eof(self) -> None:
        """Let the client read the answer although it is still sending."""
        if self._unread and not self._persistent:
            await self._client.linger()


class OwnAnswer:
    """An answer of ours. ``headers`` are written as given; Date, Content-Length and Connection are added to them."""

    __slots__ = ("_client", "_persistent", "_unread", "body", "body_length", "headers", "status")

    def __init__(self, status: int, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.body_length = 0
        self._client: ClientConnection | None = None
        self._persistent = False
        self._unread = False

    @classmethod
    def of_error(cls, error: ProxyError, dialect: Dialect = Dialect.NATIVE) -> OwnAnswer:
        """Return an error of ours in the caller's dialect."""
        return cls(error.status, error.headers(), error.body(dialect))

    @property
    def keep_alive(self) -> bool:
        """Stay open if the client wants to, and if all of its request was read."""
        return self._persistent and self._client is not None and self._client.may_stay()

    async def prepare(self, request: web.BaseRequest) -> None:
        """Write the whole answer: in the request's HTTP version as Go does, without a body where there can be none."""
        message = request._message  # noqa: SLF001 - see http_server's docstring
        self._client = cast("ClientConnection", request.protocol)
        self._unread = not request.content.is_eof()
        self._persistent = not message.should_close and not self._unread
        body = b"" if message.method == "HEAD" or self.status in _BODILESS else self.body
        self.body_length = len(body)
        if request.transport is not None:
            request.transport.write(self._head(modern=message.version >= HttpVersion11) + body)

    def _head(self, *, modern: bool) -> bytes:
        lines = [f"HTTP/1.{1 if modern else 0} {self.status} {_phrase(self.status)}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        lines.append(f"Date: {formatdate(usegmt=True)}")
        if self.status not in _BODILESS:
            lines.append(f"Content-Length: {len(self.body)}")
        if not self.keep_alive:
            lines += ["Connection: close"] if modern else []
        elif not modern:
            lines.append("Connection: keep-alive")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")

    async def write_eof(self) -> None:
        """Let the client read the answer although it is still sending."""
        if self._unread and self._client is not None:
            await self._client.linger()


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


class Refusal:
    """A request that never got as far as a handler, refused byte for byte as Go's server does it; then closed."""

    __slots__ = ("_client", "body_length", "raw", "status")

    keep_alive = False

    def __init__(self, status: int, reason: str = "", *, text: str = "") -> None:
        """``reason`` follows the phrase on the status line and in the body (net/http: statusError)."""
        phrase = f"{status} {_phrase(status)}"
        if reason:
            phrase = f"{phrase}: {reason}"
        kind = "Content-Type: text/plain; charset=utf-8\r\nConnection: close"
        self.raw = f"HTTP/1.1 {phrase}\r\n{kind}\r\n\r\n{text or phrase}".encode()
        self.status = status
        self.body_length = len(text or phrase)
        self._client: ClientConnection | None = None

    async def prepare(self, request: web.BaseRequest) -> None:
        """Write it."""
        self._client = cast("ClientConnection", request.protocol)
        if request.transport is not None:
            request.transport.write(self.raw)

    async def write_eof(self) -> None:
        """Let the client read it although it may still be sending."""
        if self._client is not None:
            await self._client.linger()


_TEXTS: Final = {
    405: ("", "405 method not allowed"),  # gin's words (routing.json); CONNECT has no meaning to Ollama
    501: ("", "Unsupported transfer encoding"),
    505: ("unsupported protocol version", ""),
}
"""Reason and body of what the connection itself refuses."""

_REASONS: Final = (
    ("Missing 'Host'", 400, "missing required Host header", ""),
    ("Invalid HTTP version", 505, "unsupported protocol version", ""),
    ("Transfer-Encoding", 501, "", "Unsupported transfer encoding"),
    ("Got more than", 431, "", ""),
    ("Too many headers", 431, "", ""),
)
"""Where Go's server says more than "400 Bad Request" (net/http, server.go, conn.serve and readRequest): what the
parser's text contains, and the status, reason and body that Go gives."""


def refusal_for(status: int, exc: BaseException | None, message: str | None) -> Refusal | OwnAnswer:
    """Return the answer to a request that could not be parsed, or whose handler failed.

    ``status`` is aiohttp's: 500 and 504 for a handler's exception, else a parse error's (always 400) or one of ours.
    """
    if status in _TEXTS:
        reason, body = _TEXTS[status]
        return Refusal(status, reason, text=body)
    if isinstance(exc, RequestPayloadError):
        return Refusal(400)
    if status in (500, 504):
        error = (
            exc if isinstance(exc, ProxyError) else ProxyError("internal_error", 500, "the proxy failed; see its log")
        )
        return OwnAnswer.of_error(error)
    text = f"{message or ''} {exc or ''}"
    for contained, its_status, reason, body in _REASONS:
        if contained in text:
            return Refusal(its_status, reason, text=body)
    return Refusal(status)
