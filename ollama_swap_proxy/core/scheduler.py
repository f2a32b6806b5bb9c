"""The scheduler: ``handle(event, now) -> commands`` is the only way state changes.

Theory of operation. Each event is first taken in (`intake`: a fact changes what we remember), then `_advance` asks the
same question again: does the swap under way move on; if none is, is the turn over; who may be granted; should a swap
begin? One decision function after every event means that no order of events needs a rule of its own. The steps of a
swap are in `swapping` (with `evicting` and `loading`), who may be granted without one in `granting`, what failed in
`failing`, what the operator set in `modes`; `turns`, `residency` and `forecast` answer pure questions. `warm` is a
shortcut, no other way of deciding.

Owns the order of decisions. Must not do anything: the gate carries the commands out.
"""

from __future__ import annotations

from math import inf

from ollama_swap_proxy.core import (
    commands,
    cutting,
    events,
    failing,
    granting,
    intake,
    keepalive,
    memory,
    plans,
    swapping,
    upkeep,
    waiting,
    warm,
)
from ollama_swap_proxy.core.explain import Explanation, explain
from ollama_swap_proxy.core.forecast import Forecast
from ollama_swap_proxy.core.policy import SPILL_UNDONE_AFTER_S, Policy
from ollama_swap_proxy.core.snapshot import Snapshot, take
from ollama_swap_proxy.core.state import NEVER, State
from ollama_swap_proxy.core.tickets import Ticket, Variant
from ollama_swap_proxy.core.turns import End, Turn

_LONGEST_CHAIN = 64
"""More moves than any chain of phases can make on one event; reaching it means two of them undo each other."""


class Scheduler:
    """Decides whose turn it is and what must be evicted and loaded; `gate` tells it what happens."""

    _short_way = staticmethod(warm.took)
    """Of the class, so that a property test can do without it and compare."""

    def __init__(self, policy: Policy, now: float = 0.0) -> None:
        self._state = State(
            policy, Forecast(policy.settle_max_s, policy.settle_first_s), Turn(now), moved_at=now, mode_since=now
        )
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
        if self._short_way(state, event, now):
            return state.out
        state.wake_at = inf
        intake.take_in(state, event, now)
        self._advance(now)
        if isinstance(event, events.Arrived):
            waiting.foretell(state, event.ticket, now)
        wake_at = None if state.wake_at == inf else state.wake_at
        if wake_at != self._wake_told or isinstance(event, events.TimePassed):
            self._wake_told = wake_at
            state.out.append(commands.WakeAt(wake_at))
        return state.out

    def serves(self, variant: Variant) -> bool:
        """Say whether this variant is resident, as far as we know, and no swap is under way that closes it."""
        return granting.serves(self._state, variant)

    def explain(self, ticket: Ticket, now: float) -> Explanation:
        """Say what would become of this ticket if it arrived now. Nothing is done, and nothing changes."""
        return explain(self._state, ticket, now)

    def bypasses(self) -> bool:
        """Say whether everything is relayed: whoever arrives is granted at once, and counted as a lease."""
        return self._state.mode == "bypass"

    def snapshot(self, now: float) -> Snapshot:
        """Return what there is to see, as one immutable object."""
        return take(self._state, now)

    def remembered(self) -> dict[str, object]:
        """Return what was learned, as plain JSON values: `events.Recalled` gives it to a scheduler that starts."""
        return memory.remembered(self._state)

    def _advance(self, now: float) -> None:
        self._decide(now)
        if self._state.attentive:
            cutting.cut_overdue(self._state, now)
            keepalive.set_due(self._state, now)
        failing.expire_impatient(self._state, now)

    def _decide(self, now: float) -> None:
        state = self._state
        nobody_waits = state.swap is None and not state.line.tickets
        if nobody_waits and not state.spills_to_undo and not state.pins_to_restore and not state.attentive:
            self._observe_periodically(now)  # the usual end of a warm request: nobody waits, nothing is to be done
            return
        failing.expire_tickets(state, now)
        for _ in range(_LONGEST_CHAIN):
            failing.refuse_not_resident(state, now)
            if state.swap is not None:
                if not swapping.advance(state, state.swap, now):
                    break
                continue
            failing.refuse_impossible(state)
            if not state.ordinary:
                break
            if state.pins_to_restore and state.mode == "auto" and self._restore_pin(now):
                continue
            target = granting.next_target(state, now)
            if self._begin_swap_if_due(target, now):
                continue
            granted = granting.grant_all(state, now)
            if target is None or not granted or not self._begin_swap_if_due(granting.next_target(state, now), now):
                break  # a grant makes no other model wait
        else:
            raise RuntimeError("the scheduler's decisions undo each other")
        if state.swap is not None and state.ordinary:
            granting.grant_all(state, now)  # companions go on being served
        self._observe_periodically(now)

    def _begin_swap_if_due(self, target: Ticket | None, now: float) -> bool:
        state = self._state
        if state.stopping:
            return False
        if target is None:
            return self._undo_spill_if_idle(now) or (state.attentive and upkeep.begin_if_due(state, now))
        ending = granting.turn_ending(state, target)
        if now < ending.at:
            state.wake(ending.at)
            return False
        if not state.has_fresh_view(now) or granting.is_servable(state, target.variant):
            return False
        if ending.why is End.HIGHER_CLASS:
            state.early_end_at = now
        swapping.begin_for_request(state, target, now, turn_ended=ending.why.value)
        return True

    def _restore_pin(self, now: float) -> bool:
        """Load a pinned model anew that lost its place; before anything else, for a trial ends with it."""
        state = self._state
        if not state.has_fresh_view(now):
            return False
        target = next(iter(state.pins_to_restore))
        del state.pins_to_restore[target]
        if state.stopping or target not in state.recipes or granting.is_servable(state, target):
            return False
        if plans.is_impossible(state, target):
            return False
        name, _ = state.recipes[target]
        swapping.begin(state, target, name, "pin", now).unasked = True
        return True

    def _undo_spill_if_idle(self, now: float) -> bool:
        state = self._state
        if not state.spills_to_undo or len(state.line) or state.leases or state.mode != "auto":
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
