"""What is done when nobody waits: a time to live ends. That nothing else breaks: tests/properties."""

from __future__ import annotations

import pytest

from ollama_swap_proxy.core.events import EvictionAnswered, ModeSet, Paused, Resumed, Stopping
from ollama_swap_proxy.core.policy import Policy
from ollama_swap_proxy.core.proofs import Outcome
from ollama_swap_proxy.core.tickets import Variant
from tests.core.desk import Desk, resident

TTL = Policy(ttl_s=60.0)


def idle(policy: Policy = TTL) -> Desk:
    """A desk whose ``a`` was in use until just now."""
    desk = Desk(policy)
    desk.release(desk.serve("a"))
    return desk


def test_an_idle_model_is_unloaded_when_its_time_to_live_is_over() -> None:
    desk = idle()
    idle_at = desk.now
    desk.later(59.0)
    desk.report("a")
    assert desk.evicted() == []
    desk.now = idle_at + 60.0
    desk.later(0.0)
    desk.report("a")
    assert desk.evicted() == ["a"]
    assert desk.said("unload_decided") == [{"swap": 2, "model": "a", "reason": "ttl"}]
    desk.tell(EvictionAnswered("a", accepted=True))
    desk.report()
    assert desk.said("swap_ended")[-1]["outcome"] == "unloaded"
    assert desk.loads() == ["a"]
    assert desk.phase is None


def test_the_scheduler_asks_to_be_woken_for_it() -> None:
    desk = idle(Policy(ttl_s=2.0, ps_interval_s=3600.0))
    assert [c.at for c in desk.out if hasattr(c, "at")] == [pytest.approx(desk.now + 2.0)]


def test_without_a_setting_nothing_is_ever_unloaded() -> None:
    desk = idle(Policy())
    desk.later(100_000.0)
    desk.report("a")
    assert desk.evicted() == []


def test_a_request_begins_it_anew_and_one_that_runs_holds_it_off() -> None:
    desk = idle()
    desk.later(50.0)
    desk.report("a")
    again = desk.arrive("a")
    desk.later(50.0)
    desk.report("a")
    assert desk.evicted() == []
    desk.release(again)
    desk.later(59.0)
    desk.report("a")
    assert desk.evicted() == []
    desk.later(1.0)
    desk.report("a")
    assert desk.evicted() == ["a"]


def test_what_others_loaded_lives_from_when_it_was_first_seen() -> None:
    desk = Desk(TTL)
    desk.later(500.0)
    desk.report("x")
    desk.later(59.0)
    desk.report("x")
    assert desk.evicted() == []
    desk.later(1.0)
    desk.report("x")
    assert desk.evicted() == ["x"]


def test_a_model_that_comes_back_begins_a_new_life() -> None:
    desk = idle()
    desk.later(50.0)
    desk.report()
    desk.report("a")
    desk.later(30.0)
    desk.report("a")
    assert desk.evicted() == []


def test_a_pinned_model_has_none() -> None:
    desk = Desk(TTL)
    desk.report("pin")
    desk.later(500.0)
    desk.report("pin")
    assert desk.evicted() == []


def test_one_goes_at_a_time_and_the_first_to_end_goes_first() -> None:
    desk = Desk(TTL)
    desk.report("y")
    desk.later(1.0)
    desk.report("x", "y")
    desk.later(100.0)
    desk.report("x", "y")
    assert desk.evicted() == ["y"]
    desk.later(0.1)
    desk.report("x")
    assert desk.evicted() == ["y", "x"]


def test_others_go_on_being_served_meanwhile() -> None:
    desk = Desk(TTL)
    desk.state.proofs.note([Variant("a"), Variant("e")], "a", Outcome.FITTED, trial=True)
    desk.release(desk.serve("e"))
    desk.report("e")
    embeds = desk.arrive("a")
    desk.loaded("a")
    desk.report("a", "e")
    assert embeds in desk.granted()
    desk.later(60.0)
    desk.report("a", "e")
    assert desk.evicted() == ["e"]
    assert desk.arrive("a") in desk.granted()


