"""Ollama's keep_alive: what its JSON values mean.

Owns the parse. Must not know what a keep_alive does. Facts: api/types.go:1243 and the recorded table
(tests/transcripts/keep_alive_table).
"""

from __future__ import annotations

import math
import re

from ollama_swap_proxy.simulator.generation import SimError

_UNITS = {"ns": 1e-9, "us": 1e-6, "\u00b5s": 1e-6, "\u03bcs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)([^\d.]*)")
_OVERFLOW_S = (2**63 - 1) / 1e9


def keep_alive_s(value: object) -> float | None:
    """Seconds; `math.inf` for ever, None for unset. One too large for Go overflows to 292 years ago.

    Raises:
        SimError: 400, with Go's text.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        kind = {bool: "bool", list: "[]interface {}"}.get(type(value), "map[string]interface {}")
        raise SimError(400, f"Unsupported type: '{kind}'", early=True)
    seconds = _go_duration_s(value) if isinstance(value, str) else float(value)
    if seconds > _OVERFLOW_S:
        return -_OVERFLOW_S
    return math.inf if seconds < 0 else seconds


def _go_duration_s(text: str) -> float:
    quoted = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    sign = -1.0 if text.startswith("-") else 1.0
    rest = text[1:] if text[:1] in {"-", "+"} else text
    if rest == "0":
        return 0.0
    total, at = 0.0, 0
    while at < len(rest):
        part = _PART.match(rest, at)
        if part is None:
            break
        number, unit = part.groups()
        if not unit:
            raise SimError(400, f"time: missing unit in duration {quoted}", early=True)
        if unit not in _UNITS:
            raise SimError(400, f'time: unknown unit "{unit}" in duration {quoted}', early=True)
        total += float(number) * _UNITS[unit]
        at = part.end()
    if not rest or at < len(rest):
        raise SimError(400, f"time: invalid duration {quoted}", early=True)
    return sign * total
