"""keep_alive as Ollama reads it: a number of seconds or a Go duration.

Owns the grammar (api/types.go:1243, Go's time.ParseDuration; recorded in tests/transcripts/keep_alive_table.json). Must
not know what a keep_alive does.
"""

from __future__ import annotations

import math
import re

FOREVER_NS = 2**63 - 1
OVERFLOWN_NS = -(2**63)
"""What a number above about 9.2e9 becomes on amd64: the model leaves as soon as it is idle. Elsewhere it may differ."""

_LARGEST = 2**63
_UNITS_NS = {
    "ns": 1,
    "us": 1_000,
    "\u00b5s": 1_000,
    "\u03bcs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_PART = re.compile(r"([0-9]*)(?:\.([0-9]*))?([^0-9.]+)")


class BadDurationError(ValueError):
    """Ollama refuses this keep_alive with 400."""


def parse_keep_alive_ns(value: object) -> int:
    """Return a keep_alive in nanoseconds; negative ones mean forever.

    ``value`` is as `json_fields` reads it and not None (null is the same as absent; that is the caller's).

    Raises:
        BadDurationError: a string that is no Go duration, or a type that Ollama does not take.
    """
    if isinstance(value, str):
        nanoseconds = _parse_go_duration(value)
        return FOREVER_NS if nanoseconds < 0 else nanoseconds
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadDurationError(f"Unsupported type: {type(value).__name__}")
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if math.isinf(seconds):
        raise BadDurationError("number out of range")
    if seconds < 0:
        return FOREVER_NS
    nanoseconds = int(seconds * 1e9)
    return nanoseconds if nanoseconds < _LARGEST else OVERFLOWN_NS


def _parse_go_duration(text: str) -> int:
    unsigned = text[1:] if text[:1] in {"-", "+"} else text
    if unsigned == "0":
        return 0
    total = 0
    position = 0
    while position < len(unsigned) or not position:
        part = _PART.match(unsigned, position)
        if part is None or not (part[1] or part[2]) or part[3] not in _UNITS_NS:
            raise BadDurationError(f"invalid duration {text[:40]!r}")
        unit_ns = _UNITS_NS[part[3]]
        whole = _bounded(part[1].lstrip("0"))
        fraction = (part[2] or "")[:18]
        total += whole * unit_ns + int(int(fraction or "0") * (unit_ns / 10 ** len(fraction)))
        if total > _LARGEST:
            raise BadDurationError(f"duration too long {text[:40]!r}")
        position = part.end()
    if text.startswith("-"):
        return -total
    if total >= _LARGEST:
        raise BadDurationError(f"duration too long {text[:40]!r}")
    return total


def _bounded(digits: str) -> int:
    return int(digits or "0") if len(digits) <= len(str(_LARGEST)) else _LARGEST + 1
