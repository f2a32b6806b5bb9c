"""The waiting line: tickets, grouped by variant, in order of arrival.

Owns who waits. Must not decide whose turn it is (`turns`) or when a wait ends (`scheduler`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from ollama_swap_proxy.core.tickets import Ticket, Variant


class Line:
    """All waiting tickets. Every operation is O(1), but for those over variants: O(number of waiting variants)."""

    def __init__(self) -> None:
        self._queues: dict[Variant, OrderedDict[int, Ticket]] = {}
        self._variants: dict[int, Variant] = {}

    def __len__(self) -> int:
        return len(self._variants)

    def __contains__(self, ticket_id: int) -> bool:
        return ticket_id in self._variants

    def add(self, ticket: Ticket) -> None:
        """Put a ticket behind those that wait for the same variant."""
        self._queues.setdefault(ticket.variant, OrderedDict())[ticket.id] = ticket
        self._variants[ticket.id] = ticket.variant

    def remove(self, ticket_id: int) -> Ticket | None:
        """Take a ticket out, or return None if it does not wait."""
        variant = self._variants.pop(ticket_id, None)
        if variant is None:
            return None
        queue = self._queues[variant]
        ticket = queue.pop(ticket_id)
        if not queue:
            del self._queues[variant]
        return ticket

    def awaits(self, variant: Variant) -> bool:
        """Say whether anybody waits for this variant."""
        return variant in self._queues

    def head(self, variant: Variant) -> Ticket | None:
        """Return the ticket that has waited longest for this variant."""
        queue = self._queues.get(variant)
        return next(iter(queue.values())) if queue else None

    def only_variant(self) -> Variant | None:
        """Return the variant that everybody waits for, or None if that is not just one."""
        return next(iter(self._queues)) if len(self._queues) == 1 else None

    def heads(self) -> list[Ticket]:
        """Return the longest waiting ticket of each variant, in order of the variants' arrival."""
        return [next(iter(queue.values())) for queue in self._queues.values()]

    def variants(self) -> list[Variant]:
        """Return the variants that somebody waits for, in order of their arrival."""
        return list(self._queues)

    def waiting_for(self, variant: Variant) -> list[Ticket]:
        """Return the tickets of one variant, oldest first."""
        return list(self._queues.get(variant, {}).values())

    def __iter__(self) -> Iterator[Ticket]:
        for queue in self._queues.values():
            yield from queue.values()
