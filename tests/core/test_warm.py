"""The short way: when it is taken, and that it then needs no wake. That it decides alike: tests/properties."""

from __future__ import annotations

import pytest

from ollama_swap_proxy.core import commands
from ollama_swap_proxy.core.events import Abandoned, Arrived, Stopping, ViewOutdated
from ollama_swap_proxy.core.policy import SPILL_UNDONE_AFTER_S, Policy
from ollama_swap_proxy.core.scheduler import Scheduler
from ollama_swap_proxy.core.tickets import Variant
from tests.core.desk import Desk


def serving(parallel: int = 2, ps_interval_s: float = 5.0) -> Desk:
    """A desk with a warm model that nobody uses."""
    desk = Desk(Policy(parallel=parallel, ps_interval_s=ps_interval_s))
    desk.release(desk.serve("a"))
    desk.report("a")
    desk.out = []
    return desk


def test_an_arrival_at_a_warm_model_is_granted_and_nothing_else_is_said() -> None:
    desk = serving()
    asked = desk.arrive("a")
    assert desk.out == [commands.Grant(asked)]


def test_for_a_warm_models_traffic_the_general_question_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    full = serving(parallel=1)
    asked = [full.arrive("a"), full.arrive("a")]  # the first who has to wait does ask it
    free = serving(parallel=2)
    monkeypatch.setattr(Scheduler, "_advance", lambda *_: pytest.fail("the general question was asked"))
    asked.append(full.arrive("a"))
    for ticket_id in asked:
        full.release(ticket_id)
    assert full.granted()[-3:] == asked
    runs = [free.arrive("a"), free.arrive("a")]
    for ticket_id in runs:
        free.release(ticket_id)
    assert free.granted()[-2:] == runs


def test_whoever_finds_no_free_lease_waits_and_a_release_lets_the_first_go() -> None:
    desk = serving(parallel=1)
    runs = desk.arrive("a")
    first, second = desk.arrive("a"), desk.arrive("a")
    assert desk.out == []
    desk.release(runs)
    assert desk.out == [commands.Grant(first)]
    desk.release(first)
    assert desk.out == [commands.Grant(second)]
    desk.release(second)
    assert desk.out == []


def test_an_old_view_is_no_ground_for_it() -> None:
    desk = serving(parallel=1)
    runs = desk.arrive("a")
    waits = desk.arrive("a")
    desk.now += 1.5
    desk.release(runs)
    assert waits not in desk.granted()
    assert any(isinstance(command, commands.Observe) for command in desk.out)


@pytest.mark.parametrize("event", [ViewOutdated("an unload passed by"), Stopping()])
def test_an_arrival_behind_such_news_is_not_granted_at_once(event: ViewOutdated | Stopping) -> None:
    desk = serving()
    desk.tell(event)
    assert desk.arrive("a") not in desk.granted()


def test_a_lease_with_a_short_keep_alive_makes_those_behind_it_look_first() -> None:
    desk = serving(parallel=1)
    runs = desk.arrive("a", briefly=True)
    waits = desk.arrive("a")
    desk.release(runs)
    assert waits not in desk.granted()


def test_a_release_while_another_model_is_waited_for_begins_its_swap() -> None:
    desk = serving(parallel=1)
    runs = desk.arrive("a")
    desk.arrive("b")
    desk.release(runs)
    assert desk.evicted() == ["a"]


def test_a_release_in_a_drain_goes_on_with_the_swap() -> None:
    desk = serving(parallel=2)
    runs = [desk.arrive("a"), desk.arrive("a")]
    desk.arrive("b")
    desk.later(0.1)
    desk.report("a")
    desk.later(20.0)
    desk.report("a")
    assert desk.phase == "draining"
    desk.release(runs[0])
    assert desk.evicted() == []
    desk.release(runs[1])
    desk.report("a")
    assert desk.evicted() == ["a"]


def test_a_ticket_told_twice_is_granted_once() -> None:
    desk = serving(parallel=4)
    asked = desk.arrive("a")
    ticket = desk.state.leases.get(asked).ticket
    desk.tell(Arrived(ticket))
    assert desk.granted().count(asked) == 1
    desk.tell(Abandoned(asked))
    assert len(desk.state.leases) == 1


def test_a_client_that_gave_up_and_is_granted_at_once_has_no_place_left_in_the_line() -> None:
    desk = serving(parallel=1)
    runs = desk.arrive("a")
    desk.tell(Abandoned(desk.arrive("a")))
    desk.release(runs)
    assert desk.state.places_kept
    assert desk.arrive("a") in desk.granted()
    assert not desk.state.places_kept


def test_a_model_that_may_vanish_is_looked_at_before_each_grant() -> None:
    desk = serving(parallel=1)
    runs = desk.arrive("a")
    waits = desk.arrive("a")
    desk.state.residency.leaving.add("a")
    desk.release(runs)
    assert waits not in desk.granted()
    desk.report("a")
    assert waits in desk.granted()
    assert desk.arrive("a") not in desk.granted()


def test_when_a_turn_is_over_an_arrival_for_it_does_not_prolong_it() -> None:
    desk = Desk(Policy(parallel=4, ps_max_age_s=100.0))
    desk.serve("a")
    desk.arrive("b")
    desk.now += 15.0
    assert desk.arrive("a") not in desk.granted()
    assert desk.phase == "draining"


def test_the_last_release_asks_to_be_woken_for_a_spill_that_is_to_be_undone() -> None:
    desk = serving(ps_interval_s=60.0)
    runs = desk.arrive("a")
    desk.state.spills_to_undo.add(Variant("a"))
    desk.release(runs)
    assert commands.WakeAt(desk.now + SPILL_UNDONE_AFTER_S) in desk.out
