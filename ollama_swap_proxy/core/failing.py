"""How swaps fail, and what follows: who is told, what is left alone for a while.

Owns the failures and their texts. Must not evict, load or choose a target. A failed swap is not tried again at once,
or a broken model would keep throwing good ones out.
"""

from __future__ import annotations

import math
from dataclasses import replace

from ollama_swap_proxy.core import bounds, commands, granting, limits, plans, steps, waiting
from ollama_swap_proxy.core.events import LoadFailure
from ollama_swap_proxy.core.policy import RETRY_AFTER_S
from ollama_swap_proxy.core.state import Pause, Phase, State, Swap, doubled
from ollama_swap_proxy.core.tickets import Lease, Ticket, Variant
from ollama_swap_proxy.core.victims import Impossible

LOAD_BREAKS_ALLOWED = 3
"""So often may the connection of a load break (upstream restarting) before that counts as a failed load."""


def drain_stuck(state: State, swap: Swap, blocking: list[Lease], now: float) -> None:
    """Give a drain up in which nothing was streamed for too long: its victims are served again."""
    names = ", ".join(sorted({lease.ticket.name for lease in blocking}))
    waited = _seconds(state.policy.stuck_after_s)
    text = f"{swap.name} was waited for behind {names}: {len(blocking)} running request(s) sent no byte for {waited}"
    rejection = commands.Rejection("drain_stuck", 503, text, retry_after_s=10)
    _give_up(state, swap, {lease.ticket.variant.key for lease in blocking}, rejection, now)


def unload_not_confirmed(state: State, swap: Swap, now: float) -> None:
    """Give an eviction up that no report confirmed in time; upstream keeps the request, so the victim is leaving."""
    key = swap.victim or ""
    name = state.residency.name_of(key)
    why = f" ({swap.eviction_text})" if swap.eviction_text else ""
    after = _seconds(now - swap.first_asked_at)
    text = f"{swap.name} was waited for behind {name}: its unload was not confirmed within {after}{why}"
    rejection = commands.Rejection("unload_not_confirmed", 504, text, retry_after_s=10)
    _give_up(state, swap, {key}, rejection, now)


def _give_up(state: State, swap: Swap, keys: set[str], rejection: commands.Rejection, now: float) -> None:
    # Who came for a model that only we wanted gone has nothing to be told: it stays, and serves him.
    told = 0 if swap.unloads else state.reject_all(swap.target, rejection)
    for key in sorted(keys):
        pause_s, failures = doubled(state.resisting.get(key), state.policy.cool_down_s, state.policy.cool_down_max_s)
        state.resisting[key] = Pause(now + pause_s, failures, rejection)
    state.say("swap_given_up", warning=True, code=rejection.code, reason=rejection.message, told=told)
    _drop_swap(state, swap, now)


def load_timed_out(state: State, swap: Swap, now: float) -> None:
    """End a load that was never answered."""
    after = _seconds(limits.load_timeout_s(state, swap.target.key))
    load_failed(state, swap, LoadFailure(504, f"the load was not answered within {after}"), now)


def load_failed(state: State, swap: Swap, failure: LoadFailure, now: float) -> None:
    """Tell all who wait for a load how it failed; a passing failure is tried again instead."""
    patience_s = limits.load_timeout_s(state, swap.target.key)
    if failure.transient and now < (swap.first_load_at or now) + patience_s:
        if failure.status == 503:
            swap.not_before = now + RETRY_AFTER_S
            steps.enter(state, swap, Phase.SETTLING, now)
            return
        swap.load_breaks += 1
        if swap.load_breaks < LOAD_BREAKS_ALLOWED:
            steps.look_again(swap, now)
            swap.poll_at = now + RETRY_AFTER_S
            steps.enter(state, swap, Phase.EVICTING, now)
            return
    code = "load_timeout" if failure.status == 504 else "load_failed"
    rejection = commands.Rejection(code, failure.status, failure.text)
    start_cool_down(state, swap.target, swap.name, rejection, now)
    state.spills_to_undo.discard(swap.target)
    _drop_swap(state, swap, now)


