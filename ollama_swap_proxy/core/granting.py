"""Which waiting tickets may have a lease now, without any swap.

Owns the grant. Must not evict or load: a ticket that needs that is left in the line, and `next_target` names it.
"""

from __future__ import annotations

from ollama_swap_proxy.core import commands, plans, slots, turns
from ollama_swap_proxy.core.policy import SHORT_DRAIN_S, STALE_VIEW_PATIENCE_S
from ollama_swap_proxy.core.state import Pause, State
from ollama_swap_proxy.core.tickets import Lease, Ticket, Variant
from ollama_swap_proxy.core.turns import Ending, Served


def give(state: State, ticket: Ticket, now: float, *, loads: bool = False) -> None:
    """Turn a waiting ticket into a lease."""
    state.line.remove(ticket.id, granted=True)
    if state.accuracy.foretold:
        state.accuracy.granted(ticket.id, now)
    lend(state, Lease(ticket, now, loads=loads, relayed=state.mode == "bypass"))


def lend(state: State, lease: Lease) -> None:
    """Let a lease out that begins now, to a ticket that does not stand in the line."""
    ticket, now = lease.ticket, lease.granted_at
    state.leases.add(lease)
    state.slots.began(ticket.variant.key, ticket.id, now)
    state.moved_at = now
    if state.turn.first_grant_at is None:
        state.turn.first_grant_at = now
    swapped = state.swap is not None or ticket.arrived_at <= state.last_swap_ended_at
    state.out.append(commands.Grant(ticket.id, swapped, lease.loads))


def is_servable(state: State, variant: Variant) -> bool:
    """Say whether this variant's tickets need no swap: it is resident, or may be, or is being loaded."""
    if state.residency.holds(variant) or state.residency.may_be_tried(variant.key):
        return True
    loader = state.leases.loaders.get(variant.key)
    return loader is not None and loader.ticket.variant == variant


def serves(state: State, variant: Variant) -> bool:
    """Say whether this variant is resident, as far as we know, and no swap is under way that closes it."""
    return is_servable(state, variant) and not plans.is_closed(state, variant.key)


def awaits_operator(state: State, variant: Variant) -> bool:
    """Say whether only the operator can bring this variant in: the mode is manual, and no swap to it is under way."""
    if state.mode != "manual" or is_servable(state, variant):
        return False
    return state.swap is None or state.swap.target != variant


def grant_all(state: State, now: float) -> bool:
    """Grant every ticket that may go now, the fairest first within its variant; say whether any could."""
    waiting = len(state.line)
    for variant in state.line.variants():
        if not serves(state, variant):
            continue
        while (ticket := next_ticket(state, variant, now)) is not None and _may_go(state, ticket, now):
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
    return _view_serves(state, variant.key, now)


def has_free_lease(state: State, variant: Variant) -> bool:
    """Say whether one more request for a servable variant may run beside those that do."""
    if state.residency.holds_unknown_variant(variant.key):
        return not state.leases  # it may reload the model: alone
    return has_room(state, variant)


def has_room(state: State, variant: Variant) -> bool:
    """Say whether a model has a lease left, of as many as it gets, and nobody is loading it."""
    leases, key = state.leases, variant.key
    if key not in leases.running:
        return True  # it is idle, and every model gets a lease
    return leases.running[key] < most_leases(state, variant) and key not in leases.loaders


def most_leases(state: State, variant: Variant) -> int:
    """Return how many requests for a variant run side by side: as set, or learned.

    Where answers are short, more: as many as have ended within `SHORT_DRAIN_S` even one after another. They hold
    nobody up, and only streams teach how many Ollama serves at once (embeddings are none).
    """
    most = state.slots.most(variant.key)
    answer_s = state.forecast.answer_s.get(variant)
    if answer_s is None or state.policy.parallel or most * answer_s >= SHORT_DRAIN_S:
        return most
    return min(slots.LIMIT, int(SHORT_DRAIN_S / answer_s)) if answer_s > 0 else slots.LIMIT


def _view_serves(state: State, key: str, now: float) -> bool:
    if state.has_fresh_view(now) or state.view_wanted_since is None:
        return True
    if state.residency.is_disproved(key):
        return False
    # The worst case of going by the last view is that Ollama loads the model by itself, as without us.
    patience_ends_at = state.view_wanted_since + STALE_VIEW_PATIENCE_S
    if now >= patience_ends_at:
        return True
    state.wake(patience_ends_at)
    return False


