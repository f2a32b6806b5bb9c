"""Heads of requests and answers: what of them crosses the proxy, and how.

Owns the one table that decides each request header's fate, and the two lines that we may add to an answer's head. Pure
functions on bytes. Must not do I/O, must not reorder, re-case or re-encode what passes, must not add a request header.

HTTP/1.0, decided once: the client's version is forwarded as it came, with or without a Host, and persistence is what
upstream makes of it (Go closes after an HTTP/1.0 answer unless the client sent ``Connection: keep-alive``, and never
sends chunks to 1.0). The answer's head and body pass unchanged, so its version is upstream's. A target in absolute
form (``GET http://host/path``) passes as it came too.
"""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import Enum

from ollama_swap_proxy.listener.request import RequestHead

NOT_BUFFERED = b"X-Accel-Buffering: no\r\n"
"""Tells a front proxy (nginx, and others that follow it) not to hold a stream back."""

CLOSING = b"Connection: close\r\n"
"""Tells the client that we close after this answer (Go's server sends the same while it shuts down)."""


class Fate(Enum):
    """What becomes of one request header on its way to upstream."""

    UPSTREAM_AUTHORITY = "its value becomes upstream's authority"
    PERSISTENCE_ONLY = "only its tokens close and keep-alive pass; dropped when none is left"
    DROP = "dropped"
    DROP_IF_BODY_READ = "dropped when we have read the body already, else passed"
    DROP_IF_SAME_ORIGIN = "dropped when it is http:// or https:// plus the client's Host, else passed"
    KEEP = "passed, even when Connection names it"


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table. ``name`` is lower case."""

    name: bytes
    fate: Fate
    reason: str


REQUEST_RULES: tuple[Rule, ...] = (
    Rule(
        b"host",
        Fate.UPSTREAM_AUTHORITY,
        "Ollama on a loopback address answers an empty 403 to names it does not know (server/routes.go:1803)",
    ),
    Rule(
        b"connection",
        Fate.PERSISTENCE_ONLY,
        "upstream then keeps or closes as the client asked, and we mirror it; other tokens speak to us alone",
    ),
    Rule(b"keep-alive", Fate.DROP, "hop by hop: it speaks of the client's connection to us"),
    Rule(b"proxy-connection", Fate.DROP, "hop by hop, and no standard"),
    Rule(b"proxy-authorization", Fate.DROP, "credentials meant for a proxy are none of upstream's business"),
    Rule(b"te", Fate.DROP, "hop by hop: we cannot promise to pass trailers of upstream's choosing to its sender"),
    Rule(b"trailer", Fate.DROP, "request trailers are dropped (the parser does not keep them), so none are announced"),
    Rule(b"upgrade", Fate.DROP, "an offer (websocket, h2c) that we decline: the request goes on as a plain one"),
    Rule(b"http2-settings", Fate.DROP, "belongs to the h2c offer"),
    Rule(b"expect", Fate.DROP_IF_BODY_READ, "a body read by us needs no permission; else upstream itself gives it"),
    Rule(
        b"origin",
        Fate.DROP_IF_SAME_ORIGIN,
        "Ollama skips its origin check when Origin equals Host; Host is rewritten, so it would now answer 403",
    ),
    Rule(b"transfer-encoding", Fate.KEEP, "the body is framed again, in chunks, as the head says"),
    Rule(b"content-length", Fate.KEEP, "the body's bytes are the same; a Connection header may not unframe it"),
)

_KEPT = frozenset(rule.name for rule in REQUEST_RULES if rule.fate is Fate.KEEP)
_FATES = {rule.name: rule.fate for rule in REQUEST_RULES if rule.fate is not Fate.KEEP}
_LENGTH = re.compile(rb"^(content-length:[ \t]*)[0-9]+", re.IGNORECASE | re.MULTILINE)
_NOT_PLAIN = frozenset(_FATES) - {b"host", b"connection"}
_BLANK = re.compile(rb"\n\r?\n")
_PERSISTENCE = (b"close", b"keep-alive")
_ASKED = re.compile(rb"\n(connection|content-length|transfer-encoding|x-accel-buffering)[ \t]*:([^\r\n]*)")


class AnswerHead:
    """What we want to know of a final answer's head.

    ``raw`` is all of it. ``persistent``: neither it nor the body's framing asks to close the connection behind the
    answer. ``is_framed``: the body's end shows without the connection's; ``is_streamed``: upstream sends the body as it
    comes into being.
    """

    __slots__ = ("_fields", "is_framed", "is_streamed", "persistent", "raw", "status")

    def __init__(self, status: int, raw: bytes, *, persistent: bool) -> None:
        """``raw`` is all of the head; whoever parsed it tells the rest."""
        self.status = status
        self.persistent = persistent
        self.raw = raw
        self._fields = fields = dict(_ASKED.findall(raw.lower()))
        last = fields.get(b"transfer-encoding", b"").rpartition(b",")[2]
        has_length = b"content-length" in fields
        chunked = last.lstrip(b" \t").rstrip(b" ") == b"chunked"  # to the letter as the parser sees it
        self.is_framed = has_length or chunked
        self.is_streamed = chunked or not (persistent or has_length)

    @property
    def is_modern(self) -> bool:
        """Say whether its version is HTTP/1.1."""
        return self.raw.startswith(b"HTTP/1.1")

    @property
    def says_buffering(self) -> bool:
        """Say whether it tells front proxies by itself whether to hold the answer back."""
        return b"x-accel-buffering" in self._fields

    @property
    def says_persistent(self) -> bool:
        """Say whether the connection stays open where no body follows, as behind a HEAD."""
        tokens = self._fields.get(b"connection", b"").translate(None, b" \t").split(b",")
        return b"close" not in tokens and (self.is_modern or b"keep-alive" in tokens)


def start_line(method: str, target: str, version: tuple[int, int]) -> bytes:
    """Return the request line, its target exactly as it came (the parser decodes it with surrogateescape)."""
    return f"{method} {target} HTTP/{version[0]}.{version[1]}\r\n".encode("utf-8", "surrogateescape")


def request_head(head: RequestHead, *, authority: bytes, body_was_read: bool) -> bytes:
    """Return the head for upstream, blank line included. ``authority`` is upstream's host and port."""
    first_line = start_line(head.method, head.path, head.version)
    fields = head.fields
    if (
        _NOT_PLAIN.isdisjoint(fields)
        and b"host" in fields
        and len(fields) == len(head.names)
        and fields.get(b"connection", b"close").lower() in _PERSISTENCE
    ):
        # As most are: only the Host changes, and nothing needs to be looked at line by line.
        values = head.values.copy()
        values[head.lower_names.index(b"host")] = authority
        lines = map(b": ".join, zip(head.names, values))  # noqa: B905 - of one length
        return b"".join((first_line, b"\r\n".join(lines), b"\r\n\r\n"))
    return b"".join((first_line, *_lines(head, authority, frozenset(), body_was_read=body_was_read), b"\r\n"))


