"""The moves that all phases of a swap share."""

from __future__ import annotations

from ollama_swap_proxy.core import commands, steps
from ollama_swap_proxy.core.policy import CAREFUL_POLL_S, DRAIN_AFTERLIFE_S, POLL_S, Policy
from ollama_swap_proxy.core.state import Phase
from tests.core.desk import Desk


def in_settling() -> Desk:
    desk = Desk(Policy(stuck_after_s=50.0))
    desk.release(desk.serve("a"))
    desk.state.forecast.settle_s = 5.0
    desk.arrive("b")
    desk.later(0.06)
    desk.report()
    assert desk.phase == "settling"
    return desk


def test_entering_a_phase_is_a_movement():
    desk = in_settling()
    steps.enter(desk.state, desk.state.swap, Phase.LOADING, 77.0)
    assert (desk.state.moved_at, desk.state.swap.phase_since) == (77.0, 77.0)


def test_a_swap_that_changed_something_begins_a_turn_and_one_that_did_not_does_not():
    desk = in_settling()
    swap = desk.state.swap
    steps.end(desk.state, 50.0, "test")
    assert desk.state.turn.began_at == 50.0
    desk.state.swap, swap.evicted = swap, set()
    steps.end(desk.state, 60.0, "test")
    assert desk.state.turn.began_at == 50.0


def test_who_polls_again_does_so_at_the_pace_that_upstream_bears():
    desk = in_settling()
    for safe, pause_s in ((True, POLL_S), (False, CAREFUL_POLL_S)):
        desk.state.ps_is_safe = safe
        steps.poll_again(desk.state, desk.state.swap, 10.0)
        assert desk.state.swap.poll_at == 10.0 + pause_s
        assert not steps.has_report(desk.state, desk.state.swap, 10.0)


def test_a_wait_for_a_report_ends_the_swap_at_last():
    desk = in_settling()
    desk.state.swap.report_needed_since = 10.0
    assert not steps.has_report(desk.state, desk.state.swap, 20.0)
    assert desk.phase == "settling"
    assert not steps.has_report(desk.state, desk.state.swap, 60.1)
    assert desk.phase is None


def test_a_swap_that_nobody_asks_for_lives_on_for_the_afterlife_only():
    desk = in_settling()
    desk.state.line.remove(2)
    swap = desk.state.swap
    assert steps.is_asked_for(desk.state, swap, 10.0, goes_on_by_itself=True)
    assert not steps.is_asked_for(desk.state, swap, 10.0)
    assert desk.state.swap is swap
    assert not steps.is_asked_for(desk.state, swap, 10.0 + DRAIN_AFTERLIFE_S)
    assert desk.state.swap is None


def test_the_end_of_a_swap_is_a_movement():
    desk = in_settling()
    steps.forget(desk.state, desk.state.swap, 77.0)
    assert desk.state.moved_at == 77.0


def test_who_looks_again_needs_a_report_from_now_on_at_once_and_counts_anew():
    desk = in_settling()
    swap = desk.state.swap
    swap.poll_at, swap.clear_reports = 99.0, 2
    steps.look_again(swap, 50.0)
    assert (swap.report_needed_since, swap.clear_reports) == (50.0, 0)
    assert not steps.has_report(desk.state, swap, 50.0)
    assert desk.state.out[-1] == commands.Observe()
    steps.look_again(swap, 50.0, clear_reports=1)
    assert swap.clear_reports == 1
