"""The mode and the pause: what the operator sets, and what follows for those who wait. That nothing else breaks:
tests/properties.
"""

from __future__ import annotations

import pytest

from ollama_swap_proxy.core import commands
from ollama_swap_proxy.core.events import Abandoned, EvictionAnswered, ModeSet, Paused, Resumed, Stopping
from ollama_swap_proxy.core.policy import Policy
from ollama_swap_proxy.core.proofs import Outcome
from ollama_swap_proxy.core.tickets import Variant
from tests.core.desk import RECIPE, Desk


def warm(policy: Policy | None = None) -> Desk:
    """A desk with ``a`` resident and idle."""
    desk = Desk(policy)
    desk.release(desk.serve("a"))
    desk.report("a")
    return desk


# --- pause --------------------------------------------------------------------------------------------------------
def test_while_paused_a_warm_model_is_not_granted_and_a_resume_grants_in_order():
    desk = warm(Policy(parallel=1))
    runs = desk.arrive("a")
    desk.tell(Paused())
    first, second = desk.arrive("a"), desk.arrive("a")
    desk.release(runs)
    desk.later(0.1)
    assert desk.granted()[-1] == runs
    desk.tell(Resumed())
    assert desk.out[0] == commands.Step("resumed", {"after_s": pytest.approx(0.105), "waiting": 2})
    assert desk.granted()[-1] == first
    desk.release(first)
    assert desk.granted()[-1] == second


def test_while_paused_no_swap_begins_and_a_resume_begins_it():
    desk = warm()
    desk.tell(Paused())
    desk.arrive("b")
    desk.report("a")
    assert desk.phase is None
    desk.tell(Resumed())
    assert desk.evicted() == ["a"]


def test_a_pause_told_twice_goes_on_and_a_resume_without_one_is_nothing():
    desk = warm()
    desk.tell(Resumed())
    desk.tell(Paused())
    desk.now += 9.0
    desk.tell(Paused())
    assert len(desk.said("paused")) == 1
    assert desk.said("resumed") == []
    assert desk.scheduler.snapshot(desk.now).paused_for_s == pytest.approx(9.001)


def test_a_drain_does_not_end_in_an_eviction_while_paused():
    desk = Desk(Policy(turn_limit_s=1.0, stuck_after_s=60.0))
    runs = desk.serve("a")
    asked = desk.arrive("b")
    desk.later(2.0)
    desk.report("a")
    assert desk.phase == "draining"
    desk.tell(Paused())
    desk.later(500.0)
    desk.report("a")
    assert desk.scheduler.snapshot(desk.now).swap.overdue_s == 0
    desk.tell(Resumed())
    assert desk.rejected() == {}
    desk.tell(Paused())
    desk.release(runs)
    desk.report("a")
    assert desk.evicted() == []
    desk.tell(Resumed())
    desk.report("a")
    assert desk.evicted() == ["a"]
    assert asked not in desk.rejected()


def test_a_sent_eviction_is_followed_to_its_end_while_paused_and_the_load_waits():
    desk = warm()
    asked = desk.arrive("b")
    assert desk.evicted() == ["a"]
    desk.tell(Paused())
    desk.tell(EvictionAnswered("a", accepted=True))
    desk.report()
    assert desk.said("eviction_confirmed")
    assert desk.phase == "settling"
    desk.later(60.0)
    assert desk.loads() == ["a"]
    desk.tell(Resumed())
    desk.report()
    assert desk.loads() == ["a", "b"]
    desk.loaded("b")
    desk.report("b")
    assert asked in desk.granted()


def test_the_next_victim_is_not_asked_while_paused_and_looked_for_anew_on_resume():
    desk = Desk()
    desk.report("a", "b")
    desk.arrive("c")
    desk.report("a", "b")
    assert desk.evicted() == ["a"]
    desk.tell(Paused())
    desk.tell(EvictionAnswered("a", accepted=True))
    desk.report("b")
    desk.later(100.0)
    desk.report("b")
    assert desk.evicted() == ["a"]
    assert desk.rejected() == {}
    desk.tell(Resumed())
    assert desk.evicted() == ["a"]
    desk.report("b")
    assert desk.evicted() == ["a", "b"]


