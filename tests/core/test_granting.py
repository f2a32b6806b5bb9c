"""Who may be granted without a swap."""

from __future__ import annotations

import pytest

from ollama_swap_proxy.core import commands, granting
from ollama_swap_proxy.core.classes import TicketClass
from ollama_swap_proxy.core.events import Abandoned, EvictionAnswered, ViewOutdated
from ollama_swap_proxy.core.policy import Policy
from ollama_swap_proxy.core.tickets import Lease, Ticket, Variant
from tests.core.desk import Desk

HIGH, LOW = TicketClass("high", 20, 60.0), TicketClass("low", 0, 1800.0)


def test_a_resident_of_unknown_options_beside_another_is_not_tried():
    desk = Desk()
    desk.report("x", "y")
    asked = desk.arrive("x")
    assert asked not in desk.granted()
    assert desk.evicted() == ["y"]
    desk.later(0.06)
    desk.report("x")
    assert asked in desk.granted()
    assert desk.evicted() == ["y"]


def test_a_resident_of_unknown_options_is_tried_only_when_nothing_runs():
    desk = Desk()
    lease = desk.serve("a")
    for _ in range(3):
        desk.later(1.0)
        desk.no_report(unreachable=True)
    desk.later(1.0)
    desk.report("a")  # upstream was away: what it lists now may have been loaded by anybody
    asked = desk.arrive("a")
    assert asked not in desk.granted()
    desk.release(lease)
    assert asked in desk.granted()


def test_there_is_room_for_as_many_as_are_set_and_for_none_beside_one_by_which_the_model_is_loaded():
    desk = Desk(Policy(parallel=2))
    loads = Lease(Ticket(1, Variant("a"), "a", 0.0, None), 0.0, loads=True)
    desk.state.leases.add(loads)
    assert not granting.has_room(desk.state, Variant("a"))
    assert granting.has_room(desk.state, Variant("b"))
    desk.state.leases.has_loaded(loads)
    assert granting.has_room(desk.state, Variant("a"))
    desk.state.leases.add(Lease(Ticket(2, Variant("a", "num_ctx=1"), "a", 0.0, None), 0.0))
    assert not granting.has_room(desk.state, Variant("a"))


def test_a_ticket_that_waited_long_for_a_slot_still_waits_for_a_newer_report_when_the_view_is_outdated():
    desk = Desk(Policy(parallel=1))
    lease = desk.serve("a")
    asked = desk.arrive("a")
    for _ in range(10):
        desk.later(1.0)
        desk.report("a")
    desk.now += 0.5
    desk.tell(ViewOutdated("an unload passed by"))
    desk.release(lease)
    assert asked not in desk.granted()
    desk.report()
    assert asked not in desk.granted()


def test_on_an_old_view_a_ticket_waits_a_quarter_second_at_most():
    desk = Desk()
    desk.release(desk.serve("a"))
    desk.later(3.0)
    asked = desk.arrive("a")
    assert asked not in desk.granted()
    desk.later(0.26)
    assert asked in desk.granted()


def test_a_view_that_is_never_fresh_enough_begins_swaps_all_the_same_and_asks_for_no_flood_of_reports():
    desk = Desk(Policy(ps_max_age_s=0.0))
    desk.release(desk.serve("a"))
    desk.now += 1.0
    before = desk.observes()
    desk.arrive("b")
    desk.now += 0.01
    desk.report("a", asked_at=desk.now - 0.01)
    assert desk.evicted() == ["a"]
    assert desk.observes() - before <= 2


def test_parallel_counts_leases_of_one_model():
    desk = Desk(Policy(parallel=2))
    desk.serve("a")
    second, third = desk.arrive("a"), desk.arrive("a")
    assert second in desk.granted()
    assert third not in desk.granted()


def test_recipes_of_variants_that_nobody_uses_are_forgotten():
    desk = Desk(Policy(line_limit=3))
    desk.serve("a")
    for number in range(3000):
        asked = desk.arrive("a", f"num_ctx={number}")
        desk.scheduler.handle(Abandoned(asked), desk.now)
    assert len(desk.state.recipes) <= 1025
    assert Variant("a") in desk.state.recipes


