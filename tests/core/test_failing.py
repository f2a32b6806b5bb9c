"""What a failure leads to: who is told, with which words, and what is left alone for how long."""

from __future__ import annotations

import pytest

from ollama_swap_proxy.core.events import Abandoned, LoadFailure, ModelChanged
from ollama_swap_proxy.core.policy import Policy
from tests.core.desk import Desk

BROKEN = LoadFailure(500, "no such tensor")


def fail_to_load(desk: Desk, key: str = "bad") -> int:
    asked = desk.arrive(key)
    desk.report()
    assert desk.phase == "loading"
    desk.loaded(key, BROKEN)
    return asked


def test_all_who_wait_for_a_load_hear_upstreams_own_status_and_text():
    desk = Desk()
    first = desk.arrive("bad")
    desk.report()
    second, other = desk.arrive("bad"), desk.arrive("good")
    desk.loaded("bad", BROKEN)
    assert [desk.rejected()[t].status for t in (first, second)] == [500, 500]
    assert desk.rejected()[second].message == "no such tensor"
    assert other not in desk.rejected()


def test_each_failed_load_in_a_row_doubles_the_cool_down_up_to_its_longest():
    desk = Desk(Policy(cool_down_s=10.0, cool_down_max_s=35.0))
    pauses = []
    for _ in range(4):
        fail_to_load(desk)
        (cooling,) = desk.scheduler.snapshot(desk.now).cool_downs
        pauses.append(round(cooling.remaining_s))
        desk.later(cooling.remaining_s + 0.1)
    assert pauses == [10, 20, 35, 35]


def test_a_success_ends_the_doubling():
    desk = Desk()
    fail_to_load(desk)
    desk.later(10.1)
    desk.release(desk.serve("bad"))
    assert desk.state.cool_downs == {}


def test_during_a_cool_down_the_answer_comes_at_once_and_says_when_to_come_back():
    desk = Desk(Policy(cool_down_s=10.0))
    fail_to_load(desk)
    desk.later(6.0)
    asked = desk.arrive("bad")
    assert desk.rejected()[asked].retry_after_s == 4


def test_a_cool_down_is_for_one_variant_and_ends_with_a_change_of_the_model():
    desk = Desk()
    fail_to_load(desk)
    other = desk.arrive("bad", "num_ctx=2048")
    assert other not in desk.rejected()
    desk.tell(Abandoned(other))
    desk.tell(ModelChanged("bad"))
    assert desk.arrive("bad") not in desk.rejected()


def test_a_load_that_fails_after_its_asker_left_still_begins_the_cool_down():
    desk = Desk()
    asked = desk.arrive("bad")
    desk.report()
    desk.tell(Abandoned(asked))
    desk.loaded("bad", BROKEN)
    assert desk.arrive("bad") in desk.rejected()


@pytest.mark.parametrize("failure", [LoadFailure(503, "server busy", transient=True)])
def test_a_full_queue_is_no_failed_load(failure):
    desk = Desk()
    asked = desk.arrive("a")
    desk.report()
    for _ in range(20):
        desk.loaded("a", failure)
        desk.later(1.1)
        desk.report()
    assert len(desk.loads()) > 10
    assert asked not in desk.rejected()


def test_a_connection_that_breaks_under_a_load_again_and_again_is_a_failed_load():
    desk = Desk()
    asked = desk.arrive("a")
    desk.report()
    for _ in range(3):
        desk.loaded("a", LoadFailure(502, "connection lost", transient=True))
        desk.later(1.1)
        desk.report()
    assert len(desk.loads()) == 3
    assert desk.rejected()[asked].code == "load_failed"


def test_a_load_that_is_never_answered_ends_at_its_timeout():
    desk = Desk(Policy(load_timeout_s=30.0))
    asked = desk.arrive("a")
    desk.report()
    desk.later(30.5)
    assert asked not in desk.rejected()
    desk.later(1.0)
    assert desk.rejected()[asked].code == "load_timeout"
    assert desk.rejected()[asked].status == 504


def test_a_wait_ends_after_give_up_and_says_what_was_waited_for():
    desk = Desk(Policy(give_up_after_s=50.0, stuck_after_s=1000.0, turn_limit_s=500.0))
    lease = desk.serve("a")
    asked = desk.arrive("b")
    for _ in range(12):
        desk.later(4.5)
        desk.progress(lease)
        desk.report("a")
    assert desk.rejected()[asked].code == "waited_too_long"
    assert desk.rejected()[asked].message == "b was waited for 50 s: its turn had not come"


def test_upstream_away_for_a_moment_is_waited_out_and_for_longer_is_told():
    desk = Desk()
    asked = desk.arrive("a")
    desk.no_report(unreachable=True)
    for _ in range(4):
        desk.later(1.1)
        desk.no_report(unreachable=True)
    assert asked not in desk.rejected()
    desk.later(1.1)
    desk.no_report(unreachable=True)
    assert desk.rejected()[asked].code == "upstream_down"
    assert desk.rejected()[asked].status == 502


def test_cool_downs_end_with_a_restart_of_upstream():
    desk = Desk()
    fail_to_load(desk)
    desk.no_report(unreachable=True)
    desk.later(1.1)
    desk.report()
    assert desk.arrive("bad") not in desk.rejected()


def test_who_waits_behind_a_model_that_resists_hears_of_it():
    desk = Desk(Policy(give_up_after_s=20.0, unload_timeout_s=10.0, cool_down_s=600.0))
    desk.release(desk.serve("a"))
    desk.arrive("b")
    desk.later(11.0)
    asked = desk.arrive("c")
    desk.later(21.0)
    message = desk.rejected()[asked].message
    assert message.startswith("c was waited for 20 s: not tried again yet: b was waited for behind a: its unload")


def test_who_waits_for_a_drain_hears_which_requests_were_in_the_way():
    desk = Desk(Policy(give_up_after_s=20.0, turn_limit_s=1.0))
    desk.serve("a")
    asked = desk.arrive("b")
    desk.later(2.0)
    desk.report("a")
    assert desk.phase == "draining"
    desk.later(20.0)
    assert desk.rejected()[asked].message == "b was waited for 20 s: running requests for a had not ended"


def test_who_waits_for_a_swap_hears_how_far_it_came():
    desk = Desk(Policy(give_up_after_s=20.0))
    asked = desk.arrive("b")
    desk.report()
    assert desk.phase == "loading"
    desk.later(21.0)
    assert desk.rejected()[asked].message == "b was waited for 20 s: the swap to b was loading"


def test_a_ticket_without_patience_is_granted_by_a_look_that_takes_a_moment():
    desk = Desk()
    desk.release(desk.serve("a"))
    desk.later(3.0)
    asked = desk.arrive("a", patience_s=0.0)
    began = desk.now
    desk.later(0.2)
    desk.report("a", asked_at=began)
    assert asked in desk.granted()


def test_a_ticket_leaves_when_its_own_patience_ends_and_not_before_it_has_been_looked_at():
    desk = Desk()
    desk.serve("a")
    asked = desk.arrive("b", patience_s=5.0)
    at_once = desk.arrive("b", patience_s=0.0)
    served = desk.arrive("a", patience_s=0.0)
    desk.later(0.4)
    desk.report("a")
    assert served in desk.granted()
    assert desk.rejected()[at_once].code == "waited_too_long"
    desk.later(4.5)
    assert asked not in desk.rejected()
    desk.later(0.2)
    assert desk.rejected()[asked].code == "waited_too_long"
    assert desk.rejected()[asked].status == 503
