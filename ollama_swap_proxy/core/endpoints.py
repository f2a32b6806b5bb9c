"""Which route a request is for, judged as Ollama judges it (Go's net/http mux, then gin), and whose dialect it speaks.

Owns the table of the gated routes. Must not look into bodies (`json_fields`, `requests`) and must not answer.
Facts: server/routes.go:1876-1926; recorded in tests/transcripts/routing.json and generate_chat.json.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import unquote_to_bytes


class Dialect(StrEnum):
    """Whose error and stream shapes a path speaks."""

    NATIVE = "native"
    OPENAI = "openai"
    ANTHROPIC = "anthropic"


@dataclass(frozen=True, slots=True, eq=False)
class Endpoint:
    """A gated route: one that may put a model in memory. There is one object for each, so identity is equality.

    ``takes_zstd``: Ollama inflates a body marked ``Content-Encoding: zstd`` here and nowhere else
    (server/cloud_proxy.go:81).
    ``is_form``: the model is a field of a multipart form (or of the query), not of a JSON body.
    """

    path: str
    dialect: Dialect
    takes_zstd: bool = False
    is_form: bool = False
    is_native: bool = field(init=False)
    """Only native routes know keep_alive and runner options. No property: each request asks it several times."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_native", self.dialect is Dialect.NATIVE)


GENERATE = Endpoint("/api/generate", Dialect.NATIVE)
CHAT = Endpoint("/api/chat", Dialect.NATIVE)
EMBED = Endpoint("/api/embed", Dialect.NATIVE)
EMBEDDINGS = Endpoint("/api/embeddings", Dialect.NATIVE)
V1_CHAT = Endpoint("/v1/chat/completions", Dialect.OPENAI, takes_zstd=True)
V1_COMPLETIONS = Endpoint("/v1/completions", Dialect.OPENAI, takes_zstd=True)
V1_EMBEDDINGS = Endpoint("/v1/embeddings", Dialect.OPENAI, takes_zstd=True)
V1_RESPONSES = Endpoint("/v1/responses", Dialect.OPENAI, takes_zstd=True)
V1_MESSAGES = Endpoint("/v1/messages", Dialect.ANTHROPIC, takes_zstd=True)
V1_IMAGES = Endpoint("/v1/images/generations", Dialect.OPENAI, takes_zstd=True)
V1_IMAGE_EDITS = Endpoint("/v1/images/edits", Dialect.OPENAI, takes_zstd=True)
"""Ollama 0.15 to 0.32.5 had these two; others answer 404."""
V1_TRANSCRIPTIONS = Endpoint("/v1/audio/transcriptions", Dialect.OPENAI, is_form=True)

GATED = (
    GENERATE,
    CHAT,
    EMBED,
    EMBEDDINGS,
    V1_CHAT,
    V1_COMPLETIONS,
    V1_EMBEDDINGS,
    V1_RESPONSES,
    V1_MESSAGES,
    V1_IMAGES,
    V1_IMAGE_EDITS,
    V1_TRANSCRIPTIONS,
)

_BY_PATH = {endpoint.path.encode(): endpoint for endpoint in GATED}
_BY_RAW_TARGET: dict[bytes | str, Endpoint] = {raw: e for e in GATED for raw in (e.path, e.path.encode())}
_LIBRARY_CHANGES = {
    b"/api/pull": "POST",
    b"/api/create": "POST",
    b"/api/copy": "POST",
    b"/api/delete": "DELETE",
}
_ABSOLUTE_FORM = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*:(?://[^/]*)?+(/.*)", re.DOTALL)
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")


def match(method: str, target: bytes | str) -> Endpoint | None:
    """Return the gated route that Ollama would serve this request by, or None for passthrough.

    ``target`` is the request target as sent, origin-form or absolute-form. POST only, case-sensitive. What Go redirects
    (``//``, ``..``, a trailing slash) or refuses (``%zz``) is passthrough: Ollama answers it without loading anything.
    """
    endpoint = _BY_RAW_TARGET.get(target)
    if endpoint is None and method == "POST":
        path = path_of(target)
        endpoint = None if path is None else _BY_PATH.get(path)
    return endpoint if method == "POST" else None


def dialect_of(target: bytes | str) -> Dialect:
    """Return the dialect in which a client of this path expects errors; every path has one."""
    endpoint = _BY_RAW_TARGET.get(target)
    if endpoint is not None:
        return endpoint.dialect
    path = (path_of(target) or b"") + b"/"
    if path.startswith(b"/v1/messages/"):
        return Dialect.ANTHROPIC
    return Dialect.OPENAI if path.startswith(b"/v1/") else Dialect.NATIVE


def changes_library(method: str, target: bytes | str) -> bool:
    """Say whether this request may change which models exist or what a name means (pull, create, copy, delete)."""
    if method not in {"POST", "DELETE"}:
        return False
    path = path_of(target)
    return path is not None and _LIBRARY_CHANGES.get(path) == method


def path_of(target: bytes | str) -> bytes | None:
    """Return the decoded path that gin matches against its routes, or None where Go refuses the target.

    The mux cleans the *escaped* path and redirects when that changes it; gin then matches the decoded one exactly. What
    decodes to a route, which has no dot segments and no doubled slashes, is never redirected, so decoding is enough.
    """
    raw = target if isinstance(target, bytes) else target.encode("utf-8", "surrogateescape")
    raw = raw.partition(b"?")[0]
    if not raw.startswith(b"/"):
        absolute = _ABSOLUTE_FORM.fullmatch(raw)
        if absolute is None:
            return None
        raw = absolute[1]
    if _CONTROL.search(raw):
        return None
    if b"%" not in raw:
        return raw
    return None if _BAD_ESCAPE.search(raw) else unquote_to_bytes(raw)
