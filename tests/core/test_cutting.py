"""Which running requests are cut, and when: only where the operator set a limit."""

from __future__ import annotations

import pytest

from ollama_swap_proxy.core import commands
from ollama_swap_proxy.core.events import ModeSet, Paused, Resumed
from ollama_swap_proxy.core.policy import Policy
from ollama_swap_proxy.core.tickets import Traits, Upkeep
from tests.core.desk import Desk


def cuts(desk: Desk) -> list[commands.Cut]:
    return [command for command in desk.all if isinstance(command, commands.Cut)]


def fresh(desk: Desk, seconds: float, *keys: str) -> None:
    """Let time pass, and have a report."""
    desk.later(seconds)
    desk.report(*(keys or ("a",)))


def test_by_default_nobody_is_ever_cut() -> None:
    desk = Desk(Policy(turn_limit_s=1.0, stuck_after_s=1e6, give_up_after_s=1e6))
    desk.serve("a")
    desk.arrive("b")
    for _ in range(5):
        fresh(desk, 10_000.0)
    assert desk.phase == "draining"
    assert cuts(desk) == []


def test_a_request_without_a_first_byte_is_cut_when_its_time_is_over() -> None:
    desk = Desk(Policy(first_byte_timeout_s=30.0, ps_interval_s=3600.0))
    first = desk.serve("a")
    desk.release(first)
    silent = desk.arrive("a")
    granted_at = desk.now
    assert silent in desk.granted()
    assert desk.out[-1] == commands.WakeAt(granted_at + 30.0)
    desk.later(29.9)
    assert cuts(desk) == []
    desk.later(0.1)
    (cut,) = cuts(desk)
    assert (cut.ticket_id, cut.unless_moved_since) == (silent, granted_at)
    assert (cut.rejection.code, cut.rejection.status, cut.rejection.retry_after_s) == ("upstream_timeout", 504, None)
    assert cut.rejection.message == "Ollama sent no byte of this answer of a for 30 s (first_byte_timeout_s)"


def test_one_whose_answer_has_begun_is_not_cut_by_that_limit_but_by_that_for_pauses() -> None:
    desk = Desk(Policy(first_byte_timeout_s=30.0, idle_stream_timeout_s=50.0))
    runs = desk.serve("a")
    fresh(desk, 45.0)
    assert cuts(desk) == []
    moved_at = desk.now
    desk.progress(runs)
    fresh(desk, 45.0)
    assert cuts(desk) == []
    fresh(desk, 5.0)
    (cut,) = cuts(desk)
    assert cut.unless_moved_since == moved_at
    assert cut.rejection.message == "Ollama sent no byte of this answer of a for 50 s (idle_stream_timeout_s)"


def test_a_cut_is_asked_for_again_while_the_request_runs_on() -> None:
    desk = Desk(Policy(idle_stream_timeout_s=50.0))
    runs = desk.serve("a")
    desk.later(50.0)
    desk.later(0.5)
    assert len(cuts(desk)) == 1
    desk.later(0.5)
    assert len(cuts(desk)) == 2
    desk.release(runs)
    desk.later(5.0)
    assert len(cuts(desk)) == 2


def test_a_byte_that_was_told_too_late_takes_the_cut_back() -> None:
    desk = Desk(Policy(first_byte_timeout_s=30.0, idle_stream_timeout_s=0.5))
    desk.release(desk.serve("a"))
    silent = desk.arrive("a")
    desk.later(30.0)
    assert len(cuts(desk)) == 1
    desk.progress(silent)
    assert len(cuts(desk)) == 1
    desk.later(0.5)
    assert len(cuts(desk)) == 2


def test_a_request_by_which_the_model_is_loaded_has_the_time_of_a_load_first() -> None:
    desk = Desk(Policy(first_byte_timeout_s=30.0, load_timeout_s=100.0))
    desk.arrive("a", recipe=None)
    desk.report()
    desk.later(129.0)
    assert cuts(desk) == []
    desk.later(1.1)
    assert len(cuts(desk)) == 1


def test_what_was_relayed_in_bypass_mode_has_no_limit() -> None:
    desk = Desk(Policy(first_byte_timeout_s=30.0))
    desk.tell(ModeSet("bypass"))
    desk.arrive("a")
    desk.later(100.0)
    assert cuts(desk) == []


def test_the_running_requests_of_a_model_that_must_go_are_cut_at_the_drains_deadline() -> None:
    desk = Desk(Policy(turn_limit_s=1.0, drain_timeout_s=20.0))
    runs = desk.serve("a")
    desk.arrive("b")
    fresh(desk, 2.0)
    assert desk.phase == "draining"
    desk.later(19.9)
    desk.progress(runs)
    assert cuts(desk) == []
    desk.later(0.1)
    (cut,) = cuts(desk)
    assert (cut.ticket_id, cut.unless_moved_since) == (runs, None)
    assert (cut.rejection.code, cut.rejection.status, cut.rejection.retry_after_s) == ("drain_timeout", 503, 10)
    assert cut.rejection.message == "a makes room for b, and this request had not ended after 20 s (drain_timeout_s)"
    desk.release(runs)
    desk.report("a")
    assert desk.evicted() == ["a"]


def test_a_drain_that_stands_still_cuts_nobody() -> None:
    desk = Desk(Policy(turn_limit_s=1.0, drain_timeout_s=20.0))
    desk.serve("a")
    desk.arrive("b")
    fresh(desk, 2.0)
    desk.tell(Paused())
    desk.later(100.0)
    assert cuts(desk) == []
    desk.tell(Resumed())
    desk.later(19.0)
    assert cuts(desk) == []
    desk.later(1.0)
    assert len(cuts(desk)) == 1


def test_a_models_own_limits_go_before_those_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"a": Traits(upkeep=Upkeep(drain_timeout_s=5.0, first_byte_timeout_s=0.0))}
    monkeypatch.setattr("tests.core.desk.traits", lambda key: own.get(key, Traits()))
    desk = Desk(Policy(turn_limit_s=1.0, drain_timeout_s=20.0, first_byte_timeout_s=1.0))
    desk.release(desk.serve("a"))
    desk.arrive("a")
    desk.arrive("b")
    fresh(desk, 2.0)
    assert cuts(desk) == []
    desk.later(5.0)
    (cut,) = cuts(desk)
    assert cut.rejection.code == "drain_timeout"


def test_while_a_request_has_time_for_its_first_byte_nothing_is_stuck() -> None:
    desk = Desk(Policy(turn_limit_s=1.0, stuck_after_s=60.0, first_byte_timeout_s=300.0))
    desk.release(desk.serve("a"))
    silent = desk.arrive("a")
    waits = desk.arrive("b")
    fresh(desk, 2.0)
    for _ in range(5):
        fresh(desk, 59.0)
    assert desk.phase == "draining"
    assert desk.rejected() == {}
    fresh(desk, 3.0)
    assert [cut.ticket_id for cut in cuts(desk)] == [silent]
    fresh(desk, 61.0)
    assert desk.rejected()[waits].code == "drain_stuck"


def test_nor_is_who_waits_for_a_lease_of_that_model() -> None:
    desk = Desk(Policy(parallel=1, stuck_after_s=60.0, first_byte_timeout_s=300.0))
    desk.release(desk.serve("a"))
    desk.arrive("a")
    waits = desk.arrive("a")
    fresh(desk, 299.0)
    assert desk.rejected() == {}
    fresh(desk, 62.0)
    assert desk.rejected()[waits].code == "nothing_moved"
