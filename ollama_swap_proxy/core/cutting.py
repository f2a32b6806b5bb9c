"""Which running requests are cut, because the operator set a limit: silent for too long, or a drain's deadline is over.

Owns when a cut is asked for. Must not end a lease: that is a fact which the gate tells. By default nobody is cut.
"""

from __future__ import annotations

from ollama_swap_proxy.core import bounds, commands, limits, plans
from ollama_swap_proxy.core.policy import CUT_AGAIN_AFTER_S
from ollama_swap_proxy.core.state import Phase, State
from ollama_swap_proxy.core.tickets import Lease


def cut_overdue(state: State, now: float) -> None:
    """Ask that those requests be cut which are past a limit, and to be woken when the next one is."""
    drained = _drained_leases(state)
    for lease in state.leases:
        silent_at = bounds.silence_ends_at(state, lease)
        drained_at = drained.get(lease.ticket.id, float("inf"))
        due_at = min(silent_at, drained_at)
        if lease.cut_asked_at is not None:
            due_at = max(due_at, lease.cut_asked_at + CUT_AGAIN_AFTER_S)
        if now < due_at:
            state.wake(due_at)
        elif drained_at <= now:
            _cut(state, lease, _drain_over(state, lease), None, now)
        else:
            _cut(state, lease, _silent(state, lease), lease.moved_at, now)


def _drained_leases(state: State) -> dict[int, float]:
    """Return when the requests that a drain waits for are cut, by ticket; of those that have a deadline at all."""
    swap = state.swap
    if swap is None or swap.phase is not Phase.DRAINING or bounds.is_held_back(state, swap):
        return {}
    limited = ((lease, limits.drain_timeout_s(state, lease)) for lease in plans.blocking(state, swap))
    return {lease.ticket.id: swap.phase_since + limit_s for lease, limit_s in limited if limit_s}


def _cut(
    state: State, lease: Lease, rejection: commands.Rejection, unless_moved_since: float | None, now: float
) -> None:
    lease.cut_asked_at = now
    state.out.append(commands.Cut(lease.ticket.id, rejection, unless_moved_since))


def _drain_over(state: State, lease: Lease) -> commands.Rejection:
    target = state.swap.name if state.swap is not None else ""
    limit_s = limits.drain_timeout_s(state, lease)
    text = f"{lease.ticket.name} makes room for {target}, and this request had not ended after {limit_s:g} s"
    return commands.Rejection("drain_timeout", 503, f"{text} (drain_timeout_s)", retry_after_s=10)


def _silent(state: State, lease: Lease) -> commands.Rejection:
    if lease.last_byte_at is None:
        limit_s, which = limits.first_byte_timeout_s(state, lease), "first_byte_timeout_s"
    else:
        limit_s, which = limits.idle_stream_timeout_s(state, lease), "idle_stream_timeout_s"
    text = f"Ollama sent no byte of this answer of {lease.ticket.name} for {limit_s:g} s ({which})"
    return commands.Rejection("upstream_timeout", 504, text)
