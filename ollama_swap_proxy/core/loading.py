"""Loading: wait for memory to come back, load the target, see it listed, learn from what came of it.

Owns the phases from the last confirmed eviction to the end of a swap that worked. Must not evict.
"""

from __future__ import annotations

from ollama_swap_proxy.core import bounds, commands, company, failing, granting, limits, plans, steps
from ollama_swap_proxy.core.events import LoadFailure
from ollama_swap_proxy.core.forecast import Spill
from ollama_swap_proxy.core.policy import NEWCOMER_ROUNDS, VARIANTS_KEPT
from ollama_swap_proxy.core.proofs import Outcome
from ollama_swap_proxy.core.state import Phase, State, Swap
from ollama_swap_proxy.core.tickets import Resident


def settle(state: State, swap: Swap, now: float) -> None:
    """Wait for the memory of what was unloaded, then load."""
    if state.stopping:
        steps.end(state, now, "stopping")
        return
    # After an eviction the load follows even if its asker left: he is likely to be back. Whoever else waits now does
    # not sit out a wait that is not his.
    if not steps.is_asked_for(state, swap, now, goes_on_by_itself=bool(swap.evicted) or swap.goes_on_by_itself):
        return
    if bounds.is_held_back(state, swap):
        return
    settled_at = bounds.settled_at(state, swap)
    if now < settled_at:
        if not swap.settle_said and settled_at > swap.not_before:
            swap.settle_said = True
            state.say("settle_started", wait_s=round(settled_at - now, 3))
        state.wake(settled_at)
        return
    waited_long = now - swap.phase_since > state.policy.ps_max_age_s
    if swap.newcomer_rounds <= NEWCOMER_ROUNDS and (waited_long or plans.in_the_way(state, swap)):
        # Somebody loaded behind our back while we waited, or had the time for it: look once more. The evictions were
        # confirmed already, so one clear report will do even where two are needed.
        steps.look_again(swap, now, clear_reports=1)
        steps.enter(state, swap, Phase.EVICTING, now)
        return
    _start(state, swap, now)


def _start(state: State, swap: Swap, now: float) -> None:
    head = granting.next_ticket(state, swap.target, now)
    name, recipe = state.recipes.get(swap.target, (swap.name, None))
    by_request = recipe is None or swap.target.key in state.vanishing
    if by_request and head is None:
        steps.end(state, now, "asker_left")
        return
    swap.settled_for_s = now - state.residency.vram_freed_at
    swap.staying = frozenset(key for key in swap.staying if key in state.residency.residents)
    swap.beside = plans.members(state, swap.staying)
    swap.outliving = frozenset(key for key in swap.staying if state.residency.outlives(key))
    swap.is_fair = not swap.outliving and not any(state.residency.residents[key].spilled_bytes for key in swap.staying)
    swap.stay_until = {
        key: state.residency.at + resident.expires_in_s
        for key, resident in state.residency.residents.items()
        if key in swap.staying and resident.expires_in_s is not None
    }
    swap.load_sent_at = now
    if swap.first_load_at is None:
        swap.first_load_at = now
    steps.enter(state, swap, Phase.LOADING, now)
    if by_request and head is not None:
        swap.loader = head.id
        granting.give(state, head, now, loads=True)
        state.say("load_started", model=head.name, by=f"request {head.id}")
    elif recipe is not None:
        state.out.append(commands.Load(swap.target, name, recipe, limits.load_timeout_s(state, swap.target.key)))
        state.say("load_started", model=name, options=swap.target.options)


def wait(state: State, swap: Swap, now: float) -> None:
    """Wait for the answer to the load: that of our own call, or the first byte of the request that loads."""
    overdue_at = bounds.load_ends_at(state, swap)
    if swap.loader is None:
        if now >= overdue_at:
            failing.load_timed_out(state, swap, now)
        else:
            state.wake(overdue_at)
        return
    lease = state.leases.get(swap.loader)
    if lease is None or not lease.loads:
        answered(state, swap, now)
    elif now >= overdue_at:
        # It may be generating in silence (not streamed). From here on it is a lease like others, with a drain's bounds.
        steps.end(state, now, "load_overdue", warning=True, waits_for=swap.loader)
    else:
        state.wake(overdue_at)


