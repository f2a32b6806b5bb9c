"""How a load is settled for, sent, bounded, confirmed, and what a spill leads to."""

from __future__ import annotations

import pytest

from ollama_swap_proxy.core.events import EvictionAnswered, LoadFailure, UpstreamIdentified
from ollama_swap_proxy.core.policy import Policy
from ollama_swap_proxy.core.tickets import Variant
from tests.core.desk import Desk, resident
from tests.core.world import World


def test_no_grant_before_a_report_shows_what_was_loaded():
    desk = Desk()
    asked = desk.arrive("a")
    desk.report()
    desk.now += 2.0
    desk.loaded("a")
    assert desk.granted() == []
    desk.report("a", asked_at=desk.now - 0.5)
    assert desk.granted() == []
    desk.report("a")
    assert desk.granted() == [asked]


def test_reports_that_stay_away_after_a_load_end_the_wait_within_the_stuck_bound():
    desk = Desk(Policy(stuck_after_s=100.0))
    asked = desk.arrive("a")
    desk.report()
    desk.loaded("a")
    for _ in range(110):
        desk.later(1.0)
        desk.no_report()
    assert desk.rejected()[asked].code == "nothing_moved"
    assert "unknown" in desk.rejected()[asked].message
    assert desk.phase is None


def test_a_request_that_loads_and_stays_silent_does_not_hold_the_swap_beyond_the_load_timeout():
    desk = Desk(Policy(load_timeout_s=100.0, stuck_after_s=150.0))
    desk.arrive("whisper", recipe=None)
    desk.report()
    assert desk.phase == "loading"
    other = desk.arrive("b")
    for _ in range(110):
        desk.later(1.0)
        desk.report()
    assert desk.said("swap_ended")[-1]["outcome"] == "load_overdue"
    for _ in range(200):
        desk.later(1.0)
        desk.report()
    assert other in desk.rejected()


def test_a_request_that_loads_and_fails_for_reasons_of_its_own_is_no_failed_load():
    desk = Desk()
    first = desk.arrive("whisper", recipe=None)
    desk.report()
    second = desk.arrive("whisper", recipe=None)
    desk.release(first, failed=True)
    desk.report("whisper")
    assert desk.rejected() == {}
    assert second in desk.granted()
    assert desk.said("cool_down_started") == []


def test_a_request_that_loads_and_fails_with_nothing_loaded_tells_all_who_wait_for_it():
    desk = Desk()
    first = desk.arrive("whisper", recipe=None)
    desk.report()
    second = desk.arrive("whisper", recipe=None)
    desk.release(first, failed=True)
    desk.report()
    assert desk.rejected()[second].code == "load_failed"


def test_a_load_whose_connection_broke_is_looked_for_before_it_is_tried_again():
    desk = Desk()
    asked = desk.arrive("a")
    desk.report()
    desk.loaded("a", LoadFailure(502, "connection lost", transient=True))
    desk.later(1.1)
    desk.report("a")  # upstream had finished it all the same
    assert desk.loads() == ["a"]
    assert asked in desk.granted()


def test_a_spill_is_undone_only_after_its_own_unload_is_confirmed():
    desk = Desk()
    desk.release(desk.serve("a"))
    desk.later(1.0)
    desk.arrive("b")
    desk.report("a")
    desk.later(0.06)
    desk.report()
    desk.loaded("b")
    spilled = resident("b", vram=500)
    desk.report(spilled)
    desk.release(desk.granted()[-1])
    desk.later(7.5)
    desk.report(spilled)
    assert desk.evicted()[-1] == "b"
    desk.tell(EvictionAnswered("b", accepted=True))
    desk.later(0.06)
    desk.report(spilled)
    desk.later(7.0)
    assert desk.loads() == ["a", "b"], "b is still listed"
    desk.report()
    desk.later(6.5)
    desk.report()
    assert desk.loads() == ["a", "b", "b"]


def test_who_waits_for_another_model_does_not_wait_for_a_spill_to_be_undone():
    world = World(vram_lag_s=0.8, unload_s=1.0)
    world.ask("a", hold_s=0.5)
    world.ask("b", at=30.0, hold_s=0.5)
    world.at(60.0, lambda: None)
    world.run(until=31.0)
    while world.said("swap_decided")[-1]["reason"] != "spill" and world.now < 60.0:
        world.run(until=world.now + 0.05)
    other = world.ask("c", at=world.now + 0.5)
    world.run()
    undone = [v.key for when, v in world.loads if when > other.ticket.arrived_at]
    assert undone[0] == "c"


