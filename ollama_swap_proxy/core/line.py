"""The waiting line: tickets, grouped by variant and class, in order of arrival and by client.

Owns who waits, and the fair order between the clients of one class. Must not decide whose turn it is (`turns`) or when
a wait ends (`scheduler`).
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator

from ollama_swap_proxy.core.classes import TicketClass
from ollama_swap_proxy.core.tickets import Ticket, Variant


def _age(ticket: Ticket) -> tuple[float, int]:
    return ticket.arrived_at, ticket.id


class _Lane:
    """The tickets of one class for one variant. Clients take turns: whoever was granted goes behind the others.

    ``last_at`` and ``last_id`` are those of the youngest ticket there ever was.
    """

    __slots__ = ("_by_client", "last_at", "last_id", "tickets")

    def __init__(self) -> None:
        self.tickets: OrderedDict[int, Ticket] = OrderedDict()
        self._by_client: OrderedDict[str, OrderedDict[int, Ticket]] = OrderedDict()
        self.last_at, self.last_id = float("-inf"), -1

    def add(self, ticket: Ticket) -> None:
        self.tickets[ticket.id] = ticket
        if ticket.arrived_at >= self.last_at:
            self.last_at, self.last_id = ticket.arrived_at, ticket.id
        else:  # it has kept its place from an earlier try
            self.tickets = OrderedDict(sorted(self.tickets.items(), key=lambda item: _age(item[1])))
        of_client = self._by_client.get(ticket.client)
        if of_client is None:
            of_client = self._by_client[ticket.client] = OrderedDict()
        of_client[ticket.id] = ticket

    def remove(self, ticket: Ticket, *, granted: bool) -> None:
        del self.tickets[ticket.id]
        of_client = self._by_client[ticket.client]
        del of_client[ticket.id]
        if not of_client:
            del self._by_client[ticket.client]
        elif granted:
            self._by_client.move_to_end(ticket.client)

    def oldest(self) -> Ticket:
        return next(iter(self.tickets.values()))

    def fairest(self) -> Ticket:
        return next(iter(next(iter(self._by_client.values())).values()))


class Line:
    """All waiting tickets. Every operation is O(1), but for those over variants, and the arrival of an old ticket."""

    def __init__(self) -> None:
        self._lanes: dict[Variant, dict[str, _Lane]] = {}
        self.tickets: dict[int, Ticket] = {}
        """All of them by id, in order of their arrival: to be looked at, and changed here only."""
        self._impatient: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self.tickets)

    def __contains__(self, ticket_id: int) -> bool:
        return ticket_id in self.tickets

    def __iter__(self) -> Iterator[Ticket]:
        return iter(self.tickets.values())

    def add(self, ticket: Ticket, leaves_at: float | None = None) -> None:
        """Put a ticket in, behind those of its variant, class and client. ``leaves_at``: its own patience ends then."""
        if leaves_at is not None:
            heapq.heappush(self._impatient, (leaves_at, ticket.id))
        lanes = self._lanes.get(ticket.variant)
        if lanes is None:
            lanes = self._lanes[ticket.variant] = {}
        lane = lanes.get(ticket.klass.name)
        if lane is None:
            lane = lanes[ticket.klass.name] = _Lane()
        lane.add(ticket)
        self.tickets[ticket.id] = ticket

    def remove(self, ticket_id: int, *, granted: bool = False) -> Ticket | None:
        """Take a ticket out, or return None if it does not wait. ``granted``: other clients come before its own now."""
        ticket = self.tickets.pop(ticket_id, None)
        if ticket is None:
            return None
        lanes = self._lanes[ticket.variant]
        lane = lanes[ticket.klass.name]
        lane.remove(ticket, granted=granted)
        if not lane.tickets:
            del lanes[ticket.klass.name]
            if not lanes:
                del self._lanes[ticket.variant]
        return ticket

    def awaits(self, variant: Variant) -> bool:
        """Say whether anybody waits for this variant."""
        return variant in self._lanes

    def goes_behind(self, ticket: Ticket) -> bool:
        """Say whether a ticket, which does not wait yet, would stand behind others of its variant and class."""
        lanes = self._lanes.get(ticket.variant)
        lane = None if lanes is None else lanes.get(ticket.klass.name)
        return lane is not None and ticket.arrived_at >= lane.last_at and ticket.id > lane.last_id

    def variants(self) -> list[Variant]:
        """Return the variants that somebody waits for, in order of their arrival."""
        return list(self._lanes)

    def only_variant(self) -> Variant | None:
        """Return the variant that everybody waits for, or None if that is not just one."""
        return next(iter(self._lanes)) if len(self._lanes) == 1 else None

    def oldest(self, variant: Variant) -> Ticket | None:
        """Return the ticket that has waited longest for this variant."""
        return min(self.oldest_by_class(variant), key=_age, default=None)

    def oldest_by_class(self, variant: Variant) -> list[Ticket]:
        """Return the longest waiting ticket of each class that waits for this variant."""
        return [lane.oldest() for lane in self._lanes.get(variant, {}).values()]

    def fairest(self, variant: Variant, klass: TicketClass) -> Ticket:
        """Return the ticket of this class whose client's turn it is. Raises KeyError if none waits."""
        return self._lanes[variant][klass.name].fairest()

    def next_to_leave(self) -> tuple[float, Ticket] | None:
        """Return the ticket whose own patience ends first, and when; None if none has its own."""
        while self._impatient:
            leaves_at, ticket_id = self._impatient[0]
            ticket = self.tickets.get(ticket_id)
            if ticket is not None:
                return leaves_at, ticket
            heapq.heappop(self._impatient)  # it has left already
        return None

    def waiting_for(self, variant: Variant) -> list[Ticket]:
        """Return the tickets of one variant, oldest first."""
        lanes = self._lanes.get(variant, {}).values()
        return sorted((ticket for lane in lanes for ticket in lane.tickets.values()), key=_age)
