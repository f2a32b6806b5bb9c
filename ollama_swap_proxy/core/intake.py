"""What each event changes in what the scheduler remembers.

Owns the intake of facts, one function each. Must not decide what is to be done about them (`scheduler` asks that again
after every event), but for tickets that are turned away as they come.
"""

from __future__ import annotations

from dataclasses import replace

from ollama_swap_proxy.core import (
    commands,
    events,
    evicting,
    failing,
    granting,
    keepalive,
    loading,
    memory,
    modes,
    plans,
    upkeep,
    waiting,
)
from ollama_swap_proxy.core.policy import (
    CAREFUL_POLL_S,
    LASTS_AFTER_S,
    LEAST_PATIENCE_S,
    RETRY_AFTER_S,
    RETURN_WITHIN_S,
    UPSTREAM_GRACE_S,
    VARIANTS_KEPT,
)
from ollama_swap_proxy.core.state import NEVER, Phase, State
from ollama_swap_proxy.core.tickets import Lease, Report, Resident, Ticket, Variant

_STOPPING = commands.Rejection("stopping", 503, "the proxy is being stopped", retry_after_s=5)


def take_in(state: State, event: events.Event, now: float) -> None:  # noqa: C901, PLR0912  # one case an event
    """Note what an event changes; facts that no longer matter change nothing."""
    match event:
        case events.Arrived(ticket):
            arrived(state, ticket, now)
        case events.Abandoned(ticket_id):
            _abandoned(state, ticket_id, now)
        case events.Progressed(ticket_id, at, stream_began_at):
            _progressed(state, ticket_id, at, stream_began_at, now)
        case events.Released():
            released(state, event, now)
        case events.ResidencyObserved(report):
            _observed(state, report, now)
        case events.ResidencyUnknown(asked_at, reason, unreachable):
            _unknown(state, asked_at, reason, now, unreachable=unreachable)
        case events.EvictionAnswered(key, accepted, reason):
            evicting.answered(state, key, accepted=accepted, reason=reason, now=now)
        case events.LoadEnded(variant, failure):
            swap = state.swap
            state.residency.note_load_ended(now)
            if swap is None or swap.phase is not Phase.LOADING or swap.target != variant:
                return
            if failure is None:
                loading.answered(state, swap, now)
            else:
                failing.load_failed(state, swap, failure, now)
        case events.Described():
            upkeep.described(state, event, now)
        case events.KeptAlive():
            keepalive.answered(state, event)
        case events.ViewOutdated(reason):
            state.say("view_outdated", reason=reason)
            state.residency.outdated_at = now
        case events.ModelChanged(key):
            state.cool_downs = {v: pause for v, pause in state.cool_downs.items() if v.key != key}
            state.residency.outdated_at = now
        case events.UpstreamIdentified(version, ps_is_safe):
            _identified(state, version, ps_is_safe=ps_is_safe)
        case events.Recalled(learned):
            memory.recall(state, learned)
        case events.ModeSet(mode):
            modes.set_mode(state, mode, now)
        case events.Paused():
            modes.pause(state, now)
        case events.Resumed():
            modes.resume(state, now)
        case events.Stopping():
            _stop(state)
        case events.TimePassed():
            pass


def arrived(state: State, ticket: Ticket, now: float) -> None:
    """Put a ticket into the line, or turn it away."""
    if ticket.id in state.line or ticket.id in state.leases:
        return
    if state.mode == "bypass" and not state.stopping:
        state.gaps.came(ticket.client, ticket.variant, now)
        granting.lend(state, Lease(ticket, now, relayed=True))
        return
    rejection = turned_away(state, ticket, now)
    if rejection is not None:
        state.out.append(commands.Reject(ticket.id, rejection))
        return
    leaves_at = None if ticket.patience_s is None else ticket.arrived_at + max(ticket.patience_s, LEAST_PATIENCE_S)
    if returns(state, ticket):
        ticket = _with_its_place(state, ticket, now)
    stand(state, ticket, leaves_at, now)