def start_cool_down(state: State, variant: Variant, name: str, rejection: commands.Rejection, now: float) -> None:
    """Reject all who wait for a variant that did not load, and for a while all who ask for it."""
    pause_s, failures = doubled(state.cool_downs.get(variant), state.policy.cool_down_s, state.policy.cool_down_max_s)
    with_hint = _with_retry_after(rejection, pause_s)
    state.remember_cool_down(variant, Pause(now + pause_s, failures, rejection), now)
    told = state.reject_all(variant, with_hint)
    state.say("load_failed", warning=True, model=name, status=rejection.status, reason=rejection.message, told=told)
    state.say("cool_down_started", model=name, options=variant.options, pause_s=pause_s, failures=failures)


def cooling(state: State, variant: Variant, now: float) -> commands.Rejection | None:
    """Return the answer for a ticket whose variant failed to load lately, or None where it may be tried."""
    pause = state.cool_downs.get(variant)
    if pause is None or now >= pause.until:
        return None
    return _with_retry_after(pause.rejection, pause.until - now)


def impossible(state: State, variant: Variant) -> commands.Rejection | None:
    """Return the answer for a ticket whose model cannot be resident beside the pins, or None where it can."""
    return _impossible(state, variant) if plans.has_pins(state) else None


def _impossible(state: State, variant: Variant) -> commands.Rejection | None:
    chosen = plans.plan(state, variant)
    return commands.Rejection("pinned_out", 503, chosen.text) if isinstance(chosen, Impossible) else None


def refuse_impossible(state: State) -> None:
    """Reject all who wait for what cannot be resident beside the pins."""
    for variant in state.line.variants() if plans.has_pins(state) else ():
        if not granting.is_servable(state, variant) and (rejection := _impossible(state, variant)) is not None:
            state.reject_all(variant, rejection)


def expire_impatient(state: State, now: float) -> None:
    """Reject the tickets whose own patience is over: behind all grants, for what may go now need not leave."""
    hints = _Hints(state, now)
    while (leaving := state.line.next_to_leave()) is not None:
        leaves_at, ticket = leaving
        if now < leaves_at:
            state.wake(leaves_at)
            break
        text = f"{ticket.name} was waited for as long as the request asked to: {_what_for(state, ticket.variant, now)}"
        state.reject(ticket, commands.Rejection("waited_too_long", 503, text, hints.of(ticket)))


class _Hints:
    """When to come again for tickets that end in one moment: the play ahead is made once, and only if one ends."""

    def __init__(self, state: State, now: float) -> None:
        self._state, self._now = state, now
        self._grants: dict[int, float] | None = None

    def of(self, ticket: Ticket) -> int:
        """Return the Retry-After for a ticket that still waits: for as long as it would."""
        if self._grants is None:
            self._grants = waiting.expected_grants(self._state, self._now)
        return waiting.retry_after_s(self._grants.get(ticket.id), self._now)


def refuse_not_resident(state: State, now: float) -> None:
    """Reject all who wait for the operator to bring their model in, where the policy is to refuse them at once."""
    if state.mode != "manual" or not state.policy.manual_refuses:
        return
    for variant in state.line.variants():
        if granting.awaits_operator(state, variant) and state.has_fresh_view(now):
            for ticket in state.line.waiting_for(variant):
                state.reject(ticket, _not_resident(ticket.name))


def _not_resident(name: str, waited_s: float | None = None) -> commands.Rejection:
    waited = "" if waited_s is None else f" was waited for {_seconds(waited_s)}: it"
    text = f"{name}{waited} is not resident, and in manual mode only the operator changes that"
    return commands.Rejection("not_resident", 503, text, retry_after_s=30)


