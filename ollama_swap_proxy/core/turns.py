"""Whose turn it is, and when a turn is over: pure questions.

Owns the order between models. Must not know how a turn changes hands (`swapping`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ollama_swap_proxy.core.policy import SHORTEST_TURN_S, Policy
from ollama_swap_proxy.core.tickets import Ticket


@dataclass(slots=True)
class Turn:
    """The stretch for which what is resident is served; bounded once others wait."""

    began_at: float
    first_grant_at: float | None = None


def choose_next(heads: Iterable[Ticket]) -> Ticket | None:
    """Return the head ticket whose model goes next: the one that has waited longest; its id breaks ties."""
    return min(heads, key=lambda head: (head.arrived_at, head.id), default=None)


def turn_ends_at(turn: Turn, first_waiter: Ticket, swap_cost_s: float, policy: Policy) -> float:
    """Return when the turn is over because ``first_waiter`` (of a model that is not resident) waits.

    The limit counts from the later of the turn's first grant and the first waiter's arrival; automatically it is the
    larger of 10 s and twice what the swap costs, so that swapping takes at most a third of a saturated card. A waiter
    that nears its maximum ends a longer turn, but never one shorter than that floor: without it, swaps eat the card.
    """
    began_at = turn.began_at if turn.first_grant_at is None else turn.first_grant_at
    shortest_s = max(SHORTEST_TURN_S, 2 * swap_cost_s)
    limit_s = policy.turn_limit_s or shortest_s
    due_at = first_waiter.arrived_at + policy.max_wait_s - swap_cost_s
    return min(max(began_at, first_waiter.arrived_at) + limit_s, max(due_at, began_at + shortest_s))