def test_a_load_under_way_ends_while_paused_and_its_ticket_waits_on():
    desk = Desk()
    asked = desk.arrive("a")
    desk.report()
    desk.tell(Paused())
    desk.loaded("a")
    desk.report("a")
    assert desk.phase is None
    assert asked not in desk.granted()
    desk.tell(Resumed())
    assert asked in desk.granted()


def test_the_clock_of_what_does_not_move_stands_still_while_paused_but_no_other_patience():
    desk = warm(Policy(stuck_after_s=60.0, give_up_after_s=200.0))
    desk.tell(Paused())
    waits = desk.arrive("a")
    impatient = desk.arrive("a", patience_s=5.0)
    desk.later(100.0)
    assert list(desk.rejected()) == [impatient]
    desk.later(101.0)
    assert desk.rejected()[waits].code == "waited_too_long"
    assert desk.rejected()[waits].message == "a was waited for 200 s: granting is paused"


def test_after_a_resume_that_clock_begins_anew():
    desk = warm(Policy(stuck_after_s=60.0))
    desk.tell(Paused())
    waits = desk.arrive("a")
    desk.later(100.0)
    desk.no_report()
    desk.tell(Resumed())
    desk.later(0.0)
    assert waits not in desk.rejected()


def test_a_stop_answers_those_who_wait_though_paused():
    desk = warm()
    desk.tell(Paused())
    waits = desk.arrive("a")
    desk.tell(Stopping())
    assert desk.rejected()[waits].code == "stopping"
    desk.tell(Resumed())
    assert desk.arrive("a") in desk.rejected()


def test_a_swap_that_looks_first_stands_still_however_long_no_report_comes():
    desk = Desk(Policy(turn_limit_s=1.0, stuck_after_s=60.0))
    runs = desk.serve("a")
    desk.arrive("b")
    desk.later(2.0)
    desk.report("a")
    desk.later(2.0)
    desk.release(runs)
    assert (desk.phase, desk.evicted()) == ("evicting", [])
    desk.tell(Paused())
    for _ in range(3):
        desk.no_report()
        desk.later(50.0)
    assert desk.phase == "evicting"
    desk.tell(Resumed())
    desk.later(1.0)
    desk.report("a")
    assert desk.evicted() == ["a"]


def test_companions_of_a_swap_are_not_served_while_paused():
    desk = Desk()
    desk.state.proofs.note([Variant("b"), Variant("e")], "b", Outcome.FITTED, trial=True)
    desk.release(desk.serve("e"))
    desk.report("e")
    desk.arrive("b")
    assert desk.phase == "loading"
    assert desk.arrive("e") in desk.granted()
    desk.tell(Paused())
    waits = desk.arrive("e")
    assert waits not in desk.granted()
    desk.tell(Resumed())
    assert waits in desk.granted()


# --- manual -------------------------------------------------------------------------------------------------------
def test_in_manual_mode_the_resident_is_served_and_nobody_else_brought_in():
    desk = warm()
    desk.tell(ModeSet("manual"))
    assert desk.arrive("a") in desk.granted()
    desk.release(1)
    waits = desk.arrive("b")
    desk.later(100.0)
    desk.report("a")
    assert desk.evicted() == []
    assert waits not in desk.rejected()
    assert desk.scheduler.snapshot(desk.now).turn.next is None


def test_who_waits_for_the_operator_is_served_when_he_has_loaded_the_model():
    desk = Desk(Policy(stuck_after_s=60.0, mode="manual"))
    desk.report("a")
    waits = desk.arrive("b")
    desk.later(100.0)
    desk.report("b")
    assert waits in desk.granted()


def test_whom_the_operator_let_wait_longer_than_others_is_served_all_the_same():
    desk = Desk(Policy(give_up_after_s=200.0, stuck_after_s=60.0, mode="manual", manual_wait_s=900.0))
    desk.report("a")
    waits = desk.arrive("b")
    desk.later(800.0)
    desk.report("b")
    assert waits in desk.granted()