def expire_tickets(state: State, now: float) -> None:
    """Reject the tickets that waited too long, or for too long saw nothing move at all.

    A load has its own bound, and so has a drain for those whom it is for (`drain_stuck`); a lease moves while it has
    time for its first byte. That nothing moves counts
    neither while granting is paused, nor for whom only the operator can help: they wait for ``manual_wait_s``.
    """
    swap, policy = state.swap, state.policy
    hints = _Hints(state, now)
    leases = state.leases if state.attentive else ()
    moved_at = max([state.moved_at, *(bounds.excused_until(state, lease) for lease in leases)])
    for variant in state.line.variants():
        oldest = state.line.oldest(variant)
        by_operator = granting.awaits_operator(state, variant)
        bounded = by_operator or state.paused_at is not None
        if swap is not None:
            bounded |= swap.phase is Phase.LOADING or (swap.phase is Phase.DRAINING and swap.target == variant)
        wait_s = _longest_wait_s(state, by_operator=by_operator)
        while oldest is not None:
            given_up_at = oldest.arrived_at + wait_s
            stuck_at = max(oldest.arrived_at, moved_at) + policy.stuck_after_s
            if now >= given_up_at:
                state.reject(oldest, _outstayed(state, oldest, wait_s, now, hints, by_operator=by_operator))
            elif now >= stuck_at and not bounded:
                what_for = _what_for(state, oldest.variant, now)
                text = f"{oldest.name}: nothing moved for {_seconds(policy.stuck_after_s)}: {what_for}"
                state.reject(oldest, commands.Rejection("nothing_moved", 503, text, hints.of(oldest)))
            else:
                state.wake(given_up_at if bounded else min(given_up_at, stuck_at))
                break
            oldest = state.line.oldest(variant)


def _longest_wait_s(state: State, *, by_operator: bool) -> float:
    """Return how long a ticket waits at most; whom the operator let wait longer is not told so when he has helped."""
    give_up_after_s, manual_wait_s = state.policy.give_up_after_s, state.policy.manual_wait_s
    if by_operator:
        return manual_wait_s or give_up_after_s
    return max(give_up_after_s, manual_wait_s) if state.mode == "manual" else give_up_after_s


def _outstayed(
    state: State, ticket: Ticket, waited_s: float, now: float, hints: _Hints, *, by_operator: bool
) -> commands.Rejection:
    if by_operator:
        return _not_resident(ticket.name, waited_s)
    text = f"{ticket.name} was waited for {_seconds(waited_s)}: {_what_for(state, ticket.variant, now)}"
    return commands.Rejection("waited_too_long", 503, text, hints.of(ticket))


def upstream_down(state: State, reason: str, now: float) -> None:
    """Answer all who wait that upstream is away, and leave any swap that has no load of ours under way."""
    for ticket in list(state.line):
        text = f"Ollama does not answer: {reason}"
        state.reject(ticket, commands.Rejection("upstream_down", 502, text, retry_after_s=5))
    if state.swap is not None and state.swap.phase is not Phase.LOADING:
        state.say("swap_given_up", warning=True, code="upstream_down", reason=reason)
        _drop_swap(state, state.swap, now)


def _drop_swap(state: State, swap: Swap, now: float) -> None:
    steps.forget(state, swap, now)
    state.residency.outdated_at = now


def _with_retry_after(rejection: commands.Rejection, pause_s: float) -> commands.Rejection:
    return replace(rejection, retry_after_s=math.ceil(pause_s))


def _what_for(state: State, variant: Variant, now: float) -> str:
    swap = state.swap
    if state.paused_at is not None:
        return "granting is paused"
    if granting.awaits_operator(state, variant):
        return "it is not resident, and in manual mode only the operator changes that"
    if state.unknown_reason is not None:
        return f"what is resident is unknown ({state.unknown_reason})"
    if swap is None:
        resisted = granting.resisted_by(state, variant, now)
        return f"not tried again yet: {resisted[0].rejection.message}" if resisted else "its turn had not come"
    if swap.phase is Phase.DRAINING:
        names = sorted({lease.ticket.name for lease in plans.blocking(state, swap)})
        return f"running requests for {', '.join(names)} had not ended"
    return f"the swap to {swap.name} was {swap.phase.value}"


def _seconds(value: float) -> str:
    return f"{value:g} s" if value == int(value) else f"{value:.1f} s"