def _lines(head: RequestHead, authority: bytes, also_drop: AbstractSet[bytes], *, body_was_read: bool) -> list[bytes]:
    """Return the header lines for upstream, in parts.

    ``also_drop`` holds lower-case names that a Connection header named: found in a first pass, it is given to the
    second.
    """
    parts: list[bytes] = []
    named: set[bytes] = set()
    own_origins: tuple[bytes, ...] = ()
    for name, lower, value in zip(head.names, head.lower_names, head.values, strict=True):
        kept = value
        if lower in _FATES:
            fate = _FATES[lower]
            if fate is Fate.UPSTREAM_AUTHORITY:
                kept = authority
            elif fate is Fate.PERSISTENCE_ONLY:
                kept, others = split_connection(value)
                named.update(others)
                if not kept:
                    continue
            elif (
                fate is Fate.DROP
                or (fate is Fate.DROP_IF_BODY_READ and body_was_read)
                or (
                    fate is Fate.DROP_IF_SAME_ORIGIN
                    # looked for once: there may be 10,000 such lines
                    and value in (own_origins := own_origins or _own_origins(head))
                )
            ):
                continue
        elif lower in also_drop:
            continue
        parts += (name, b": ", kept, b"\r\n")
    named -= _KEPT
    if named and not also_drop:
        return _lines(head, authority, frozenset(named), body_was_read=body_was_read)
    return parts


def split_connection(value: bytes) -> tuple[bytes, set[bytes]]:
    """Split a Connection value into what passes (empty: nothing) and the lower-case header names it lists.

    A value may have 1 MiB and half a million tokens, so that nothing here goes through them one by one in Python.
    """
    lower = value.lower()
    if lower in _PERSISTENCE:
        return value, set()
    tokens = set(lower.translate(None, b" \t").split(b","))
    kept = [token for token in _PERSISTENCE if token in tokens]
    return b", ".join(kept), tokens.difference(_PERSISTENCE, (b"",))


def _own_origins(head: RequestHead) -> tuple[bytes, ...]:
    host = head.fields.get(b"host", b"")
    return b"http://" + host, b"https://" + host


def end_of_head(data: bytes, start: int = 0) -> int:
    """Return the offset just behind the blank line that ends a head, or -1.

    The response parser takes bare line feeds too, so both spellings are looked for; the earlier one ends the head.
    """
    blank = _BLANK.search(data, start)
    return -1 if blank is None else blank.end()


def end_of_last_blank(data: bytes) -> int:
    """Return the offset just behind the last blank line, or 0."""
    crlf, lf = data.rfind(b"\n\r\n"), data.rfind(b"\n\n")
    return max(crlf + 3 if crlf >= 0 else 0, lf + 2 if lf >= 0 else 0)


def with_length(head: bytes, size: int) -> bytes:
    """Return the head of a request with another Content-Length, if it has one."""
    return _LENGTH.sub(b"\\g<1>%d" % size, head)


def with_lines(data: bytes, lines: bytes, end: int) -> bytes:
    """Return ``data``, which begins with a complete head of ``end`` bytes, with ``lines`` before its blank line."""
    end -= 2 if data.endswith(b"\r\n", 0, end) else 1
    return b"%b%b%b" % (data[:end], lines, data[end:])