def test_who_waits_for_the_operator_is_told_after_manual_wait():
    desk = Desk(Policy(mode="manual", manual_wait_s=90.0, stuck_after_s=60.0))
    desk.report("a")
    waits = desk.arrive("b")
    desk.later(89.0)
    assert desk.rejected() == {}
    desk.later(1.1)
    rejection = desk.rejected()[waits]
    assert (rejection.code, rejection.status) == ("not_resident", 503)
    assert rejection.message.startswith("b was waited for 90 s: it is not resident, and in manual mode")


def test_the_manual_wait_is_as_long_as_any_where_it_is_not_set():
    desk = Desk(Policy(mode="manual", give_up_after_s=200.0))
    desk.report("a")
    waits = desk.arrive("b")
    desk.later(199.9)
    assert desk.rejected() == {}
    desk.later(0.2)
    assert desk.rejected()[waits].code == "not_resident"


def test_by_setting_it_is_refused_at_once_but_not_before_we_know():
    desk = Desk(Policy(mode="manual", manual_refuses=True))
    waits = desk.arrive("b")
    assert desk.rejected() == {}
    desk.report("a")
    assert desk.rejected()[waits].code == "not_resident"
    assert desk.arrive("b") in desk.rejected()
    assert desk.arrive("a") not in desk.rejected()


def test_a_swap_under_way_is_finished_in_manual_mode_for_its_own_tickets():
    desk = warm(Policy(manual_refuses=True))
    asked = desk.arrive("b")
    assert desk.phase == "evicting"
    desk.tell(ModeSet("manual"))
    other = desk.arrive("c")
    assert other in desk.rejected()
    desk.tell(EvictionAnswered("a", accepted=True))
    desk.report()
    desk.loaded("b")
    desk.report("b")
    assert asked in desk.granted()


def test_a_swap_whose_askers_left_is_not_turned_over_in_manual_mode():
    desk = Desk(Policy(turn_limit_s=1.0))
    desk.serve("a")
    asked = desk.arrive("b")
    desk.later(2.0)
    desk.report("a")
    desk.arrive("c")
    desk.tell(ModeSet("manual"))
    desk.tell(Abandoned(asked))
    desk.later(5.1)
    assert desk.said("swap_retargeted") == []
    assert desk.said("swap_ended")[-1]["outcome"] == "asker_left"


@pytest.mark.parametrize("what", ["spills_to_undo", "pins_to_restore"])
def test_in_manual_mode_nothing_is_loaded_anew_either(what: str):
    desk = warm()
    desk.tell(ModeSet("manual"))
    target = Variant("a" if what == "spills_to_undo" else "pin")
    if what == "spills_to_undo":
        desk.state.spills_to_undo.add(target)
    else:
        desk.state.pins_to_restore[target] = None
    desk.state.recipes[target] = (target.key, RECIPE)
    desk.later(10.0)
    desk.report("a")
    assert desk.phase is None
    desk.tell(ModeSet("auto"))
    desk.later(10.0)
    desk.report("a")
    assert desk.phase is not None


def test_back_in_auto_mode_the_swap_begins():
    desk = warm()
    desk.tell(ModeSet("manual"))
    desk.arrive("b")
    desk.report("a")
    desk.tell(ModeSet("auto"))
    assert desk.evicted() == ["a"]


# --- bypass -------------------------------------------------------------------------------------------------------
def test_in_bypass_mode_all_are_let_go_at_once_paused_or_not():
    desk = warm(Policy(parallel=1, line_limit=1))
    desk.tell(Paused())
    waited = desk.arrive("b")
    desk.tell(ModeSet("bypass"))
    asked = [desk.arrive(key) for key in "aabc"]
    assert desk.granted()[-5:] == [waited, *asked]
    assert desk.evicted() == []


def test_after_it_the_relayed_requests_are_drained_before_anything_is_evicted():
    desk = warm()
    desk.tell(ModeSet("bypass"))
    runs = desk.arrive("b"), desk.arrive("a")
    desk.tell(ModeSet("auto"))
    desk.report("b")
    desk.arrive("c")
    desk.later(20.0)
    desk.report("b")
    for ticket_id in runs:
        assert desk.phase == "draining"
        assert desk.evicted() == []
        desk.release(ticket_id)
    desk.report("b")
    assert desk.evicted() == ["b"]


