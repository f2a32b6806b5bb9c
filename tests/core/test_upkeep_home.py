"""The home model: the card goes back to it when nobody needs another."""

from __future__ import annotations

import pytest

from ollama_swap_proxy.core import commands
from ollama_swap_proxy.core.events import Described, EvictionAnswered, LoadFailure, ModeSet, Paused
from ollama_swap_proxy.core.policy import Policy
from ollama_swap_proxy.core.tickets import Need, Traits, Variant
from tests.core.desk import RECIPE, Desk

HOME = Policy(home="h", home_after_s=100.0)


def asked(desk: Desk) -> int:
    return sum(isinstance(c, commands.Describe) for c in desk.all)


def describe(desk: Desk) -> None:
    desk.tell(Described("h", Need("h", Variant("h"), RECIPE, Traits())))


def away(policy: Policy = HOME) -> Desk:
    """A desk whose ``a`` was in use until just now."""
    desk = Desk(policy)
    desk.release(desk.serve("a"))
    return desk


def left_alone(desk: Desk, seconds: float, *residents: str) -> None:
    """Let time pass with a look every 10 s and at its end; what is asked about home is answered."""
    while seconds > 0:
        step = min(10.0, seconds)
        seconds -= step
        desk.later(step)
        before = asked(desk)
        desk.report(*residents)
        if asked(desk) > before:
            describe(desk)


def test_when_nothing_has_moved_for_so_long_the_card_goes_back_to_it() -> None:
    desk = away()
    left_alone(desk, 99.0, "a")
    assert (asked(desk), desk.evicted()) == (0, [])
    left_alone(desk, 1.0, "a")
    assert desk.evicted() == ["a"]
    assert desk.said("swap_decided")[-1]["reason"] == "home"
    desk.tell(EvictionAnswered("a", accepted=True))
    desk.report()
    desk.loaded("h")
    desk.report("h")
    assert desk.loads() == ["a", "h"]
    left_alone(desk, 1000.0, "h")
    assert desk.loads() == ["a", "h"]


def test_the_scheduler_asks_to_be_woken_for_it() -> None:
    desk = away(Policy(home="h", home_after_s=2.0, ps_interval_s=3600.0))
    assert [c.at for c in desk.out if isinstance(c, commands.WakeAt)] == [pytest.approx(desk.now + 2.0)]


def test_without_a_home_what_was_used_last_stays() -> None:
    desk = away(Policy())
    left_alone(desk, 1000.0, "a")
    assert (asked(desk), desk.evicted()) == (0, [])


def test_with_0_it_goes_back_at_once() -> None:
    desk = away(Policy(home="h", home_after_s=0.0))
    describe(desk)
    assert desk.evicted() == ["a"]


def test_a_request_begins_the_time_anew_and_one_that_runs_holds_it_off() -> None:
    desk = away()
    left_alone(desk, 90.0, "a")
    again = desk.arrive("a")
    left_alone(desk, 300.0, "a")
    assert desk.evicted() == []
    desk.release(again)
    left_alone(desk, 99.0, "a")
    assert desk.evicted() == []
    left_alone(desk, 1.0, "a")
    assert desk.evicted() == ["a"]


def test_what_others_load_begins_it_anew_too() -> None:
    desk = away()
    left_alone(desk, 90.0, "a")
    left_alone(desk, 90.0, "x")
    assert desk.evicted() == []
    left_alone(desk, 20.0, "x")
    assert desk.evicted() == ["x"]


def test_an_empty_card_is_not_home_either() -> None:
    desk = away()
    left_alone(desk, 100.0)
    assert desk.loads() == ["a", "h"]


def test_it_is_home_with_any_options() -> None:
    desk = Desk(HOME)
    desk.release(desk.serve("h", "num_ctx=8192"))
    left_alone(desk, 500.0, "h")
    assert (desk.evicted(), desk.loads()) == ([], ["h[num_ctx=8192]"])
    assert asked(desk) == 1, "asked once, to know which runner it is"


