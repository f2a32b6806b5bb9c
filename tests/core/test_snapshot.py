"""The picture for the operator: who is resident, who waits and since when, ready for JSON."""

from __future__ import annotations

import dataclasses
import json

from ollama_swap_proxy.core import events
from ollama_swap_proxy.core.classes import TicketClass
from ollama_swap_proxy.core.policy import Policy
from ollama_swap_proxy.core.scheduler import Scheduler
from ollama_swap_proxy.core.snapshot import ClassSeen, ReloadSeen, json_members
from ollama_swap_proxy.core.tickets import LoadRecipe, Report, Resident, Ticket, Variant
from tests.core.desk import Desk

RECIPE = LoadRecipe("/api/generate", b"{}")


def _ticket(number: int, key: str, at: float) -> Ticket:
    return Ticket(number, Variant(key), f"{key}:latest", at, RECIPE, client="10.0.0.1")


def _scheduler() -> Scheduler:
    scheduler = Scheduler(Policy(), 0.0)
    resident = Resident("a", "a:latest", "d", 100, 80, expires_in_s=30.0)
    scheduler.handle(events.ResidencyObserved(Report(0.0, (resident,))), 0.1)
    return scheduler


def test_before_the_first_report_nothing_is_claimed() -> None:
    seen = Scheduler(Policy(), 0.0).snapshot(5.0)
    assert seen.report_age_s is None
    assert (seen.residents, seen.lines, seen.leases, seen.swap) == ((), (), (), None)


def test_residents_show_their_sizes_and_that_their_options_are_unknown() -> None:
    (resident,) = _scheduler().snapshot(1.1).residents
    assert (resident.name, resident.size_bytes, resident.size_vram_bytes, resident.spilled_bytes) == (
        "a:latest",
        100,
        80,
        20,
    )
    assert resident.options is None
    assert _scheduler().snapshot(1.1).report_age_s == 1.0


def test_who_runs_and_who_waits_is_told_apart_with_the_reason_of_the_swap() -> None:
    scheduler = _scheduler()
    scheduler.handle(events.Arrived(_ticket(1, "a", 0.2)), 0.2)
    scheduler.handle(events.Arrived(_ticket(2, "b", 1.0)), 1.0)
    seen = scheduler.snapshot(2.0)
    assert [(lease.id, lease.client) for lease in seen.leases] == [(1, "10.0.0.1")]
    assert [(line.name, line.waiting, line.longest_wait_s) for line in seen.lines] == [("b:latest", 1, 1.0)]


def test_the_turn_says_which_model_is_next_and_when_the_present_one_makes_room() -> None:
    desk = Desk()
    desk.serve("a")
    assert desk.scheduler.snapshot(desk.now).turn.next is None
    desk.later(1.0)
    desk.report("a")
    desk.arrive("b")
    turn = desk.scheduler.snapshot(desk.now + 4.0).turn
    assert (turn.next, turn.ends_because, turn.lingers) == ("b", "limit", False)
    assert turn.ends_in_s == 5.999


def test_it_is_plain_json() -> None:
    scheduler = _scheduler()
    scheduler.handle(events.Arrived(_ticket(1, "b", 0.2)), 0.2)
    picture = json.loads(json.dumps(dataclasses.asdict(scheduler.snapshot(0.3), dict_factory=json_members)))
    assert picture["swap"]["target"] == "b:latest"
    assert picture["swap"]["victims"] == ["a:latest"]
    assert picture["lines"][0]["classes"] == [{"class": "normal", "waiting": 1, "longest_wait_s": 0.1}]


def test_a_swap_shows_which_running_requests_it_waits_for() -> None:
    desk = Desk(Policy(turn_limit_s=1.0))
    lease = desk.serve("a")
    desk.arrive("b")
    desk.later(1.2)
    desk.report("a")
    swap = desk.scheduler.snapshot(desk.now).swap
    assert swap is not None
    assert (swap.phase, swap.waits_for_leases) == ("draining", (lease,))


def test_a_load_by_a_request_does_not_wait_for_that_request() -> None:
    desk = Desk()
    desk.arrive("a", recipe=None)
    desk.report()
    seen = desk.scheduler.snapshot(desk.now)
    assert seen.swap is not None
    assert len(seen.leases) == 1
    assert seen.swap.waits_for_leases == ()


