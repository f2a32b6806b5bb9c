"""The moves that every phase of a swap shares: entering a phase, waiting for a report, asking whether it is wanted.

Owns how a swap is turned over to another target and how it is forgotten. Must not evict or load: `evicting` and
`loading` do.
"""

from __future__ import annotations

from ollama_swap_proxy.core import bounds, granting, plans
from ollama_swap_proxy.core.policy import CAREFUL_POLL_S, DRAIN_AFTERLIFE_S, POLL_S
from ollama_swap_proxy.core.state import NEVER, Phase, State, Swap
from ollama_swap_proxy.core.turns import Turn


def enter(state: State, swap: Swap, phase: Phase, now: float) -> None:
    """Move the swap to another phase."""
    swap.phase, swap.phase_since, swap.settle_said = phase, now, False
    state.moved_at = now


def end(state: State, now: float, outcome: str, *, warning: bool = False, **fields: object) -> None:
    """Say how the swap under way ended, and forget it."""
    swap = state.swap
    if swap is None:
        return
    took_s = round(now - swap.decided_at, 3)
    state.say("swap_ended", warning=warning, outcome=outcome, target=swap.name, took_s=took_s, **fields)
    forget(state, swap, now)


def forget(state: State, swap: Swap, now: float) -> None:
    """Be without a swap; a new turn begins if the swap changed anything.

    A victim that was asked to unload and is still listed is leaving: upstream keeps the request.
    """
    if swap.victim in state.residency.residents:
        state.residency.leaving.add(swap.victim)
    state.swap = None
    state.moved_at = now
    state.pins_to_restore |= {pin: None for pin in swap.returning if pin.key in swap.evicted}
    if swap.evicted or (swap.first_load_at is not None and not swap.staying):
        state.turn = Turn(now)
    if swap.evicted or swap.first_load_at is not None:
        state.last_swap_ended_at = now


def say_reload(state: State, swap: Swap) -> None:
    """Name the client and the options because of which a model that is resident is loaded anew, if it is."""
    reload = swap.reload
    if reload is not None:
        state.say(
            "variant_reload",
            model=swap.name,
            client=reload.client,
            request=reload.ticket_id,
            changes=list(reload.changes),
            wanted=swap.target.options,
            has="unknown" if reload.has is None else reload.has,
        )


def is_asked_for(state: State, swap: Swap, now: float, *, goes_on_by_itself: bool = False) -> bool:
    """Say whether the swap goes on as it is: somebody waits for its target.

    Otherwise it is turned over to whoever waits for another model; if nobody does, it goes on where
    ``goes_on_by_itself``, and else ends after the afterlife.
    """
    if swap.unasked or state.line.awaits(swap.asked_for):
        swap.asker_left_at = None
        return True
    other = granting.next_target(state, now)
    if other is not None:
        state.say("swap_retargeted", target=other.name, instead_of=swap.name)
        plans.aim(state, swap, other.variant)
        swap.name, swap.reason, swap.asker_left_at = other.name, "request", None
        swap.undoes_spill = swap.withdraws = swap.wished = swap.unloads = False
        swap.in_aid_of = None
        say_reload(state, swap)
        if swap.phase is not Phase.DRAINING:
            # Leases on the old target were none of its victims'; they are of the new one's.
            enter(state, swap, Phase.DRAINING, now)
        return False
    if goes_on_by_itself:
        return True
    if swap.asker_left_at is None:
        swap.asker_left_at = now
    if now >= swap.asker_left_at + DRAIN_AFTERLIFE_S:
        end(state, now, "asker_left")
    else:
        state.wake(swap.asker_left_at + DRAIN_AFTERLIFE_S)
    return False


def has_report(state: State, swap: Swap, now: float) -> bool:
    """Say whether the report that this step waits for is there; the wait ends with the swap after ``stuck_after_s``."""
    if now < swap.poll_at:
        state.wake(swap.poll_at)
        return False
    if state.has_report_since(swap.report_needed_since, now):
        return True
    given_up_at = bounds.report_ends_at(state, swap)
    if now >= given_up_at:
        end(state, now, "no_report", warning=True, phase=swap.phase.value)
        state.residency.outdated_at = now
    else:
        state.wake(given_up_at)
    return False


def look_again(swap: Swap, now: float, *, clear_reports: int = 0) -> None:
    """Need a report asked for from now on, fetched at once; ``clear_reports`` earlier ones go on counting as proof."""
    swap.report_needed_since, swap.poll_at, swap.clear_reports = now, NEVER, clear_reports


def poll_again(state: State, swap: Swap, now: float) -> None:
    """Have another report fetched after the pause that this version of Ollama bears."""
    swap.poll_at = now + (POLL_S if state.ps_is_safe else CAREFUL_POLL_S)
    swap.report_needed_since = swap.poll_at
    state.wake(swap.poll_at)
