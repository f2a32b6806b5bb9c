"""A request's body as it comes from the client, for one reader.

Owns what has come and not been read, and when the client is held because that is too much. Must not judge the body's
framing (`incoming` has the parser), must not keep what was read.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

LOW_WATER_BYTES: Final = 2**18

HIGH_WATER_BYTES: Final = 2 * LOW_WATER_BYTES
"""A body of which more than this waits to be read holds the client, until it is read."""

PIECE_OVERHEAD_BYTES: Final = 64
"""What a piece costs us beside its bytes: a body in chunks of one byte each must not cost fifty times its size."""


class MalformedBody(Exception):  # noqa: N818 - a fact, like the core's events
    """The body's framing is malformed: no more of it can be told."""


class Source(Protocol):
    """Whoever feeds a body, and can be told to wait."""

    def hold_body(self) -> None:
        """Stop: too much of the body waits to be read."""

    def go_on_with_body(self) -> None:
        """Go on, if it was held."""


class Content:
    """One body: the bytes that have come, and whether that is all."""

    __slots__ = ("_failure", "_is_whole", "_pieces", "_size", "_source", "_waiter")

    def __init__(self, source: Source | None, data: bytes = b"") -> None:
        """``source`` is None where ``data`` is the whole body."""
        self._source = source
        self._pieces = [data] if data else []
        self._size = len(data)
        self._is_whole = source is None
        self._failure: MalformedBody | None = None
        self._waiter: asyncio.Future[None] | None = None

    # --- for its reader ---

    def is_eof(self) -> bool:
        """Say whether all of it has come, read or not."""
        return self._is_whole

    def read_nowait(self) -> bytes:
        """Take what has come: nothing, perhaps."""
        pieces = self._pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._size = 0
        if self._source is not None:
            self._source.go_on_with_body()
        return data

    async def readany(self) -> bytes:
        """Take what has come, waiting for some; nothing means that the body has ended.

        Raises:
            MalformedBody: it cannot be read on.
        """
        while not (self._pieces or self._is_whole or self._failure):
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._failure is not None:
            raise self._failure
        return self.read_nowait()

    # --- for its source ---

    def feed(self, data: bytes) -> None:
        """Take more of it."""
        self._pieces.append(data)
        self._size += len(data) + PIECE_OVERHEAD_BYTES
        if self._size > HIGH_WATER_BYTES and self._source is not None:
            self._source.hold_body()
        if self._waiter is not None:
            self._wake()

    def end(self) -> None:
        """Note that this was all."""
        self._is_whole = True
        if self._source is not None:
            self._source.go_on_with_body()
            self._source = None
        if self._waiter is not None:
            self._wake()

    def fail(self) -> None:
        """Note that the rest is malformed."""
        self._failure = MalformedBody("malformed request body")
        self._source = None
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
