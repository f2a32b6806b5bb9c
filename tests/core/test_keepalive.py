"""The operator's keep_alive is set anew behind each one that a client sends, and never so that a model is loaded."""

from __future__ import annotations

import pytest

from ollama_swap_proxy.core import commands
from ollama_swap_proxy.core.events import Arrived, KeptAlive, ModeSet
from ollama_swap_proxy.core.policy import Policy
from ollama_swap_proxy.core.tickets import Ticket, Variant
from tests.core.desk import RECIPE, Desk

KEPT = Policy(keep_alive=600.0)


def sent(desk: Desk) -> int:
    return sum(isinstance(c, commands.KeepAlive) for c in desk.all)


def ask(desk: Desk, key: str = "a", *, briefly: bool = False, own: bool = True) -> int:
    ticket = Ticket(
        1000 + len(desk.all), Variant(key), key, desk.now, RECIPE, stays_briefly=briefly, sets_keep_alive=own
    )
    desk.tell(Arrived(ticket))
    return ticket.id


def warm(policy: Policy = KEPT) -> Desk:
    """A desk with ``a`` resident, whose keep_alive was set after its load."""
    desk = Desk(policy)
    desk.release(desk.serve("a"))
    desk.tell(KeptAlive("a"))
    return desk


def test_it_is_set_once_a_model_is_loaded_with_the_recipe_of_its_variant() -> None:
    desk = Desk(KEPT)
    desk.serve("a", "num_ctx=8192")
    (command,) = [c for c in desk.all if isinstance(c, commands.KeepAlive)]
    assert command == commands.KeepAlive("a", "a", RECIPE, 600.0)
    assert sent(desk) == 1


def test_by_default_it_is_never_set() -> None:
    desk = Desk()
    desk.serve("a")
    desk.release(ask(desk))
    desk.later(1.0)
    assert sent(desk) == 0


def test_it_is_set_anew_behind_a_request_with_one_of_its_own_and_no_other() -> None:
    desk = warm()
    desk.release(ask(desk, own=False))
    assert sent(desk) == 1
    asked = ask(desk)
    desk.later(5.0)
    assert sent(desk) == 1
    desk.report("a")
    desk.release(asked)
    assert sent(desk) == 2


def test_behind_it_only_by_a_fresh_view() -> None:
    desk = warm()
    asked = ask(desk)
    desk.later(5.0)
    desk.release(asked)
    assert sent(desk) == 1
    desk.report("a")
    assert sent(desk) == 2


def test_a_short_one_is_overruled_while_its_request_runs() -> None:
    desk = warm(Policy(keep_alive=600.0, ps_interval_s=3600.0))
    asked = ask(desk, briefly=True)
    assert [c.at for c in desk.out if isinstance(c, commands.WakeAt)] == [pytest.approx(desk.now + 0.25, abs=0.01)]
    desk.later(0.24)
    assert sent(desk) == 1
    desk.later(0.02)
    assert sent(desk) == 2
    desk.tell(KeptAlive("a"))
    desk.later(3.0)
    desk.release(asked)
    desk.report("a")
    assert sent(desk) == 2


def test_a_short_request_with_a_short_one_is_left_alone() -> None:
    desk = warm()
    desk.release(ask(desk, briefly=True))
    desk.report("a")
    desk.later(3.0)
    assert sent(desk) == 1


def test_one_request_of_ours_is_under_way_at_a_time_and_a_failure_is_told() -> None:
    desk = warm()
    desk.release(ask(desk))
    desk.release(ask(desk))
    assert sent(desk) == 2
    desk.tell(KeptAlive("a", "timeout: not answered"))
    assert sent(desk) == 3
    assert desk.said("keep_alive_not_set") == [{"model": "a", "reason": "timeout: not answered"}]


def test_an_eviction_waits_for_its_answer() -> None:
    desk = warm()
    desk.release(ask(desk))
    desk.arrive("b")
    desk.later(0.1)
    desk.report("a")
    assert (desk.phase, desk.evicted()) == ("evicting", [])
    desk.tell(KeptAlive("a"))
    assert desk.evicted() == ["a"]


def test_a_victim_is_not_kept() -> None:
    desk = warm(Policy(keep_alive=600.0, turn_limit_s=1.0))
    asked = ask(desk)
    desk.arrive("b")
    desk.later(2.0)
    desk.report("a")
    assert desk.phase == "draining"
    desk.release(asked)
    desk.report("a")
    assert desk.evicted() == ["a"]
    assert sent(desk) == 1


def test_a_runner_with_options_that_we_do_not_know_is_set_when_its_request_shows_them() -> None:
    desk = Desk(KEPT)
    desk.report("a")
    assert sent(desk) == 0
    asked = ask(desk, own=False)
    assert asked in desk.granted()
    desk.later(1.0)
    assert sent(desk) == 0, "Ollama may be loading it"
    desk.progress(asked)
    assert sent(desk) == 1


def test_not_in_bypass_mode() -> None:
    desk = warm()
    desk.tell(ModeSet("bypass"))
    desk.release(ask(desk))
    desk.report("a")
    assert sent(desk) == 1


def test_what_is_gone_is_not_kept() -> None:
    desk = warm()
    asked = ask(desk)
    desk.later(5.0)
    desk.release(asked)
    desk.report()
    desk.later(1.0)
    desk.report()
    assert sent(desk) == 1


def test_a_time_to_live_ends_behind_its_answer_so_that_who_comes_meanwhile_is_served() -> None:
    desk = warm(Policy(keep_alive=600.0, ttl_s=1.0))
    desk.release(ask(desk))
    assert sent(desk) == 2
    desk.later(1.1)
    desk.report("a")
    asked = ask(desk, own=False)
    desk.tell(KeptAlive("a"))
    assert asked in desk.granted()
    assert desk.evicted() == []
    desk.release(asked)
    desk.later(1.1)
    desk.report("a")
    assert desk.evicted() == ["a"]
