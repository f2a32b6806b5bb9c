"""How long each step of a swap may take: the moment from which on it counts as stuck.

Owns the bounds, for the phases that act on them and for whoever looks on. Must not act: a phase gives its step up.
"""

from __future__ import annotations

from ollama_swap_proxy.core import limits, plans
from ollama_swap_proxy.core.policy import RETRY_AFTER_S
from ollama_swap_proxy.core.state import Phase, State, Swap
from ollama_swap_proxy.core.tickets import Lease


def step_ends_at(state: State, swap: Swap) -> float:
    """Return the moment at which the step under way is past its bound, in seconds of the scheduler's clock."""
    if is_held_back(state, swap):
        return float("inf")
    match swap.phase:
        case Phase.DRAINING:
            return drain_ends_at(state, swap)
        case Phase.EVICTING if swap.victim is not None:
            return unload_ends_at(state, swap, swap.victim)
        case Phase.SETTLING:
            return max(settled_at(state, swap), swap.phase_since)
        case Phase.LOADING:
            return load_ends_at(state, swap)
        case _:
            return report_ends_at(state, swap)


def is_held_back(state: State, swap: Swap) -> bool:
    """Say whether a swap stands still because granting is paused.

    What was asked of upstream is followed to its end: an eviction until it is confirmed, a load until it is seen.
    Before the next eviction and before the load the swap stands still, and so do its clocks.
    """
    if state.paused_at is None:
        return False
    return swap.phase in {Phase.DRAINING, Phase.SETTLING} or (swap.phase is Phase.EVICTING and swap.victim is None)


def drain_ends_at(state: State, swap: Swap) -> float:
    """Return when a drain is stuck: ``stuck_after_s`` after its last byte, or after what a lease has time for."""
    moved_at = max((excused_until(state, lease) for lease in plans.blocking(state, swap)), default=swap.phase_since)
    return max(swap.phase_since, moved_at) + state.policy.stuck_after_s


def unload_ends_at(state: State, swap: Swap, victim: str) -> float:
    """Return when an unload counts as not confirmed.

    A model loaded by others may be busy with requests that we cannot see: then it gets as long as a drain. Where the
    unload did not reach it (its name is gone), nothing is gained by that.
    """
    patience_s = limits.unload_timeout_s(state, victim)
    if victim not in state.residency.options and not swap.refused:
        patience_s = max(patience_s, state.policy.stuck_after_s)
    return swap.first_asked_at + patience_s


def settled_at(state: State, swap: Swap) -> float:
    """Return when the memory of what was unloaded should be back.

    A request that comes while its spilled model is being loaded anew waits no longer than for any other load.
    """
    is_awaited = swap.undoes_spill and state.line.awaits(swap.target)
    wait_s = state.forecast.settle_usual_s if is_awaited else state.forecast.settle_before_s(swap.target)
    if swap.trial or swap.in_aid_of is not None:
        # Or memory that comes back late would decide the trial; or be missing to who is loaded anew, for ever.
        wait_s = max(wait_s, state.policy.settle_max_s)
    return max(state.residency.vram_freed_at + wait_s, swap.not_before)


def load_ends_at(state: State, swap: Swap) -> float:
    """Return when a load is overdue. The control client bounds the call itself; this is the net below it."""
    return swap.load_sent_at + limits.load_timeout_s(state, swap.target.key) + RETRY_AFTER_S


def silence_ends_at(state: State, lease: Lease) -> float:
    """Return when a request has been silent for too long and is cut; infinity: never.

    One by which Ollama loads its model has the time of a load first. What was relayed in bypass mode has no limit.
    """
    if lease.relayed:
        return float("inf")
    begun = lease.last_byte_at is not None
    limit_s = limits.idle_stream_timeout_s(state, lease) if begun else limits.first_byte_timeout_s(state, lease)
    if not limit_s:
        return float("inf")
    load_s = limits.load_timeout_s(state, lease.ticket.variant.key) if lease.loads else 0.0
    return lease.moved_at + load_s + limit_s


def excused_until(state: State, lease: Lease) -> float:
    """Return until when a lease counts as moving: its last byte, or where a first byte has its time, when that ends."""
    ends_at = silence_ends_at(state, lease) if lease.last_byte_at is None else float("inf")
    return lease.moved_at if ends_at == float("inf") else ends_at


def report_ends_at(state: State, swap: Swap) -> float:
    """Return when a step has waited for a report in vain for ``stuck_after_s``."""
    return max(swap.phase_since, swap.report_needed_since) + state.policy.stuck_after_s
