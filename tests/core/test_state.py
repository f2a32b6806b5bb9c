"""The smallest moves on the scheduler's memory: pauses that double, reports asked for once, wakes."""

from __future__ import annotations

from ollama_swap_proxy.core import commands
from ollama_swap_proxy.core.forecast import Forecast
from ollama_swap_proxy.core.policy import VARIANTS_KEPT, Policy
from ollama_swap_proxy.core.state import Pause, State, Swap, doubled
from ollama_swap_proxy.core.tickets import Report, Ticket, Variant
from ollama_swap_proxy.core.turns import Turn
from tests.core.desk import RECIPE, resident

REJECTION = commands.Rejection("load_failed", 500, "x")


def a_state() -> State:
    return State(Policy(), Forecast(6.0), Turn(0.0))


def test_a_pause_doubles_from_the_first_to_the_longest():
    assert doubled(None, 10.0, 600.0) == (10.0, 1)
    assert doubled(Pause(0.0, 1, REJECTION), 10.0, 600.0) == (20.0, 2)
    assert doubled(Pause(0.0, 6, REJECTION), 10.0, 600.0) == (600.0, 7)
    assert doubled(Pause(0.0, 10_000, REJECTION), 10.0, 600.0)[0] == 600.0


def test_one_report_serves_all_who_ask_at_once():
    state = a_state()
    assert not state.has_report_since(5.0, now=5.0)
    assert not state.has_report_since(5.0, now=5.1)
    assert state.out == [commands.Observe()]


def test_a_report_under_way_is_too_old_for_who_asks_later():
    state = a_state()
    state.has_report_since(5.0, now=5.0)
    state.has_report_since(6.0, now=6.0)
    assert state.out == [commands.Observe(), commands.Observe()]


def test_a_report_asked_for_since_then_is_enough():
    state = a_state()
    state.residency.take_in(Report(5.0, ()), 5.2)
    assert state.has_report_since(5.0, now=5.3)
    assert state.out == []


def test_after_a_failed_report_the_next_is_put_off_and_the_wake_asked_for():
    state = a_state()
    state.observe_not_before = 7.0
    assert not state.has_report_since(5.0, now=6.0)
    assert state.out == []
    assert state.wake_at == 7.0


def test_the_earliest_wake_counts():
    state = a_state()
    for at in (9.0, 3.0, 5.0):
        state.wake(at)
    assert state.wake_at == 3.0


def test_a_view_that_a_model_has_expired_in_is_renewed_though_it_is_young():
    state = a_state()
    state.residency.take_in(Report(5.0, (resident("a", expires_in_s=0.3),)), 5.1)
    assert state.has_fresh_view(5.3)
    assert not state.has_fresh_view(5.5)
    assert state.out == [commands.Observe()]
    assert not state.has_fresh_view(5.6)
    assert state.out == [commands.Observe()], "one that was asked for after the expiry will do"


def test_the_recipe_of_the_target_under_way_is_kept_though_nobody_waits():
    state = a_state()
    state.swap = Swap(1, Variant("target"), "target", "request", decided_at=0.0)
    for key in ("target", *(f"m{number}" for number in range(VARIANTS_KEPT))):
        state.remember_recipe(Ticket(1, Variant(key), key, 0.0, RECIPE))
    assert Variant("target") in state.recipes
    assert len(state.recipes) <= VARIANTS_KEPT


def test_of_any_number_of_cool_downs_those_that_last_longest_are_kept():
    state = a_state()
    for number in range(10_000):
        now = number * 0.01  # 1,000 last at a time, and all of the last 9 s
        state.remember_cool_down(Variant("m", f"num_ctx={number}"), Pause(now + 10.0, 1, REJECTION), now)
        assert len(state.cool_downs) <= VARIANTS_KEPT
    assert len(state.cool_downs) >= 1000
    for number in range(2000):
        state.remember_cool_down(Variant("n", str(number)), Pause(1000.0 + number, 1, REJECTION), 100.0)
    assert len(state.cool_downs) == VARIANTS_KEPT
    assert Variant("n", "1999") in state.cool_downs
    assert Variant("n", "0") not in state.cool_downs
