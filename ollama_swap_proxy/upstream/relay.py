"""The relay: one request's bytes to upstream, one answer's bytes to the client, unchanged but for the published list.

Owns the way across: request bodies with backpressure, early answers, slow readers, half-closed clients, and what
happens when either side goes away. Must not judge a request, must not know the gate, and never repeats a request that
could have an effect. What heads look like is decided in heads.py, where an answer ends in connection.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final, Protocol

from yarl import URL

from ollama_swap_proxy.errors import ProxyError
from ollama_swap_proxy.listener.answers import Relayed
from ollama_swap_proxy.listener.content import Content
from ollama_swap_proxy.listener.request import HTTP_11, ClientRequest
from ollama_swap_proxy.prompt import Prompt
from ollama_swap_proxy.upstream.connection import UpstreamConnection, UpstreamFailed
from ollama_swap_proxy.upstream.exchange import Exchange
from ollama_swap_proxy.upstream.heads import CLOSING, NOT_BUFFERED, AnswerHead, request_head, with_length, with_lines
from ollama_swap_proxy.upstream.pool import UpstreamPool

READ_BYTES: Final = 2**18
"""How much of a body kept by us is read and sent at a time."""

_LAST_CHUNK: Final = b"0\r\n\r\n"

_REPEATABLE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods without an effect: only they are sent again, and only when a reused connection died without one answer
byte."""


class KeptBody(Protocol):
    """A request body that was read before the request is forwarded."""

    @property
    def size(self) -> int:
        """Bytes in all."""

    def chunks(self, size: int, /) -> AsyncIterator[bytes]:
        """Give the bytes, at most ``size`` at a time."""


class Relay:
    """Forwards requests to one upstream. Build it inside the running loop; ``close`` it at the end."""

    def __init__(self, upstream: URL, *, connect_timeout_s: float) -> None:
        self._url = upstream
        self._authority = upstream.raw_authority.encode("ascii")
        self._loop = asyncio.get_running_loop()
        self._pool = UpstreamPool(upstream, connect_timeout_s=connect_timeout_s)

    async def forward(
        self,
        request: ClientRequest,
        body: KeptBody | bytes | None,
        *,
        record: Exchange,
        unbuffered: bool = False,
        on_response_head: Callable[[int], None] | None = None,
    ) -> Relayed:
        """Send the request to upstream and its answer to the client; return when the answer is complete.

        ``body`` is None to stream the client's own, else what was read of it. ``unbuffered`` asks front proxies not to
        hold back a streamed answer. ``on_response_head`` is called with the status when the final head comes. An answer
        that upstream cuts is cut for the client too (``record.cut``). Cancel it to abort the upstream connection.

        Raises ProxyError (``upstream_down``, 502) while nothing has been answered, MalformedBody when the
        client's body is malformed.
        """
        head = request_head(request.message, authority=self._authority, body_was_read=body is not None)
        if record.resized and isinstance(body, bytes):
            head = with_length(head, len(body))
        source = request.content if body is None else body
        reused = self._pool.take()
        while True:
            record.upstream_reused = reused is not None
            connection = reused or await self._connect()
            crossing = _Crossing(self._loop, connection, request, record, on_response_head, unbuffered=unbuffered)
            record.crossing = crossing
            try:
                crossing.begin(head, source)
                if (failure := await crossing.done) is not None:
                    raise failure  # noqa: TRY301 - one of ours, or one of the client's body: told apart below
                break
            except UpstreamFailed as failed:
                if record.first_byte_at is not None:
                    record.cut = True
                    break
                if reused is None or not crossing.repeatable:
                    raise self._down(failed) from failed
                reused = None
            except BaseException:
                connection.abort()
                raise
            finally:
                record.crossing = None
                if (unfinished := crossing.end()) is not None:
                    connection.abort()  # now: a cancel may come while we wait
                    await asyncio.wait({unfinished})
        if crossing.reusable:
            self._pool.give_back(connection)
        else:
            connection.abort()
        return crossing.answer()

    async def _connect(self) -> UpstreamConnection:
        try:
            return await self._pool.connect()
        except UpstreamFailed as failed:
            raise self._down(failed) from failed

    def _down(self, failed: UpstreamFailed) -> ProxyError:
        text = f"upstream {self._url} gave no answer: {failed}"
        return ProxyError("upstream_down", 502, text, retry_after_s=5)

    async def close(self) -> None:
        """Close all upstream connections."""
        self._pool.close()