def test_a_model_that_resisted_shows_until_its_pause_ends() -> None:
    desk = Desk(Policy(unload_timeout_s=10.0, cool_down_s=30.0))
    desk.release(desk.serve("a"))
    desk.arrive("b")
    desk.later(11.0)
    desk.arrive("b")
    seen = desk.scheduler.snapshot(desk.now)
    (resisting,) = seen.resisting
    assert (resisting.key, round(resisting.remaining_s), resisting.failures) == ("a", 30, 1)
    assert "unload was not confirmed" in resisting.reason
    assert seen.swap is None
    assert [line.waiting for line in seen.lines] == [1]
    assert desk.scheduler.snapshot(desk.now + 31.0).resisting == ()


def test_who_runs_and_who_waits_is_shown_with_its_class_the_highest_first() -> None:
    batch, interactive = TicketClass("batch", 0, 1800.0), TicketClass("interactive", 20, 60.0)
    desk = Desk()
    desk.serve("a", klass=batch)
    for klass in (batch, interactive, batch):
        desk.later(1.0)
        desk.arrive("b", klass=klass)
    seen = desk.scheduler.snapshot(desk.now)
    assert [lease.klass for lease in seen.leases] == ["batch"]
    (line,) = seen.lines
    assert line.classes == (
        ClassSeen("interactive", 1, 1.003),
        ClassSeen("batch", 2, line.longest_wait_s),
    )


def test_a_swap_shows_who_stays_beside_its_target_and_whether_that_is_a_trial() -> None:
    desk = Desk()
    desk.release(desk.serve("e"))
    desk.arrive("a")
    desk.report("e")
    seen = desk.scheduler.snapshot(desk.now)
    assert seen.swap is not None
    assert (seen.swap.beside, seen.swap.trial, seen.swap.victims, seen.swap.reload) == (("e",), True, (), None)


def test_residents_show_whether_they_are_pinned() -> None:
    desk = Desk()
    desk.report("pin", "a")
    assert {each.name: each.pinned for each in desk.scheduler.snapshot(desk.now).residents} == {"pin": True, "a": False}


def test_a_swap_that_is_a_reload_shows_who_wants_which_other_option() -> None:
    desk = Desk()
    desk.release(desk.serve("a", options="num_ctx=4096"))
    desk.later(1.0)
    desk.report("a")
    ticket = desk.arrive("a", options="num_ctx=8192", client="greedy")
    swap = desk.scheduler.snapshot(desk.now).swap
    assert swap is not None
    assert swap.reload == ReloadSeen("greedy", ticket, ("num_ctx 4096 -> 8192",))
    (said,) = desk.said("variant_reload")
    assert (said["client"], said["request"], said["changes"]) == ("greedy", ticket, ["num_ctx 4096 -> 8192"])


def test_a_swap_turned_over_to_another_model_is_no_reload_any_more() -> None:
    desk = Desk()
    desk.serve("a", options="num_ctx=4096")
    left = desk.arrive("a", options="num_ctx=8192")
    desk.later(11.0)
    desk.report("a")
    assert desk.phase == "draining"
    desk.arrive("b")
    desk.tell(events.Abandoned(left))
    swap = desk.scheduler.snapshot(desk.now).swap
    assert swap is not None
    assert (swap.target, swap.reload) == ("b", None)


def test_a_swap_turned_over_to_other_options_becomes_a_reload() -> None:
    desk = Desk()
    desk.serve("a", options="num_ctx=4096")
    left = desk.arrive("b")
    desk.later(11.0)
    desk.report("a")
    assert desk.phase == "draining"
    ticket = desk.arrive("a", options="num_ctx=8192", client="greedy")
    desk.tell(events.Abandoned(left))
    swap = desk.scheduler.snapshot(desk.now).swap
    assert swap is not None
    assert swap.reload == ReloadSeen("greedy", ticket, ("num_ctx 4096 -> 8192",))
    assert [said["request"] for said in desk.said("variant_reload")] == [ticket]
