"""What there is to know of one relayed request, while it is under way and afterwards.

Owns the account that the log line and the gate read, and the handle by which the gate ends a request. Must not relay.
"""

from __future__ import annotations

from typing import Protocol

from ollama_swap_proxy.errors import ProxyError


class Crossing(Protocol):
    """The request on its way, as the relay has it."""

    def cut_off(self, error: ProxyError, /) -> None:
        """End it, if the answer is not complete; see `Exchange.cut_off`."""


class Exchange:
    """What the log line and the gate want to know of one relayed request. Times are the loop's seconds.

    What a request begins with is said once, by the class: to make one costs nothing.

    ``request_bytes`` and ``response_bytes`` are body bytes without framing; ``response_bytes`` is final only at the
    end. ``first_byte_at`` is when the final answer's head came (Ollama sends none before its first token).
    ``own_lines`` are header lines of ours that the answer gets. ``resized``: the body is not as long as its head says.
    """

    request_bytes: int = 0
    response_bytes: int = 0
    status: int = 0
    first_byte_at: float | None = None
    last_byte_at: float | None = None
    upstream_reused: bool = False
    streamed: bool = False
    cut: bool = False
    own_lines: bytes = b""
    resized: bool = False
    cut_code: str = ""
    """The code of the error for which we have cut it ourselves, in mid-answer."""
    crossing: Crossing | None = None
    """While it is under way."""

    def cut_off(self, error: ProxyError) -> None:
        """End it: with this error where its answer has not begun, else by cutting the answer. Nothing if it is over,
        or not under way yet.
        """
        if self.crossing is not None:
            self.crossing.cut_off(error)
