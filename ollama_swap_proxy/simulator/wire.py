"""HTTP/1 on a socket as Go's net/http speaks it: heads, bodies, framing, early answers, clients that leave.

Owns bytes and connections. Must not know any path. Facts: semantics sections 1 and 12 ("POST /api/blobs"), and the
recorded heads (tests/transcripts: root_version, routing, blobs). Written on asyncio's protocols: nothing stands between
the socket and what a handler writes, and a light answer costs no task.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import unquote

Headers = Sequence[tuple[str, str]]
HEAD_LIMIT = (1 << 20) + 4096
UNREAD_LIMIT = 256 << 10
"""Go reads so much of a body that nobody wanted before it answers; if more is left it answers at once and closes."""
BUFFERED_LIMIT = 1 << 20
SMALL_BODY = 2048
"""Up to here Go knows the length when the head goes out; a longer body is chunked."""
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer. ``body`` None: the handler wrote nothing, not even an empty body."""

    status: int
    headers: Headers = ()
    body: bytes | None = None


class ClientLeft(Exception):  # noqa: N818 - an event, not an error of ours
    """The connection ended while a body was read or a stream was written."""


class BadRequest(Exception):  # noqa: N818
    """Bytes that Go does not take for a request. ``args``: status, text."""


@dataclass(slots=True, eq=False)
class Request:
    """One request; its body is read by `read` or `read_some`, never before a handler asks."""

    method: str
    target: str
    minor: int
    headers: Headers
    connection: Connection
    expects: bool = False
    length: int | None = 0
    """Announced length, None for chunked."""
    arrived: deque[bytes] = field(default_factory=deque)
    buffered: int = 0
    complete: bool = True

    @property
    def path(self) -> str:
        """The decoded path, which is what Ollama routes by."""
        raw = self.target.split("?", 1)[0]
        return unquote(raw) if "%" in raw else raw

    @property
    def query(self) -> str:
        """What follows the question mark, with it."""
        mark = self.target.find("?")
        return "" if mark < 0 else self.target[mark:]

    def header(self, name: str) -> str:
        """The first header of this name (lower case), or nothing."""
        for key, value in self.headers:
            if key.lower() == name:
                return value
        return ""

    async def read_some(self) -> bytes:
        """The next bytes of the body; empty at its end.

        Raises:
            ClientLeft: the connection ended first.
        """
        if self.expects and not self.complete and not self.arrived:
            self.expects = False
            self.connection.write(_CONTINUE)
        while not self.arrived:
            if self.complete:
                return b""
            await self.connection.wait_for_body()
        data = self.arrived.popleft()
        self.buffered -= len(data)
        self.connection.room_again()
        return data

    async def read(self) -> bytes:
        """The whole body.

        Raises:
            ClientLeft: the connection ended first.
        """
        if self.complete and len(self.arrived) < 2:
            return self.arrived.popleft() if self.arrived else b""
        parts = []
        while data := await self.read_some():
            parts.append(data)
        return b"".join(parts)


Handler = Callable[[Request], Response | Coroutine[Any, Any, None]]
"""A light request is answered at once; any other gets a task that writes to its `Connection` and is cancelled when the
client leaves."""


class Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, handler: Handler, open_connections: set[Connection]) -> None:
        self._handler = handler
        self._open = open_connections
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._request: Request | None = None
        self._chunk_left = 0
        self._chunk_state = "size"
        self._task: asyncio.Task[None] | None = None
        self._body_waiter: asyncio.Future[None] | None = None
        self._write_waiter: asyncio.Future[None] | None = None
        self._close_after = False
        self._chunked = False
        self._paused = False
        self._lost = asyncio.Event()

    # ---- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody connected."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by class
        self._open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone: so is the reason for whatever its handler does."""
        del exc
        self._open.discard(self)
        self._lost.set()
        self._transport = None
        for waiter in (self._body_waiter, self._write_waiter):
            if waiter is not None and not waiter.done():
                waiter.set_exception(ClientLeft())
        if self._task is not None:
            self._task.cancel()

    def eof_received(self) -> bool:
        """A half-close ends a request's context in Go too."""
        if self._task is not None:
            self._task.cancel()
        return False

    def data_received(self, data: bytes) -> None:
        """Bytes: of the request under way, of its body, or of the next one."""
        self._buffer += data
        self._advance()

    def pause_writing(self) -> None:
        """The client reads slowly."""
        self._write_waiter = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """The client caught up."""
        if self._write_waiter is not None and not self._write_waiter.done():
            self._write_waiter.set_result(None)
        self._write_waiter = None

    # ---- the handler's side

    def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        if self._transport is not None:
            self._transport.write(data)

    def abort(self) -> None:
        """Cut the connection without a word."""
        if self._transport is not None:
            self._transport.abort()

    async def cut(self) -> None:
        """Abort, and wait until the handler has noticed."""
        task = self._task
        self.abort()
        if task is not None:
            await asyncio.wait({task})
        await self._lost.wait()

    async def wait_for_body(self) -> None:
        """Until more of the body is there, or its end."""
        if self._transport is None:
            raise ClientLeft
        self._body_waiter = asyncio.get_running_loop().create_future()
        await self._body_waiter

    def room_again(self) -> None:
        """A handler took some of the body."""
        request = self._request
        if self._paused and self._transport is not None and request is not None and request.buffered < BUFFERED_LIMIT:
            self._paused = False
            self._transport.resume_reading()
        self._advance()

    async def answer(self, response: Response) -> None:
        """Send a whole answer, after Go's fashion of dealing with an unread body."""
        if self._request is not None and not self._request.complete:
            await self._settle_body(self._request)
        self._send(response)

    async def start_stream(self, status: int, headers: Headers) -> None:
        """Send the head of a stream; then `chunk` and `end_stream`."""
        request = self._request
        if request is None:
            raise ClientLeft
        if not request.complete:
            await self._settle_body(request)
        self._chunked = request.minor >= 1
        if not self._chunked:
            self._close_after = True
        framing = [("Transfer-Encoding", "chunked")] if self._chunked else []
        self.write(self._head(request, status, headers, framing))

    async def chunk(self, data: bytes) -> None:
        """Send one chunk and flush it; waits while the client reads too slowly.

        Raises:
            ClientLeft: the connection is gone.
        """
        if self._transport is None:
            raise ClientLeft
        self.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        if self._write_waiter is not None:
            await self._write_waiter

    def end_stream(self) -> None:
        """The proper end of a stream."""
        if self._chunked:
            self.write(b"0\r\n\r\n")

    # ---- inside

    def _advance(self) -> None:
        while self._transport is not None:
            if self._request is None:
                if not self._begin():
                    return
            elif self._request.complete or not self._take_body(self._request):
                self._hold_back()
                return

    def _hold_back(self) -> None:
        """Stop reading when a body is not taken, or a client pipelines without end."""
        waiting = len(self._buffer) + (self._request.buffered if self._request else 0)
        if waiting > BUFFERED_LIMIT and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def _begin(self) -> bool:
        """Take the next request's head, and answer it if that can be done at once. False: not all of it is there."""
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > HEAD_LIMIT:
                self._refuse(431, "431 Request Header Fields Too Large")
            return False
        try:
            request = _parse_head(bytes(self._buffer[:end]), self)
        except BadRequest as problem:
            self._refuse(*problem.args)
            return False
        del self._buffer[: end + 4]
        self._request, self._chunk_state, self._close_after = request, "size", _wants_close(request)
        self._take_body(request)
        outcome = self._handler(request)
        if isinstance(outcome, Response):
            if request.complete:
                self._send(outcome)
                self._finish()
                return True
            outcome = self.answer(outcome)
        self._task = asyncio.get_running_loop().create_task(self._run(outcome))
        return False

    async def _run(self, work: Awaitable[None]) -> None:
        try:
            await work
        except (ClientLeft, asyncio.CancelledError):
            # Whoever is gone needs no answer; a server that stops cuts its connections itself.
            self.abort()
            return
        except Exception:
            # A panic in one of Go's handlers is a 500 without a body; here it is a defect of the simulator.
            logging.getLogger(__name__).exception("a handler failed")
            await self.answer(Response(500))
        finally:
            self._task = None
        self._finish()
        self._advance()

    def _finish(self) -> None:
        request, self._request = self._request, None
        if self._transport is None:
            return
        if self._close_after or (request is not None and not request.complete):
            self._transport.close()
        elif self._paused:
            self._paused = False
            self._transport.resume_reading()

    async def _settle_body(self, request: Request) -> None:
        """Before the head of an answer: read the rest of a small body, give up on a large one."""
        taken = 0
        while not request.complete:
            announced = 0 if request.length is None else self._chunk_left + request.buffered
            if request.expects or max(announced, taken) >= UNREAD_LIMIT:
                self._close_after = True
                return
            taken += len(await request.read_some())

    def _take_body(self, request: Request) -> bool:
        """Move body bytes from the buffer to the request. False: no more are there."""
        moved = False
        if request.length is not None:
            moved = self._take_sized(request)
        elif not request.complete:
            while not request.complete and self._take_chunked(request):
                moved = True
        if moved and self._body_waiter is not None and not self._body_waiter.done():
            self._body_waiter.set_result(None)
        return moved

    def _take_sized(self, request: Request) -> bool:
        if request.complete or not self._buffer:
            return False
        data = bytes(self._buffer[: self._chunk_left])
        del self._buffer[: len(data)]
        self._chunk_left -= len(data)
        request.complete = self._chunk_left == 0
        request.arrived.append(data)
        request.buffered += len(data)
        return True

    def _take_chunked(self, request: Request) -> bool:
        if self._chunk_state == "data":
            data = bytes(self._buffer[: self._chunk_left])
            if not data:
                return False
            del self._buffer[: len(data)]
            self._chunk_left -= len(data)
            request.arrived.append(data)
            request.buffered += len(data)
            if not self._chunk_left:
                self._chunk_state = "after"
            return True
        end = self._buffer.find(b"\r\n")
        if end < 0:
            return False
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        if self._chunk_state == "trailer":
            request.complete = not line
        elif self._chunk_state == "after":
            self._chunk_state = "size"
        else:
            self._chunk_left = _chunk_size(line)
            self._chunk_state = "data" if self._chunk_left else "trailer"
            if self._chunk_left < 0:
                self._refuse(400, "400 Bad Request")
                return False
        return True

    def _send(self, response: Response) -> None:
        request = self._request
        if request is None:
            return
        body, framing = response.body, []
        bare = request.method == "HEAD" or response.status in {204, 304}
        if body is None:
            framing = [] if bare else [("Content-Length", "0")]
        elif len(body) <= SMALL_BODY or request.minor == 0:
            framing = [] if response.status in {204, 304} else [("Content-Length", str(len(body)))]
        elif not bare:
            framing = [("Transfer-Encoding", "chunked")]
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        head = self._head(request, response.status, response.headers, framing)
        self.write(head if bare or not body else head + body)

    def _head(self, request: Request, status: int, headers: Headers, framing: Headers) -> bytes:
        lines = [f"HTTP/1.{min(request.minor, 1)} {status} {_reason(status)}"]
        lines += [f"{name}: {value}" for name, value in sorted(headers, key=_header_name)]
        lines.append(f"Date: {_date()}")
        lines += [f"{name}: {value}" for name, value in framing]
        if self._close_after and request.minor >= 1:
            lines.append("Connection: close")
        elif request.minor == 0 and not self._close_after:
            lines.append("Connection: keep-alive")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")

    def _refuse(self, status: int, text: str) -> None:
        head = f"HTTP/1.1 {status} {_reason(status)}\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close"
        self.write(f"{head}\r\n\r\n{text}".encode())
        if self._transport is not None:
            self._transport.close()
        self._transport = None
        self._buffer.clear()


