"""What the operator sets while we run: the mode, and whether granting is paused.

Owns what a change of either does at once. What follows from them later is asked where it matters: nothing is granted
and no swap goes on while paused (`scheduler`, `bounds.is_held_back`), in manual mode nobody is a swap's target
(`granting.foremost`), in bypass mode whoever arrives is granted (`intake`). Must not evict or load.

Bypass mode is stronger than a pause: it is the way to be without us at once.
"""

from __future__ import annotations

from ollama_swap_proxy.core import bounds, granting, steps
from ollama_swap_proxy.core.policy import Mode
from ollama_swap_proxy.core.state import Phase, State
from ollama_swap_proxy.core.turns import Turn


def set_mode(state: State, mode: Mode, now: float) -> None:
    """Go over to another mode. A swap under way is finished in manual mode; in bypass mode only its load is."""
    was = state.mode
    if mode == was:
        return
    state.mode, state.mode_since = mode, now
    state.note_ordinary()
    state.moved_at = now
    state.say("mode_set", mode=mode, was=was)
    if mode == "bypass":
        _begin_bypass(state, now)
    elif was == "bypass":
        _end_bypass(state, now)


def pause(state: State, now: float) -> None:
    """Grant nothing from now on, and begin no step of a swap."""
    if state.paused_at is not None:
        return
    state.paused_at = now
    state.note_ordinary()
    state.say("paused", waiting=len(state.line))


def resume(state: State, now: float) -> None:
    """Go on: the clocks that stood still begin anew, and a swap looks first at what is resident by now."""
    if state.paused_at is None:
        return
    swap = state.swap
    if swap is not None and bounds.is_held_back(state, swap):
        steps.look_again(swap, now)
        if swap.phase is Phase.DRAINING:
            swap.phase_since = now
    state.say("resumed", after_s=round(now - state.paused_at, 3), waiting=len(state.line))
    state.paused_at = None
    state.note_ordinary()
    state.moved_at = now


def _begin_bypass(state: State, now: float) -> None:
    """Let all go who wait. What runs may meet other runners from now on than those that it was granted for."""
    for lease in state.leases:
        lease.relayed = True
        state.leases.has_loaded(lease)
    if state.swap is not None:
        state.swap.overtaken, state.swap.staying = True, frozenset()
    for ticket in list(state.line):
        granting.give(state, ticket, now)


def _end_bypass(state: State, now: float) -> None:
    """Doubt what we knew of the residents, and begin a new turn."""
    state.residency.doubt_options()
    state.residency.outdated_at = now
    state.turn = Turn(now)
