"""Who must go and who may stay for a target: the residency policy, asked about what is resident now.

Owns the way from what we remember to the members that the policy speaks of, and what a swap is aimed at. Must not say
what may be together (`together`), choose (`victims`) or evict (`evicting`).
"""

from __future__ import annotations

from ollama_swap_proxy.core import variants
from ollama_swap_proxy.core.policy import VARIANTS_KEPT
from ollama_swap_proxy.core.proofs import UNKNOWN_OPTIONS
from ollama_swap_proxy.core.state import Reload, State, Swap
from ollama_swap_proxy.core.tickets import AS_FOR_ALL, NO_TRAITS, Lease, Resident, Traits, Variant
from ollama_swap_proxy.core.together import Facts, Member, Reason, may_be_together
from ollama_swap_proxy.core.victims import Impossible, Victims, choose_victims


def plan(state: State, target: Variant) -> Victims | Impossible:
    """Say who must go for this target, by the last report; kept until the next one."""
    known = state.plans.get(target)
    if known is None:
        if len(state.plans) >= VARIANTS_KEPT:
            state.plans.clear()
        known = state.plans[target] = _plan(state, target)
    return known


def evicted(state: State, target: Variant) -> list[Resident]:
    """Return the residents that must go before the target may be loaded or tried, in a stable order."""
    keys = {member.key for member in plan(state, target).evicted}
    return [resident for key, resident in sorted(state.residency.residents.items()) if key in keys]


def is_trial(state: State, target: Variant) -> bool:
    """Say whether loading the target beside those that stay is a trial: then they are closed and drained, too."""
    return plan(state, target).answer.trial


def first_anew(state: State, target: Variant) -> Variant | None:
    """Return the resident that is to be loaded anew before this target is, if one is."""
    return next((member.variant for member in plan(state, target).anew), None)


def spared(state: State, target: Variant) -> frozenset[str]:
    """Return the keys of those that go on being served while the target is loaded beside them."""
    chosen = plan(state, target)
    return frozenset() if chosen.answer.trial else chosen.staying - {member.key for member in chosen.anew}


def aim(state: State, swap: Swap, target: Variant) -> None:
    """Point a swap at a target: who goes, who stays, and whether that is a trial.

    Who was asked to unload for the target before goes in any case: Ollama keeps the request.
    """
    chosen = plan(state, target)
    asked = {key for key in swap.evicted if key in state.residency.residents and key != target.key}
    swap.target = target
    swap.expected_victims = frozenset(victim.key for victim in evicted(state, target)) | asked
    swap.staying = chosen.staying - asked - {member.key for member in chosen.anew}
    swap.reload = _reload(state, target) if target.key in swap.expected_victims else None
    swap.trial = chosen.answer.trial
    swap.declared = chosen.answer.reason is Reason.GROUP
    going = (*(each.member for each in chosen.returns), *chosen.anew)
    already = [pin for pin in swap.returning if pin.key in swap.evicted]
    swap.returning = tuple(dict.fromkeys([*(member.variant for member in going if member.pinned), *already]))


def aim_in_aid_of(state: State, swap: Swap, target: Variant) -> None:
    """Point a swap at the resident that it loads anew, before a target is loaded beside it."""
    resident = swap.target
    aim(state, swap, target)
    swap.target, swap.in_aid_of = resident, target
    swap.undoes_spill, swap.trial, swap.declared, swap.reload = True, False, False, None


def _reload(state: State, target: Variant) -> Reload:
    head = state.line.oldest(target)
    has = state.residency.options.get(target.key)
    return Reload(
        client="" if head is None else head.client,
        ticket_id=None if head is None else head.id,
        has=has,
        changes=() if has is None else variants.changes(has, target.options),
    )


def blocking(state: State, swap: Swap) -> list[Lease]:
    """Return the leases that must end before anything is evicted or loaded for a swap.

    Those of the target only where it is to go itself: it may have been in use when it was loaded anew beside others.
    """
    found = leases_in_the_way(state, swap.target, swap.spared)
    if not swap.undoes_spill:
        return found
    return [lease for lease in state.leases if lease in found or lease.ticket.variant == swap.target]


def leases_in_the_way(state: State, target: Variant, spared: frozenset[str]) -> list[Lease]:
    """Return the leases of all variants but the target, and but those of the keys that are spared.

    Those relayed in bypass mode are always in the way: upstream may have made any room for them.
    """
    return [
        lease
        for lease in state.leases
        if lease.relayed or (lease.ticket.variant != target and lease.ticket.variant.key not in spared)
    ]