def stand(state: State, ticket: Ticket, leaves_at: float | None, now: float) -> None:
    """Put a ticket into the line. ``leaves_at``: its own patience ends then."""
    state.line.add(ticket, leaves_at)
    state.gaps.came(ticket.client, ticket.variant, now)
    state.remember_recipe(ticket)


def turned_away(state: State, ticket: Ticket, now: float) -> commands.Rejection | None:
    """Return why a ticket is rejected as it comes, or None where it is not. Takes note of what its model is."""
    if state.stopping:
        return _STOPPING
    if len(state.line) >= state.policy.line_limit and not _hardly_waits(state, ticket.variant):
        text = f"{len(state.line)} requests wait already (line_limit)"
        retry_s = waiting.retry_after_s(waiting.room_expected_at(state, now), now)
        return commands.Rejection("line_full", 503, text, retry_after_s=retry_s)
    if granting.is_servable(state, ticket.variant):
        return None
    plans.note_traits(state, ticket.variant.key, ticket.traits)
    state.remember_recipe(ticket)  # and with it the name, for the words of a refusal
    return failing.cooling(state, ticket.variant, now) or failing.impossible(state, ticket.variant)


def returns(state: State, ticket: Ticket) -> bool:
    """Say whether this client gave up on a ticket for the same variant, in the same class, before."""
    return _place(ticket) in state.places_kept


def _place(ticket: Ticket) -> tuple[str, Variant, str]:
    return ticket.client, ticket.variant, ticket.klass.name


def _with_its_place(state: State, ticket: Ticket, now: float) -> Ticket:
    """Count on from what its client waited before it gave up: who gives up at 30 s and asks again keeps its place.

    Only what was waited counts, and once: its next ticket is a new one.
    """
    waited_s, left_at = state.places_kept.pop(_place(ticket))
    if now - left_at > RETURN_WITHIN_S:
        return ticket
    return replace(ticket, arrived_at=ticket.arrived_at - waited_s)


def _abandoned(state: State, ticket_id: int, now: float) -> None:
    ticket = state.line.remove(ticket_id)
    if ticket is None:
        return
    state.accuracy.forget(ticket.id)
    state.gaps.gave_up(ticket.client, ticket.variant)
    before_s, _ = state.places_kept.pop(_place(ticket), (0.0, now))
    state.places_kept[_place(ticket)] = max(before_s, now - ticket.arrived_at), now
    while len(state.places_kept) > VARIANTS_KEPT or now - next(iter(state.places_kept.values()))[1] > RETURN_WITHIN_S:
        del state.places_kept[next(iter(state.places_kept))]


def _hardly_waits(state: State, variant: Variant) -> bool:
    """Say whether a ticket would be granted now, or after a look: a full line is no reason to turn it away."""
    return granting.serves(state, variant) and granting.has_free_lease(state, variant)


def _progressed(state: State, ticket_id: int, at: float, stream_began_at: float | None, now: float) -> None:
    lease = state.leases.get(ticket_id)
    if lease is None:
        return
    lease.last_byte_at = max(at, lease.moved_at)
    lease.cut_asked_at = None
    state.moved_at = max(state.moved_at, at)
    if stream_began_at is not None:
        state.slots.streamed(lease.ticket.variant.key, ticket_id, stream_began_at)
    if lease.loads:
        # Headers come with the first token: the model is loaded, with this request's options.
        state.leases.has_loaded(lease)
        state.residency.learn_options(lease.ticket.variant, now)
        state.plans.clear()


def released(state: State, event: events.Released, now: float) -> None:
    """End a lease."""
    lease = state.leases.end(event.ticket_id, now)
    if lease is None:
        return
    state.moved_at = now
    ticket = lease.ticket
    variant = ticket.variant
    keepalive.ended(state, lease, now)
    state.gaps.ended(ticket.client, variant, now)
    state.forecast.note_answer(variant, now - lease.granted_at)
    state.slots.ended(variant.key, event.ticket_id, now, event.stream)
    if lease.loads:
        state.residency.note_load_ended(now)
        if state.swap is not None and state.swap.loader == event.ticket_id:
            # A request can fail for reasons of its own: whether the load failed is seen in the next report.
            state.swap.loader_failed = event.failed
    elif ticket.stays_briefly:
        state.residency.outdated_at = now