def _parse_head(raw: bytes, connection: Connection) -> Request:
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
    request = Request(parts[0], parts[1], int(parts[2] != "HTTP/1.0"), headers, connection)
    if request.minor and not any(name.lower() == "host" for name, _ in headers):
        raise BadRequest(400, "400 Bad Request: missing required Host header")
    length = request.header("content-length")
    if request.header("transfer-encoding").lower() == "chunked":
        request.length, request.complete = None, False
    elif length:
        if not (length.isascii() and length.isdigit()):
            raise BadRequest(400, "400 Bad Request")
        request.length = int(length)
        request.complete = request.length == 0
    connection._chunk_left = request.length or 0  # noqa: SLF001 - the two are one machine
    request.expects = not request.complete and request.header("expect").lower() == "100-continue"
    return request


def _wants_close(request: Request) -> bool:
    tokens = request.header("connection").lower()
    return "close" in tokens if request.minor else "keep-alive" not in tokens


def _chunk_size(line: bytes) -> int:
    try:
        return int(line.split(b";", 1)[0].strip(), 16)
    except ValueError:
        return -1


def _header_name(header: tuple[str, str]) -> str:
    return header[0]


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"status code {status}"


class _Date:
    """The Date header, made once a second."""

    def __init__(self) -> None:
        self.second = 0
        self.text = ""

    def __call__(self) -> str:
        second = int(time.time())
        if second != self.second:
            self.second, self.text = second, formatdate(second, usegmt=True)
        return self.text


_date = _Date()
