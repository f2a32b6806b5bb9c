"""The leases that are out: who uses which model right now.

Owns their numbers by key, so that one more request costs the same however many run. Must not grant (`granting`).
"""

from __future__ import annotations

from collections.abc import Iterator

from ollama_swap_proxy.core.policy import VARIANTS_KEPT
from ollama_swap_proxy.core.tickets import Lease


class Leases:
    """All leases, in the order of their grants. Every operation is O(1).

    At most one lease of a key loads its model at a time: beside it there is no room. The tables are there to be looked
    at (each request does so several times), and changed here only.
    """

    def __init__(self) -> None:
        self.by_ticket: dict[int, Lease] = {}
        """All of them, by the id of the ticket."""
        self.running: dict[str, int] = {}
        """How many requests use each model; nothing for one that is idle."""
        self.loaders: dict[str, Lease] = {}
        """By key, the lease by which upstream is loading that model right now."""
        self._idle_since: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self.by_ticket)

    def __contains__(self, ticket_id: int) -> bool:
        return ticket_id in self.by_ticket

    def __iter__(self) -> Iterator[Lease]:
        return iter(self.by_ticket.values())

    def get(self, ticket_id: int | None) -> Lease | None:
        """Return the lease of a ticket, or None if it has none."""
        return None if ticket_id is None else self.by_ticket.get(ticket_id)

    def add(self, lease: Lease) -> None:
        """Note a grant."""
        key = lease.ticket.variant.key
        self.by_ticket[lease.ticket.id] = lease
        self.running[key] = self.running.get(key, 0) + 1
        if lease.loads:
            self.loaders[key] = lease

    def end(self, ticket_id: int, now: float) -> Lease | None:
        """Take a lease out, or return None if there is none."""
        lease = self.by_ticket.pop(ticket_id, None)
        if lease is None:
            return None
        key = lease.ticket.variant.key
        left = self.running[key] - 1
        if left:
            self.running[key] = left
        else:
            del self.running[key]
            self._idle_since[key] = now
            if len(self._idle_since) > VARIANTS_KEPT:
                del self._idle_since[next(iter(self._idle_since))]
        if lease.loads:
            self.loaders.pop(key, None)
        return lease

    def has_loaded(self, lease: Lease) -> None:
        """Note that the request by which upstream loads a model has been answered: the model is loaded."""
        lease.loads = False
        self.loaders.pop(lease.ticket.variant.key, None)

    def idle_since(self, key: str) -> float | None:
        """Return when the last lease of this model ended; None if there was none, or one is out."""
        return None if key in self.running else self._idle_since.get(key)
