"""The swap: drain, evict, confirm, settle, load, confirm. One is under way at a time.

Owns its beginning, its drain and the order of its phases; `evicting` and `loading` are the others. Must not choose
whose turn it is: `scheduler` begins a swap for a target.
"""

from __future__ import annotations

from ollama_swap_proxy.core import bounds, evicting, failing, loading, plans, steps
from ollama_swap_proxy.core.policy import DRAIN_SLOW_AFTER_S
from ollama_swap_proxy.core.state import Phase, State, Swap
from ollama_swap_proxy.core.tickets import Ticket, Variant


def begin(state: State, target: Variant, name: str, reason: str, now: float, *, turn_ended: str = "") -> Swap:
    """Decide a swap: from now on its victims get no new leases. ``turn_ended`` says why the turn before is over."""
    swap = Swap(state.swaps_begun + 1, target, name, reason, decided_at=now, phase_since=now)
    plans.aim(state, swap, target)
    _begin(state, swap, turn_ended)
    return swap


def begin_for_request(state: State, asker: Ticket, now: float, *, turn_ended: str) -> None:
    """Decide a swap that a ticket waits for."""
    begin_towards(state, asker.variant, asker.name, "request", now, turn_ended=turn_ended)


def begin_towards(state: State, target: Variant, name: str, reason: str, now: float, *, turn_ended: str = "") -> Swap:
    """Decide a swap to a target, or first to a resident that is to be loaded anew for it.

    All that must go for the target go for that one, too; its own swap follows.
    """
    resident = plans.first_anew(state, target)
    if resident is None:
        return begin(state, target, name, reason, now, turn_ended=turn_ended)
    resident_name, _ = state.recipes[resident]
    swap = Swap(state.swaps_begun + 1, resident, resident_name, "companion", decided_at=now, phase_since=now)
    plans.aim_in_aid_of(state, swap, target)
    _begin(state, swap, turn_ended)
    return swap


def _begin(state: State, swap: Swap, turn_ended: str) -> None:
    state.swaps_begun = swap.id
    target, name, now = swap.target, swap.name, swap.decided_at
    residents = state.residency.residents
    state.swap = swap
    state.moved_at = now
    state.say(
        "swap_decided",
        target=name,
        options=target.options,
        reason=swap.reason,
        turn_ended=turn_ended,
        victims=[residents[key].name for key in sorted(swap.expected_victims)],
        beside=[residents[key].name for key in sorted(swap.staying)],
        trial=swap.trial,
        waiting=len(state.line),
    )
    steps.say_reload(state, swap)
    blocking = plans.blocking(state, swap)
    if blocking:
        state.say("drain_started", waits_for=[lease.ticket.id for lease in blocking])


def begin_unloading(state: State, key: str, reason: str, now: float) -> Swap:
    """Decide to unload a resident that nobody uses or awaits, and to load nothing; all others go on being served."""
    residents = state.residency.residents
    (target,) = plans.members(state, frozenset({key}))
    state.swaps_begun += 1
    swap = Swap(state.swaps_begun, target, residents[key].name, reason, decided_at=now, phase_since=now, unloads=True)
    swap.expected_victims, swap.staying = frozenset({key}), frozenset(residents) - {key}
    state.swap = swap
    state.moved_at = now
    state.say("unload_decided", model=swap.name, reason=reason)
    return swap


def begin_undoing_spill(state: State, target: Variant, now: float) -> None:
    """Load a model once more that landed partly on the CPU, because its memory probably came back late."""
    name, _ = state.recipes[target]
    swap = begin(state, target, name, "spill", now)
    swap.undoes_spill = True
    swap.expected_victims |= {target.key}


def advance(state: State, swap: Swap, now: float) -> bool:
    """Take the swap one step on; say whether it moved (then there may be more to do at once)."""
    if swap.overtaken and swap.phase is not Phase.LOADING:
        steps.end(state, now, "bypass")
        state.residency.outdated_at = now
        return True
    before = (swap.phase, swap.target)
    match swap.phase:
        case Phase.DRAINING:
            _drain(state, swap, now)
        case Phase.EVICTING:
            evicting.advance(state, swap, now)
        case Phase.SETTLING:
            loading.settle(state, swap, now)
        case Phase.LOADING:
            loading.wait(state, swap, now)
        case Phase.CONFIRMING:
            loading.confirm(state, swap, now)
    return state.swap is not swap or (swap.phase, swap.target) != before


def _drain(state: State, swap: Swap, now: float) -> None:
    if not steps.is_asked_for(state, swap, now, goes_on_by_itself=swap.goes_on_by_itself):
        return
    if bounds.is_held_back(state, swap):
        return
    blocking = plans.blocking(state, swap)
    if not blocking:
        if swap.phase_since < now:
            state.say("drain_ended", took_s=round(now - swap.phase_since, 3))
        swap.drained_at = now
        fresh = state.residency.is_fresh(now, state.policy.ps_max_age_s)
        swap.report_needed_since = state.residency.asked_at if fresh else now
        steps.enter(state, swap, Phase.EVICTING, now)
        return
    stuck_at = bounds.drain_ends_at(state, swap)
    if now >= stuck_at:
        failing.drain_stuck(state, swap, blocking, now)
        return
    state.wake(stuck_at)
    slow_at = swap.phase_since + DRAIN_SLOW_AFTER_S
    if not swap.drain_said_slow and now >= slow_at:
        swap.drain_said_slow = True
        waits_for = [{"id": lease.ticket.id, "model": lease.ticket.name} for lease in blocking]
        state.say("drain_slow", warning=True, waited_s=round(now - swap.phase_since, 1), waits_for=waits_for)
    elif not swap.drain_said_slow:
        state.wake(slow_at)
