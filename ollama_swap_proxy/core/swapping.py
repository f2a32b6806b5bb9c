"""The swap: drain, evict, confirm, settle, load, confirm. One is under way at a time.

Owns every step of a swap and how it ends. Must not choose whose turn it is: `scheduler` begins a swap for a target.
An eviction is finished only by confirmation: reports asked for after it, without the victim.
"""

from __future__ import annotations

from ollama_swap_proxy.core import commands, failing, granting
from ollama_swap_proxy.core.forecast import Spill
from ollama_swap_proxy.core.policy import (
    CAREFUL_POLL_S,
    DRAIN_AFTERLIFE_S,
    DRAIN_SLOW_AFTER_S,
    NEWCOMER_ROUNDS,
    POLL_S,
    RETRY_AFTER_S,
    UNLOAD_REPEAT_AFTER_S,
)
from ollama_swap_proxy.core.state import NEVER, Phase, State, Swap
from ollama_swap_proxy.core.tickets import Resident, Variant
from ollama_swap_proxy.core.turns import Turn


def begin(state: State, target: Variant, name: str, reason: str, now: float) -> None:
    """Decide a swap: from now on its victims get no new leases."""
    state.swaps_begun += 1
    victims = state.residency.victims_for(target)
    swap = Swap(state.swaps_begun, target, name, reason, decided_at=now, phase_since=now)
    swap.expected_victims = frozenset(victim.key for victim in victims)
    state.swap = swap
    state.say(
        "swap_decided",
        target=name,
        options=target.options,
        reason=reason,
        victims=[victim.name for victim in victims],
        waiting=len(state.line),
    )
    if any(victim.key == target.key for victim in victims):
        head = state.line.head(target)
        resident_options = state.residency.options.get(target.key, "unknown")
        state.say(
            "variant_reload",
            model=name,
            client=head.client if head else "",
            wanted=target.options,
            has=resident_options,
        )


def begin_undoing_spill(state: State, target: Variant, least_settle_s: float, now: float) -> None:
    """Load a model once more that landed partly on the CPU, because its memory probably came back late."""
    name, _ = state.recipes[target]
    begin(state, target, name, "spill", now)
    swap = state.swap
    if swap is not None:
        swap.undoes_spill = True
        swap.least_settle_s = least_settle_s
        swap.expected_victims |= {target.key}


def advance(state: State, swap: Swap, now: float) -> bool:
    """Take the swap one step on; say whether it moved (then there may be more to do at once)."""
    before = (swap.phase, swap.target)
    match swap.phase:
        case Phase.DRAINING:
            _drain(state, swap, now)
        case Phase.EVICTING:
            _evict(state, swap, now)
        case Phase.SETTLING:
            _settle(state, swap, now)
        case Phase.LOADING:
            _load(state, swap, now)
        case Phase.CONFIRMING:
            _confirm(state, swap, now)
    return state.swap is not swap or (swap.phase, swap.target) != before


def enter(state: State, swap: Swap, phase: Phase, now: float) -> None:
    """Move the swap to another phase."""
    swap.phase, swap.phase_since = phase, now
    state.moved_at = now


def end(state: State, now: float, outcome: str, *, warning: bool = False, **fields: object) -> None:
    """Forget the swap, whatever became of it; a new turn begins for what is resident then."""
    swap = state.swap
    if swap is None:
        return
    took_s = round(now - swap.decided_at, 3)
    state.say("swap_ended", warning=warning, outcome=outcome, target=swap.name, took_s=took_s, **fields)
    state.swap = None
    state.turn = Turn(now)
    state.last_swap_ended_at = now
    state.moved_at = now


def _asked_for(state: State, swap: Swap, now: float) -> bool:
    """Say whether somebody still asks for this swap; if not, turn it over to who waits, or end it after a while."""
    if swap.undoes_spill or state.line.head(swap.target) is not None:
        swap.asker_left_at = None
        return True
    other = granting.next_target(state, now)
    if other is not None:
        state.say("swap_retargeted", target=other.name, instead_of=swap.name)
        swap.target, swap.name, swap.asker_left_at = other.variant, other.name, None
        swap.expected_victims = frozenset(victim.key for victim in state.residency.victims_for(other.variant))
        return True
    if swap.asker_left_at is None:
        swap.asker_left_at = now
    if now >= swap.asker_left_at + DRAIN_AFTERLIFE_S:
        end(state, now, "asker_left")
    else:
        state.wake(swap.asker_left_at + DRAIN_AFTERLIFE_S)
    return False


