"""Evicting: ask upstream to unload each victim, and believe it only when reports no longer list it.

Owns the phase between drain and settle. Must not choose the target or load it. An eviction is finished only by
confirmation: reports asked for after it, without the victim.
"""

from __future__ import annotations

from ollama_swap_proxy.core import bounds, commands, failing, plans, steps
from ollama_swap_proxy.core.policy import NEWCOMER_ROUNDS, UNLOAD_REPEAT_AFTER_S
from ollama_swap_proxy.core.state import Phase, State, Swap
from ollama_swap_proxy.core.tickets import Resident


def advance(state: State, swap: Swap, now: float) -> None:
    """Take the evictions as far as they go now."""
    if bounds.is_held_back(state, swap):
        return
    if swap.victim is not None:
        patience_ends_at = bounds.unload_ends_at(state, swap, swap.victim)
        if now >= patience_ends_at:
            failing.unload_not_confirmed(state, swap, now)
            return
        state.wake(patience_ends_at)
    if not steps.has_report(state, swap, now):
        _wait_unless_pointless(state, swap, now)
        return
    victims = _victims(state, swap)
    if not victims:
        _confirm(state, swap, now)
        return
    swap.clear_reports = 0
    victim = next((victim for victim in victims if victim.key == swap.victim), victims[0])
    if victim.key != swap.victim:
        if state.paused_at is not None:
            swap.victim = None  # that one is gone; the next is not asked before granting is resumed
        elif steps.is_asked_for(state, swap, now, goes_on_by_itself=swap.goes_on_by_itself):
            _ask_to_unload(state, swap, victim, now)
    elif swap.answered and now >= swap.last_asked_at + UNLOAD_REPEAT_AFTER_S:
        state.say("eviction_repeated", victim=victim.name, first_answer=swap.eviction_text or "accepted")
        _send_unload(state, swap, victim, now)
    else:
        steps.poll_again(state, swap, now)


def answered(state: State, key: str, *, accepted: bool, reason: str, now: float) -> None:
    """Take in Ollama's answer to our unload, which confirms nothing: reports decide."""
    swap = state.swap
    if swap is None or swap.victim != key:
        return
    swap.answered, swap.refused, swap.eviction_text = True, not accepted, reason
    if not accepted:
        state.say("eviction_unanswered", warning=True, victim=key, reason=reason)
    steps.look_again(swap, now, clear_reports=swap.clear_reports)


def _wait_unless_pointless(state: State, swap: Swap, now: float) -> None:
    if state.swap is not swap or swap.evicted or swap.first_load_at is not None:
        return
    if not state.residency.known:
        # Nothing was evicted yet, and unknown is no room: who is resident goes on being served meanwhile.
        steps.end(state, now, "residency_unknown", warning=True)
        return
    steps.is_asked_for(state, swap, now, goes_on_by_itself=swap.goes_on_by_itself)


def _victims(state: State, swap: Swap) -> list[Resident]:
    """Return who must still go: those expected at the start, and newcomers for a few rounds."""
    residents = state.residency.residents
    if swap.unloads:
        return [resident for key, resident in residents.items() if key == swap.target.key]
    # Who was evicted and is back was loaded by somebody else: a newcomer.
    swap.expected_victims -= {key for key in swap.evicted if key not in residents}
    victims = plans.in_the_way(state, swap)
    own = residents.get(swap.target.key)
    if swap.undoes_spill and own is not None and state.residency.holds(swap.target):
        victims.append(own)
    newcomers = [victim for victim in victims if victim.key not in swap.expected_victims]
    if not newcomers or swap.newcomer_rounds > NEWCOMER_ROUNDS:
        return [victim for victim in victims if victim.key in swap.expected_victims]
    swap.newcomer_rounds += 1
    joins = swap.newcomer_rounds <= NEWCOMER_ROUNDS
    state.say(
        "newcomer_found",
        warning=True,
        models=[newcomer.name for newcomer in newcomers],
        consequence="evicted too" if joins else "the load goes ahead beside it",
    )
    if joins:
        swap.expected_victims |= {newcomer.key for newcomer in newcomers}
    return [victim for victim in victims if victim.key in swap.expected_victims]


def _ask_to_unload(state: State, swap: Swap, victim: Resident, now: float) -> None:
    if victim.key in state.keeping_alive:
        return  # that request of ours would load it again if it came behind the unload; its answer comes, or its end
    if swap.victim is not None:
        state.forecast.note_unload_time(swap.victim, now - swap.first_asked_at)  # the one before is listed no more
    swap.victim, swap.first_asked_at, swap.refused, swap.eviction_text = victim.key, now, False, ""
    swap.freed_before_at = state.residency.vram_freed_at
    foreign = victim.key not in state.residency.options
    state.say(
        "eviction_sent",
        victim=victim.name,
        reason=swap.reason,
        vram_bytes=victim.size_vram_bytes,
        note="not loaded by us: may be busy with requests we cannot see" if foreign else "",
    )
    _send_unload(state, swap, victim, now)


def _send_unload(state: State, swap: Swap, victim: Resident, now: float) -> None:
    swap.last_asked_at, swap.answered = now, False
    swap.evicted.add(victim.key)
    state.residency.evicted_at[victim.key] = now
    state.out.append(commands.Evict(victim.key, victim.name))
    state.moved_at = now
    # No report asked for before this shows anything; the next is due when it is answered, or after a pause.
    steps.poll_again(state, swap, now)


def _confirm(state: State, swap: Swap, now: float) -> None:
    """Go on once enough reports are clear: one where a read is proof, two where Ollama's reads race its unloads."""
    swap.clear_reports += 1
    if swap.evicted and not state.ps_is_safe and swap.clear_reports < 2:
        steps.poll_again(state, swap, now)
        return
    if swap.victim is not None:
        took_s = now - swap.first_asked_at
        state.say("eviction_confirmed", took_s=round(took_s, 3))
        state.forecast.note_unload_time(swap.victim, took_s)
        _learn(state, took_s, swap.first_asked_at - swap.freed_before_at)
        swap.victim = None
    if swap.withdraws:
        steps.end(state, now, "did_not_fit", warning=True)
        return
    if swap.unloads:
        steps.end(state, now, "unloaded")
        return
    if state.residency.may_be_tried(swap.target.key) or (state.residency.holds(swap.target) and not swap.undoes_spill):
        # Somebody else loaded it meanwhile: its first request shows with which options.
        steps.end(state, now, "already_resident")
        return
    steps.enter(state, swap, Phase.SETTLING, now)


def _learn(state: State, took_s: float, after_last_s: float) -> None:
    before_s = state.forecast.settle_usual_s
    state.forecast.note_unload(took_s, after_last_s)
    if state.forecast.settle_usual_s != before_s:
        state.say("settle_learned", wait_s=state.forecast.settle_usual_s, before_s=before_s)
