"""What trials teach, how far it reaches, and how it is kept across restarts."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_swap_proxy.core.proofs import (
    PROOFS_KEPT,
    TRIALS_ALLOWED,
    UNKNOWN_OPTIONS,
    Lesson,
    Outcome,
    Proofs,
    Standing,
    from_json,
    judge,
)
from ollama_swap_proxy.core.tickets import Resident, Variant

CHAT, EMBED, OTHER = Variant("chat"), Variant("embed"), Variant("other")
PAIR = (CHAT, EMBED)


def _chat(num_ctx: int, rest: str = "") -> Variant:
    return Variant("chat", f"num_ctx={num_ctx}{rest}")


def _resident(key: str, size: int = 100, vram: int = 100) -> Resident:
    return Resident(key, key, f"digest-{key}", size, vram)


def _tried(proofs: Proofs, members: tuple[Variant, ...], newcomer: str, outcome: Outcome) -> Lesson:
    return proofs.note(members, newcomer, outcome, trial=True)


def _standing(proofs: Proofs, members: tuple[Variant, ...], newcomer: str) -> Standing:
    return proofs.standing(members, newcomer).standing


@pytest.mark.parametrize(
    ("listed", "disturbed", "outcome"),
    [
        ([_resident("chat"), _resident("embed")], False, Outcome.FITTED),
        ([_resident("chat"), _resident("embed"), _resident("else", 100, 0)], False, Outcome.FITTED),
        ([_resident("chat"), _resident("embed")], True, Outcome.FITTED),
        ([_resident("chat")], False, Outcome.FAILED),
        ([_resident("chat"), _resident("embed", 100, 99)], False, Outcome.FAILED),
        ([_resident("chat"), _resident("embed", 100, 0)], False, Outcome.FAILED),
        ([_resident("chat"), _resident("embed", 0, 0)], False, Outcome.FAILED),
        ([_resident("chat")], True, Outcome.UNDECIDED),
        (None, False, Outcome.UNDECIDED),
    ],
)
def test_a_set_fits_when_all_of_it_is_listed_wholly_in_gpu_memory(
    listed: list[Resident] | None, disturbed: bool, outcome: Outcome
) -> None:
    residents = None if listed is None else {resident.key: resident for resident in listed}
    assert judge(PAIR, residents, disturbed=disturbed) is outcome


def test_a_proof_in_one_order_that_fails_in_the_other() -> None:
    proofs = Proofs()
    assert _tried(proofs, PAIR, "embed", Outcome.FITTED) is Lesson.PROVEN
    assert _standing(proofs, PAIR, "chat") is Standing.UNTRIED
    assert _tried(proofs, PAIR, "chat", Outcome.FAILED) is Lesson.FAILED
    assert _standing(proofs, PAIR, "embed") is Standing.PROVEN
    assert proofs.standing(PAIR, "chat") == (Standing.FAILED, ("chat", "embed"))


def test_a_set_that_failed_in_both_orders_is_refused_and_so_is_what_holds_it() -> None:
    proofs = Proofs()
    assert _tried(proofs, PAIR, "embed", Outcome.FAILED) is Lesson.FAILED
    assert _standing(proofs, PAIR, "chat") is Standing.UNTRIED
    assert _tried(proofs, PAIR, "chat", Outcome.FAILED) is Lesson.REFUSED
    for newcomer in ("chat", "embed", "other"):
        assert proofs.standing((CHAT, EMBED, OTHER), newcomer) == (Standing.REFUSED, ("chat", "embed"))
    assert _standing(proofs, (CHAT, OTHER), "chat") is Standing.UNTRIED


def test_a_set_of_three_is_refused_after_two_orders_and_its_pairs_are_not() -> None:
    proofs, three = Proofs(), (CHAT, EMBED, OTHER)
    _tried(proofs, three, "other", Outcome.FAILED)
    assert _tried(proofs, three, "chat", Outcome.FAILED) is Lesson.REFUSED
    assert _standing(proofs, three, "embed") is Standing.REFUSED
    assert _standing(proofs, PAIR, "chat") is Standing.UNTRIED


def test_a_set_of_three_that_is_proven_in_one_order_is_not_refused_for_two_others() -> None:
    proofs, three = Proofs(), (CHAT, EMBED, OTHER)
    _tried(proofs, three, "embed", Outcome.FITTED)
    _tried(proofs, three, "other", Outcome.FAILED)
    _tried(proofs, three, "chat", Outcome.FAILED)
    assert _standing(proofs, three, "embed") is Standing.PROVEN
    assert _standing(proofs, three, "chat") is Standing.FAILED


def test_a_proof_covers_the_smaller_sets_within_it_in_the_same_order() -> None:
    proofs = Proofs()
    _tried(proofs, (CHAT, EMBED, OTHER), "embed", Outcome.FITTED)
    assert _standing(proofs, PAIR, "embed") is Standing.PROVEN
    assert _standing(proofs, PAIR, "chat") is Standing.UNTRIED
    assert _standing(proofs, (CHAT, OTHER), "chat") is Standing.UNTRIED


def test_a_failure_covers_larger_sets_in_the_same_order() -> None:
    proofs = Proofs()
    _tried(proofs, PAIR, "embed", Outcome.FAILED)
    assert _standing(proofs, (CHAT, EMBED, OTHER), "embed") is Standing.FAILED
    assert _standing(proofs, (CHAT, EMBED, OTHER), "other") is Standing.UNTRIED


@given(tried=st.integers(1, 99), asked=st.integers(1, 99), outcome=st.sampled_from([Outcome.FITTED, Outcome.FAILED]))
def test_a_proof_covers_smaller_contexts_and_a_failure_larger_ones(tried: int, asked: int, outcome: Outcome) -> None:
    proofs = Proofs()
    _tried(proofs, (_chat(tried), EMBED), "embed", outcome)
    if outcome is Outcome.FITTED:
        expected = Standing.PROVEN if asked <= tried else Standing.UNTRIED
    else:
        expected = Standing.FAILED if asked >= tried else Standing.UNTRIED
    assert _standing(proofs, (_chat(asked), EMBED), "embed") is expected
    assert _standing(proofs, (_chat(asked), EMBED), "chat") is Standing.UNTRIED


@pytest.mark.parametrize(
    "options",
    ["", "num_ctx=4096,num_gpu=1", "num_gpu=1", "num_ctx=huge", "num_ctx=null", "num_ctx=-4096", UNKNOWN_OPTIONS],
)
def test_other_options_and_a_context_that_is_no_number_are_compared_as_they_are(options: str) -> None:
    proofs = Proofs()
    _tried(proofs, (_chat(8192), EMBED), "embed", Outcome.FITTED)
    assert _standing(proofs, (Variant("chat", options), EMBED), "embed") is Standing.UNTRIED
    assert _standing(proofs, (_chat(4096), EMBED), "embed") is Standing.PROVEN


def test_the_context_is_compared_wherever_it_stands_among_the_options() -> None:
    proofs = Proofs()
    _tried(proofs, (Variant("chat", "num_batch=1,num_ctx=8192,shift=false"), EMBED), "embed", Outcome.FITTED)
    assert _standing(proofs, (Variant("chat", "num_batch=1,num_ctx=64,shift=false"), EMBED), "embed") is Standing.PROVEN
    assert (
        _standing(proofs, (Variant("chat", "num_batch=2,num_ctx=64,shift=false"), EMBED), "embed") is Standing.UNTRIED
    )


def test_newer_news_replaces_what_it_contradicts() -> None:
    proofs = Proofs()
    _tried(proofs, (_chat(8192), EMBED), "embed", Outcome.FITTED)
    _tried(proofs, (_chat(4096), EMBED), "embed", Outcome.FAILED)
    assert _standing(proofs, (_chat(8192), EMBED), "embed") is Standing.FAILED
    _tried(proofs, (_chat(6000), EMBED), "embed", Outcome.FITTED)
    assert _standing(proofs, (_chat(6000), EMBED), "embed") is Standing.PROVEN
    assert _standing(proofs, (_chat(8192), EMBED), "embed") is not Standing.FAILED
    assert not proofs.failed


def test_a_proof_is_revoked_by_a_loss_and_may_be_tried_anew_until_the_trials_are_spent() -> None:
    proofs = Proofs()
    for _ in range(TRIALS_ALLOWED):
        assert _standing(proofs, PAIR, "embed") is Standing.UNTRIED
        assert _tried(proofs, PAIR, "embed", Outcome.FITTED) is Lesson.PROVEN
        assert proofs.note(PAIR, "embed", Outcome.FAILED, trial=False) is Lesson.REVOKED
    assert proofs.standing(PAIR, "embed") == (Standing.SPENT, ("chat", "embed"))
    assert _standing(proofs, (CHAT, EMBED, OTHER), "chat") is Standing.SPENT
    assert _standing(proofs, (CHAT, EMBED, OTHER), "other") is Standing.UNTRIED


def test_a_loss_revokes_every_proof_it_went_by_and_no_other() -> None:
    proofs = Proofs()
    _tried(proofs, (_chat(8192), EMBED), "embed", Outcome.FITTED)
    _tried(proofs, (_chat(1024), EMBED), "chat", Outcome.FITTED)
    assert proofs.note((_chat(4096), EMBED), "embed", Outcome.FAILED, trial=False) is Lesson.REVOKED
    assert _standing(proofs, (_chat(2048), EMBED), "embed") is Standing.UNTRIED
    assert _standing(proofs, (_chat(1024), EMBED), "chat") is Standing.PROVEN
    assert proofs.note((_chat(4096), EMBED), "embed", Outcome.FAILED, trial=False) is Lesson.NOTHING


def test_what_decides_nothing_counts_as_a_trial_and_leaves_a_proof_alone() -> None:
    proofs = Proofs()
    _tried(proofs, PAIR, "embed", Outcome.FITTED)
    assert proofs.note(PAIR, "embed", Outcome.UNDECIDED, trial=False) is Lesson.NOTHING
    assert _standing(proofs, PAIR, "embed") is Standing.PROVEN
    for _ in range(TRIALS_ALLOWED - 1):
        assert _standing(proofs, PAIR, "chat") is Standing.UNTRIED
        assert _tried(proofs, PAIR, "chat", Outcome.UNDECIDED) is Lesson.UNDECIDED
    assert _standing(proofs, PAIR, "chat") is Standing.SPENT
    assert _standing(proofs, PAIR, "embed") is Standing.PROVEN


def test_a_pair_is_tried_three_times_whatever_the_contexts() -> None:
    proofs = Proofs()
    for num_ctx in range(1, TRIALS_ALLOWED + 1):
        _tried(proofs, (_chat(num_ctx), EMBED), "embed", Outcome.FITTED)
    assert _standing(proofs, (_chat(99), EMBED), "embed") is Standing.SPENT
    assert _standing(proofs, (_chat(1), EMBED), "embed") is Standing.PROVEN
    with_a_third = (_chat(99), EMBED, OTHER)
    assert proofs.standing(with_a_third, "embed") == (Standing.SPENT, ("chat", "embed"))
    assert _standing(proofs, (_chat(1), EMBED, OTHER), "embed") is Standing.UNTRIED, "the pair is proven as it is"


def test_what_fits_beside_unknown_options_is_proven_while_that_resident_stays_and_in_no_file() -> None:
    proofs, pair = Proofs(), (CHAT, Variant("embed", UNKNOWN_OPTIONS))
    assert _tried(proofs, pair, "chat", Outcome.FITTED) is Lesson.PROVEN
    assert _standing(proofs, pair, "chat") is Standing.PROVEN
    assert _standing(proofs, (CHAT, Variant("embed")), "chat") is Standing.UNTRIED
    assert proofs.to_json()["proven"] == []
    proofs.forget_unknown("embed")
    assert _standing(proofs, pair, "chat") is Standing.UNTRIED


def test_the_failures_of_unknown_options_are_counted() -> None:
    proofs, pair = Proofs(), (CHAT, Variant("embed", UNKNOWN_OPTIONS))
    for _ in range(TRIALS_ALLOWED):
        assert _standing(proofs, pair, "chat") is Standing.UNTRIED
        assert _tried(proofs, pair, "chat", Outcome.FAILED) is Lesson.NOTHING
    assert _standing(proofs, pair, "chat") is Standing.SPENT
    assert not proofs.proven
    assert not proofs.failed


def test_one_model_alone_teaches_nothing() -> None:
    proofs = Proofs()
    assert _tried(proofs, (CHAT,), "chat", Outcome.FAILED) is Lesson.NOTHING
    assert proofs == Proofs()


def test_a_new_device_or_version_clears_everything_and_an_unknown_one_nothing() -> None:
    for device, version in (("gpu-1", "0.32.5"), ("gpu-0", "0.33.0")):
        proofs = Proofs()
        assert proofs.found("gpu-0", None) is None
        _tried(proofs, PAIR, "embed", Outcome.FITTED)
        assert proofs.found(None, "0.32.5") is None
        assert proofs.found(None, None) is None
        assert _standing(proofs, PAIR, "embed") is Standing.PROVEN
        why = proofs.found(device, version)
        assert why is not None
        assert "no longer" in why
        assert proofs == Proofs(device, version)
        assert proofs.found("gpu-9", version) is None, "there was nothing to forget"


def test_the_operator_clears_proofs_and_counts() -> None:
    proofs = Proofs()
    _tried(proofs, PAIR, "embed", Outcome.FAILED)
    _tried(proofs, PAIR, "chat", Outcome.FAILED)
    proofs.clear()
    assert _standing(proofs, PAIR, "embed") is Standing.UNTRIED
    assert proofs == Proofs()


def test_so_many_are_kept_and_those_longest_without_news_are_forgotten() -> None:
    proofs = Proofs()
    _tried(proofs, PAIR, "embed", Outcome.FITTED)
    for number in range(PROOFS_KEPT + 9):
        _tried(proofs, (Variant(f"{number}"), EMBED), "embed", Outcome.FITTED)
        _tried(proofs, (Variant(f"{number}"), CHAT), "chat", Outcome.FAILED)
        assert _standing(proofs, PAIR, "embed") is Standing.PROVEN
        proofs.note(PAIR, "embed", Outcome.FITTED, trial=False)
    assert len(proofs.proven) == len(proofs.failed) == len(proofs.trials) == PROOFS_KEPT
    assert _standing(proofs, (Variant("0"), EMBED), "embed") is Standing.UNTRIED


VARIANTS = [CHAT, _chat(10), _chat(20), EMBED, Variant("embed", "num_ctx=5,num_gpu=1"), OTHER]
SETS = st.lists(st.sampled_from(VARIANTS), min_size=2, max_size=3, unique_by=lambda variant: variant.key)
NOTES = st.tuples(SETS, st.integers(0, 2), st.sampled_from(Outcome), st.booleans())


def _learn(proofs: Proofs, notes: list[tuple[list[Variant], int, Outcome, bool]]) -> None:
    for members, newcomer, outcome, trial in notes:
        proofs.note(members, members[newcomer % len(members)].key, outcome, trial=trial)


@given(st.lists(NOTES, max_size=20))
def test_all_that_was_learned_comes_back_from_the_state_file(
    notes: list[tuple[list[Variant], int, Outcome, bool]],
) -> None:
    proofs = Proofs("gpu-0", "0.32.5")
    _learn(proofs, notes)
    again, damage = from_json(json.loads(json.dumps(proofs.to_json())))
    assert damage is None
    assert again == proofs
    assert list(again.proven) == list(proofs.proven), "what is forgotten first stays so"


@given(st.lists(NOTES, max_size=20), SETS, st.integers(0, 2))
def test_what_is_proven_stays_so_with_less_context_and_what_failed_with_more(
    notes: list[tuple[list[Variant], int, Outcome, bool]], members: list[Variant], newcomer: int
) -> None:
    proofs = Proofs()
    _learn(proofs, notes)
    last = members[newcomer % len(members)].key

    def with_chat(variant: Variant) -> Standing:
        return proofs.standing([variant if each.key == "chat" else each for each in members], last).standing

    less, more = with_chat(_chat(10)), with_chat(_chat(20))
    if more is Standing.PROVEN:
        assert less is Standing.PROVEN
    if less is Standing.REFUSED:
        assert more is Standing.REFUSED
    if less is Standing.FAILED:
        assert more in {Standing.FAILED, Standing.REFUSED}


@given(st.lists(NOTES, max_size=30))
def test_no_set_of_weights_is_offered_for_a_fourth_trial(
    notes: list[tuple[list[Variant], int, Outcome, bool]],
) -> None:
    proofs, tried = Proofs(), dict[frozenset[str], int]()
    for members, newcomer, outcome, _ in notes:
        last = members[newcomer % len(members)].key
        if _standing(proofs, tuple(members), last) is Standing.UNTRIED:
            _tried(proofs, tuple(members), last, outcome)
            keys = frozenset(member.key for member in members)
            tried[keys] = tried.get(keys, 0) + 1
            if outcome is not Outcome.UNDECIDED:
                assert _standing(proofs, tuple(members), last) is not Standing.UNTRIED
    assert max(tried.values(), default=0) <= TRIALS_ALLOWED


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_an_unknown_file_content_is_ignored_with_a_reason(value: object) -> None:
    proofs, damage = from_json(value)
    assert proofs == Proofs()
    assert damage


@given(st.sampled_from(["device", "version", "proven", "failed", "trials"]), JSON)
def test_a_damaged_part_is_never_an_exception(part: str, value: object) -> None:
    good = Proofs("gpu-0", "0.32.5")
    _tried(good, PAIR, "embed", Outcome.FITTED)
    proofs, damage = from_json({**good.to_json(), part: value})
    assert damage is None or proofs == Proofs()


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("format", 2),
        ("format", None),
        ("device", 7),
        ("proven", None),
        ("proven", [7]),
        ("proven", [{"newcomer": "chat", "members": {"chat": ""}}]),
        ("failed", [{"newcomer": "else", "members": {"chat": "", "embed": ""}}]),
        ("failed", [{"newcomer": "chat", "members": {"chat": 7, "embed": ""}}]),
        ("failed", [{"newcomer": "chat", "members": ["chat", "embed"]}]),
        ("trials", [{"keys": ["chat", "embed"], "times": True}]),
        ("trials", [{"keys": [["chat"], "embed"], "times": 1}]),
        ("trials", {"chat": 1}),
    ],
)
def test_a_damaged_file_is_ignored_as_a_whole_and_the_reason_says_so(part: str, value: object) -> None:
    good = Proofs("gpu-0", "0.32.5")
    _tried(good, PAIR, "embed", Outcome.FITTED)
    proofs, damage = from_json({**good.to_json(), part: value})
    assert proofs == Proofs()
    assert damage is not None
    assert damage.startswith("proofs ")
