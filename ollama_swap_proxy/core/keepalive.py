"""The operator's keep_alive for a model: clients may not override it, though their requests reach Ollama as sent.

Owns when an empty request of ours sets it anew. Must not evict or load: it is sent only to a runner that is resident by
the last report, with its own options, and is no victim; else it would load the model, or load it again.
Facts (tests/transcripts/keep_alive_table.json, server/sched.go:475): an explicit keep_alive counts from when Ollama
takes the request up, stays on the runner for requests without one, and acts when the runner falls idle.
"""

from __future__ import annotations

from ollama_swap_proxy.core import commands, events, limits, plans
from ollama_swap_proxy.core.policy import OVERRULED_AFTER_S
from ollama_swap_proxy.core.state import State
from ollama_swap_proxy.core.tickets import Lease, Variant


def found(state: State, key: str, now: float) -> None:
    """Note a runner that is new: it has the server's keep_alive, or that of whoever loaded it."""
    if limits.keep_alive(state, key):
        state.keep_alive_due[key] = now


def ended(state: State, lease: Lease, now: float) -> None:
    """Note the end of a request with a keep_alive of its own: that counts now.

    A short one acts before we could be sure that the model is still there: it is overruled while its request runs, or
    not at all.
    """
    key = lease.ticket.variant.key
    if not lease.ticket.sets_keep_alive or not limits.keep_alive(state, key):
        return
    if not lease.ticket.stays_briefly:
        state.keep_alive_due[key] = now
    elif not lease.overruled:
        state.keep_alive_due.pop(key, None)


def set_due(state: State, now: float) -> None:
    """Ask for what is due now, and to be woken for the next."""
    for lease in state.leases:
        ticket = lease.ticket
        if ticket.stays_briefly and not lease.overruled and limits.keep_alive(state, ticket.variant.key):
            due_at = lease.granted_at + OVERRULED_AFTER_S
            if now < due_at:
                state.wake(due_at)
            elif not lease.loads:
                lease.overruled = True
                state.keep_alive_due[ticket.variant.key] = now
    for key in list(state.keep_alive_due):
        if key not in state.keeping_alive and _may_be_set(state, key, now):
            _set(state, key)


def answered(state: State, event: events.KeptAlive) -> None:
    """Take in how a request of ours ended."""
    state.keeping_alive.discard(event.key)
    if event.reason:
        state.say("keep_alive_not_set", warning=True, model=state.residency.name_of(event.key), reason=event.reason)


def _may_be_set(state: State, key: str, now: float) -> bool:
    if state.stopping or state.mode == "bypass" or plans.is_closed(state, key) or key in state.residency.leaving:
        return False
    if key not in state.residency.residents or key not in state.residency.options:
        return False  # while a request loads it, its options are not known either
    return state.leases.running.get(key, 0) > 0 or state.has_fresh_view(now)


def _set(state: State, key: str) -> None:
    del state.keep_alive_due[key]
    variant = Variant(key, state.residency.options[key])
    if variant not in state.recipes:
        return  # only a request of its own reaches this runner
    name, recipe = state.recipes[variant]
    state.keeping_alive.add(key)
    state.out.append(commands.KeepAlive(key, name, recipe, limits.keep_alive(state, key)))