def _drain(state: State, swap: Swap, now: float) -> None:
    blocking = [lease for lease in state.leases.values() if lease.ticket.variant != swap.target or swap.undoes_spill]
    if not _asked_for(state, swap, now):
        return
    if not blocking:
        if swap.phase_since < now:
            state.say("drain_ended", took_s=round(now - swap.phase_since, 3))
        swap.drained_at = now
        fresh = state.residency.is_fresh(now, state.policy.ps_max_age_s)
        swap.report_needed_since = state.residency.asked_at if fresh else now
        enter(state, swap, Phase.EVICTING, now)
        return
    if swap.phase_since == now:
        state.say("drain_started", waits_for=[lease.ticket.id for lease in blocking])
    stuck_at = max(lease.moved_at for lease in blocking) + state.policy.stuck_after_s
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


def _evict(state: State, swap: Swap, now: float) -> None:
    if swap.victim is not None and now >= swap.first_asked_at + _unload_patience_s(state, swap.victim):
        failing.unload_not_confirmed(state, swap, now)
        return
    if now < swap.poll_at:
        state.wake(swap.poll_at)
        return
    if not state.has_report_since(swap.report_needed_since, now):
        if swap.victim is not None:
            state.wake(swap.first_asked_at + _unload_patience_s(state, swap.victim))
        elif not swap.evicted:
            _asked_for(state, swap, now)
        return
    victims = _victims(state, swap)
    newcomers = [victim for victim in victims if victim.key not in swap.expected_victims]
    if newcomers:
        _note_newcomers(state, swap, newcomers)
        if swap.newcomer_rounds > NEWCOMER_ROUNDS:
            victims = [victim for victim in victims if victim.key in swap.expected_victims]
    if not victims:
        _confirm_evictions(state, swap, now)
        return
    swap.clear_reports = 0
    victim = victims[0]
    if victim.key != swap.victim:
        if swap.evicted or _asked_for(state, swap, now):
            _ask_to_unload(state, swap, victim, now)
        return
    if swap.answered and now >= swap.last_asked_at + UNLOAD_REPEAT_AFTER_S:
        state.say("eviction_repeated", victim=victim.name, first_answer=swap.eviction_text or "accepted")
        _send_unload(state, swap, victim, now)
        return
    _poll_again(state, swap, now)


def _victims(state: State, swap: Swap) -> list[Resident]:
    victims = state.residency.victims_for(swap.target)
    if swap.undoes_spill and swap.target.key not in swap.evicted:
        own = state.residency.residents.get(swap.target.key)
        if own is not None and own not in victims:
            victims.append(own)
    return victims


def _note_newcomers(state: State, swap: Swap, newcomers: list[Resident]) -> None:
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


def _ask_to_unload(state: State, swap: Swap, victim: Resident, now: float) -> None:
    swap.victim, swap.first_asked_at = victim.key, now
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
    state.out.append(commands.Evict(victim.key, victim.name))
    state.moved_at = now


def eviction_answered(state: State, key: str, *, accepted: bool, reason: str, now: float) -> None:
    """Take in Ollama's answer to our unload, which confirms nothing: reports decide."""
    swap = state.swap
    if swap is None or swap.victim != key:
        return
    swap.answered, swap.accepted, swap.eviction_text = True, accepted, reason
    if not accepted:
        state.say("eviction_unanswered", warning=True, victim=key, reason=reason)
    swap.report_needed_since, swap.poll_at = now, NEVER


def _poll_again(state: State, swap: Swap, now: float) -> None:
    pause_s = POLL_S if state.ps_is_safe else CAREFUL_POLL_S
    swap.poll_at = now + pause_s
    swap.report_needed_since = swap.poll_at
    state.wake(swap.poll_at)


def _unload_patience_s(state: State, key: str) -> float:
    """Return how long an unload may take, in seconds; a model loaded by others may be busy with what we cannot see."""
    if key in state.residency.options:
        return state.policy.unload_timeout_s
    return max(state.policy.unload_timeout_s, state.policy.stuck_after_s)


def _confirm_evictions(state: State, swap: Swap, now: float) -> None:
    """Go on once enough reports are clear: one where a single read is proof, two where Ollama's reads race its unloads."""
    swap.clear_reports += 1
    if swap.evicted and not state.ps_is_safe and swap.clear_reports < 2:
        _poll_again(state, swap, now)
        return
    if swap.victim is not None:
        state.say("eviction_confirmed", took_s=round(now - swap.first_asked_at, 3))
        swap.victim = None
    enter(state, swap, Phase.SETTLING, now)


