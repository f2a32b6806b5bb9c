"""How a swap begins, drains, is turned over to another target, and is left alone when nobody wants it any more."""

from __future__ import annotations

import pytest

from ollama_swap_proxy.core.events import Abandoned, Arrived, TimePassed
from ollama_swap_proxy.core.policy import DRAIN_SLOW_AFTER_S, Policy
from ollama_swap_proxy.core.tickets import Ticket, Variant
from tests.core.desk import RECIPE, Desk
from tests.core.world import World


def test_a_victim_is_not_evicted_before_its_last_lease_ended():
    desk = Desk(Policy(turn_limit_s=1.0))
    lease = desk.serve("a")
    desk.later(0.5)
    desk.arrive("b")
    desk.later(1.2)
    desk.report("a")
    assert desk.phase == "draining"
    assert desk.evicted() == []
    desk.release(lease)
    assert desk.evicted() == ["a"]


def test_a_victim_gets_no_new_lease_while_it_drains():
    desk = Desk(Policy(turn_limit_s=1.0))
    desk.serve("a")
    desk.arrive("b")
    desk.later(1.2)
    desk.report("a")
    late = desk.arrive("a")
    assert late not in desk.granted()


def test_a_swap_turned_over_to_another_model_drains_what_its_first_target_had_running():
    desk = Desk()
    running = desk.serve("b")
    desk.state.forecast.settle_s = 2.0
    desk.report()  # b vanished by itself; its request makes upstream load it anew, which no report shows yet
    again = desk.arrive("b")
    assert desk.phase == "settling"
    desk.arrive("c")
    desk.tell(Abandoned(again))
    assert desk.phase == "draining"
    desk.later(2.1)
    desk.report("b")
    assert desk.evicted() == [], "b still runs a request"
    assert desk.loads() == ["b"]
    desk.release(running)
    assert desk.evicted() == ["b"]


def test_who_waits_for_another_model_does_not_wait_for_a_load_that_nobody_wants_any_more():
    desk = Desk()
    desk.release(desk.serve("a"))
    left = desk.arrive("b")
    assert desk.evicted() == ["a"]
    desk.arrive("c")
    desk.tell(Abandoned(left))
    desk.later(0.06)
    desk.report()
    desk.later(0.06)
    desk.report()
    assert desk.loads() == ["a", "c"]


def test_after_an_eviction_the_load_follows_though_its_asker_left():
    desk = Desk()
    desk.release(desk.serve("a"))
    left = desk.arrive("b")
    desk.tell(Abandoned(left))
    desk.later(0.06)
    desk.report()
    assert desk.loads() == ["a", "b"]


def test_a_drain_is_stuck_only_after_it_was_silent_for_that_long_itself():
    desk = Desk(Policy(stuck_after_s=100.0, turn_limit_s=1.0))
    desk.serve("a")  # an answer that is not streamed: silent from here on
    for _ in range(9):
        desk.later(10.0)
        desk.report("a")
    asked = desk.arrive("b")
    for _ in range(8):
        desk.later(10.0)
        desk.report("a")
    assert desk.phase == "draining"
    assert desk.rejected() == {}
    desk.later(30.0)
    assert desk.rejected()[asked].code == "drain_stuck"
    assert "a" in desk.rejected()[asked].message


def test_a_victim_that_resisted_is_let_alone_until_it_is_gone():
    desk = Desk(Policy(stuck_after_s=50.0, turn_limit_s=1.0))
    lease = desk.serve("a")
    desk.arrive("b")
    for _ in range(6):
        desk.later(10.0)
        desk.report("a")
    desk.arrive("c")
    desk.later(2.0)
    desk.report("a")
    assert desk.phase is None, "a is not chosen again at once"
    desk.release(lease)
    desk.report()
    assert desk.loads() == ["a", "c"]
    assert desk.state.resisting == {}


def test_each_drain_given_up_doubles_the_pause():
    desk = Desk(Policy(stuck_after_s=50.0, turn_limit_s=1.0, cool_down_s=10.0))
    desk.serve("a")
    pauses = []
    for _ in range(3):
        begun = len(desk.said("swap_given_up"))
        desk.arrive("b")
        while len(desk.said("swap_given_up")) == begun:
            desk.later(1.0)
            desk.report("a")
        pauses.append(desk.state.resisting["a"].until - desk.now)
        desk.later(pauses[-1])
        desk.report("a")
    assert pauses == pytest.approx([10.0, 20.0, 40.0], abs=0.01)


def test_a_slow_drain_is_said_once_with_the_leases_it_waits_for():
    desk = Desk(Policy(turn_limit_s=1.0))
    lease = desk.serve("a")
    desk.arrive("b")
    for _ in range(40):
        desk.later(5.0)
        desk.progress(lease)
        desk.report("a")
    said = desk.said("drain_slow")
    assert len(said) == 1
    assert said[0]["waited_s"] >= DRAIN_SLOW_AFTER_S
    assert said[0]["waits_for"] == [{"id": lease, "model": "a"}]


def test_a_drain_without_an_asker_does_not_begin_the_turn_anew():
    desk = Desk(Policy(turn_limit_s=5.0))
    desk.serve("a")
    left = desk.arrive("b")
    desk.later(6.0)
    desk.report("a")
    assert desk.phase == "draining"
    first_grant_at = desk.state.turn.first_grant_at
    desk.tell(Abandoned(left))
    desk.later(5.1)
    assert desk.phase is None
    assert desk.state.turn.first_grant_at == first_grant_at


def test_a_reload_for_another_variant_names_the_client_that_causes_it():
    world = World()
    world.ask("a", hold_s=0.1)
    world.ask("a", at=10.0, options="num_ctx=8192", client="greedy")
    world.run()
    assert [(said["client"], said["has"]) for said in world.said("variant_reload")] == [("greedy", "")]


def test_a_ticket_that_arrives_twice_is_one_ticket():
    desk = Desk()
    ticket_id = desk.arrive("a")
    desk.tell(Arrived(Ticket(ticket_id, Variant("b"), "b", desk.now, RECIPE)))
    assert [line.key for line in desk.scheduler.snapshot(desk.now).lines] == ["a"]
    desk.report()
    desk.loaded("a")
    desk.report("a")
    assert desk.granted() == [ticket_id]
    desk.tell(Arrived(Ticket(ticket_id, Variant("a"), "a", desk.now, RECIPE)))
    assert desk.granted() == [ticket_id]


def test_the_same_moment_told_again_asks_for_no_wake_that_is_due_already():
    desk = Desk(Policy(turn_limit_s=1.0))
    desk.serve("a")
    desk.arrive("b")
    for _ in range(20):
        desk.later(0.1)
        for _ in range(3):
            out = desk.tell(TimePassed())
            assert all(getattr(command, "at", desk.now + 1) > desk.now for command in out)
