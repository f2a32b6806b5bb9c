"""Who is next, and when those who are served must make room."""

from __future__ import annotations

import pytest

from ollama_swap_proxy.core.policy import Policy
from ollama_swap_proxy.core.tickets import Ticket, Variant
from ollama_swap_proxy.core.turns import Turn, choose_next, turn_ends_at

POLICY = Policy(max_wait_s=120)


def _waiter(number: int, arrived_at: float) -> Ticket:
    return Ticket(number, Variant(f"m{number}"), f"m{number}", arrived_at, None)


def test_the_longest_waiting_head_is_next_and_the_id_breaks_ties() -> None:
    chosen = choose_next([_waiter(3, 5.0), _waiter(2, 1.0), _waiter(1, 1.0)])
    assert chosen is not None
    assert chosen.id == 1
    assert choose_next([]) is None


@pytest.mark.parametrize(("swap_s", "limit_s"), [(1.0, 10.0), (20.0, 40.0)])
def test_the_automatic_limit_is_10_s_or_twice_the_swap(swap_s: float, limit_s: float) -> None:
    turn = Turn(0.0, first_grant_at=0.0)
    assert turn_ends_at(turn, _waiter(1, 0.0), swap_s, POLICY) == limit_s


def test_the_limit_counts_from_the_waiters_arrival_when_that_is_later() -> None:
    assert turn_ends_at(Turn(0.0, first_grant_at=0.0), _waiter(1, 50.0), 1.0, POLICY) == 60.0


def test_a_setting_replaces_the_automatic_limit() -> None:
    policy = Policy(turn_limit_s=30.0, max_wait_s=120)
    assert turn_ends_at(Turn(0.0, first_grant_at=0.0), _waiter(1, 0.0), 1.0, policy) == 30.0


def test_a_waiter_that_nears_its_maximum_ends_a_longer_turn_but_not_one_below_the_floor() -> None:
    policy = Policy(turn_limit_s=300.0, max_wait_s=60.0)
    assert turn_ends_at(Turn(0.0, first_grant_at=0.0), _waiter(1, 0.0), 5.0, policy) == 55.0
    assert turn_ends_at(Turn(50.0, first_grant_at=50.0), _waiter(1, 0.0), 5.0, policy) == 60.0
    assert turn_ends_at(Turn(50.0, first_grant_at=50.0), _waiter(1, 0.0), 20.0, policy) == 90.0
