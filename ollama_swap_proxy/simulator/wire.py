"""Connections: requests as they arrive, answers as they are made, early answers, clients that leave.

Owns sockets and their tasks. Must not know any path. Facts: tests/transcripts/blobs, and Go's net/http (early answers
to uploads). Written on asyncio's protocols: a light answer costs no task.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, cast
from urllib.parse import unquote

from ollama_swap_proxy.simulator.http_head import (
    BadRequest,
    BodyFraming,
    Head,
    Headers,
    Response,
    parse_head,
    write_head,
    write_refusal,
    write_response,
)

HEAD_LIMIT = (1 << 20) + 4096
UNREAD_LIMIT = 256 << 10
"""Go reads so much of a body that nobody wanted before it answers; if more is left it answers at once and closes."""
BUFFERED_LIMIT = 1 << 20
LINGER_S = 0.5  # Go's closeWriteAndWait: so long a half-closed connection stays open.
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class ClientLeft(Exception):  # noqa: N818 - an event, not an error of ours
    """The connection ended while a body was read or a stream was written."""


class Request:
    """One request; its body is read when a handler asks. ``path`` is decoded, which is what Ollama routes by."""

    __slots__ = ("_arrived", "_framing", "buffered", "connection", "expects", "head", "method", "path", "target")

    def __init__(self, head: Head, connection: Connection) -> None:
        self.head = head
        self.method = head.method
        self.target = head.target
        self.connection = connection
        self.expects = head.expects
        raw = head.target.split("?", 1)[0]
        self.path = unquote(raw) if "%" in raw else raw
        self.buffered = 0
        self._arrived: deque[bytes] = deque()
        self._framing = BodyFraming(head.length)

    @property
    def query(self) -> str:
        """What follows the question mark, with it."""
        return "".join(self.target.partition("?")[1:])

    @property
    def complete(self) -> bool:
        """Whether all of the body has arrived."""
        return self._framing.complete

    @property
    def unread(self) -> int:
        """How much of the body nobody has read, as far as that is known."""
        return self.buffered + self._framing.left

    def header(self, name: str) -> str:
        """The first header of this name (lower case), or nothing."""
        return self.head.header(name)

    def feed(self, buffer: bytearray) -> bool:
        """Take what belongs to the body out of ``buffer``. Whether anything did.

        Raises:
            BadRequest: broken chunks.
        """
        moved = False
        while (data := self._framing.take(buffer)) is not None:
            moved = True
            if data:
                self._arrived.append(data)
                self.buffered += len(data)
        return moved

    async def read_some(self) -> bytes:
        """The next bytes of the body; empty at its end.

        Raises:
            ClientLeft: the connection ended first.
        """
        if self.expects and not self.complete and not self._arrived:
            self.connection.write(_CONTINUE)
        self.expects = False
        while not self._arrived:
            if self.complete:
                return b""
            await self.connection.wait_for_body()
        data = self._arrived.popleft()
        self.buffered -= len(data)
        self.connection.room_again()
        return data

    async def read(self) -> bytes:
        """The whole body.

        Raises:
            ClientLeft: the connection ended first.
        """
        if self.complete and len(self._arrived) == 1:
            self.buffered = 0
            return self._arrived.popleft()
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
        self._task: asyncio.Task[None] | None = None
        self._body_waiter: asyncio.Future[None] | None = None
        self._write_waiter: asyncio.Future[None] | None = None
        self._close_after = False
        self._chunked = False
        self._paused = False
        self._deaf = False
        self._lost = asyncio.Event()

    # ---- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody connected."""
        # A TCP server makes no others, but uvloop's are no subclass: nothing to check by.
        self._transport = cast("asyncio.Transport", transport)
        self._open.add(self)

    def connection_lost(self, _exc: Exception | None) -> None:
        """The client is gone: so is the reason for whatever its handler does."""
        self._open.discard(self)
        self._lost.set()
        self._transport = None
        if self._task is not None:
            self._task.cancel()

    def eof_received(self) -> bool:
        """A half-close ends a request's context in Go too."""
        if self._task is not None:
            self._task.cancel()
        return False

    def data_received(self, data: bytes) -> None:
        """Bytes: of the request under way, of its body, or of the next one."""
        if not self._deaf:
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
        """Until more of the body is there, or its end. A client that leaves meanwhile cancels the caller."""
        if self._transport is None:
            raise ClientLeft
        self._body_waiter = asyncio.get_running_loop().create_future()
        await self._body_waiter

    def room_again(self) -> None:
        """A handler took some of the body."""
        if self._paused and self._transport is not None and self._waiting_bytes() < BUFFERED_LIMIT:
            self._paused = False
            self._transport.resume_reading()

    async def answer(self, response: Response) -> None:
        """Send a whole answer, after Go's fashion of dealing with an unread body."""
        request = self._request
        if request is None:
            return
        if not request.complete:
            await self._settle_body(request)
        self.write(write_response(request.head, response, close=self._close_after))

    async def start_stream(self, status: int, headers: Headers) -> None:
        """Send the head of a stream; then `chunk` and `end_stream`."""
        request = self._request
        if request is None:
            raise ClientLeft
        if not request.complete:
            await self._settle_body(request)
        self._chunked = request.head.minor > 0
        self._close_after = self._close_after or not self._chunked
        framing = [("Transfer-Encoding", "chunked")] if self._chunked else []
        self.write(write_head(request.head, status, headers, framing, close=self._close_after))

    async def chunk(self, data: bytes) -> None:
        """Send one chunk and flush it; waits while the client reads too slowly.

        Raises:
            ClientLeft: the connection is gone.
        """
        if self._transport is None:
            raise ClientLeft
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        if self._write_waiter is not None:
            await self._write_waiter

    def end_stream(self) -> None:
        """The proper end of a stream."""
        if self._chunked:
            self.write(b"0\r\n\r\n")

    # ---- inside

    def _advance(self) -> None:
        """Go on with what has arrived: the next requests, as long as they can be answered at once, or a body."""
        try:
            while self._transport is not None and self._request is None:
                if not self._begin():
                    break
            request = self._request
            if request is not None and not request.complete and request.feed(self._buffer):
                self._wake_reader()
        except BadRequest as problem:
            self.write(write_refusal(*problem.args))
            self._close_gently()
            return
        if self._waiting_bytes() > BUFFERED_LIMIT and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def _waiting_bytes(self) -> int:
        return len(self._buffer) + (self._request.buffered if self._request else 0)

    def _wake_reader(self) -> None:
        if self._body_waiter is not None and not self._body_waiter.done():
            self._body_waiter.set_result(None)

    def _begin(self) -> bool:
        """Take the next request's head, and answer it if that can be done at once. False: there is more to wait for."""
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > HEAD_LIMIT:
                raise BadRequest(431, "431 Request Header Fields Too Large")
            return False
        head = parse_head(bytes(self._buffer[:end]))
        del self._buffer[: end + 4]
        self._request = request = Request(head, self)
        self._close_after = head.closes
        request.feed(self._buffer)
        outcome = self._handler(request)
        if isinstance(outcome, Response):
            if request.complete:
                self.write(write_response(head, outcome, close=self._close_after))
                self._finish()
                return True
            outcome = self.answer(outcome)
        self._task = asyncio.get_running_loop().create_task(self._run(outcome))
        # A client that leaves before the task's first step would leave a coroutine behind that nobody ever awaits.
        self._task.add_done_callback(lambda _: outcome.close())
        return False

    async def _run(self, work: Coroutine[Any, Any, None]) -> None:
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
        if request is not None and not request.complete:
            self._close_gently()
        elif self._close_after:
            self._transport.close()
        elif self._paused:
            self._paused = False
            self._transport.resume_reading()

    def _close_gently(self) -> None:
        """Close with bytes unread, as Go does: half, then all, so that no reset takes the answer away."""
        if self._transport is None:
            return
        self._deaf = True
        self._buffer.clear()
        self._transport.write_eof()
        self._transport.resume_reading()
        asyncio.get_running_loop().call_later(LINGER_S, self._transport.close)

    async def _settle_body(self, request: Request) -> None:
        """Before the head of an answer: read the rest of a small body, give up on a large one."""
        taken = 0
        while not request.complete:
            if request.expects or max(request.unread, taken) >= UNREAD_LIMIT:
                self._close_after = True
                return
            taken += len(await request.read_some())
