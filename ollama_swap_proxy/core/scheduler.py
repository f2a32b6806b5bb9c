"""The scheduler: ``handle(event, now) -> commands`` is the only way state changes.

Theory of operation. Each event is first taken in (a fact changes what we remember), then `_advance` asks the same
question again: does the swap under way move on; if none is, is the turn over; who may be granted; should a swap begin?
One decision function after every event means that no order of events needs a rule of its own. The steps of a swap are
in `swapping` (with `evicting` and `loading`), who may be granted without one in `granting`, what failed in `failing`;
`turns`, `residency` and `forecast` answer pure questions.

Owns the intake of events and the order of decisions. Must not do anything: the gate carries the commands out.
"""

from __future__ import annotations

from ollama_swap_proxy.core import commands, events, evicting, failing, granting, loading, swapping
from ollama_swap_proxy.core.forecast import Forecast
from ollama_swap_proxy.core.policy import (
    CAREFUL_POLL_S,
    LASTS_AFTER_S,
    RETRY_AFTER_S,
    SPILL_UNDONE_AFTER_S,
    UPSTREAM_GRACE_S,
    Policy,
)
from ollama_swap_proxy.core.snapshot import Snapshot, take
from ollama_swap_proxy.core.state import NEVER, Phase, State
from ollama_swap_proxy.core.tickets import Report, Ticket, Variant
from ollama_swap_proxy.core.turns import Turn

_LONGEST_CHAIN = 64
"""More moves than any chain of phases can make on one event; reaching it means two of them undo each other."""

_STOPPING = commands.Rejection("stopping", 503, "the proxy is being stopped", retry_after_s=5)