def _observed(state: State, report: Report, now: float) -> None:
    first = state.residency.at == NEVER
    if not report.residents and _all_should_last(state, report, now):
        state.wish_for_pins()
    change = state.residency.take_in(report, now)
    if change is None:
        return
    state.view_wanted_since = None
    state.plans.clear()
    for resident in report.residents:
        plans.note_traits(state, resident.key, resident.traits)
    if state.unreachable_since is not None:
        _upstream_is_back(state)
    if state.unknown_reason is not None:
        state.say("residency_known", was=state.unknown_reason)
        state.unknown_reason = None
    _tell_found(state, change.found, now, first=first)
    for resident in change.gone:
        state.proofs.forget_unknown(resident.key)
        if state.swap is None or resident.key not in state.swap.evicted:
            state.say("resident_gone", model=resident.name, how="by itself")
        state.resisting.pop(resident.key, None)
        state.keep_alive_due.pop(resident.key, None)
    _note_who_stays(state, report)
    state.spills_to_undo = {v for v in state.spills_to_undo if state.residency.holds(v)}


def _tell_found(state: State, found: tuple[Resident, ...], now: float, *, first: bool) -> None:
    if found and state.mode == "manual":
        state.moved_at = now  # it may be what somebody waited for
    for resident in found:
        keepalive.found(state, resident.key, now)
        ours = state.swap is not None and state.swap.target.key == resident.key
        if first or not (ours or resident.key in state.leases.loaders):
            how = "in bypass mode" if state.mode == "bypass" else "loaded by somebody else"
            where = "at start" if first else how
            state.say("resident_found", model=resident.name, vram_bytes=resident.size_vram_bytes, how=where)


def _all_should_last(state: State, report: Report, now: float) -> bool:
    """Say whether there are residents, and none of them should be gone yet: if all are, upstream was restarted."""
    residency = state.residency
    if state.swap is not None or report.asked_at < residency.asked_at or residency.outdated_at > residency.asked_at:
        return False
    lifetimes = [resident.expires_in_s or 0.0 for resident in residency.residents.values()]
    return min(lifetimes, default=0.0) > now - residency.at


def _note_who_stays(state: State, report: Report) -> None:
    """Trust again in empty loads of what is still listed though nothing moved for a while: it does not vanish."""
    if state.vanishing and not state.leases and report.asked_at >= state.moved_at + LASTS_AFTER_S:
        state.vanishing -= state.residency.residents.keys()


def _unknown(state: State, asked_at: float, reason: str, now: float, *, unreachable: bool) -> None:
    if asked_at < state.residency.asked_at:
        return
    if state.unknown_reason is None:
        state.say("residency_unknown", warning=True, reason=reason)
    state.residency.known = False
    state.unknown_reason = reason
    state.observe_sent_at = NEVER
    state.observe_not_before = now + (RETRY_AFTER_S if unreachable else CAREFUL_POLL_S)
    if not unreachable:
        return
    if state.unreachable_since is None:
        state.unreachable_since = now
    if now - state.unreachable_since >= UPSTREAM_GRACE_S:
        failing.upstream_down(state, reason, now)


def _identified(state: State, version: str, *, ps_is_safe: bool) -> None:
    """Note upstream's version; what depends on it is forgotten if it was another one, be it before a restart."""
    if state.version not in {None, version}:
        state.forecast.forget_settle()
    why = state.proofs.found(None, version)
    if why is not None:
        state.plans.clear()
        state.say("proofs_forgotten", reason=why)
    state.version, state.ps_is_safe = version, ps_is_safe


def _upstream_is_back(state: State) -> None:
    state.unreachable_since = None
    state.wish_for_pins()
    state.cool_downs.clear()
    state.resisting.clear()
    state.vanishing.clear()
    state.residency.forget_options()
    state.plans.clear()


def _stop(state: State) -> None:
    state.stopping = True
    state.note_ordinary()
    for ticket in list(state.line):
        state.reject(ticket, _STOPPING)
