"""Who must go for whom: the cheapest, never a pin, nobody for nothing."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_swap_proxy.core.proofs import UNKNOWN_OPTIONS, Outcome, Proofs
from ollama_swap_proxy.core.tickets import Variant
from ollama_swap_proxy.core.together import Facts, Member, Reason, may_be_together
from ollama_swap_proxy.core.victims import (
    RELOAD_COST_HALF_LIFE_S,
    SEARCHED_MOST,
    Impossible,
    Victims,
    choose_victims,
    reload_cost_s,
)

MIB = 2**20
NOW = 1000.0
CHAT = Member(Variant("chat"), "chat:8b", 4500 * MIB, reload_cost_s=4.0, idle_since=NOW)
CODE = Member(Variant("code"), "code:7b", 4500 * MIB, reload_cost_s=4.0, idle_since=NOW)
EMBED = Member(Variant("embed"), "embed:latest", 300 * MIB, embedder=True, reload_cost_s=1.0, idle_since=NOW)
RERANK = Member(Variant("rerank"), "rerank:latest", 300 * MIB, embedder=True, reload_cost_s=1.0, idle_since=NOW)
FIT = Facts(residency="fit")


def _pinned(member: Member) -> Member:
    return replace(member, pinned=True)


def _proofs(*noted: tuple[tuple[Member, ...], Member, Outcome]) -> Proofs:
    proofs = Proofs()
    for members, newcomer, outcome in noted:
        proofs.note((member.variant for member in members), newcomer.key, outcome, trial=True)
    return proofs


def _choose(target: Member, *residents: Member, facts: Facts | None = None) -> Victims:
    choice = choose_victims(target, residents, facts or Facts(), NOW)
    assert isinstance(choice, Victims), choice
    return choice


def test_nobody_goes_where_nobody_is() -> None:
    choice = _choose(CHAT)
    assert (choice.victims, choice.returns, choice.trial) == ((), (), False)
    assert choice.answer.reason is Reason.ALONE


def test_a_generating_model_goes_for_another_and_the_embedder_stays_for_a_trial() -> None:
    choice = _choose(CODE, CHAT, EMBED)
    assert choice.victims == choice.evicted == (CHAT,)
    assert choice.trial
    assert choice.answer.members == (CODE, EMBED)


def test_nobody_goes_for_a_proof_and_it_is_no_trial() -> None:
    facts = Facts(_proofs(((CHAT, EMBED), EMBED, Outcome.FITTED)))
    choice = _choose(EMBED, CHAT, facts=facts)
    assert choice.victims == ()
    assert not choice.trial


def test_an_embedder_goes_for_a_model_that_it_was_refused_with() -> None:
    facts = Facts(_proofs(((CHAT, EMBED), EMBED, Outcome.FAILED), ((CHAT, EMBED), CHAT, Outcome.FAILED)))
    assert _choose(CHAT, EMBED, facts=facts).victims == (EMBED,)
    assert _choose(EMBED, CHAT, RERANK, facts=facts).victims == (CHAT,)


def test_where_only_the_other_order_is_proven_the_companion_goes_and_returns() -> None:
    facts = Facts(_proofs(((CHAT, EMBED), EMBED, Outcome.FITTED), ((CHAT, EMBED), CHAT, Outcome.FAILED)))
    for embed in (EMBED, _pinned(EMBED)):
        choice = _choose(CHAT, embed, facts=facts)
        assert choice.victims == ()
        assert [each.member for each in choice.returns] == [embed]
        assert choice.evicted == (embed,)
        assert choice.answer.reason is Reason.ALONE
        assert choice.returns[0].answer.reason is Reason.PROVEN
        assert not choice.trial


def test_a_pin_that_fails_in_one_order_is_tried_in_the_other() -> None:
    pin = _pinned(EMBED)
    facts = Facts(_proofs(((CHAT, EMBED), CHAT, Outcome.FAILED)))
    choice = _choose(CHAT, pin, facts=facts)
    assert choice.evicted == (pin,)
    assert choice.trial
    assert choice.returns[0].answer.reason is Reason.UNTRIED


def test_a_generating_model_that_is_not_pinned_does_not_return_unasked() -> None:
    facts = Facts(_proofs(((CHAT, CODE), CODE, Outcome.FITTED), ((CHAT, CODE), CHAT, Outcome.FAILED)), "fit")
    choice = _choose(CHAT, CODE, facts=facts)
    assert choice.victims == (CODE,)
    assert choice.returns == ()


@pytest.mark.parametrize(("first", "second"), [(EMBED, RERANK), (RERANK, EMBED)])
def test_two_may_return_one_after_the_other(first: Member, second: Member) -> None:
    proofs = _proofs(
        ((CHAT, EMBED), CHAT, Outcome.FAILED),
        ((CHAT, RERANK), CHAT, Outcome.FAILED),
        ((CHAT, first), first, Outcome.FITTED),
        ((CHAT, first, second), second, Outcome.FITTED),
        ((CHAT, first, second), first, Outcome.FAILED),
    )
    choice = _choose(CHAT, _pinned(EMBED), _pinned(RERANK), facts=Facts(proofs))
    assert [each.member for each in choice.returns] == [_pinned(first), _pinned(second)]


def test_what_cannot_be_beside_the_pins_is_refused_with_the_numbers() -> None:
    pin = _pinned(CODE)
    facts = Facts(vram_budget_bytes=8000 * MIB)
    choice = choose_victims(CHAT, [pin, EMBED], facts, NOW)
    assert isinstance(choice, Impossible)
    assert choice.pins == (pin,)
    assert choice.answer.reason is Reason.OVER_BUDGET
    assert choice.text == (
        "chat:8b (4500 MiB) cannot be resident beside what is pinned, code:7b (4500 MiB): "
        "chat:8b (4500 MiB) and code:7b (4500 MiB) need 9000 MiB of GPU memory, of which there is 8000 MiB"
    )


def test_what_was_refused_with_a_pin_is_refused_at_once() -> None:
    pin = _pinned(EMBED)
    facts = Facts(_proofs(((CHAT, EMBED), EMBED, Outcome.FAILED), ((CHAT, EMBED), CHAT, Outcome.FAILED)))
    choice = choose_victims(CHAT, [pin, RERANK], facts, NOW)
    assert isinstance(choice, Impossible)
    assert choice.answer.reason is Reason.REFUSED
    assert "embed:latest (300 MiB)" in choice.text


def test_a_pin_protects_the_key_and_not_the_variant() -> None:
    wanted = replace(CHAT, variant=Variant("chat", "num_ctx=8192"), pinned=True)
    assert _choose(wanted, _pinned(CHAT), EMBED).victims == (_pinned(CHAT),)
    stranger = replace(CHAT, variant=Variant("chat", UNKNOWN_OPTIONS))
    assert _choose(wanted, stranger).victims == (stranger,)


def test_the_target_itself_is_no_victim() -> None:
    assert _choose(CHAT, CHAT, CODE).victims == (CODE,)


def test_a_resident_of_unknown_options_goes_unless_it_is_pinned() -> None:
    stranger = replace(EMBED, variant=Variant("embed", UNKNOWN_OPTIONS))
    assert _choose(CHAT, stranger).victims == (stranger,)
    assert _choose(CHAT, _pinned(stranger)).victims == ()


TIGHT = Facts(residency="fit", vram_budget_bytes=3)
WANTED = Member(Variant("wanted"), size_bytes=1)


def _unit(key: str, priority: int = 0, cost: float = 1.0, idle_since: float | None = NOW, size: int = 1) -> Member:
    return Member(Variant(key), size_bytes=size, priority=priority, reload_cost_s=cost, idle_since=idle_since)


@pytest.mark.parametrize(
    ("residents", "victims"),
    [
        ([_unit("a"), _unit("b", priority=-1, cost=99.0), _unit("c")], "b"),
        ([_unit("a", cost=3.0), _unit("b", cost=2.0), _unit("c", cost=4.0)], "b"),
        ([_unit("a", cost=3.0), _unit("b", cost=4.0, idle_since=NOW - 60.0), _unit("c", cost=4.0)], "b"),
        ([_unit("a", cost=0.0), _unit("b", cost=0.0, idle_since=NOW - 1), _unit("c", cost=0.0, idle_since=None)], "b"),
        ([_unit("c"), _unit("b"), _unit("a")], "a"),
        ([_unit("a", priority=1, size=2), _unit("b", size=1), _unit("c", size=1)], "bc"),
        ([_unit("a", cost=5.0, size=2), _unit("b", cost=3.0, size=1), _unit("c", cost=3.0, size=1)], "a"),
        ([_unit("a", cost=7.0, size=2), _unit("b", cost=3.0, size=1), _unit("c", cost=3.0, size=1)], "a"),
    ],
    ids=["priority", "cost", "idle_cost", "recency", "key", "two_lower", "sum_of_costs", "fewer_of_one_priority"],
)
def test_the_cheapest_go(residents: list[Member], victims: str) -> None:
    facts = replace(TIGHT, vram_budget_bytes=3)
    assert "".join(each.key for each in _choose(WANTED, *residents, facts=facts).victims) == victims


def test_an_expensive_idle_model_does_not_make_two_others_swap_for_ever() -> None:
    facts = replace(TIGHT, vram_budget_bytes=2)
    dear = _unit("dear", cost=60.0, idle_since=0.0)
    assert reload_cost_s(dear, RELOAD_COST_HALF_LIFE_S) == 30.0
    idle_s = 0.0
    while True:
        idle_s += 5.0
        cheap = _unit("cheap", cost=5.0, idle_since=idle_s)
        choice = choose_victims(WANTED, [dear, cheap], facts, idle_s)
        assert isinstance(choice, Victims)
        if choice.victims == (dear,):
            break
    assert 180.0 < idle_s < 300.0


KEYS = ["a", "b", "c", "d", "e"]
OPTIONS = ["num_ctx=1", "num_ctx=2", UNKNOWN_OPTIONS]


@st.composite
def _members(draw: st.DrawFn, key: str) -> Member:
    return Member(
        Variant(key, draw(st.sampled_from(OPTIONS))),
        size_bytes=draw(st.none() | st.integers(1, 5)),
        embedder=draw(st.booleans()),
        pinned=draw(st.integers(0, 3)) == 0,
        priority=draw(st.integers(-1, 1)),
        groups=draw(st.sampled_from([frozenset(), frozenset({"g"})])),
        reload_cost_s=draw(st.sampled_from([0.0, 1.0, 5.0])),
        idle_since=draw(st.sampled_from([None, 0.0, 940.0, NOW])),
    )


@st.composite
def _situations(draw: st.DrawFn) -> tuple[Member, list[Member], Facts]:
    proofs = Proofs()
    for _ in range(draw(st.integers(0, 8))):
        variants = draw(
            st.lists(
                st.builds(Variant, st.sampled_from(KEYS), st.sampled_from(OPTIONS)),
                min_size=2, max_size=3, unique_by=lambda variant: variant.key,
            )
        )  # fmt: skip
        proofs.note(variants, variants[0].key, draw(st.sampled_from(Outcome)), trial=True)
    keys = draw(st.lists(st.sampled_from(KEYS), unique=True, max_size=5))
    facts = Facts(
        proofs,
        draw(st.sampled_from(["exclusive", "fit"])),
        draw(st.sampled_from(["embedders", "none"])),
        draw(st.none() | st.integers(3, 15)),
    )
    target = replace(draw(_members(draw(st.sampled_from(KEYS)))), pinned=False)
    target = replace(target, variant=target.variant._replace(options=draw(st.sampled_from(OPTIONS[:2]))))
    return target, [draw(_members(key)) for key in keys], facts


def _is_allowed(target: Member, choice: Victims, facts: Facts, residents: list[Member]) -> bool:
    there = {each.key: each for each in residents if each not in choice.evicted and each.key != target.key}
    if not may_be_together([target, *there.values()], facts, target.key).allowed:
        return False
    for each in choice.returns:
        there[each.member.key] = each.member
        if not may_be_together([target, *there.values()], facts, each.member.key).allowed:
            return False
    return True


@given(_situations())
def test_what_is_left_is_allowed_and_no_pin_goes_for_good(situation: tuple[Member, list[Member], Facts]) -> None:
    target, residents, facts = situation
    choice = choose_victims(target, residents, facts, NOW)
    if isinstance(choice, Impossible):
        pins = [each for each in residents if each.pinned and each.key != target.key]
        assert not may_be_together([target, *pins], facts, target.key).allowed
        assert sorted(each.key for each in choice.pins) == sorted(each.key for each in pins)
        assert choice.pins
        assert choice.text
        return
    assert _is_allowed(target, choice, facts, residents)
    assert not any(each.pinned and each.key != target.key for each in choice.victims)
    assert all(each.member.pinned or each.member.embedder for each in choice.returns)
    assert not set(choice.victims) & {each.member for each in choice.returns}


@given(_situations())
def test_nobody_goes_for_nothing_and_the_choice_does_not_depend_on_the_order_of_the_report(
    situation: tuple[Member, list[Member], Facts],
) -> None:
    target, residents, facts = situation
    choice = choose_victims(target, residents, facts, NOW)
    assert choose_victims(target, residents[::-1], facts, NOW) == choice
    if isinstance(choice, Impossible):
        return
    unpinned = [each for each in choice.victims if each.key != target.key]
    for count in range(len(unpinned)):
        for fewer in combinations(unpinned, count):
            staying = [each for each in residents if each.key != target.key and each not in fewer]
            assert not may_be_together([target, *staying], facts, target.key).allowed


def test_of_very_many_residents_the_dearest_stay() -> None:
    residents = [_unit(f"{number:02}", cost=float(number)) for number in range(SEARCHED_MOST + 5)]
    facts = replace(TIGHT, vram_budget_bytes=SEARCHED_MOST + 1)
    choice = _choose(WANTED, *residents, facts=facts)
    assert [each.key for each in choice.victims] == ["00", "01", "02", "03", "04"]
    assert _choose(WANTED, *residents, facts=FIT).victims == ()


def test_who_would_outlive_a_victim_is_loaded_anew_and_stays() -> None:
    choice = _choose(CODE, CHAT, replace(EMBED, loaded_beside=frozenset({"chat"})))
    assert [each.key for each in choice.anew] == ["embed"]
    assert [each.key for each in choice.victims] == ["chat"]
    assert {each.key for each in choice.evicted} == {"chat", "embed"}
    assert choice.staying == {"embed"}


def test_who_outlives_nobody_then_is_not_loaded_anew() -> None:
    beside = replace(EMBED, loaded_beside=frozenset({"rerank"}))
    assert _choose(CODE, CHAT, beside, RERANK).anew == ()


def test_who_may_not_be_loaded_beside_the_others_that_stay_is_not_loaded_anew() -> None:
    beside = replace(EMBED, loaded_beside=frozenset({"chat"}))
    facts = Facts(proofs=_proofs(((EMBED, RERANK), EMBED, Outcome.FAILED)))
    assert _choose(CODE, CHAT, beside, RERANK, facts=facts).anew == ()
    facts = Facts(proofs=_proofs(((EMBED, RERANK), EMBED, Outcome.FITTED)))
    assert [each.key for each in _choose(CODE, CHAT, beside, RERANK, facts=facts).anew] == ["embed"]
