"""Whose turn it is, and when a turn is over: pure questions.

Owns the order between tickets, and the end of a turn. Must not know how a turn changes hands (`swapping`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from ollama_swap_proxy.core.policy import SHORTEST_TURN_S, SWAPS_PER_EARLY_END, Policy
from ollama_swap_proxy.core.tickets import Ticket


@dataclass(slots=True)
class Turn:
    """The stretch for which what is resident is served; bounded once others wait. Times in the scheduler's seconds."""

    began_at: float
    first_grant_at: float | None = None


class End(Enum):
    """Why a turn ends."""

    IDLE = "idle"
    """Nobody uses or awaits the model, and its linger is over."""
    LIMIT = "limit"
    """Its turn limit is used up."""
    OVERDUE = "overdue"
    """Somebody else's maximum wait is over by the time he can be served."""
    HIGHER_CLASS = "higher class"
    """Somebody of a higher class waits for another model."""
    NOT_SERVED = "not served yet"
    """It does not end before whom the model was loaded for has been served once."""


class Ending(NamedTuple):
    """When a turn ends if nothing else happens (infinity: not for now), and why."""

    at: float
    why: End


class Served(NamedTuple):
    """Who has the turn: ``leases`` and ``waiting`` count requests for it, ``rank`` is the highest class among those
    who wait for it, or where nobody does among those who run; ``idle_since`` is when its last lease ended, ``linger_s``
    how long it is kept once it is idle and somebody waits.
    """

    leases: int
    waiting: int
    rank: int
    idle_since: float
    linger_s: float


def precedence(ticket: Ticket, now: float, ahead_s: float) -> tuple[int, float, float, int]:
    """Return the key by which tickets follow each other; the least goes first.

    Overdue tickets first, the later the better, as a share of their maximum; then the highest class; then the longest
    wait. ``ahead_s`` is what lies before it in any case, the expected swap: a ticket is overdue so much earlier.
    """
    if is_overdue(ticket, now, ahead_s):
        late = (now + ahead_s - ticket.arrived_at) / ticket.klass.max_wait_s
        return 0, -late, ticket.arrived_at, ticket.id
    return 1, -ticket.klass.rank, ticket.arrived_at, ticket.id


def first(tickets: Iterable[Ticket], now: float, ahead_s: float) -> Ticket | None:
    """Return the ticket that goes before the others, or None of none."""
    return min(tickets, key=lambda ticket: precedence(ticket, now, ahead_s), default=None)


def is_overdue(ticket: Ticket, now: float, ahead_s: float) -> bool:
    """Say whether a ticket's maximum wait is over when what lies ahead of it is."""
    return now + ahead_s - ticket.arrived_at >= ticket.klass.max_wait_s


def ending(
    turn: Turn,
    served: Served,
    waiter: Ticket,
    *,
    waiting_since: float,
    swap_cost_s: float,
    early_end_at: float,
    policy: Policy,
) -> Ending:
    """Say when the turn is over because ``waiter`` waits for a model that is not resident.

    The limit counts from the later of the turn's first grant and the arrival of the first who waits for another model
    (``waiting_since``); automatically it is the larger of 10 s and twice what the swap costs, so that swapping takes at
    most a third of a saturated card. Whoever nears his maximum ends a longer turn, but never one shorter than that
    floor: without it, swaps eat the card. A higher class ends it at once, but only so often (``early_end_at`` was the
    last time): for a lower one there is no limit, only its maximum.
    """
    began_at = turn.began_at if turn.first_grant_at is None else turn.first_grant_at
    shortest_s = max(SHORTEST_TURN_S, 2 * swap_cost_s)
    limit_at = max(began_at, waiting_since) + (policy.turn_limit_s or shortest_s)
    if not served.leases and not served.waiting:
        return Ending(min(max(served.idle_since, waiting_since) + served.linger_s, limit_at), End.IDLE)
    if turn.first_grant_at is None and served.waiting:
        return Ending(float("inf"), End.NOT_SERVED)
    due_at = waiter.arrived_at + waiter.klass.max_wait_s - swap_cost_s
    endings = [Ending(max(due_at, began_at + shortest_s), End.OVERDUE)]
    if waiter.klass.rank >= served.rank:
        endings.append(Ending(limit_at, End.LIMIT))
    if waiter.klass.rank > served.rank:
        endings.append(Ending(early_end_at + SWAPS_PER_EARLY_END * swap_cost_s, End.HIGHER_CLASS))
    return min(endings, key=lambda end: end.at)
