"""The short way for the traffic of one warm model: an arrival, a release, and nothing else going on.

Owns when an event can change nothing but who is granted next, and then grants it. Must not decide anything that
`granting` would not: each condition here repeats one of `granting` or is stricter, and a property test compares a
scheduler that never goes this way. The wake that was asked for holds: no bound comes nearer by such an event.
"""

from __future__ import annotations

from ollama_swap_proxy.core import events, granting, intake
from ollama_swap_proxy.core.state import State
from ollama_swap_proxy.core.tickets import Lease, Ticket, Variant


def took(state: State, event: events.Event, now: float) -> bool:
    """Take an event in and grant what it lets go; or return False, with nothing done."""
    if state.attentive:
        return False
    if isinstance(event, events.Arrived):
        return _took_arrival(state, event.ticket, now)
    return isinstance(event, events.Released) and _took_release(state, event, now)


def _took_arrival(state: State, ticket: Ticket, now: float) -> bool:
    if ticket.patience_s is not None or (state.places_kept and intake.returns(state, ticket)):
        return False  # it wants to be woken for its patience, or has kept its place
    if ticket.id in state.leases.by_ticket:
        return False
    if state.line.tickets:
        if not state.line.goes_behind(ticket) or state.stopping or len(state.line) >= state.policy.line_limit:
            return False
        intake.stand(state, ticket, None, now)  # behind others: which model is next, and until when, does not change
        return True
    variant = ticket.variant
    if not (_serves(state, variant, now) and granting.has_room(state, variant)):
        return False
    state.gaps.came(ticket.client, variant, now)
    state.remember_recipe(ticket)
    granting.lend(state, Lease(ticket, now))
    return True


def _took_release(state: State, event: events.Released, now: float) -> bool:
    lease = state.leases.by_ticket.get(event.ticket_id)
    if lease is None or lease.loads or lease.ticket.stays_briefly or state.swap is not None:
        return False
    if state.line.tickets:
        variant = state.line.only_variant()
        if variant is None or not _serves(state, variant, now):
            return False
        intake.released(state, event, now)
        while granting.has_room(state, variant) and (ticket := granting.next_ticket(state, variant, now)):
            granting.give(state, ticket, now)
    elif state.spills_to_undo or state.pins_to_restore:
        return False  # it may be the idle moment for that
    else:
        intake.released(state, event, now)
    return True


def _serves(state: State, variant: Variant, now: float) -> bool:
    """Say whether a variant is resident for certain, with nothing under way that could change that."""
    return (
        state.swap is None and state.ordinary and state.residency.surely_holds(variant, now, state.policy.ps_max_age_s)
    )