def test_not_in_manual_mode_nor_while_paused_nor_while_somebody_waits_for_the_operator() -> None:
    for fact in (ModeSet("manual"), Paused(), ModeSet("bypass")):
        desk = away()
        desk.tell(fact)
        left_alone(desk, 500.0, "a")
        assert (asked(desk), desk.evicted()) == (0, []), fact


def test_who_comes_before_its_load_takes_the_swap_over() -> None:
    desk = away()
    left_alone(desk, 100.0, "a")
    first = desk.arrive("b")
    desk.tell(EvictionAnswered("a", accepted=True))
    desk.report()
    assert desk.loads() == ["a", "b"]
    desk.loaded("b")
    desk.report("b")
    assert first in desk.granted()


def test_who_comes_for_the_model_that_goes_waits_for_no_load_of_home() -> None:
    desk = away()
    left_alone(desk, 100.0, "a")
    first = desk.arrive("a")
    desk.tell(EvictionAnswered("a", accepted=True))
    desk.report()
    assert desk.loads() == ["a", "a"]
    desk.loaded("a")
    desk.report("a")
    assert first in desk.granted()


def test_one_that_fails_to_load_is_tried_again_after_its_cool_down_and_not_in_a_whirl() -> None:
    desk = Desk(Policy(home="h", home_after_s=0.0, cool_down_s=0.0))
    desk.report()
    describe(desk)
    for attempt in range(1, 4):
        assert desk.loads() == ["h"] * attempt
        desk.loaded("h", LoadFailure(500, "no such tensor"))
        left_alone(desk, 55.0)
        assert desk.loads() == ["h"] * attempt
        left_alone(desk, 10.0)


def test_its_cool_down_is_kept() -> None:
    desk = Desk(Policy(home="h", home_after_s=0.0, cool_down_s=300.0))
    desk.report()
    describe(desk)
    desk.loaded("h", LoadFailure(500, "no such tensor"))
    left_alone(desk, 290.0)
    assert desk.loads() == ["h"]
    left_alone(desk, 20.0)
    assert desk.loads() == ["h", "h"]


def test_one_that_vanishes_after_an_empty_load_is_told() -> None:
    desk = Desk(Policy(home="h", home_after_s=0.0))
    desk.report()
    describe(desk)
    desk.loaded("h")
    desk.report()
    left_alone(desk, 10.0)
    assert desk.loads() == ["h"]
    assert "OLLAMA_KEEP_ALIVE=0" in desk.said("wish_not_granted")[0]["reason"]


def test_the_snapshot_tells_when_it_goes_back() -> None:
    desk = away()
    left_alone(desk, 30.0, "a")
    seen = desk.scheduler.snapshot(desk.now)
    assert (seen.home, seen.home_in_s) == ("h", pytest.approx(70.0, abs=0.1))
    desk.arrive("a")
    assert desk.scheduler.snapshot(desk.now).home_in_s is None


def test_who_would_outlive_a_model_beside_it_is_loaded_anew_before_it_as_for_a_request() -> None:
    """Else it went for home and came back in its place, for ever in turn."""
    desk = away()
    embedding = desk.arrive("e")
    desk.later(6.1)
    desk.report("a")
    desk.loaded("e")
    desk.report("a", "e")
    desk.release(embedding)
    left_alone(desk, 100.0, "a", "e")
    decided = desk.said("swap_decided")[-1]
    assert (decided["target"], decided["reason"]) == ("e", "companion")
    for left in (["e"], []):
        desk.later(0.06)
        desk.report(*left)
    desk.later(6.1)
    desk.report()
    desk.loaded("e")
    desk.report("e")
    left_alone(desk, 110.0, "e")
    assert desk.said("swap_decided")[-1]["reason"] == "home"
    assert desk.said("swap_decided")[-1]["beside"] == ["e"]
    assert desk.loads()[-1] == "h"
