"""Classes: how urgent a request is, and how long it may wait for its model.

Owns the shape. Must not choose a request's class (`callers` does, by the operator's rules) nor the order (`turns`).
"""

from __future__ import annotations

from typing import NamedTuple


class TicketClass(NamedTuple):
    """A ticket's class: the higher ``rank`` goes first; past ``max_wait_s`` a ticket goes before all less late."""

    name: str
    rank: int
    max_wait_s: float


NORMAL = TicketClass("normal", 10, 120.0)
"""The class of a request that no rule says anything about."""
