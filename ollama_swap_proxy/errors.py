"""Errors of ours: one table from what went wrong to status, stable code and a body in the caller's dialect.

Owns every byte that we answer in Ollama's place. Must not decide when an error is due. No text that leaves here
contains "refused" or "could not connect", quoted ones neither: the Ollama CLI takes those for a missing server and
starts its own (cmd/cmd.go:2079).
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass

from ollama_swap_proxy.core.endpoints import Dialect

__all__ = ["LONGEST_RETRY_AFTER_S", "MARK", "Dialect", "ProxyError"]

MARK = "X-Ollama-Swap-Proxy-Error"
"""The response header that marks an answer as ours; its value is the stable code."""

LONGEST_RETRY_AFTER_S = 59
"""Client libraries ignore a Retry-After of 60 s and more (openai-python and anthropic-python: 0 < value <= 60)."""

_EXCHANGED = (
    (re.compile("refused", re.IGNORECASE), "rejected"),
    (re.compile(r"could\s+not\s+connect", re.IGNORECASE), "found no connection"),
)

_OPENAI_TYPES = {400: "invalid_request_error", 404: "not_found_error"}
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}


@dataclass(eq=False)  # not frozen: Python itself sets __traceback__ on an exception under way
class ProxyError(Exception):
    """An answer that we give instead of Ollama.

    ``status``: what says no error (a load that Ollama answered 204, say) becomes 502. ``message`` may quote Ollama: the
    words that its CLI takes for a missing server are exchanged. ``retry_after_s`` is whole seconds, or None where
    trying again does not help; it is sent clamped to 1 to 59.
    """

    code: str
    status: int
    message: str
    retry_after_s: int | None = None

    def __post_init__(self) -> None:
        if not 400 <= self.status <= 599:
            self.status = 502
        for words, others in _EXCHANGED:
            self.message = words.sub(others, self.message)

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"

    def headers(self) -> list[tuple[str, str]]:
        """Return the headers that belong to this error, Content-Length excluded."""
        pairs = [("Content-Type", "application/json; charset=utf-8"), (MARK, self.code)]
        if self.retry_after_s is not None:
            pairs.append(("Retry-After", str(min(max(self.retry_after_s, 1), LONGEST_RETRY_AFTER_S))))
        return pairs

    def body(self, dialect: Dialect) -> bytes:
        """Return the JSON body, shaped as Ollama shapes its own errors on such a path.

        openai/openai.go:225, anthropic/anthropic.go:38; recorded in tests/transcripts (errors_native, errors_v1).
        """
        shape: dict[str, object]
        if dialect is Dialect.OPENAI:
            kind = _OPENAI_TYPES.get(self.status, "api_error")
            shape = {"error": {"message": self.message, "type": kind, "param": None, "code": self.code}}
        elif dialect is Dialect.ANTHROPIC:
            kind = _ANTHROPIC_TYPES.get(self.status, "api_error")
            shape = {
                "type": "error",
                "error": {"type": kind, "message": self.message},
                "request_id": f"req_{secrets.token_hex(12)}",
            }
        else:
            shape = {"error": self.message}
        return json.dumps(shape, ensure_ascii=False).encode(errors="replace")  # a quoted text may have lone surrogates
