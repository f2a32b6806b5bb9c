"""What was learned comes back after a restart: whole, or not at all, and never as an exception."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ollama_swap_proxy.core import events
from ollama_swap_proxy.core.memory import VARIANTS_REMEMBERED
from ollama_swap_proxy.core.policy import Policy
from ollama_swap_proxy.core.proofs import Outcome, Standing
from ollama_swap_proxy.core.scheduler import Scheduler
from ollama_swap_proxy.core.slots import FIRST_MOST
from ollama_swap_proxy.core.tickets import Variant
from tests.core.desk import Desk

CHAT, EMBEDDER, LARGE, LATE = Variant("chat", "num_ctx=4096"), Variant("embedder"), Variant("large"), Variant("late")


def _learned() -> Desk:
    """A scheduler that has learned something of each kind."""
    desk = Desk()
    state, forecast = desk.state, desk.state.forecast
    forecast.note_swap(CHAT, 3.5)
    forecast.note_swap(EMBEDDER, 1.0)
    forecast.note_load_time(CHAT, 3.0)
    forecast.note_unload_time("chat", 0.2)
    forecast.note_answer(CHAT, 7.0)
    forecast.settle_s, forecast.look_s = 1.5, 0.3
    forecast.fitted[CHAT] = forecast.accepted[LARGE] = None
    forecast.suspects[LATE] = 0.5
    forecast.settle_before_spills_s[CHAT] = 0.5
    state.sizes = {CHAT: 4500, EMBEDDER: 300}
    state.residency.largest_vram_bytes = 4800
    state.slots.recall({"chat": 9})
    state.proofs.note([CHAT, EMBEDDER], "embedder", Outcome.FITTED, trial=True)
    state.proofs.note([LARGE, EMBEDDER], "embedder", Outcome.FAILED, trial=True)
    return desk


def _memory() -> dict[str, Any]:
    return dict(json.loads(json.dumps(_learned().scheduler.remembered())))


def _restarted(memory: object, policy: Policy | None = None, version: str = "0.33.0") -> Desk:
    desk = Desk(policy)
    desk.scheduler = Scheduler(replace(policy or Policy(), settle_first_s=0.0))
    desk.all.clear()
    desk.tell(events.Recalled(memory))
    desk.tell(events.UpstreamIdentified(version, ps_is_safe=True))
    return desk


def test_all_that_was_learned_comes_back() -> None:
    memory, desk = _memory(), _restarted(_memory())
    assert desk.said("memory_ignored") == []
    assert desk.scheduler.remembered() == memory
    state, before = desk.state, _learned().state
    assert state.forecast == before.forecast
    assert state.sizes == before.sizes
    assert state.proofs == before.proofs
    assert state.slots.most("chat") == 9
    assert state.slots.most("other") == FIRST_MOST
    assert state.proofs.standing([CHAT, EMBEDDER], "embedder").standing is Standing.PROVEN


def test_no_moment_is_kept() -> None:
    """Everything in the memory is the same whenever it is taken."""
    desk = _learned()
    before = desk.scheduler.remembered()
    desk.later(1000)
    assert desk.scheduler.remembered() == before


def test_what_swaps_cost_is_known_at_once() -> None:
    assert _restarted(_memory()).state.forecast.swap_cost_s(CHAT) == 3.5


def test_another_version_of_ollama_makes_us_forget_the_proofs_and_the_settle_wait_and_say_so() -> None:
    desk = _restarted(_memory(), version="0.34.0")
    (said,) = desk.said("proofs_forgotten")
    assert said["reason"] == "Ollama is 0.34.0, no longer 0.33.0"
    assert desk.state.proofs.standing([CHAT, EMBEDDER], "embedder").standing is Standing.UNTRIED
    assert desk.state.forecast.settle_s == 0
    assert desk.state.forecast.swap_cost_s(CHAT) == 3.5
    assert desk.scheduler.remembered()["version"] == "0.34.0"


def test_the_same_version_forgets_nothing() -> None:
    desk = _restarted(_memory())
    assert desk.said("proofs_forgotten") == []


def test_an_upgrade_while_we_run_makes_us_forget_the_proofs_too() -> None:
    desk = _learned()
    desk.tell(events.UpstreamIdentified("0.34.0", ps_is_safe=True))
    assert len(desk.said("proofs_forgotten")) == 1
    assert not desk.state.proofs.proven


def test_a_wait_that_is_longer_than_the_setting_now_allows_is_cut() -> None:
    assert _restarted(_memory(), Policy(settle_max_s=1.0)).state.forecast.settle_s == 1.0


def test_what_was_learned_of_leases_outlives_a_run_with_a_fixed_number() -> None:
    desk = _restarted(_memory(), Policy(parallel=2))
    assert desk.state.slots.most("chat") == 2
    assert desk.scheduler.remembered()["leases"] == {"chat": 9}


def test_only_so_many_variants_are_kept_those_swapped_to_last() -> None:
    desk = Desk()
    for number in range(VARIANTS_REMEMBERED + 10):
        desk.state.forecast.note_swap(Variant("chat", f"num_ctx={number}"), 1.0)
    desk.state.forecast.note_swap(Variant("chat", "num_ctx=0"), 2.0)
    memory: dict[str, Any] = desk.scheduler.remembered()
    options = [variant["options"] for variant in memory["variants"]]
    assert len(options) == VARIANTS_REMEMBERED
    assert options[-1] == "num_ctx=0"
    assert options[0] == "num_ctx=11"


@pytest.mark.parametrize(
    ("part", "told", "value"),
    [
        ("settle_s", "settle", "long"),
        ("settle_s", "settle", -1),
        ("look_s", "settle", True),
        ("largest_vram_bytes", "settle", 1.5),
        ("largest_vram_bytes", "settle", 2**80),
        ("variants", "variants", None),
        ("variants", "variants", {}),
        ("variants", "variants", [7]),
        ("variants", "variants", [{"key": "chat"}]),
        ("variants", "variants", [{"key": "chat", "options": "", "swap_s": float("nan")}]),
        ("variants", "variants", [{"key": "chat", "options": "", "swap_s": float("inf")}]),
        ("variants", "variants", [{"key": "chat", "options": "", "size_vram_bytes": "1"}]),
        ("leases", "leases", []),
        ("leases", "leases", {"chat": True}),
        ("leases", "leases", {"chat": 2.5}),
        ("proofs", "proofs", "none"),
    ],
)
def test_a_damaged_part_is_ignored_with_a_reason_and_the_others_are_not(part: str, told: str, value: object) -> None:
    memory = _memory()
    desk = _restarted({**memory, part: value})
    (said,) = desk.said("memory_ignored")
    assert said["part"] == told
    assert said["reason"]
    after, fresh = desk.scheduler.remembered(), _restarted(None).scheduler.remembered()
    parts = {"settle": {"settle_s", "look_s", "largest_vram_bytes"}}.get(told, {told})
    assert after == {key: fresh[key] if key in parts else memory[key] for key in memory}


@pytest.mark.parametrize("memory", [None, [], {}, {"format": 2}, "x"])
def test_an_unknown_format_is_ignored_with_a_reason(memory: object) -> None:
    desk = _restarted(memory)
    (said,) = desk.said("memory_ignored")
    assert said["part"] == "all"
    assert desk.scheduler.remembered() == {**Desk().scheduler.remembered()}


def test_a_number_of_leases_beyond_any_that_is_learned_is_cut() -> None:
    slots = _restarted({**_memory(), "leases": {"a": 10**6, "b": 0}}).state.slots
    assert (slots.most("a"), slots.most("b")) == (32, 2)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
GOOD = _memory()
FIELDS = st.sampled_from([*GOOD["variants"][0], "swap_s", "accepted", "suspect_since_settle_s"])
VARIANTS = st.lists(st.dictionaries(FIELDS, JSON, max_size=4), max_size=2)


@settings(suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
@given(st.sampled_from(list(GOOD)), JSON | VARIANTS)
def test_nothing_in_a_file_is_an_exception_and_the_scheduler_goes_on(part: str, value: object) -> None:
    desk = _restarted({**GOOD, part: value})
    ticket = desk.serve("chat")
    desk.release(ticket)
    json.dumps(desk.scheduler.remembered())
