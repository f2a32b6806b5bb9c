"""HTTP/1 heads and body framing as Go's net/http reads and writes them. Pure.

Owns bytes that are at rest. Must not hold a socket. Facts: the recorded heads (tests/transcripts:
root_version, routing, blobs).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus

Headers = Sequence[tuple[str, str]]
SMALL_BODY = 2048
"""Up to here Go knows the length when the head goes out; a longer body is chunked."""


class BadRequest(Exception):  # noqa: N818 - an answer, not an error of ours
    """Bytes that Go does not take for a request. ``args``: status, text."""


@dataclass(frozen=True, slots=True)
class Head:
    """A request's head. ``length`` is None for a chunked body, ``minor`` the version's digit after ``1.``."""

    method: str
    target: str
    minor: int
    headers: Headers
    length: int | None
    expects: bool
    closes: bool

    def header(self, name: str) -> str:
        """The first header of this name (lower case), or nothing."""
        return header(self.headers, name)


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer. ``body`` None: the handler wrote nothing, not even an empty body."""

    status: int
    headers: Headers = ()
    body: bytes | None = None


class BodyFraming:
    """Takes a request's body out of the bytes that arrive, one after the other."""

    def __init__(self, length: int | None) -> None:
        self.chunked = length is None
        self.left = length or 0
        """Bytes of the body, or of the chunk under way, that have not arrived."""
        self.complete = length == 0
        self._state = "size"

    def take(self, buffer: bytearray) -> bytes | None:
        """The next bytes of the body, removed from ``buffer`` with their framing; None when no more can be taken yet.

        Raises:
            BadRequest: a chunk's size that is none.
        """
        if self.complete:
            return None
        if not self.chunked:
            return self._data(buffer)
        while not self.complete:
            if self._state == "data":
                data = self._data(buffer)
                if not self.left:
                    self._state = "after"
                return data
            end = buffer.find(b"\r\n")
            if end < 0:
                return None
            self._line(bytes(buffer[:end]))
            del buffer[: end + 2]
        return b""

    def _data(self, buffer: bytearray) -> bytes | None:
        data = bytes(buffer[: self.left])
        if not data:
            return None
        del buffer[: len(data)]
        self.left -= len(data)
        self.complete = not self.chunked and self.left == 0
        return data

    def _line(self, line: bytes) -> None:
        if self._state == "trailer":
            self.complete = not line
        elif self._state == "after":
            self._state = "size"
        else:
            try:
                self.left = int(line.split(b";", 1)[0].strip(), 16)
            except ValueError:
                raise BadRequest(400, "400 Bad Request") from None
            self._state = "data" if self.left else "trailer"


def parse_head(raw: bytes) -> Head:
    """Read a head, without its empty line.

    Raises:
        BadRequest: what Go refuses.
    """
    lines = raw.decode("latin-1").split("\r\n")
    parts = lines[0].split(" ")
    if len(parts) != 3 or not parts[0] or not parts[2].startswith("HTTP/1."):
        raise BadRequest(400, "400 Bad Request")
    headers = []
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise BadRequest(400, "400 Bad Request")
        headers.append((name, value.strip(" \t")))
    minor = int(parts[2] != "HTTP/1.0")
    if minor and not any(name.lower() == "host" for name, _ in headers):
        raise BadRequest(400, "400 Bad Request: missing required Host header")
    announced = header(headers, "content-length")
    if announced and not (announced.isascii() and announced.isdigit()):
        raise BadRequest(400, "400 Bad Request")
    chunked = header(headers, "transfer-encoding").lower() == "chunked"
    length = None if chunked else int(announced or 0)
    expects = length != 0 and header(headers, "expect").lower() == "100-continue"
    tokens = header(headers, "connection").lower()
    closes = "close" in tokens if minor else "keep-alive" not in tokens
    return Head(parts[0], parts[1], minor, headers, length, expects, closes)


def header(headers: Headers, name: str) -> str:
    """The first header of this name (lower case), or nothing."""
    for key, value in headers:
        if key.lower() == name:
            return value
    return ""


def write_head(head: Head, status: int, headers: Headers, framing: Headers, *, close: bool) -> bytes:
    """An answer's head: the handler's headers in order of their names, then Date, framing, Connection."""
    lines = [f"HTTP/1.{head.minor} {status} {reason(status)}"]
    lines += [f"{name}: {value}" for name, value in sorted(headers, key=_name)]
    lines.append(f"Date: {_date()}")
    lines += [f"{name}: {value}" for name, value in framing]
    if close and head.minor:
        lines.append("Connection: close")
    elif not head.minor and not close:
        lines.append("Connection: keep-alive")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


def write_response(head: Head, response: Response, *, close: bool) -> bytes:
    """A whole answer. Go leaves the length of an unwritten body out for HEAD, 204 and 304."""
    body, framing = response.body, []
    bare = head.method == "HEAD" or response.status in {204, 304}
    if body is None:
        framing = [] if bare else [("Content-Length", "0")]
    elif len(body) <= SMALL_BODY or not head.minor:
        framing = [] if response.status in {204, 304} else [("Content-Length", str(len(body)))]
    elif not bare:
        framing = [("Transfer-Encoding", "chunked")]
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    written = write_head(head, response.status, response.headers, framing, close=close)
    return written if bare or not body else written + body


def write_refusal(status: int, text: str) -> bytes:
    """What Go answers to bytes that are no request."""
    lines = [f"HTTP/1.1 {status} {reason(status)}", "Content-Type: text/plain; charset=utf-8", "Connection: close"]
    return ("\r\n".join(lines) + f"\r\n\r\n{text}").encode()


def reason(status: int) -> str:
    """The phrase after a status."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"status code {status}"


def _name(pair: tuple[str, str]) -> str:
    return pair[0]


class _Date:
    """The Date header, made once a second."""

    def __init__(self) -> None:
        self._second = 0
        self._text = ""

    def __call__(self) -> str:
        second = int(time.time())
        if second != self._second:
            self._second, self._text = second, formatdate(second, usegmt=True)
        return self._text


_date = _Date()
