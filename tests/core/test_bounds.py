"""From when on a step of a swap counts as stuck, seen from outside."""

from __future__ import annotations

import pytest

from ollama_swap_proxy.core.events import EvictionAnswered
from ollama_swap_proxy.core.policy import RETRY_AFTER_S, Policy
from tests.core.desk import Desk

POLICY = Policy(turn_limit_s=1.0, stuck_after_s=100.0, unload_timeout_s=20.0, load_timeout_s=300.0)


def bound_s(desk: Desk, phase: str) -> float:
    """Return how long the step under way may still take."""
    assert desk.phase == phase
    far_s = 10_000.0
    swap = desk.scheduler.snapshot(desk.now + far_s).swap
    assert swap is not None
    left_s = far_s - swap.overdue_s
    before = desk.scheduler.snapshot(desk.now + left_s - 0.01).swap
    assert before is not None
    assert before.overdue_s == 0.0
    return left_s


def draining() -> tuple[Desk, int]:
    desk = Desk(POLICY)
    lease = desk.serve("a")
    desk.arrive("b")
    desk.later(1.2)
    desk.report("a")
    return desk, lease


def test_a_drain_is_stuck_when_nothing_was_streamed_for_that_long():
    desk, lease = draining()
    assert bound_s(desk, "draining") == pytest.approx(100.0, abs=0.1)
    desk.later(50.0)
    assert bound_s(desk, "draining") == pytest.approx(50.0, abs=0.1)
    desk.progress(lease)
    assert bound_s(desk, "draining") == pytest.approx(100.0, abs=0.1)


def test_a_model_of_ours_must_unload_within_the_unload_timeout():
    desk, lease = draining()
    desk.release(lease)
    assert bound_s(desk, "evicting") == pytest.approx(20.0, abs=0.1)


def test_a_model_that_others_loaded_may_take_as_long_as_a_drain_unless_the_unload_did_not_reach_it():
    desk = Desk(POLICY)
    desk.report("foreign")
    desk.arrive("b")
    assert bound_s(desk, "evicting") == pytest.approx(100.0, abs=0.1)
    desk.tell(EvictionAnswered("foreign", accepted=False, reason="no name reaches it"))
    assert bound_s(desk, "evicting") == pytest.approx(20.0, abs=0.1)


def test_each_victim_has_its_own_time():
    desk = Desk(POLICY)
    desk.report("x", "y")
    desk.arrive("b")
    desk.later(60.0)
    desk.report("y")
    assert desk.evicted() == ["x", "y"]
    assert bound_s(desk, "evicting") == pytest.approx(100.0, abs=0.1)


def test_settling_ends_when_the_memory_should_be_back_and_a_load_at_its_timeout():
    desk, lease = draining()
    desk.state.forecast.settle_s = 5.0
    desk.release(lease)
    desk.later(0.06)
    desk.report()
    assert bound_s(desk, "settling") == pytest.approx(5.0, abs=0.1)
    desk.later(5.1)
    desk.report()
    assert bound_s(desk, "loading") == pytest.approx(300.0 + RETRY_AFTER_S, abs=0.1)
    desk.loaded("b")
    assert bound_s(desk, "confirming") == pytest.approx(100.0, abs=0.1)