def in_the_way(state: State, swap: Swap) -> list[Resident]:
    """Return who is listed and neither stays nor is the target: those who must go, and newcomers.

    The target's own key is one of them only where it is known to have other options. A pinned model is none of them,
    though it may have come behind our back: but for those that go to come back in another order.
    """
    residency, target = state.residency, swap.target
    found = []
    for key, resident in sorted(residency.residents.items()):
        if key == target.key:
            must_go = residency.options.get(key, target.options) != target.options
        else:
            is_spared = is_pinned(state, key) and key not in swap.expected_victims
            must_go = key not in swap.staying and not is_spared
        if must_go:
            found.append(resident)
    return found


def is_closed(state: State, key: str) -> bool:
    """Say whether a model gets no leases because of the swap under way: its victims, and whoever is part of a trial."""
    swap = state.swap
    return swap is not None and (key not in swap.spared or not swap.admits_companions)


def is_pinned(state: State, key: str) -> bool:
    """Say whether a model is never a victim."""
    return state.traits.get(key, NO_TRAITS).pinned


def has_pins(state: State) -> bool:
    """Say whether a pinned model is resident: only beside one can there be what fits nowhere."""
    return any(is_pinned(state, key) for key in state.residency.residents)


def is_impossible(state: State, target: Variant) -> bool:
    """Say whether a target can be resident in no way: never without pins (`has_pins`), which is cheaper to ask."""
    return isinstance(plan(state, target), Impossible)


def note_traits(state: State, key: str, traits: Traits) -> None:
    """Take note of what is known of a model."""
    if state.traits.get(key, NO_TRAITS) == traits:
        return
    state.traits[key] = traits
    state.attentive |= traits.upkeep != AS_FOR_ALL
    state.plans.clear()
    if len(state.traits) > VARIANTS_KEPT:
        state.traits = {known: each for known, each in state.traits.items() if known in state.residency.residents}


def members(state: State, keys: frozenset[str]) -> tuple[Variant, ...]:
    """Return these residents as the variants that proofs speak of."""
    return tuple(_variant(state, key) for key in sorted(keys))


def _variant(state: State, key: str) -> Variant:
    return Variant(key, state.residency.options.get(key, UNKNOWN_OPTIONS))


def _plan(state: State, target: Variant) -> Victims | Impossible:
    residents = [
        _member(state, _variant(state, key), resident.name)
        for key, resident in state.residency.residents.items()
        if key != target.key or state.residency.options.get(key, target.options) != target.options
    ]
    name = state.recipes[target][0] if target in state.recipes else str(target)
    return choose_victims(_member(state, target, name), residents, facts(state), state.residency.at)


def facts(state: State) -> Facts:
    """Return what the policy goes by besides the models in question."""
    policy = state.policy
    return Facts(state.proofs, policy.residency, policy.companions, policy.vram_budget_bytes or None)


def why_it_goes(state: State, chosen: Victims, victim: Member) -> str:
    """Say why a victim may not stay beside the target and those that do: half a sentence for people."""
    together = {member.variant: member for member in (chosen.target, *chosen.answer.members, victim)}
    return may_be_together(together.values(), facts(state), chosen.target.key).text


def _member(state: State, variant: Variant, name: str) -> Member:
    traits = state.traits.get(variant.key, NO_TRAITS)
    return Member(
        variant,
        name,
        size_bytes=state.sizes.get(variant),
        embedder=traits.embedder,
        pinned=traits.pinned,
        priority=traits.priority,
        groups=traits.groups,
        reload_cost_s=state.forecast.swap_cost_s(variant),
        idle_since=state.leases.idle_since(variant.key),
        loaded_beside=_must_not_outlive(state, variant, traits),
    )


def _must_not_outlive(state: State, variant: Variant, traits: Traits) -> frozenset[str]:
    """Return beside whom a resident was loaded, if it would rather be loaded anew than outlive one of them.

    An embedder is cheap to load, and where it outlives a chat model the next chat model hardly ever fits beside it. A
    larger one is loaded anew only when that has cost its place before.
    """
    rather = traits.embedder or variant.key in state.lost_outliving
    cannot = variant not in state.recipes or variant.key in state.vanishing
    if not rather or cannot or variant.key in state.residency.loaded_anew:
        return frozenset()
    return state.residency.loaded_beside.get(variant.key, frozenset())