def test_whom_a_model_was_loaded_for_is_served_once_however_short_turns_are():
    desk = Desk(Policy(turn_limit_s=0.05))
    asked = desk.arrive("b")
    desk.report()
    other = desk.arrive("c")
    desk.loaded("b")
    asked_at = desk.now + 0.0005
    desk.tell(ViewOutdated("an unload passed by"))
    desk.report("b", asked_at=asked_at)
    assert desk.phase is None
    assert desk.granted() == []
    desk.now += 0.1
    desk.report("b")
    assert asked in desk.granted()
    assert other not in desk.granted()
    assert desk.evicted() == []


def test_a_grant_says_whether_a_swap_was_made_while_its_ticket_waited():
    desk = Desk(Policy(parallel=1))
    desk.report("x")
    told = {desk.arrive("x"): False}  # x is tried as it is: no swap
    desk.release(1)
    first = desk.serve("a")
    told |= {first: True, desk.arrive("a"): False}
    desk.release(first)
    desk.release(3)
    told[desk.arrive("b", recipe=None)] = True  # its own request loads it, in the swap
    desk.later(0.06)
    desk.report()
    assert {c.ticket_id: c.swapped for c in desk.all if isinstance(c, commands.Grant)} == told


def test_a_second_client_is_granted_within_two_grants_of_a_hundred_queued_requests_of_another():
    desk = Desk(Policy(parallel=1))
    running = desk.serve("a")
    for _ in range(100):
        desk.arrive("a", client="x")
    other = desk.arrive("a", client="y")
    for _ in range(2):
        desk.release(running)
        running = desk.granted()[-1]
    assert running == other


def test_an_interactive_request_goes_before_a_hundred_batch_ones_after_at_most_the_running_ones():
    desk = Desk(Policy(parallel=1))
    running = desk.serve("a")
    for _ in range(100):
        desk.arrive("a", klass=LOW, client="x")
    urgent = desk.arrive("a", klass=HIGH, client="y")
    desk.release(running)
    assert desk.granted()[-1] == urgent


def test_a_higher_class_ends_the_turn_of_a_lower_one_at_once_and_again_only_after_three_swaps():
    desk = Desk(Policy(parallel=1))
    running = desk.serve("a")
    for _ in range(3):
        desk.arrive("a", klass=LOW)
    first = desk.arrive("b", klass=HIGH)
    assert desk.said("swap_decided")[-1]["turn_ended"] == "higher class"
    desk.release(running)
    desk.report("a")
    assert desk.evicted() == ["a"]
    _swap_in(desk, "b")
    assert desk.granted()[-1] == first
    desk.arrive("b", klass=LOW)
    desk.arrive("c", klass=HIGH)
    assert len(desk.said("swap_decided")) == 2  # not yet: one early end in three swap costs


def test_a_lower_class_is_served_once_its_maximum_wait_is_near_however_much_is_asked_of_the_resident():
    desk = Desk(Policy(parallel=1))
    running = desk.serve("a")
    desk.arrive("b", klass=LOW)
    began = desk.now
    while not desk.said("swap_decided")[1:]:
        desk.arrive("a")
        desk.later(10.0)
        desk.report("a")
        desk.release(running)
        running = desk.granted()[-1]
        assert desk.now < began + 2000.0
    assert desk.now - began >= 1780.0
    assert desk.said("swap_decided")[-1]["turn_ended"] == "overdue"


def test_who_gives_up_and_asks_again_keeps_its_place():
    desk = Desk()
    desk.serve("a")
    early, came_at = desk.arrive("b", client="x"), desk.now - 0.001
    desk.later(30.0)
    desk.arrive("b", client="y")
    desk.tell(Abandoned(early))
    again = desk.arrive("b", client="x")
    oldest = desk.state.line.oldest(Variant("b"))
    assert oldest is not None
    assert oldest.id == again
    assert oldest.arrived_at == pytest.approx(came_at, abs=0.01)


