"""How evictions are asked for, repeated, confirmed and given up, and what joins or leaves the victims meanwhile."""

from __future__ import annotations

from ollama_swap_proxy.core.events import Abandoned, EvictionAnswered
from ollama_swap_proxy.core.policy import NEWCOMER_ROUNDS, Policy
from tests.core.desk import Desk
from tests.core.world import World


def swap_from_a_to_b(desk: Desk) -> int:
    desk.release(desk.serve("a"))
    asked = desk.arrive("b")
    assert desk.evicted() == ["a"]
    return asked


def test_the_answer_to_an_unload_confirms_nothing():
    desk = Desk()
    swap_from_a_to_b(desk)
    desk.tell(EvictionAnswered("a", accepted=True))
    desk.report("a")
    assert desk.loads() == ["a"]


def test_a_report_asked_for_before_the_unload_confirms_nothing():
    desk = Desk()
    swap_from_a_to_b(desk)
    desk.now += 1.0
    desk.report(asked_at=desk.now - 1.5)
    assert desk.loads() == ["a"]


def test_one_clear_report_is_proof_where_reports_take_locks():
    desk = Desk(safe=True)
    swap_from_a_to_b(desk)
    desk.later(0.06)
    desk.report()
    assert desk.loads() == ["a", "b"]


def test_two_clear_reports_are_needed_of_an_old_or_unknown_version():
    desk = Desk(safe=False)
    swap_from_a_to_b(desk)
    desk.later(0.3)
    desk.report()
    assert desk.loads() == ["a"]
    desk.later(0.3)
    desk.report()
    assert desk.loads() == ["a", "b"]


def test_a_clear_report_between_two_that_list_the_victim_does_not_count():
    desk = Desk(safe=False)
    swap_from_a_to_b(desk)
    for keys in ((), ("a",), ()):
        desk.later(0.3)
        desk.report(*keys)
    assert desk.loads() == ["a"]


def test_old_versions_are_polled_less_often():
    def polls(*, safe: bool) -> int:
        world = World(unload_s=2.0, ps_is_safe=safe)
        world.ask("a", hold_s=0.1)
        world.ask("b", at=10.0)
        before = world.scheduler
        seen = []
        handle = before.handle
        before.handle = lambda event, now: seen.extend(out := handle(event, now)) or out
        world.run()
        return sum(type(command).__name__ == "Observe" for command in seen)

    assert polls(safe=False) * 2 < polls(safe=True)


def test_unknown_is_not_gone():
    desk = Desk()
    swap_from_a_to_b(desk)
    for _ in range(20):
        desk.later(0.5)
        desk.no_report()
    assert desk.loads() == ["a"]
    assert desk.phase == "evicting"


def test_an_unload_that_no_name_reaches_is_given_up_after_the_unload_timeout_even_if_somebody_else_loaded_it():
    desk = Desk(Policy(unload_timeout_s=60.0, stuck_after_s=600.0))
    desk.report("foreign")
    asked = desk.arrive("b")
    assert desk.evicted() == ["foreign"]
    desk.tell(EvictionAnswered("foreign", accepted=False, reason="no name reaches it"))
    for _ in range(62):
        desk.later(1.0)
        desk.report("foreign")
        desk.tell(EvictionAnswered("foreign", accepted=False, reason="no name reaches it"))
    assert desk.rejected()[asked].code == "unload_not_confirmed"
    assert "foreign" in desk.rejected()[asked].message
    assert "no name reaches it" in desk.rejected()[asked].message


def test_a_model_that_others_loaded_gets_as_long_to_unload_as_a_drain():
    desk = Desk(Policy(unload_timeout_s=60.0, stuck_after_s=600.0))
    desk.report("foreign")
    asked = desk.arrive("b")
    desk.tell(EvictionAnswered("foreign", accepted=True))
    for _ in range(300):
        desk.later(1.0)
        desk.report("foreign")
    assert asked not in desk.rejected()


def test_a_victim_given_up_on_is_leaving_and_each_grant_on_it_needs_a_fresh_report():
    desk = Desk(Policy(unload_timeout_s=10.0))
    swap_from_a_to_b(desk)
    for _ in range(12):
        desk.later(1.0)
        desk.report("a")
    assert "a" in desk.state.residency.leaving
    desk.report("a")
    first, second = desk.arrive("a"), desk.arrive("a")
    desk.now += 0.01
    desk.report("a")
    assert first in desk.granted()
    assert second not in desk.granted()
    desk.now += 0.01
    desk.report("a")
    assert second in desk.granted()


def test_a_victim_that_somebody_else_loads_again_and_again_cannot_hold_the_swap_for_ever():
    world = World(unload_s=0.1, load_s=2.0)
    world.ask("a", hold_s=0.1)
    world.ask("b", at=9.9, hold_s=0.1)
    world.run(until=9.0)
    world.scheduler._state.forecast.settle_s = 2.0
    asked = world.ask("c", at=20.0)
    for tenth in range(200, 1200):
        world.at(tenth / 10, lambda: world.residents.setdefault("b", ("?", False)))
    world.run(until=120.0)
    assert asked.granted_at is not None
    assert asked.waited_s < 30
    assert len([key for _, key in world.evictions if key == "b"]) <= NEWCOMER_ROUNDS + 3


def test_a_target_that_somebody_else_loads_meanwhile_is_tried_not_evicted():
    desk = Desk()
    asked = swap_from_a_to_b(desk)
    desk.later(0.06)
    desk.report("b")
    assert desk.evicted() == ["a"]
    assert desk.loads() == ["a"]
    assert asked in desk.granted()


def test_the_next_victim_is_not_evicted_for_an_asker_that_left():
    desk = Desk()
    desk.report("x", "y")
    asked = desk.arrive("b")
    assert desk.evicted() == ["x"]
    desk.tell(Abandoned(asked))
    desk.later(0.06)
    desk.report("y")
    assert desk.evicted() == ["x"]
    desk.later(5.0)
    assert desk.phase is None


def test_when_residency_becomes_unknown_before_anything_was_evicted_who_is_resident_is_served():
    desk = Desk(Policy(turn_limit_s=1.0))
    lease = desk.serve("a")
    desk.arrive("b")
    desk.later(1.1)
    desk.report("a")
    desk.later(2.0)
    desk.release(lease)
    assert desk.phase == "evicting"
    desk.no_report()
    same = desk.arrive("a")
    desk.later(0.3)
    assert same in desk.granted()
    assert desk.evicted() == []


def test_an_upstream_that_goes_away_in_mid_eviction_leaves_the_victim_leaving():
    desk = Desk()
    swap_from_a_to_b(desk)
    for _ in range(8):
        desk.later(1.0)
        desk.no_report(unreachable=True)
    assert desk.phase is None
    same = desk.arrive("a")
    desk.later(0.5)
    assert same not in desk.granted(), "the unload sent before may still take it away"
    desk.report("a")
    assert same in desk.granted()


def test_a_ticket_that_waited_through_an_eviction_given_up_is_granted_only_by_a_later_report():
    desk = Desk(Policy(unload_timeout_s=10.0))
    swap_from_a_to_b(desk)
    again = desk.arrive("a")
    desk.later(1.0)
    desk.report("a")
    desk.later(10.0)
    assert desk.said("swap_given_up")
    assert again not in desk.granted()
    desk.report("a")
    assert again in desk.granted()