def test_the_second_load_of_a_suspect_waits_the_longest_even_when_the_card_is_never_idle():
    world = World(vram_lag_s=0.8)
    for n in range(200):
        world.ask("ab"[n % 2], at=n * 0.2, hold_s=3.0)
    world.run()
    assert world.scheduler.snapshot(world.now).settle_s >= 0.5
    loads_spilled = [said["consequence"] for said in world.said("spill_found")]
    assert "accepted" not in loads_spilled


def test_another_version_of_upstream_forgets_the_settle_wait():
    desk = Desk()
    desk.state.forecast.settle_s = 2.0
    desk.tell(UpstreamIdentified("0.33.0", ps_is_safe=True))
    assert desk.state.forecast.settle_s == 2.0
    desk.tell(UpstreamIdentified("0.34.0", ps_is_safe=True))
    assert desk.state.forecast.settle_s == 0.0


def test_the_settle_wait_lies_between_the_confirmed_unload_and_the_load():
    world = World()
    world.ask("a", hold_s=0.1)
    world.run()
    world.scheduler._state.forecast.settle_s = 3.0
    world.ask("b", at=20.0)
    world.run()
    gone_at = world.freed_at
    assert world.loads[-1][0] - gone_at == pytest.approx(3.0, abs=0.1)


def test_a_load_repeated_because_upstream_was_busy_teaches_nothing_about_its_cost():
    world = World()
    world.failing_loads["a"] = LoadFailure(503, "busy", transient=True)
    world.ask("a")
    world.at(100.0, world.failing_loads.clear)
    world.run()
    assert world.scheduler._state.forecast.swap_s == {}


def test_a_model_that_others_load_while_a_load_is_put_off_is_evicted_first():
    desk = Desk(Policy(ps_max_age_s=1.0))
    desk.arrive("b")
    desk.report()
    desk.loaded("b", LoadFailure(503, "server busy", transient=True))
    desk.now += 0.5
    desk.report("foreign")
    desk.later(0.6)
    desk.report("foreign")
    assert desk.evicted() == ["foreign"]
    assert desk.loads() == ["b"]


def test_only_a_spill_that_is_still_resident_is_remembered():
    desk = Desk()
    for number in range(5):
        asked = desk.arrive("b", f"num_ctx={number}")
        desk.later(0.06)
        desk.report()
        desk.loaded("b", options=f"num_ctx={number}")
        desk.report(resident("b", vram=500))
        desk.release(asked)
    assert len(desk.said("spill_found")) == 5
    assert desk.state.spills_to_undo == {Variant("b", "num_ctx=4")}
    desk.state.spills_to_undo |= {Variant("b", f"num_ctx={number}") for number in range(10_000)}
    desk.report(resident("b", vram=500))
    assert desk.state.spills_to_undo == {Variant("b", "num_ctx=4")}


def test_who_comes_back_to_a_spilled_model_does_not_sit_out_the_longest_wait():
    world = World(vram_lag_s=0.8, unload_s=0.1)
    world.ask("a", hold_s=0.5)
    world.ask("b", at=30.0, hold_s=0.5)
    reader = world.ask("b", at=39.0, hold_s=0.5)  # in the middle of the undoing, which began 5 s after the answer
    world.run()
    assert world.said("swap_decided")[-1]["reason"] == "spill"
    assert reader.waited_s < 3.0


def test_a_model_that_vanished_once_is_loaded_by_us_again_when_it_is_seen_to_stay():
    world = World(vanishing={"a"})
    world.ask("a", at=0.0)
    world.at(20.0, world.vanishing.clear)
    world.ask("a", at=21.0, hold_s=0.5)
    world.ask("b", at=40.0, hold_s=0.5)
    back = world.ask("a", at=60.0)
    world.run()
    assert back.granted_at is not None
    assert world.said("load_started")[-1].get("by") is None


def test_one_more_clear_report_after_a_long_wait_will_do_even_for_an_old_version():
    desk = Desk(safe=False)
    desk.release(desk.serve("a"))
    desk.state.forecast.settle_s = 5.0
    desk.arrive("b")
    for _ in range(2):
        desk.later(0.3)
        desk.report()
    assert desk.phase == "settling"
    desk.later(5.1)
    assert desk.phase == "evicting"
    desk.report()
    assert desk.loads() == ["a", "b"]


def test_after_a_broken_connection_upstream_is_given_a_moment_before_it_is_asked_again():
    desk = Desk()
    desk.arrive("a")
    desk.report()
    before = desk.observes()
    desk.loaded("a", LoadFailure(502, "connection lost", transient=True))
    desk.later(0.5)
    assert desk.observes() == before
    desk.later(0.6)
    assert desk.observes() == before + 1
