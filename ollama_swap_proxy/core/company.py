"""Loads beside models that stay: what they showed, and what becomes of a set that did not fit.

Owns the end of a trial. Must not choose who stays (`plans`) nor remember what was shown (`proofs`).
"""

from __future__ import annotations

from ollama_swap_proxy.core import plans, steps
from ollama_swap_proxy.core.proofs import Lesson, Outcome, judge
from ollama_swap_proxy.core.state import Phase, State, Swap
from ollama_swap_proxy.core.tickets import Variant


def judge_load(state: State, swap: Swap, now: float) -> Outcome:
    """Learn from the report after a load of ours whether its target and those that were to stay fit together.

    A companion whose time to live was over, or that vanished for another reason before the load, decides nothing; nor
    does a failure beside one that had spilled, or that outlived a model, or a spill after a short wait for memory: but
    for that the set may well fit.
    """
    members = [swap.target, *swap.beside]
    residents = state.residency.residents
    lost = sorted(key for key in swap.staying if key not in residents)
    may_have_expired = any(swap.stay_until.get(key, float("inf")) <= now for key in lost)
    state.pins_to_restore |= dict.fromkeys(
        variant for variant in swap.beside if variant.key in lost and plans.is_pinned(state, variant.key)
    )
    state.lost_outliving |= {key for key in lost if key in swap.outliving and plans.is_pinned(state, key)}
    may_be_lag = not lost and swap.settled_for_s < state.policy.settle_max_s
    outcome = judge(members, residents, disturbed=may_have_expired or may_be_lag or not swap.is_fair)
    lesson = state.proofs.note(members, swap.target.key, outcome, trial=swap.trial)
    state.plans.clear()
    if lesson is not Lesson.NOTHING:
        state.say(
            "company_judged",
            warning=outcome is Outcome.FAILED,
            model=swap.name,
            beside=[_name(state, variant) for variant in swap.beside],
            outcome=lesson.value,
            lost=[_name(state, variant) for variant in swap.beside if variant.key in lost],
        )
    return outcome


def _name(state: State, variant: Variant) -> str:
    """Return the name of a model that may be gone."""
    resident = state.residency.residents.get(variant.key)
    if resident is not None:
        return resident.name
    return state.recipes[variant][0] if variant in state.recipes else variant.key


def part(state: State, swap: Swap, now: float) -> None:
    """End a trial whose members do not fit: the target is loaded anew, alone; beside a pin it goes again instead."""
    pinned = any(plans.is_pinned(state, key) for key in swap.staying)
    swap.withdraws = pinned
    swap.expected_victims = frozenset({swap.target.key}) | (frozenset() if pinned else swap.staying)
    swap.staying = swap.staying if pinned else frozenset()
    swap.trial = pinned
    swap.beside = ()
    swap.undoes_spill = True
    steps.look_again(swap, now)
    steps.enter(state, swap, Phase.DRAINING, now)
