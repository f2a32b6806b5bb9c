"""Requests that offer another protocol (websocket, h2c), which we decline.

Owns where such a request ends: the parser stops behind it and forgets what came there. Must not parse a request.
"""

from __future__ import annotations

from typing import Any, Final

_BLANK_LINE: Final = b"\r\n\r\n"


class Offer:
    """A request that offers another protocol, while it is being read."""

    __slots__ = ("_chunked", "_end", "_last_bytes")

    def __init__(self, message: Any, data: bytes) -> None:
        """``data`` is the read that its head came in, with nothing in front of it; else empty: then it is unknown."""
        head = -1 if data[:1] in b"\r\n" else data.find(_BLANK_LINE)
        self._chunked = bool(message.chunked)
        self._last_bytes = b""
        self._end = -1
        if head >= 0:
            self._end = head + len(_BLANK_LINE) + int(message.headers.get("Content-Length", "0"))

    def split(self, data: bytes) -> bytes | None:
        """Return what of the next read is behind the request, if the request ends in it; None if that is unknown.

        The end of chunks is only known where a read ends with the first blank line in it.
        """
        end = self._end
        if self._chunked:
            self._end = 0
            tail = self._last_bytes + data[max(end, 0) :]
            self._last_bytes = tail[1 - len(_BLANK_LINE) :]
            return b"" if 0 <= tail.find(_BLANK_LINE) == len(tail) - len(_BLANK_LINE) else None
        self._end = end - len(data)
        return data[end:] if end >= 0 else None
