"""Who is next, and when those who are served must make room."""

from __future__ import annotations

import pytest

from ollama_swap_proxy.core.classes import TicketClass
from ollama_swap_proxy.core.policy import Policy
from ollama_swap_proxy.core.tickets import Ticket, Variant
from ollama_swap_proxy.core.turns import End, Ending, Served, Turn, ending, first

NEVER = float("-inf")
HIGH, NORMAL, LOW = TicketClass("high", 20, 60.0), TicketClass("normal", 10, 120.0), TicketClass("low", 0, 600.0)
IDLE = Served(leases=0, waiting=0, rank=10, idle_since=0.0, linger_s=0.0)
BUSY = Served(leases=2, waiting=3, rank=10, idle_since=0.0, linger_s=0.0)


def _waiter(number: int, arrived_at: float, klass: TicketClass = NORMAL) -> Ticket:
    return Ticket(number, Variant(f"m{number}"), f"m{number}", arrived_at, None, klass=klass)


def _ending(
    turn: Turn,
    waiter: Ticket,
    served: Served = BUSY,
    *,
    swap_s: float = 1.0,
    since: float | None = None,
    early_end_at: float = NEVER,
    turn_limit_s: float = 0.0,
) -> Ending:
    return ending(
        turn,
        served,
        waiter,
        waiting_since=waiter.arrived_at if since is None else since,
        swap_cost_s=swap_s,
        early_end_at=early_end_at,
        policy=Policy(turn_limit_s=turn_limit_s),
    )


def test_the_longest_waiting_is_next_and_the_id_breaks_ties() -> None:
    chosen = first([_waiter(3, 5.0), _waiter(2, 1.0), _waiter(1, 1.0)], 10.0, 0.0)
    assert chosen is not None
    assert chosen.id == 1
    assert first([], 10.0, 0.0) is None


def test_a_higher_class_goes_before_a_longer_wait_until_that_is_overdue() -> None:
    low, high = _waiter(1, 0.0, LOW), _waiter(2, 590.0, HIGH)
    assert first([low, high], 599.0, 0.0) is high
    assert first([low, high], 600.0, 0.0) is low
    assert first([low, high], 595.0, 5.0) is low  # a swap lies before it


def test_of_the_overdue_the_one_that_is_latest_for_its_class_goes_first() -> None:
    low, high = _waiter(1, 0.0, LOW), _waiter(2, 400.0, HIGH)
    assert first([low, high], 660.0, 0.0) is high  # 4.3 times its maximum, and 1.1 times
    assert first([low, _waiter(3, 595.0, HIGH)], 660.0, 0.0) is low


@pytest.mark.parametrize(("swap_s", "limit_s"), [(1.0, 10.0), (20.0, 40.0)])
def test_the_automatic_limit_is_10_s_or_twice_the_swap(swap_s: float, limit_s: float) -> None:
    assert _ending(Turn(0.0, first_grant_at=0.0), _waiter(1, 0.0), swap_s=swap_s) == (limit_s, End.LIMIT)


def test_the_limit_counts_from_the_first_waiters_arrival_when_that_is_later() -> None:
    assert _ending(Turn(0.0, first_grant_at=0.0), _waiter(1, 50.0)) == (60.0, End.LIMIT)
    assert _ending(Turn(0.0, first_grant_at=0.0), _waiter(1, 50.0), since=44.0) == (54.0, End.LIMIT)


def test_a_setting_replaces_the_automatic_limit() -> None:
    assert _ending(Turn(0.0, first_grant_at=0.0), _waiter(1, 0.0), turn_limit_s=30.0) == (30.0, End.LIMIT)


def test_a_waiter_that_nears_its_maximum_ends_a_longer_turn_but_not_one_below_the_floor() -> None:
    waiter = _waiter(1, 0.0, TicketClass("quick", 10, 60.0))
    assert _ending(Turn(0.0, first_grant_at=0.0), waiter, swap_s=5.0, turn_limit_s=300.0) == (55.0, End.OVERDUE)
    assert _ending(Turn(50.0, first_grant_at=50.0), waiter, swap_s=5.0, turn_limit_s=300.0) == (60.0, End.OVERDUE)
    assert _ending(Turn(50.0, first_grant_at=50.0), waiter, swap_s=20.0, turn_limit_s=300.0) == (90.0, End.OVERDUE)


def test_an_idle_model_keeps_its_turn_for_its_linger_but_not_past_the_limit() -> None:
    turn, idle = Turn(0.0, first_grant_at=0.0), IDLE._replace(idle_since=7.0)
    assert _ending(turn, _waiter(1, 3.0), idle) == (7.0, End.IDLE)
    assert _ending(turn, _waiter(1, 8.0), idle) == (8.0, End.IDLE)
    assert _ending(turn, _waiter(1, 3.0), idle._replace(linger_s=2.0)) == (9.0, End.IDLE)
    assert _ending(turn, _waiter(1, 0.0), idle._replace(linger_s=20.0)) == (10.0, End.IDLE)


def test_whom_a_model_was_loaded_for_is_served_before_the_turn_can_end() -> None:
    assert _ending(Turn(5.0), _waiter(1, 0.0)) == (float("inf"), End.NOT_SERVED)


def test_a_higher_class_ends_a_turn_at_once_but_only_once_in_three_swaps() -> None:
    turn, waiter = Turn(0.0, first_grant_at=0.0), _waiter(1, 1.0, HIGH)
    assert _ending(turn, waiter).why is End.HIGHER_CLASS
    assert _ending(turn, waiter, early_end_at=-1.0, swap_s=2.0) == (5.0, End.HIGHER_CLASS)
    assert _ending(turn, waiter, early_end_at=4.5, swap_s=2.0) == (10.5, End.HIGHER_CLASS)
    assert _ending(turn, waiter, early_end_at=5.0, swap_s=2.5) == (11.0, End.LIMIT)


def test_for_a_lower_class_there_is_no_limit_but_its_maximum_wait() -> None:
    assert _ending(Turn(0.0, first_grant_at=0.0), _waiter(1, 1.0, LOW)) == (600.0, End.OVERDUE)
