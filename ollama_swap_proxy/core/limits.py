"""What holds for one model: the operator's setting for it alone, or else that for all.

Owns which of the two counts, and that a pinned model has no time to live. Must not act on any of them (`bounds` and
`upkeep` make moments of them). All are seconds; 0 stands for no limit.
"""

from __future__ import annotations

from ollama_swap_proxy.core.state import State
from ollama_swap_proxy.core.tickets import NO_TRAITS, Lease, Upkeep


def ttl_s(state: State, key: str) -> float:
    """Return after how many idle seconds a model is unloaded by us; 0: never."""
    traits = state.traits.get(key, NO_TRAITS)
    if traits.pinned:
        return 0.0
    return _own_or(traits.upkeep.ttl_s, state.policy.ttl_s)


def keep_alive(state: State, key: str) -> float:
    """Return the keep_alive that the operator set for a model: seconds, negative for ever, 0: clients' own count."""
    return _own_or(_upkeep(state, key).keep_alive, state.policy.keep_alive)


def load_timeout_s(state: State, key: str) -> float:
    """Return how long this model may take to load; never 0."""
    return _own_or(_upkeep(state, key).load_timeout_s, state.policy.load_timeout_s)


def unload_timeout_s(state: State, key: str) -> float:
    """Return how long this model may take to be gone; never 0."""
    return _own_or(_upkeep(state, key).unload_timeout_s, state.policy.unload_timeout_s)


def drain_timeout_s(state: State, lease: Lease) -> float:
    """Return after how much draining a request is cut that others wait for."""
    return _own_or(lease.ticket.traits.upkeep.drain_timeout_s, state.policy.drain_timeout_s)


def first_byte_timeout_s(state: State, lease: Lease) -> float:
    """Return how long a request may run before the first byte of its answer."""
    return _own_or(lease.ticket.traits.upkeep.first_byte_timeout_s, state.policy.first_byte_timeout_s)


def idle_stream_timeout_s(state: State, lease: Lease) -> float:
    """Return how long a request's answer may pause once it has begun."""
    return _own_or(lease.ticket.traits.upkeep.idle_stream_timeout_s, state.policy.idle_stream_timeout_s)


def _upkeep(state: State, key: str) -> Upkeep:
    return state.traits.get(key, NO_TRAITS).upkeep


def _own_or(own: float | None, of_all: float) -> float:
    return of_all if own is None else own