def answered(state: State, swap: Swap, now: float) -> None:
    """Go on to confirm a load that was answered well."""
    steps.look_again(swap, now)
    steps.enter(state, swap, Phase.CONFIRMING, now)


def confirm(state: State, swap: Swap, now: float) -> None:
    """See the target listed in a report asked for after its load, then end the swap."""
    if not steps.has_report(state, swap, now):
        return
    loaded = state.residency.residents.get(swap.target.key)
    if loaded is not None:
        _finish(state, swap, loaded, now)
        return
    swap.clear_reports += 1
    if not state.ps_is_safe and swap.clear_reports < 2:
        steps.poll_again(state, swap, now)
        return
    if swap.loader is None:
        # OLLAMA_KEEP_ALIVE=0, or the like: an empty load does not last. Its first request loads it from now on.
        state.vanishing.add(swap.target.key)
        state.say("load_vanished", warning=True, model=swap.name)
        steps.enter(state, swap, Phase.SETTLING, now)
    elif swap.loader_failed and swap.target.key not in state.vanishing:
        text = "the request that should have loaded the model failed; see its own answer"
        failing.load_failed(state, swap, LoadFailure(502, text), now)
    else:
        steps.end(state, now, "served_and_gone")


def _finish(state: State, swap: Swap, loaded: Resident, now: float) -> None:
    target = swap.target
    state.residency.learn_options(target, state.residency.asked_at)
    state.residency.note_load(target.key, swap.load_sent_at, state.policy.settle_max_s)
    if swap.in_aid_of is not None:
        state.residency.loaded_anew.add(target.key)
    state.plans.clear()
    state.cool_downs.pop(target, None)
    state.slots.loaded(target.key)
    load_s = round(now - swap.load_sent_at, 3)
    outcome = company.judge_load(state, swap, now) if swap.beside else None
    if outcome is Outcome.FAILED and swap.trial and not swap.declared and loaded.spilled_bytes:
        company.part(state, swap, now)
        return
    _learn(state, swap, loaded, alone=outcome in {None, Outcome.FITTED})
    if swap.load_sent_at == swap.first_load_at and swap.in_aid_of is None:
        # A load that had to be repeated says more about upstream's queue than about this model; and one in aid of
        # another model's evicts for that one.
        state.forecast.note_swap(target, now - swap.drained_at)
        state.forecast.note_load_time(target, now - swap.load_sent_at)
    steps.end(state, now, "loaded", load_s=load_s, size_vram_bytes=loaded.size_vram_bytes)


def _learn(state: State, swap: Swap, loaded: Resident, *, alone: bool) -> None:
    """Learn from a load what there is to learn of memory; not ``alone``: others beside it may be why it spilled."""
    target, forecast = swap.target, state.forecast
    if not loaded.spilled_bytes and loaded.size_vram_bytes:
        state.sizes[target] = loaded.size_vram_bytes
        while len(state.sizes) > VARIANTS_KEPT:
            del state.sizes[next(iter(state.sizes))]
    if not alone and swap.trial:
        return
    settle_before_s = forecast.settle_s
    residency = state.residency
    spill = forecast.note_load(
        loaded,
        target,
        swap.settled_for_s,
        largest_vram_bytes=residency.largest_vram_bytes,
        freed_bytes=residency.vram_freed_bytes,
    )
    residency.vram_freed_bytes = 0
    if spill is not Spill.NONE:
        state.say(
            "spill_found",
            warning=True,
            model=loaded.name,
            size_bytes=loaded.size_bytes,
            size_vram_bytes=loaded.size_vram_bytes,
            consequence=spill.value,
        )
    reloads = spill is Spill.RELOAD and not swap.undoes_spill
    if reloads and target in state.recipes and target.key not in state.vanishing:
        state.spills_to_undo.add(target)
    else:
        state.spills_to_undo.discard(target)
    if forecast.settle_s != settle_before_s:
        state.say("settle_learned", wait_s=forecast.settle_s, before_s=settle_before_s)
