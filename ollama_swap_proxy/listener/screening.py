"""Requests that the parser takes and we do not: those that Go's server refuses, and a few that it takes.

Owns which. Must not say how (`answers` has the words).
"""

from __future__ import annotations

from typing import Final

from yarl import URL

from ollama_swap_proxy.listener.answers import Refusal, unreadable
from ollama_swap_proxy.listener.request import HTTP_10, HTTP_11, RequestHead

HEAD_LIMIT_LINES: Final = 10_000
"""Most header lines. Go has no such limit; at its 1 MiB there could be 260,000, which nobody sends in earnest."""

HEAD_LIMIT_BYTES: Final = 2**20 + 4096
"""Largest request head in all, as Go counts it (net/http: DefaultMaxHeaderBytes plus 4096 for its buffer)."""


ONCE: Final = frozenset(
    (
        b"content-length",
        b"content-location",
        b"content-range",
        b"content-type",
        b"etag",
        b"host",
        b"max-forwards",
        b"server",
        b"transfer-encoding",
        b"user-agent",
    )
)
"""Headers of which a request has one at most: who gets two of them may see another one than Ollama does (RFC 9110)."""

OLD_WEBSOCKET: Final = b"sec-websocket-key1"
"""Of a draft in which eight bytes followed the head that nothing announced."""


def refused(head: RequestHead, read_bytes: int) -> Refusal | None:
    """Return the refusal of a request, or None. ``read_bytes`` is the most that its head can have."""
    version, fields = head.version, head.fields
    if len(fields) != len(head.names) and (twice := _first_of_two(head)) is not None:
        return unreadable(501 if twice == b"transfer-encoding" else 400)
    if len(head.names) > HEAD_LIMIT_LINES or (read_bytes > HEAD_LIMIT_BYTES and _size(head) > HEAD_LIMIT_BYTES):
        return unreadable(431)
    if not _is_target(head) or OLD_WEBSOCKET in fields:
        return unreadable(400)
    if version is HTTP_11 and b"host" not in fields:
        return Refusal(400, "missing required Host header")
    status = 0
    if version is not HTTP_11 and version is not HTTP_10:
        status = 505 if version[0] > 1 else 400
    elif head.method == "CONNECT":
        status = 405
    elif head.chunked:
        status = _misframed(head)
    return unreadable(status) if status else None


def is_odd_line(came: bytes, method: bytes, target: bytes) -> bool:
    """Say whether a request line has another protocol's name than HTTP or more blanks than two.

    The parser lets both pass and tells of neither; Go refuses them (net/http: readRequest). ``came`` is what the line
    is in, among other requests perhaps, and cut where a read ended with it that had something else in front.
    """
    if b"%b %b HTTP/" % (method, target) in came:
        return False
    odd = (method + b"  ", b" %b  " % target, b" %b ICE/" % target, b" %b RTSP/" % target)
    return any(part in came for part in odd)


def _misframed(head: RequestHead) -> int:
    """Return the status for a body that we and Go would not see the same end of, else 0.

    Go takes chunks without any other coding, and in HTTP/1.0 it takes them for the next request (net/http:
    transferReader.parseTransferEncoding).
    """
    if head.version is not HTTP_11:
        return 400
    return 0 if head.fields[b"transfer-encoding"].lower() == b"chunked" else 501


def _first_of_two(head: RequestHead) -> bytes | None:
    """Return the name of the first header that stands there again and must not."""
    seen: set[bytes] = set()
    for name in head.lower_names:
        if name in seen:
            return name
        if name in ONCE:
            seen.add(name)
    return None


def _is_target(head: RequestHead) -> bool:
    """Say whether the target has one of the forms that RFC 9112 knows ("Request Target")."""
    target = head.path
    if target.startswith("/"):
        return True
    if head.method == "CONNECT" or target == "*":
        return head.method in {"CONNECT", "OPTIONS"}
    _, _, rest = target.partition(":")
    if not rest.startswith("//") or rest[2:3] in ("", "/", "?", "#"):
        return False
    try:
        return URL(target, encoded=True).raw_host is not None
    except ValueError:
        return False


def _size(head: RequestHead) -> int:
    lines = sum(map(len, head.names)) + sum(map(len, head.values)) + 4 * len(head.names)
    return lines + len(head.method) + len(head.path) + 12