def test_after_it_a_model_is_served_alone_first_for_its_options_are_unknown():
    desk = warm()
    desk.tell(ModeSet("bypass"))
    runs = desk.arrive("a", "num_ctx=8192")
    desk.tell(ModeSet("auto"))
    desk.report("a")
    waits = desk.arrive("a")
    assert waits not in desk.granted()
    desk.release(runs)
    desk.report("a")
    assert commands.Grant(waits, loads=True) in desk.all


@pytest.mark.parametrize("first", ["auto", "bypass"])
def test_after_it_a_swap_waits_for_requests_of_its_own_target_too(first: str):
    desk = warm()
    runs = desk.arrive("a") if first == "auto" else 0
    desk.tell(ModeSet("bypass"))
    runs = runs or desk.arrive("a")
    desk.tell(ModeSet("auto"))
    desk.report("b")  # Ollama made room by itself
    asked = desk.arrive("a")
    desk.later(20.0)
    desk.report("b")
    assert (desk.phase, desk.evicted()) == ("draining", [])
    desk.release(runs)
    desk.report("b")
    assert desk.evicted() == ["b"]
    assert asked not in desk.granted()


def test_after_it_nothing_is_granted_before_a_new_report_and_a_new_turn_begins():
    desk = warm()
    desk.now += 0.5
    desk.tell(ModeSet("bypass"))
    desk.tell(ModeSet("auto"))
    assert desk.scheduler.snapshot(desk.now).turn.age_s == 0
    waits = desk.arrive("a")
    assert waits not in desk.granted()
    desk.report("a")
    assert waits in desk.granted()


def test_a_request_that_was_to_load_its_model_teaches_nothing_after_bypass_mode():
    desk = Desk()
    desk.report("a")
    asked = desk.arrive("a")
    assert commands.Grant(asked, loads=True) in desk.out
    desk.tell(ModeSet("bypass"))
    desk.tell(ModeSet("auto"))
    desk.progress(asked)
    assert desk.state.residency.options == {}


def test_who_is_relayed_is_remembered_as_a_client():
    desk = warm()
    desk.tell(ModeSet("bypass"))
    desk.release(desk.arrive("a", client="new"))
    assert len(desk.state.gaps) == 2


def test_a_drain_ends_at_once_in_bypass_mode_and_both_are_let_go():
    desk = Desk(Policy(turn_limit_s=1.0))
    desk.serve("a")
    waits = desk.arrive("b")
    desk.later(2.0)
    desk.report("a")
    assert desk.phase == "draining"
    desk.tell(ModeSet("bypass"))
    assert desk.phase is None
    assert waits in desk.granted()
    assert desk.said("swap_ended")[-1]["outcome"] == "bypass"


def test_a_load_under_way_is_waited_for_and_teaches_nothing_after_bypass_mode():
    desk = Desk()
    asked = desk.arrive("a")
    desk.report()
    assert desk.phase == "loading"
    desk.tell(ModeSet("bypass"))
    assert asked in desk.granted()
    relayed = desk.arrive("a", "num_ctx=8192")
    desk.tell(ModeSet("auto"))
    assert desk.phase == "loading"
    desk.loaded("a")
    assert desk.phase is None
    desk.report("a")
    desk.release(asked)
    assert desk.arrive("a") not in desk.granted()
    desk.release(relayed)
    desk.report("a")
    assert len(desk.granted()) == 3


def test_the_mode_and_since_when_are_seen():
    desk = warm()
    desk.tell(ModeSet("manual"))
    desk.now += 7.0
    desk.tell(ModeSet("manual"))
    seen = desk.scheduler.snapshot(desk.now)
    assert (seen.mode, seen.mode_for_s, seen.paused_for_s) == ("manual", pytest.approx(7.001), None)
    assert [said["mode"] for said in desk.said("mode_set")] == ["manual"]