def _last_grant_at(state: State, key: str) -> float:
    return max((lease.granted_at for lease in state.leases if lease.ticket.variant.key == key), default=0.0)


def next_ticket(state: State, variant: Variant, now: float) -> Ticket | None:
    """Return who goes first of those that wait for a variant: clients of one class take turns, but for the overdue."""
    oldest = state.line.oldest_by_class(variant)
    chosen = oldest[0] if len(oldest) == 1 else turns.first(oldest, now, 0.0)
    if chosen is None or turns.is_overdue(chosen, now, 0.0):
        return chosen
    return state.line.fairest(variant, chosen.klass)


def next_target(state: State, now: float) -> Ticket | None:
    """Return the ticket whose model comes next by a swap, or None if nobody waits for one that can begin.

    A swap whose victim resists (an unload or drain given up lately) is left for later.
    """
    if state.resisting:
        for variant in state.line.variants():
            if (until := resisted_until(state, variant, now)) > now and not is_servable(state, variant):
                state.wake(until)
    return foremost(state, now)


def foremost(state: State, now: float) -> Ticket | None:
    """Return the same, for those who only look."""
    if state.mode != "auto":
        return None
    pinned = plans.has_pins(state)
    candidates = [
        (turns.precedence(ticket, now, state.forecast.swap_cost_s(variant)), ticket)
        for variant in state.line.variants()
        if not is_servable(state, variant)
        and not (pinned and plans.is_impossible(state, variant))
        and not (state.resisting and resisted_until(state, variant, now) > now)
        for ticket in state.line.oldest_by_class(variant)
    ]
    return min(candidates)[1] if candidates else None


def resisted_until(state: State, target: Variant, now: float) -> float:
    """Return until when a swap to this target is held off; ``now`` if it is not."""
    return max((pause.until for pause in resisted_by(state, target, now)), default=now)


def resisted_by(state: State, target: Variant, now: float) -> list[Pause]:
    """Return the pauses that hold a swap to this target off: its victims' that a swap was given up on lately."""
    pauses = (state.resisting.get(victim.key) for victim in plans.evicted(state, target))
    return [pause for pause in pauses if pause is not None and pause.until > now]


def turn_ending(state: State, target: Ticket) -> Ending:
    """Say when those who are served make room for this ticket if nothing else happens, and why."""
    spared = plans.spared(state, target.variant)
    leases = plans.leases_in_the_way(state, target.variant, spared)
    servable = [variant for variant in state.line.variants() if is_servable(state, variant)]
    closing = [variant for variant in servable if variant.key not in spared]
    waiting = [ticket for variant in closing for ticket in state.line.oldest_by_class(variant)]
    ranked = waiting or [lease.ticket for lease in leases]
    cost_s = state.forecast.swap_cost_s(target.variant)
    idle = not leases and not waiting
    others = (t for v in state.line.variants() if v not in servable for t in state.line.oldest_by_class(v))
    waiting_since = min((ticket.arrived_at for ticket in others), default=target.arrived_at)
    ends = (state.leases.idle_since(victim.key) for victim in plans.evicted(state, target.variant))
    idle_since = max((at for at in ends if at is not None), default=state.turn.began_at)
    served = Served(
        leases=len(leases),
        waiting=len(waiting),
        rank=max((ticket.klass.rank for ticket in ranked), default=target.klass.rank),
        idle_since=idle_since,
        linger_s=_linger_s(state, target.variant, cost_s, max(idle_since, waiting_since)) if idle else 0.0,
    )
    return turns.ending(
        state.turn,
        served,
        target,
        waiting_since=waiting_since,
        swap_cost_s=cost_s,
        early_end_at=state.early_end_at,
        policy=state.policy,
    )


def _linger_s(state: State, target: Variant, swap_cost_s: float, since: float) -> float:
    """Return how long the idle residents that must go for this target are kept for who is likely to come back."""
    options = state.residency.options
    victims = [Variant(r.key, options[r.key]) for r in plans.evicted(state, target) if r.key in options]
    return max((state.gaps.linger_s(victim, swap_cost_s, since) for victim in victims), default=0.0)
