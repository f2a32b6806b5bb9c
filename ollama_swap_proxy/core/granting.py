"""Which waiting tickets may have a lease now, without any swap.

Owns the grant. Must not evict or load: a ticket that needs that is left in the line, and `next_target` names it.
"""

from __future__ import annotations

from ollama_swap_proxy.core import commands, turns
from ollama_swap_proxy.core.policy import STALE_VIEW_PATIENCE_S
from ollama_swap_proxy.core.state import Pause, State
from ollama_swap_proxy.core.tickets import Lease, Ticket, Variant


def give(state: State, ticket: Ticket, now: float, *, loads: bool = False) -> None:
    """Turn a waiting ticket into a lease."""
    state.line.remove(ticket.id)
    lease(state, ticket, now, loads=loads)


def lease(state: State, ticket: Ticket, now: float, *, loads: bool = False) -> None:
    """Give a ticket that does not stand in the line its lease."""
    state.leases.add(Lease(ticket, now, loads=loads))
    state.moved_at = now
    if state.turn.first_grant_at is None:
        state.turn.first_grant_at = now
    swapped = state.swap is not None or ticket.arrived_at <= state.last_swap_ended_at
    state.out.append(commands.Grant(ticket.id, swapped=swapped, loads=loads))


def is_servable(state: State, variant: Variant) -> bool:
    """Say whether this variant's tickets need no swap: it is resident, or may be, or is being loaded."""
    if variant.key in state.residency.residents and (
        state.residency.holds(variant) or state.residency.may_be_tried(variant.key)
    ):
        return True
    loader = state.leases.loader(variant.key)
    return loader is not None and loader.ticket.variant == variant


def serves(state: State, variant: Variant) -> bool:
    """Say whether this variant is resident, as far as we know, and no swap is under way."""
    return state.swap is None and is_servable(state, variant)


def grant_all(state: State, now: float) -> bool:
    """Grant every ticket that may go now, oldest first within its variant; say whether any could."""
    waiting = len(state.line)
    for variant in state.line.variants():
        if not is_servable(state, variant):
            continue
        while (ticket := state.line.head(variant)) is not None and _may_go(state, ticket, now):
            give(state, ticket, now, loads=state.residency.holds_unknown_variant(variant.key))
    return len(state.line) < waiting


def _may_go(state: State, ticket: Ticket, now: float) -> bool:
    variant = ticket.variant
    if variant.key not in state.residency.residents:
        return False
    if not has_free_lease(state, variant):
        return False
    if variant.key in state.residency.leaving:
        since = max(ticket.arrived_at, state.residency.outdated_at, _last_grant_at(state, variant.key))
        return state.has_report_since(since, now)
    return _view_serves(state, now)


def has_free_lease(state: State, variant: Variant) -> bool:
    """Say whether one more request for a servable variant may run beside those that do."""
    if state.residency.holds_unknown_variant(variant.key):
        return not state.leases  # it may reload the model: alone
    return state.leases.has_room(variant.key, state.policy.parallel)


def _view_serves(state: State, now: float) -> bool:
    if state.has_fresh_view(now) or state.view_wanted_since is None:
        return True
    # The worst case of going by the last view is that Ollama loads the model by itself, as without us.
    patience_ends_at = state.view_wanted_since + STALE_VIEW_PATIENCE_S
    if now >= patience_ends_at:
        return True
    state.wake(patience_ends_at)
    return False


def _last_grant_at(state: State, key: str) -> float:
    return max((lease.granted_at for lease in state.leases if lease.ticket.variant.key == key), default=0.0)


def next_target(state: State, now: float) -> Ticket | None:
    """Return the ticket whose model comes next by a swap, or None if nobody waits for one that can begin.

    A swap whose victim resists (an unload or drain given up lately) is left for later.
    """
    candidates = []
    for head in state.line.heads():
        if is_servable(state, head.variant):
            continue
        blocked_until = _resisted_until(state, head.variant, now) if state.resisting else now
        if blocked_until > now:
            state.wake(blocked_until)
            continue
        candidates.append(head)
    return turns.choose_next(candidates)


def _resisted_until(state: State, target: Variant, now: float) -> float:
    return max((pause.until for pause in resisted_by(state, target, now)), default=now)


def resisted_by(state: State, target: Variant, now: float) -> list[Pause]:
    """Return the pauses that hold a swap to this target off: its victims' that a swap was given up on lately."""
    pauses = (state.resisting.get(victim.key) for victim in state.residency.victims_for(target))
    return [pause for pause in pauses if pause is not None and pause.until > now]


def turn_is_over(state: State, target: Ticket, now: float) -> bool:
    """Say whether those who are served must make room for this ticket now."""
    served = state.leases.of_others(target.variant)
    waiting = any(is_servable(state, variant) for variant in state.line.variants())
    if not served and not waiting:
        return True
    if state.turn.first_grant_at is None:
        return False  # whom a model was loaded for is served at least once
    ends_at = turns.turn_ends_at(state.turn, target, state.forecast.swap_cost_s(target.variant), state.policy)
    if now >= ends_at:
        return True
    state.wake(ends_at)
    return False