def test_who_asks_for_it_after_the_eviction_was_sent_gets_it_loaded_anew() -> None:
    desk = idle()
    desk.later(60.0)
    desk.report("a")
    late = desk.arrive("a")
    assert late not in desk.granted()
    desk.later(0.1)
    desk.report()
    desk.report()
    assert desk.loads() == ["a", "a"]
    desk.loaded("a")
    desk.report("a")
    assert late in desk.granted()


def test_a_newcomer_stays() -> None:
    desk = idle()
    desk.later(60.0)
    desk.report("a")
    desk.later(0.1)
    desk.report("a", "x")
    desk.later(0.1)
    desk.report("x")
    assert desk.evicted() == ["a"]
    assert desk.phase is None


def test_one_that_does_not_go_serves_who_asks_for_it_and_is_left_alone_for_a_while() -> None:
    desk = idle(Policy(ttl_s=60.0, unload_timeout_s=10.0, cool_down_s=30.0))
    desk.later(60.0)
    desk.report("a")
    late = desk.arrive("a")
    desk.later(11.0)
    desk.report("a")
    assert (desk.phase, desk.rejected()) == (None, {})
    assert late in desk.granted()
    desk.release(late)
    evictions = len(desk.evicted())
    desk.later(500.0)
    desk.report("a")
    assert len(desk.evicted()) == evictions, "Ollama keeps the first request"


def test_nobody_goes_while_paused_and_it_goes_on_afterwards() -> None:
    desk = idle()
    desk.tell(Paused())
    desk.later(100.0)
    desk.report("a")
    assert desk.evicted() == []
    desk.tell(Resumed())
    desk.report("a")
    assert desk.evicted() == ["a"]


def test_it_ends_in_manual_mode_too_but_not_in_bypass_mode_nor_while_stopping() -> None:
    for fact, gone in ((ModeSet("manual"), ["a"]), (ModeSet("bypass"), []), (Stopping(), [])):
        desk = idle()
        desk.tell(fact)
        desk.later(100.0)
        desk.report("a")
        assert desk.evicted() == gone, fact


def test_in_manual_mode_one_goes_although_somebody_waits_for_another() -> None:
    desk = idle()
    desk.tell(ModeSet("manual"))
    desk.arrive("b")
    desk.later(100.0)
    desk.report("a")
    assert desk.evicted() == ["a"]


def test_nobody_goes_beside_a_request_that_was_relayed_in_bypass_mode() -> None:
    desk = idle()
    desk.tell(ModeSet("bypass"))
    runs = desk.arrive("x")
    desk.tell(ModeSet("auto"))
    desk.later(100.0)
    desk.report("a")
    assert desk.phase is None
    desk.release(runs)
    desk.report("a")
    assert desk.evicted() == ["a"]


def test_who_comes_while_we_look_once_more_is_served() -> None:
    desk = idle()
    desk.later(60.0)
    late = desk.arrive("a")
    desk.report("a")
    assert late in desk.granted()
    assert desk.evicted() == []


def test_an_old_view_is_not_acted_on() -> None:
    desk = idle()
    desk.later(100.0)
    assert desk.evicted() == []
    desk.no_report()
    assert desk.evicted() == []


def test_the_snapshot_tells_how_long_each_has_left() -> None:
    desk = Desk(TTL)
    desk.report("pin", resident("a"))
    desk.later(20.0)
    left = {seen.name: seen.ttl_left_s for seen in desk.scheduler.snapshot(desk.now).residents}
    assert left == {"pin": None, "a": pytest.approx(40.0, abs=0.01)}


def test_a_wait_for_a_model_that_is_being_unloaded_is_foretold() -> None:
    desk = idle()
    desk.later(60.0)
    desk.report("a")
    desk.arrive("a")
    (line,) = desk.scheduler.snapshot(desk.now).lines
    usual_s = desk.state.forecast.unload_takes_s("a") + desk.state.forecast.load_takes_s(Variant("a"))
    assert line.expected_wait_s == pytest.approx(usual_s, abs=0.01)
