"""Tables of what was learned that must not grow for ever: the newest lessons are kept.

Owns that rule. Must not know what is learned.
"""

from __future__ import annotations

from typing import TypeVar

K = TypeVar("K")
T = TypeVar("T")


def keep(known: dict[K, T], about: K, learned: T, most: int) -> None:
    """Remember this as the newest, and forget what was learned longest ago where there are more than ``most``."""
    known.pop(about, None)
    known[about] = learned
    if len(known) > most:
        del known[next(iter(known))]