class _Crossing:
    """One request on its way over one upstream connection, and the answer's way back."""

    __slots__ = (
        "_all_sent",
        "_client",
        "_connection",
        "_content",
        "_loop",
        "_message",
        "_on_head",
        "_persistent",
        "_record",
        "_sending",
        "_unbuffered",
        "done",
        "repeatable",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connection: UpstreamConnection,
        request: ClientRequest,
        record: Exchange,
        on_head: Callable[[int], None] | None,
        *,
        unbuffered: bool,
    ) -> None:
        self._loop = loop
        self._connection = connection
        self._client = request.client
        self._message = request.message
        self._content = request.content
        self._record = record
        self._unbuffered = unbuffered
        self._on_head = on_head
        self._sending: asyncio.Task[None] | None = None
        self.done: Prompt[BaseException | None] = Prompt(loop)
        self._persistent: bool | None = None
        self._all_sent = False
        self.repeatable = False

    def begin(self, head: bytes, body: Content | KeptBody | bytes) -> None:
        """Send the request, a body that is not all here yet by a task.

        Then wait for ``done``, which says why there is no whole answer, if so; and call ``end``.
        """
        ready = self._ready(body)
        self._connection.ask(head if ready is None else head + ready, self, has_body=self._message.method != "HEAD")
        if ready is not None:
            self._all_sent = True
        else:
            self._sending = self._loop.create_task(self._send(body), name="request body")
            self._sending.add_done_callback(self._sending_ended)
        self._client.begin_flow(self)

    def end(self) -> asyncio.Task[None] | None:
        """Stop whatever is still under way; return the task of an unfinished body, to be waited for."""
        self._client.end_flow()
        if self._persistent is None:
            self._record.response_bytes = self._connection.received_bytes()
        if self._sending is None or self._sending.done():
            return None
        self._sending.cancel()
        return self._sending

    @property
    def reusable(self) -> bool:
        """Say whether the upstream connection can take another request.

        Not behind HTTP/1.0: there servers differ in what they take for the end of a request, and what one of them took
        for another request would be answered to somebody else.
        """
        alike = self._message.version is HTTP_11
        return bool(self._persistent) and self._all_sent and alike and not self._client.saw_eof

    def answer(self) -> Relayed:
        """Return the answer that has been written."""
        self._client.answer_begun = False
        unread = not self._content.is_eof()
        persistent = bool(self._persistent) and not self._message.should_close
        if unread and b"expect" in self._message.fields:
            persistent = False  # a final answer instead of 100 Continue: whether the body still comes is unknowable
        return Relayed(persistent=persistent, unread=unread)

    def cut_off(self, error: ProxyError) -> None:
        """End it, if the answer is not complete; see `Exchange.cut_off`."""
        if self._record.first_byte_at is None:
            self.done.tell(error)
        elif not self.done.done():
            self._record.cut_code = error.code
            self.done.tell(UpstreamFailed(error.message))

    # --- the request's body ---

    def _ready(self, body: Content | KeptBody | bytes) -> bytes | None:
        """Return the framed body if it is all here, else None."""
        if isinstance(body, Content):
            if not body.is_eof():
                return None
            body = body.read_nowait()
            self.repeatable = not body and self._message.method in _REPEATABLE
        if not isinstance(body, bytes):
            return None
        self._record.request_bytes = len(body)
        if not self._message.chunked:
            return body
        return _chunk(body) + _LAST_CHUNK if body else _LAST_CHUNK

    async def _send(self, body: Content | KeptBody | bytes) -> None:
        """Send a body as it comes, no faster than upstream takes it."""
        connection, chunked = self._connection, self._message.chunked
        async for data in _pieces(body):
            self._record.request_bytes += len(data)
            connection.write(_chunk(data) if chunked else data)
            if connection.write_paused:
                await connection.writable()
        if chunked:
            connection.write(_LAST_CHUNK)
        self._all_sent = True
        if self._client.saw_eof:
            connection.finish_writing()

    def _sending_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.done.tell(error)

    # --- what the client's connection says ---

    def hold(self) -> None:
        """Stop reading the answer: its client is slow."""
        self._connection.hold_reading()

    def go_on(self) -> None:
        """Go on reading the answer."""
        self._connection.go_on_reading()

    def client_finished(self) -> None:
        """Send FIN to upstream, too, so that it sees what it would see without us."""
        if self._all_sent:
            self._connection.finish_writing()

    # --- what the upstream connection says ---

    def interim_came(self, raw: bytes) -> None:
        """Pass 100 and 103 on."""
        self.repeatable = False
        transport = self._client.transport
        if transport is not None and self._message.version is HTTP_11:
            transport.write(raw)

    def head_came(self, head: AnswerHead, raw: bytes) -> None:
        """Pass the head on, with the lines of ours where they are due."""
        streamed = head.is_streamed
        self._client.answer_begun = True
        lines = self._record.own_lines
        if streamed and self._unbuffered and not head.says_buffering:
            lines += NOT_BUFFERED
        if self._client.is_closing_down() and head.persistent and head.is_modern:
            lines += CLOSING
        transport = self._client.transport
        if transport is not None:
            transport.write(with_lines(raw, lines, len(head.raw)) if lines else raw)
        record = self._record
        record.first_byte_at = record.last_byte_at = self._loop.time()
        record.status = head.status
        record.streamed = streamed
        if self._on_head is not None:
            self._on_head(head.status)

    def body_came(self, raw: bytes) -> None:
        """Pass a piece of the answer on."""
        self._record.last_byte_at = self._loop.time()
        transport = self._client.transport
        if transport is not None:
            transport.write(raw)

    def ended(self, body_bytes: int, *, persistent: bool) -> None:
        """Finish."""
        self._record.response_bytes = body_bytes
        self._persistent = persistent
        self.done.tell(None)

    def broke(self, reason: str) -> None:
        """Finish without a whole answer."""
        self.done.tell(UpstreamFailed(reason))


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def _pieces(body: Content | KeptBody | bytes) -> AsyncIterator[bytes]:
    if isinstance(body, Content):
        while data := await body.readany():
            yield data
    elif isinstance(body, bytes):
        yield body
    else:
        async for data in body.chunks(READ_BYTES):
            yield data
