"""May these be resident together: each rule, and the order in which they are asked."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_swap_proxy.core.proofs import UNKNOWN_OPTIONS, Outcome, Proofs, Standing, from_json
from ollama_swap_proxy.core.tickets import Variant
from ollama_swap_proxy.core.together import Answer, Facts, Member, Reason, Verdict, listing, may_be_together

MIB = 2**20
CHAT = Member(Variant("chat", "num_ctx=4096"), "chat:8b", 4500 * MIB)
CODE = Member(Variant("code"), "code:7b", 4500 * MIB)
EMBED = Member(Variant("embed"), "embed:latest", 300 * MIB, embedder=True)
RERANK = Member(Variant("rerank"), "rerank:latest", 300 * MIB, embedder=True)
CHAT_8K = replace(CHAT, variant=Variant("chat", "num_ctx=8192"))


def _pinned(member: Member) -> Member:
    return replace(member, pinned=True)


def _grouped(*members: Member) -> tuple[Member, ...]:
    return tuple(replace(member, groups=frozenset({"rag"})) for member in members)


def _proofs(*noted: tuple[tuple[Member, ...], Member, Outcome]) -> Proofs:
    proofs = Proofs()
    for members, newcomer, outcome in noted:
        proofs.note((member.variant for member in members), newcomer.key, outcome, trial=True)
    return proofs


PAIR = (CHAT, EMBED)
REFUSED = _proofs((PAIR, CHAT, Outcome.FAILED), (PAIR, EMBED, Outcome.FAILED))
SPENT = _proofs(*[(PAIR, CHAT, Outcome.UNDECIDED)] * 3)
PROVEN = _proofs((PAIR, EMBED, Outcome.FITTED))


def _ask(*members: Member, facts: Facts = Facts(), newcomer: Member | None = None) -> Answer:  # noqa: B008
    return may_be_together(members, facts, None if newcomer is None else newcomer.key)


def _is(answer: Answer, verdict: Verdict, reason: Reason) -> bool:
    return (answer.verdict, answer.reason) == (verdict, reason)


def test_one_model_alone_may_always_be_even_if_it_is_too_large() -> None:
    assert _is(_ask(CHAT, facts=Facts(vram_budget_bytes=1)), Verdict.YES, Reason.ALONE)
    assert _is(_ask(CHAT, CHAT), Verdict.YES, Reason.ALONE)
    assert _is(_ask(), Verdict.YES, Reason.ALONE)
    assert _ask().text == " is alone"


def test_two_variants_of_one_key_never_not_even_in_a_group_or_pinned() -> None:
    members = [_pinned(member) for member in _grouped(CHAT, CHAT_8K, EMBED)]
    answer = _ask(*members, facts=Facts(residency="fit"))
    assert _is(answer, Verdict.NO, Reason.TWO_VARIANTS)
    assert {member.variant for member in answer.because} == {CHAT.variant, CHAT_8K.variant}


@pytest.mark.parametrize("facts", [Facts(), Facts(companions="none"), Facts(vram_budget_bytes=1)])
def test_a_declared_group_may_be_whatever_the_settings_and_its_first_load_is_a_trial(facts: Facts) -> None:
    answer = _ask(*_grouped(CHAT, CODE, EMBED), facts=facts, newcomer=CODE)
    assert _is(answer, Verdict.YES, Reason.GROUP)
    assert answer.trial
    assert "rag" in answer.text


@pytest.mark.parametrize(
    ("proofs", "says"),
    [(PROVEN, ""), (REFUSED, "did not fit"), (SPENT, ""), (_proofs((PAIR, EMBED, Outcome.FAILED)), "did not fit")],
)
def test_a_failed_trial_of_a_group_is_reported_and_not_obeyed(proofs: Proofs, says: str) -> None:
    answer = _ask(*_grouped(*PAIR), facts=Facts(proofs), newcomer=EMBED)
    assert _is(answer, Verdict.YES, Reason.GROUP)
    assert not answer.trial
    assert says in answer.text


def test_a_group_says_nothing_of_a_model_outside_it() -> None:
    members = (*_grouped(CHAT, EMBED), CODE)
    assert _is(_ask(*members), Verdict.NO, Reason.EXCLUSIVE)
    other_group = replace(CODE, groups=frozenset({"else"}))
    assert _is(_ask(*_grouped(CHAT), other_group), Verdict.NO, Reason.EXCLUSIVE)


@pytest.mark.parametrize(
    ("members", "companions", "eligible"),
    [
        ((CHAT, EMBED), "embedders", True),
        ((CHAT, EMBED, RERANK), "embedders", True),
        ((EMBED, RERANK), "embedders", True),
        ((CHAT, CODE), "embedders", False),
        ((CHAT, CODE, EMBED), "embedders", False),
        ((CHAT, _pinned(CODE)), "embedders", True),
        ((_pinned(CHAT), _pinned(CODE), EMBED), "embedders", True),
        ((CHAT, EMBED), "none", False),
        ((EMBED, RERANK), "none", False),
        ((CHAT, _pinned(EMBED)), "none", True),
        ((CHAT, _pinned(CODE)), "none", True),
        ((CHAT, EMBED, _pinned(CODE)), "none", False),
    ],
)
def test_at_most_one_that_is_neither_companion_nor_pinned(
    members: tuple[Member, ...], companions: str, eligible: bool
) -> None:
    answer = _ask(*members, facts=Facts(companions="none" if companions == "none" else "embedders"))
    if eligible:
        assert _is(answer, Verdict.TRY, Reason.UNTRIED)
        assert answer.trial
    else:
        assert _is(answer, Verdict.NO, Reason.EXCLUSIVE)
        assert not any(member.pinned for member in answer.because)
    assert _is(_ask(*members, facts=Facts(residency="fit", companions="none")), Verdict.TRY, Reason.UNTRIED)


def test_what_is_proven_makes_nothing_eligible() -> None:
    proofs = _proofs(((CHAT, CODE), CODE, Outcome.FITTED))
    assert _is(_ask(CHAT, CODE, facts=Facts(proofs), newcomer=CODE), Verdict.NO, Reason.EXCLUSIVE)
    assert _is(_ask(CHAT, CODE, facts=Facts(proofs, "fit"), newcomer=CODE), Verdict.YES, Reason.PROVEN)


def test_a_resident_of_unknown_options_stays_only_if_it_is_pinned_or_in_the_group() -> None:
    stranger = replace(EMBED, variant=Variant("embed", UNKNOWN_OPTIONS))
    assert _is(_ask(CHAT, stranger, facts=Facts(residency="fit")), Verdict.NO, Reason.OPTIONS_UNKNOWN)
    assert _is(_ask(CHAT, _pinned(stranger)), Verdict.TRY, Reason.UNTRIED)
    assert _is(_ask(*_grouped(CHAT, stranger)), Verdict.YES, Reason.GROUP)


def test_the_refused_are_refused_before_any_proof_or_size_and_named() -> None:
    proofs = _proofs(((CHAT, EMBED, RERANK), RERANK, Outcome.FITTED))
    for members, newcomer, outcome in ((PAIR, CHAT, Outcome.FAILED), (PAIR, EMBED, Outcome.FAILED)):
        proofs.note((member.variant for member in members), newcomer.key, outcome, trial=True)
    answer = _ask(CHAT, EMBED, RERANK, facts=Facts(proofs, vram_budget_bytes=1), newcomer=RERANK)
    assert _is(answer, Verdict.NO, Reason.REFUSED)
    assert answer.because == (CHAT, EMBED)
    assert answer.text == (
        "chat:8b (4500 MiB) and embed:latest (300 MiB) were tried together in both load orders and did not fit"
    )


def test_a_proof_holds_for_its_load_order_and_outweighs_a_budget() -> None:
    facts = Facts(PROVEN, vram_budget_bytes=1)
    assert _is(_ask(*PAIR, facts=facts, newcomer=EMBED), Verdict.YES, Reason.PROVEN)
    assert not _ask(*PAIR, facts=facts, newcomer=EMBED).trial
    assert _is(_ask(*PAIR, facts=facts, newcomer=CHAT), Verdict.NO, Reason.OVER_BUDGET)
    assert _is(_ask(*PAIR, facts=Facts(PROVEN), newcomer=CHAT), Verdict.TRY, Reason.UNTRIED)


def test_a_proof_in_one_order_that_fails_in_the_other() -> None:
    proofs = _proofs((PAIR, EMBED, Outcome.FITTED), (PAIR, CHAT, Outcome.FAILED))
    facts = Facts(proofs)
    assert _is(_ask(*PAIR, facts=facts, newcomer=EMBED), Verdict.YES, Reason.PROVEN)
    assert _is(_ask(*PAIR, facts=facts, newcomer=CHAT), Verdict.NO, Reason.ORDER_FAILED)
    assert _is(_ask(*PAIR, facts=facts), Verdict.YES, Reason.PROVEN)


def test_a_failed_order_and_spent_trials_decide_before_sizes() -> None:
    failed = Facts(_proofs((PAIR, EMBED, Outcome.FAILED)), vram_budget_bytes=1)
    answer = _ask(*PAIR, facts=failed, newcomer=EMBED)
    assert _is(answer, Verdict.NO, Reason.ORDER_FAILED)
    assert answer.standing is Standing.FAILED
    spent = _ask(*PAIR, facts=Facts(SPENT, vram_budget_bytes=1), newcomer=EMBED)
    assert _is(spent, Verdict.NO, Reason.TRIALS_SPENT)


def test_measured_sizes_over_a_known_budget_are_refused_with_the_numbers() -> None:
    answer = _ask(*PAIR, facts=Facts(vram_budget_bytes=4799 * MIB))
    assert _is(answer, Verdict.NO, Reason.OVER_BUDGET)
    assert (
        answer.text
        == "chat:8b (4500 MiB) and embed:latest (300 MiB) need 4800 MiB of GPU memory, of which there is 4799 MiB"
    )
    assert _is(_ask(*PAIR, facts=Facts(vram_budget_bytes=4800 * MIB)), Verdict.TRY, Reason.UNTRIED)


def test_an_unknown_size_counts_as_nothing() -> None:
    unknown = replace(CHAT, size_bytes=None)
    assert _is(_ask(unknown, EMBED, facts=Facts(vram_budget_bytes=300 * MIB)), Verdict.TRY, Reason.UNTRIED)
    assert _is(_ask(unknown, EMBED, facts=Facts(vram_budget_bytes=299 * MIB)), Verdict.NO, Reason.OVER_BUDGET)


def test_tried_once_in_each_load_order_never_again_restarts_included() -> None:
    proofs, trials = Proofs(), 0
    for _ in range(20):
        for newcomer in (CHAT, EMBED):
            answer = _ask(*PAIR, facts=Facts(proofs), newcomer=newcomer)
            if answer.trial:
                trials += 1
                proofs.note((member.variant for member in PAIR), newcomer.key, Outcome.FAILED, trial=True)
            restarted, damage = from_json(json.loads(json.dumps(proofs.to_json())))
            assert damage is None
            assert restarted.found("gpu-0", "0.32.5") is None
            proofs = restarted
    assert trials == 2
    assert _is(_ask(*PAIR, facts=Facts(proofs), newcomer=EMBED), Verdict.NO, Reason.REFUSED)
    assert proofs.found("gpu-0", "0.33.0") is not None
    assert _is(_ask(*PAIR, facts=Facts(proofs), newcomer=EMBED), Verdict.TRY, Reason.UNTRIED)


def test_every_reason_has_a_text_with_names_and_sizes() -> None:
    for reason in Reason:
        text = Answer(Verdict.NO, reason, PAIR, EMBED.key, PAIR, vram_budget_bytes=MIB).text
        assert "chat:8b (4500 MiB)" in text
        assert "{" not in text
    assert listing([replace(CHAT, name="", size_bytes=None)]) == "chat[num_ctx=4096] (size unknown)"


KEYS = ["a", "b", "c", "d"]
MEMBERS = st.builds(
    Member,
    variant=st.builds(
        Variant, key=st.sampled_from(KEYS), options=st.sampled_from(["num_ctx=1", "num_ctx=2", UNKNOWN_OPTIONS])
    ),
    size_bytes=st.none() | st.integers(1, 5),
    embedder=st.booleans(),
    pinned=st.booleans(),
    groups=st.sampled_from([frozenset(), frozenset(), frozenset({"g"})]),
)
SETS = st.lists(MEMBERS, min_size=1, max_size=4, unique_by=lambda member: member.key)
NOTES = st.lists(st.tuples(SETS, st.integers(0, 3), st.sampled_from(Outcome)), max_size=12)
BUDGETS = st.none() | st.integers(1, 12)


def _learned(notes: list[tuple[list[Member], int, Outcome]]) -> Proofs:
    proofs = Proofs()
    for members, last, outcome in notes:
        key = members[last % len(members)].key
        proofs.note((member.variant for member in members), key, outcome, trial=True)
    return proofs


@given(SETS, NOTES, BUDGETS, st.sampled_from(["embedders", "none"]), st.integers(0, 3))
def test_by_default_never_two_generating_models_that_are_not_pinned(
    members: list[Member],
    notes: list[tuple[list[Member], int, Outcome]],
    budget: int | None,
    companions: str,
    last: int,
) -> None:
    facts = Facts(_learned(notes), companions="none" if companions == "none" else "embedders", vram_budget_bytes=budget)
    answer = may_be_together(members, facts, members[last % len(members)].key)
    generating = [member for member in members if not member.embedder and not member.pinned]
    one_group = all(member.groups for member in members)
    assert not answer.allowed or len(generating) <= 1 or one_group


@given(SETS, NOTES, BUDGETS)
def test_without_a_newcomer_the_best_load_order_is_asked_and_the_spelling_of_the_set_does_not_matter(
    members: list[Member], notes: list[tuple[list[Member], int, Outcome]], budget: int | None
) -> None:
    facts = Facts(_learned(notes), "fit", vram_budget_bytes=budget)
    verdicts = {may_be_together(members, facts, member.key).verdict for member in members}
    best = next(verdict for verdict in (Verdict.YES, Verdict.TRY, Verdict.NO) if verdict in verdicts)
    answers = {may_be_together(order, facts) for order in permutations(members)}
    assert {answer.verdict for answer in answers} == {best}
    assert len(answers) == 1
    assert answers.pop().text


@given(SETS, NOTES, BUDGETS, st.booleans())
def test_what_may_be_together_may_be_with_one_less(
    members: list[Member], notes: list[tuple[list[Member], int, Outcome]], budget: int | None, fit: bool
) -> None:
    facts = Facts(_learned(notes), "fit" if fit else "exclusive", vram_budget_bytes=budget)
    if may_be_together(members, facts, members[0].key).allowed and not all(member.groups for member in members):
        for left_out in members[1:]:
            rest = [member for member in members if member is not left_out]
            assert may_be_together(rest, facts, members[0].key).allowed