def test_a_place_is_kept_in_its_class_only_and_only_for_what_was_waited():
    desk = Desk()
    desk.serve("a")
    early = desk.arrive("b", client="x", klass=LOW)
    desk.later(30.0)
    desk.tell(Abandoned(early))
    desk.arrive("b", client="x", klass=HIGH)
    desk.later(20.0)
    desk.arrive("b", client="x", klass=LOW)
    high, low = sorted(desk.state.line, key=lambda ticket: -ticket.klass.rank)
    assert desk.now - high.arrived_at == pytest.approx(20.0, abs=0.01)
    assert desk.now - low.arrived_at == pytest.approx(30.0, abs=0.01)


def test_its_place_is_lost_after_a_minute():
    desk = Desk()
    desk.serve("a")
    desk.arrive("b", client="y")
    desk.tell(Abandoned(desk.arrive("c", client="x")))
    desk.later(61.0)
    again = desk.arrive("c", client="x")
    oldest = desk.state.line.oldest(Variant("c"))
    assert oldest is not None
    assert (oldest.id, oldest.arrived_at) == (again, desk.now - 0.001)


def _swap_in(desk: Desk, key: str) -> None:
    desk.later(0.06)
    desk.report()
    desk.later(6.0)
    desk.report()
    desk.loaded(key)
    desk.report(key)


def test_a_model_whose_answers_are_short_gets_as_many_leases_as_end_within_a_moment():
    desk = Desk()
    desk.release(desk.serve("a"))
    for _ in range(200):  # each takes the 1 ms between two facts
        desk.report("a")
        desk.release(desk.arrive("a"))
    asked = [desk.arrive("a") for _ in range(40)]
    assert len(set(asked) & set(desk.granted())) == 32


def test_a_setting_and_long_answers_keep_the_number_as_it_is():
    for policy, took_s, most in ((Policy(parallel=3), 0.001, 3), (Policy(), 0.2, 4)):
        desk = Desk(policy)
        desk.release(desk.serve("a"))
        for _ in range(50):
            desk.report("a")
            asked = desk.arrive("a")
            desk.now += took_s
            desk.release(asked)
        desk.report("a")
        asked = [desk.arrive("a") for _ in range(20)]
        assert len(set(asked) & set(desk.granted())) == most


def _loading_beside(policy: Policy) -> Desk:
    """Return a desk on which the embedder ``e`` is being loaded beside ``a``."""
    desk = Desk(policy)
    desk.release(desk.serve("a"))
    desk.arrive("e")
    desk.later(6.1)
    while desk.phase != "loading":
        desk.report("a")
        desk.later(0.1)
    return desk


def test_who_was_there_before_a_load_is_served_only_by_a_report_that_shows_what_it_left():
    desk = _loading_beside(Policy(load_timeout_s=40.0))
    desk.later(41.0)
    desk.report("a")
    assert desk.said("load_failed")
    desk.loaded("e")  # late, but then: upstream may have made room for it
    asked = desk.arrive("a")
    desk.later(2.0)
    assert asked not in desk.granted()
    desk.report("a", "e")
    assert asked in desk.granted()


def test_a_load_of_which_no_report_came_lets_nobody_in_by_an_older_view():
    desk = _loading_beside(Policy(stuck_after_s=5.0))
    desk.loaded("e")
    desk.later(5.0)
    assert desk.said("swap_ended")[-1]["outcome"] == "no_report"
    asked = desk.arrive("a")
    desk.later(2.0)
    assert asked not in desk.granted()
    desk.report("a")
    assert asked in desk.granted()


def test_a_request_that_may_reload_its_model_is_let_in_only_by_a_report_newer_than_the_last_unload():
    desk = Desk(Policy(stuck_after_s=20.0, unload_timeout_s=20.0), safe=False)
    desk.report("a", "b")  # loaded by others
    desk.arrive("c")
    assert desk.evicted() == ["a"]
    desk.tell(EvictionAnswered("a", accepted=True))
    desk.report("a", "b")
    desk.later(10.0)
    desk.later(0.3)
    desk.report("a", "b")
    assert desk.evicted() == ["a", "a"]
    desk.report("b", asked_at=desk.now - 0.0001)  # asked for just before
    desk.later(20.0)
    assert desk.said("swap_given_up")
    asked = desk.arrive("b")
    desk.later(2.0)
    assert asked not in desk.granted()
    desk.report("b")
    assert asked in desk.granted()
