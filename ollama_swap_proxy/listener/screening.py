"""Requests that the parser takes and Go's server does not.

Owns which, and the status that each is refused with. Must not answer (`answers` has the words).
"""

from __future__ import annotations

from typing import Any, Final

from aiohttp.http_writer import HttpVersion11

HEAD_LIMIT_LINES: Final = 10_000
"""Most header lines. Go has no such limit; at its 1 MiB there could be 260,000, which nobody sends in earnest."""

HEAD_LIMIT_BYTES: Final = 2**20 + 4096
"""Largest request head in all, as Go counts it (net/http: DefaultMaxHeaderBytes plus 4096 for its buffer)."""


def refused(message: Any, read_bytes: int) -> int:
    """Return the status with which a request is refused, or 0. ``read_bytes`` is the most that its head can have."""
    if message.version is not HttpVersion11 and message.version != (1, 0):
        return 505 if message.version[0] > 1 else 400
    if message.method == "CONNECT":
        return 405
    if read_bytes > HEAD_LIMIT_BYTES and _head_bytes(message) > HEAD_LIMIT_BYTES:
        return 431
    return _misframed(message) if message.chunked or message.upgrade else 0


def _misframed(message: Any) -> int:
    """Return the status for a body that we and Go would not see the same end of, else 0.

    Go takes chunks without any other coding, and in HTTP/1.0 it takes them for the next request (net/http:
    transferReader.parseTransferEncoding).
    """
    codings = message.headers.getall("Transfer-Encoding", ())
    if not codings:
        return 0
    if message.version is not HttpVersion11:
        return 400
    return 0 if message.chunked and len(codings) == 1 and codings[0].lower() == "chunked" else 501


def _head_bytes(message: Any) -> int:
    lines = sum(len(name) + len(value) + 4 for name, value in message.raw_headers)
    return int(lines + len(message.method) + len(message.path) + 12)