class Scheduler:
    """Decides whose turn it is and what must be evicted and loaded; `gate` tells it what happens."""

    def __init__(self, policy: Policy, now: float = 0.0) -> None:
        self._state = State(policy, Forecast(policy.settle_max_s), Turn(now), moved_at=now)
        self._wake_told: float | None = None

    def handle(self, event: events.Event, now: float) -> list[commands.Command]:
        """Take in one fact and return what is to be done about it.

        ``now`` is seconds on a clock that never goes back. Facts that no longer matter (a ticket that is gone, an old
        report) change nothing.

        Raises:
            RuntimeError: if decisions undo each other; a defect of this package.
        """
        state = self._state
        state.out = []
        state.wake_at = float("inf")
        if isinstance(event, events.Arrived) and self._joins_others(event.ticket):
            self._arrived(event.ticket, now)
            return state.out
        self._take_in(event, now)
        self._advance(now)
        wake_at = None if state.wake_at == float("inf") else state.wake_at
        if wake_at != self._wake_told or isinstance(event, events.TimePassed):
            self._wake_told = wake_at
            state.out.append(commands.WakeAt(wake_at))
        return state.out

    def serves(self, variant: Variant) -> bool:
        """Say whether this variant is resident, as far as we know, and no swap is under way."""
        return self._state.swap is None and granting.is_servable(self._state, variant)

    def snapshot(self, now: float) -> Snapshot:
        """Return what there is to see, as one immutable object."""
        return take(self._state, now)

    def _take_in(self, event: events.Event, now: float) -> None:  # noqa: C901, PLR0912  # one case an event
        state = self._state
        match event:
            case events.Arrived(ticket):
                self._arrived(ticket, now)
            case events.Abandoned(ticket_id):
                state.line.remove(ticket_id)
            case events.Progressed(ticket_id, at):
                self._progressed(ticket_id, at, now)
            case events.Released(ticket_id, failed):
                self._released(ticket_id, now, failed=failed)
            case events.ResidencyObserved(report):
                self._observed(report, now)
            case events.ResidencyUnknown(asked_at, reason, unreachable):
                self._unknown(asked_at, reason, now, unreachable=unreachable)
            case events.EvictionAnswered(key, accepted, reason):
                evicting.answered(state, key, accepted=accepted, reason=reason, now=now)
            case events.LoadEnded(variant, failure):
                swap = state.swap
                if swap is None or swap.phase is not Phase.LOADING or swap.target != variant:
                    state.residency.outdated_at = now
                elif failure is None:
                    loading.answered(state, swap, now)
                else:
                    failing.load_failed(state, swap, failure, now)
            case events.ViewOutdated(reason):
                state.say("view_outdated", reason=reason)
                state.residency.outdated_at = now
            case events.ModelChanged(key):
                state.cool_downs = {v: pause for v, pause in state.cool_downs.items() if v.key != key}
                state.residency.outdated_at = now
            case events.UpstreamIdentified(version, ps_is_safe):
                if state.version not in {None, version}:
                    state.forecast.forget_settle()
                state.version, state.ps_is_safe = version, ps_is_safe
            case events.Stopping():
                self._stop()
            case events.TimePassed():
                pass

    def _joins_others(self, ticket: Ticket) -> bool:
        """Say whether others wait for this variant already: who is next in line does not change then, so nothing does.

        What was decided for them holds, and so does the wake that was asked for.
        """
        return self._state.line.head(ticket.variant) is not None

    def _arrived(self, ticket: Ticket, now: float) -> None:
        state = self._state
        if ticket.id in state.line or ticket.id in state.leases:
            return
        rejection = None
        if state.stopping:
            rejection = _STOPPING
        elif len(state.line) >= state.policy.line_limit and not self._hardly_waits(ticket.variant):
            text = f"{len(state.line)} requests wait already (line_limit)"
            rejection = commands.Rejection("line_full", 503, text, retry_after_s=10)
        elif not granting.is_servable(state, ticket.variant):
            rejection = failing.cooling(state, ticket.variant, now)
        if rejection is not None:
            state.out.append(commands.Reject(ticket.id, rejection))
            return
        state.line.add(ticket)
        state.remember_recipe(ticket)

    def _hardly_waits(self, variant: Variant) -> bool:
        """Say whether a ticket would be granted now, or after a look: a full line is no reason to turn it away."""
        return self.serves(variant) and granting.has_free_lease(self._state, variant)

    def _progressed(self, ticket_id: int, at: float, now: float) -> None:
        state = self._state
        lease = state.leases.get(ticket_id)
        if lease is None:
            return
        lease.last_byte_at = max(at, lease.moved_at)
        state.moved_at = max(state.moved_at, at)
        if lease.loads:
            # Headers come with the first token: the model is loaded, with this request's options.
            lease.loads = False
            state.residency.learn_options(lease.ticket.variant, now)

    def _released(self, ticket_id: int, now: float, *, failed: bool) -> None:
        state = self._state
        lease = state.leases.pop(ticket_id, None)
        if lease is None:
            return
        state.moved_at = now
        if lease.ticket.stays_briefly or lease.loads:
            state.residency.outdated_at = now
        if lease.loads and state.swap is not None and state.swap.loader == ticket_id:
            # A request can fail for reasons of its own: whether the load failed is seen in the next report.
            state.swap.loader_failed = failed

    def _observed(self, report: Report, now: float) -> None:
        state = self._state
        first = state.residency.at == NEVER
        change = state.residency.take_in(report, now)
        if change is None:
            return
        state.view_wanted_since = None
        if state.unreachable_since is not None:
            self._upstream_is_back()
        if state.unknown_reason is not None:
            state.say("residency_known", was=state.unknown_reason)
            state.unknown_reason = None
        for resident in change.found:
            ours = state.swap is not None and state.swap.target.key == resident.key
            if first or not (ours or state.loader_on(resident.key)):
                where = "at start" if first else "loaded by somebody else"
                state.say("resident_found", model=resident.name, vram_bytes=resident.size_vram_bytes, how=where)
        for resident in change.gone:
            if state.swap is None or resident.key not in state.swap.evicted:
                state.say("resident_gone", model=resident.name, how="by itself")
            state.resisting.pop(resident.key, None)
        self._note_who_stays(report)
        state.spills_to_undo = {v for v in state.spills_to_undo if state.residency.holds(v)}

    def _note_who_stays(self, report: Report) -> None:
        """Trust again in empty loads of what is still listed though nothing moved for a while: it does not vanish."""
        state = self._state
        if state.vanishing and not state.leases and report.asked_at >= state.moved_at + LASTS_AFTER_S:
            state.vanishing -= state.residency.residents.keys()

    def _unknown(self, asked_at: float, reason: str, now: float, *, unreachable: bool) -> None:
        state = self._state
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

    def _upstream_is_back(self) -> None:
        state = self._state
        state.unreachable_since = None
        state.cool_downs.clear()
        state.resisting.clear()
        state.vanishing.clear()
        state.residency.forget_options()

    def _stop(self) -> None:
        state = self._state
        state.stopping = True
        for ticket in list(state.line):
            state.reject(ticket, _STOPPING)

    def _advance(self, now: float) -> None:
        state = self._state
        if state.swap is None and not len(state.line) and not state.spills_to_undo:
            self._observe_periodically(now)  # the usual end of a warm request: nobody waits, nothing is to be done
            return
        failing.expire_tickets(state, now)
        for _ in range(_LONGEST_CHAIN):
            if state.swap is not None:
                if not swapping.advance(state, state.swap, now):
                    break
                continue
            target = granting.next_target(state, now)
            if self._begin_swap_if_due(target, now):
                continue
            granted = granting.grant_all(state, now)
            if target is None or not granted or not self._begin_swap_if_due(granting.next_target(state, now), now):
                break  # a grant makes no other model wait
        else:
            raise RuntimeError("the scheduler's decisions undo each other")
        self._observe_periodically(now)

    def _begin_swap_if_due(self, target: Ticket | None, now: float) -> bool:
        state = self._state
        if state.stopping:
            return False
        if target is None:
            return self._undo_spill_if_idle(now)
        if not granting.turn_is_over(state, target, now) or not state.has_fresh_view(now):
            return False
        if granting.is_servable(state, target.variant):
            return False
        swapping.begin(state, target.variant, target.name, "request", now)
        return True

    def _undo_spill_if_idle(self, now: float) -> bool:
        state = self._state
        if not state.spills_to_undo or len(state.line) or state.leases:
            return False
        idle_enough_at = state.moved_at + SPILL_UNDONE_AFTER_S
        if now < idle_enough_at:
            state.wake(idle_enough_at)
            return False
        if not state.has_fresh_view(now):
            return False
        target = min(state.spills_to_undo)
        state.spills_to_undo.discard(target)
        if target not in state.recipes or not state.residency.holds(target):
            return False
        swapping.begin_undoing_spill(state, target, now)
        return True

    def _observe_periodically(self, now: float) -> None:
        state = self._state
        due_at = max(state.residency.asked_at, state.observe_sent_at) + state.policy.ps_interval_s
        if state.residency.asked_at == NEVER and state.observe_sent_at == NEVER:
            due_at = now
        if now >= due_at:
            state.has_report_since(now, now)
            due_at = now + state.policy.ps_interval_s
        state.wake(due_at)