def _settle(state: State, swap: Swap, now: float) -> None:
    wait_s = max(state.forecast.settle_s, swap.least_settle_s)
    settled_at = max(state.residency.vram_freed_at + wait_s, swap.not_before)
    if now < settled_at:
        if swap.phase_since == now and settled_at > swap.not_before:
            state.say("settle_started", wait_s=round(settled_at - now, 3))
        state.wake(settled_at)
        return
    swap.settled_for_s = now - state.residency.vram_freed_at
    if now - swap.phase_since > state.policy.ps_max_age_s and swap.newcomer_rounds < NEWCOMER_ROUNDS:
        # Long enough for somebody to load behind our back: look once more.
        swap.report_needed_since, swap.poll_at, swap.clear_reports = now, NEVER, 1
        enter(state, swap, Phase.EVICTING, now)
        return
    if not swap.evicted and not _asked_for(state, swap, now):
        return
    _start_load(state, swap, now)


def _start_load(state: State, swap: Swap, now: float) -> None:
    head = state.line.head(swap.target)
    name, recipe = state.recipes.get(swap.target, (swap.name, None))
    if recipe is None or swap.target.key in state.vanishing:
        if head is None:
            end(state, now, "asker_left")
            return
        swap.load_sent_at = now
        swap.first_load_at = swap.first_load_at or now
        swap.loader = head.id
        enter(state, swap, Phase.LOADING, now)
        granting.give(state, head, now, loads=True)
        state.say("load_started", model=head.name, by=f"request {head.id}")
        return
    swap.load_sent_at = now
    swap.first_load_at = swap.first_load_at or now
    enter(state, swap, Phase.LOADING, now)
    state.out.append(commands.Load(swap.target, name, recipe, state.policy.load_timeout_s))
    state.say("load_started", model=name, options=swap.target.options)


def _load(state: State, swap: Swap, now: float) -> None:
    if swap.loader is not None:
        lease = state.leases.get(swap.loader)
        if lease is None or not lease.loads:
            load_answered(state, swap, now)
        return
    # The control client bounds the call itself; this is the net below it.
    overdue_at = swap.load_sent_at + state.policy.load_timeout_s + RETRY_AFTER_S
    if now >= overdue_at:
        failing.load_timed_out(state, swap, now)
    else:
        state.wake(overdue_at)


def load_answered(state: State, swap: Swap, now: float) -> None:
    """Go on to confirm a load that was answered well."""
    swap.report_needed_since, swap.poll_at, swap.clear_reports = now, NEVER, 0
    enter(state, swap, Phase.CONFIRMING, now)


def _confirm(state: State, swap: Swap, now: float) -> None:
    if now < swap.poll_at:
        state.wake(swap.poll_at)
        return
    if not state.has_report_since(swap.report_needed_since, now):
        return
    loaded = state.residency.residents.get(swap.target.key)
    if loaded is not None:
        _finish(state, swap, loaded, now)
        return
    swap.clear_reports += 1
    if not state.ps_is_safe and swap.clear_reports < 2:
        _poll_again(state, swap, now)
        return
    if swap.loader is not None:
        end(state, now, "served_and_gone")
        return
    # Ollama's OLLAMA_KEEP_ALIVE=0, or the like: an empty load does not last. Its first request loads it from now on.
    state.vanishing.add(swap.target.key)
    state.say("load_vanished", warning=True, model=swap.name)
    enter(state, swap, Phase.SETTLING, now)


def _finish(state: State, swap: Swap, loaded: Resident, now: float) -> None:
    target = swap.target
    load_s = now - swap.load_sent_at
    state.residency.options[target.key] = target.options
    state.cool_downs.pop(target, None)
    settle_before_s = state.forecast.settle_s
    largest_bytes = state.residency.largest_vram_bytes
    spill = state.forecast.note_load(loaded, target, swap.settled_for_s, largest_bytes)
    if loaded.spilled_bytes:
        state.say(
            "spill_found",
            warning=True,
            model=loaded.name,
            size_bytes=loaded.size_bytes,
            size_vram_bytes=loaded.size_vram_bytes,
            consequence=spill.value,
        )
    if (
        spill is Spill.RELOAD
        and target in state.recipes
        and target.key not in state.vanishing
        and not swap.undoes_spill
    ):
        state.spills_to_undo[target] = state.forecast.settle_for_reload_s(target)
    else:
        state.spills_to_undo.pop(target, None)
    if state.forecast.settle_s != settle_before_s:
        state.say("settle_learned", wait_s=state.forecast.settle_s, before_s=settle_before_s)
    state.forecast.note_swap(target, now - swap.drained_at)
    end(state, now, "loaded", load_s=round(load_s, 3), size_vram_bytes=loaded.size_vram_bytes)
