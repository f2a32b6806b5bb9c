"""The leases that are out: who uses which model right now.

Owns their numbers by key, so that one more request costs the same however many run. Must not grant (`granting`).
"""

from __future__ import annotations

from collections.abc import Iterator

from ollama_swap_proxy.core.policy import VARIANTS_KEPT
from ollama_swap_proxy.core.tickets import Lease


class Leases:
    """All leases, in the order of their grants. Every operation is O(1).

    At most one lease of a key loads its model at a time: beside it there is no room.
    """

    def __init__(self) -> None:
        self._by_ticket: dict[int, Lease] = {}
        self._running: dict[str, int] = {}
        self._loaders: dict[str, Lease] = {}
        self._idle_since: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._by_ticket)

    def __contains__(self, ticket_id: int) -> bool:
        return ticket_id in self._by_ticket

    def __iter__(self) -> Iterator[Lease]:
        return iter(self._by_ticket.values())

    def get(self, ticket_id: int | None) -> Lease | None:
        """Return the lease of a ticket, or None if it has none."""
        return None if ticket_id is None else self._by_ticket.get(ticket_id)

    def add(self, lease: Lease) -> None:
        """Note a grant."""
        key = lease.ticket.variant.key
        self._by_ticket[lease.ticket.id] = lease
        self._running[key] = self._running.get(key, 0) + 1
        if lease.loads:
            self._loaders[key] = lease

    def end(self, ticket_id: int, now: float) -> Lease | None:
        """Take a lease out, or return None if there is none."""
        lease = self._by_ticket.pop(ticket_id, None)
        if lease is None:
            return None
        key = lease.ticket.variant.key
        left = self._running[key] - 1
        if left:
            self._running[key] = left
        else:
            del self._running[key]
            self._fell_idle(key, now)
        if lease.loads:
            self._loaders.pop(key, None)
        return lease

    def has_loaded(self, lease: Lease) -> None:
        """Note that the request by which upstream loads a model has been answered: the model is loaded."""
        lease.loads = False
        self._loaders.pop(lease.ticket.variant.key, None)

    def running(self, key: str) -> int:
        """Return how many requests use this model."""
        return self._running.get(key, 0)

    def has_room(self, key: str, most: int) -> bool:
        """Say whether fewer than ``most`` requests use this model, and none of them is loading it."""
        return key not in self._loaders and self._running.get(key, 0) < most

    def loader(self, key: str) -> Lease | None:
        """Return the lease by which upstream is loading this model right now, if one is."""
        return self._loaders.get(key)

    def idle_since(self, key: str) -> float | None:
        """Return when the last lease of this model ended; None if there was none, or one is out."""
        return None if key in self._running else self._idle_since.get(key)

    def _fell_idle(self, key: str, now: float) -> None:
        self._idle_since[key] = now
        if len(self._idle_since) > VARIANTS_KEPT:
            del self._idle_since[next(iter(self._idle_since))]
