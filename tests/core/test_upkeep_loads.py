"""Models that are loaded though nobody asks for them, because the operator wishes it: pinned ones at the start."""

from __future__ import annotations

from ollama_swap_proxy.core import commands
from ollama_swap_proxy.core.events import Described, EvictionAnswered, LoadFailure, ModeSet, Paused, Resumed
from ollama_swap_proxy.core.policy import Policy
from ollama_swap_proxy.core.proofs import Outcome
from ollama_swap_proxy.core.tickets import Need, Variant
from tests.core.desk import RECIPE, Desk, resident, traits

PINS = Policy(preloads=("pin",))


def need(key: str, *, recipe: bool = True) -> Need:
    return Need(key, Variant(key), RECIPE if recipe else None, traits(key))


def asked(desk: Desk) -> list[str]:
    return [c.name for c in desk.all if isinstance(c, commands.Describe)]


def describe(desk: Desk, key: str) -> None:
    desk.tell(Described(key, need(key)))


def started(*residents: str, policy: Policy = PINS) -> Desk:
    """A desk whose pin is to be loaded; Ollama has just said what it needs."""
    desk = Desk(policy)
    assert asked(desk) == []
    desk.report(*residents)
    assert asked(desk) == ["pin"]
    describe(desk, "pin")
    return desk


def load(desk: Desk, key: str, *beside: str) -> None:
    desk.loaded(key)
    desk.report(key, *beside)


def test_a_pin_is_loaded_after_the_first_report_and_only_once() -> None:
    desk = started()
    assert desk.loads() == ["pin"]
    assert desk.said("swap_decided")[0]["reason"] == "preload"
    assert desk.scheduler.snapshot(desk.now).preloads == ("pin",)
    load(desk, "pin")
    assert desk.scheduler.snapshot(desk.now).preloads == ()
    desk.later(5.0)
    desk.report()
    assert desk.loads() == ["pin"], "it went by itself"


def test_one_that_is_resident_already_is_not_loaded() -> None:
    desk = started("pin")
    assert (desk.loads(), desk.phase) == ([], None)
    assert desk.scheduler.snapshot(desk.now).preloads == ()


def test_without_the_setting_a_pin_is_not_loaded() -> None:
    desk = Desk()
    desk.report()
    desk.later(10.0)
    assert (asked(desk), desk.loads()) == ([], [])


def test_nothing_is_loaded_while_somebody_waits_or_runs() -> None:
    desk = Desk(PINS)
    asks = desk.arrive("a")
    desk.report()
    assert desk.loads() == ["a"]
    load(desk, "a")
    assert asks in desk.granted()
    desk.later(2.0)
    desk.report("a")
    assert asked(desk) == []
    desk.release(asks)
    assert asked(desk) == ["pin"]
    describe(desk, "pin")
    assert (desk.loads(), desk.evicted()) == (["a", "pin"], []), "an idle resident goes only if it must"


def test_an_idle_model_makes_room_where_it_must() -> None:
    desk = started("x")
    assert desk.evicted() == ["x"]
    desk.tell(EvictionAnswered("x", accepted=True))
    desk.report()
    assert desk.loads() == ["pin"]


def test_who_comes_before_the_load_takes_the_swap_over() -> None:
    desk = started("x")
    first = desk.arrive("a")
    desk.tell(EvictionAnswered("x", accepted=True))
    desk.report()
    assert desk.said("swap_retargeted")[0]["target"] == "a"
    load(desk, "a")
    assert first in desk.granted()
    assert desk.loads() == ["a"]
    desk.release(first)
    desk.later(2.0)
    desk.report("a")
    describe(desk, "pin")
    assert desk.said("swap_decided")[-1]["reason"] == "preload"


def test_what_ollama_does_not_have_is_said_once_and_looked_for_every_minute() -> None:
    desk = Desk(PINS)
    desk.report()
    desk.tell(Described("pin", None, "Ollama has no model pin"))
    assert desk.said("wish_not_granted") == [{"model": "pin", "reason": "Ollama has no model pin"}]
    desk.later(59.0)
    desk.report()
    assert asked(desk) == ["pin"]
    desk.later(1.0)
    desk.report()
    assert asked(desk) == ["pin", "pin"]
    desk.tell(Described("pin", None, "Ollama has no model pin"))
    assert len(desk.said("wish_not_granted")) == 1
    desk.later(61.0)
    desk.report()
    describe(desk, "pin")
    assert desk.loads() == ["pin"]


def test_one_that_only_a_request_can_load_is_left_to_it() -> None:
    desk = Desk(PINS)
    desk.report()
    desk.tell(Described("pin", need("pin", recipe=False)))
    assert desk.said("wish_not_granted")[0]["reason"] == "only a request can load it"
    assert desk.loads() == []


def test_a_load_that_fails_is_not_repeated_even_without_a_cool_down() -> None:
    desk = started(policy=Policy(preloads=("pin",), cool_down_s=0.0))
    desk.loaded("pin", LoadFailure(500, "no such tensor"))
    for _ in range(5):
        desk.later(100.0)
        desk.report()
    assert desk.loads() == ["pin"]
    assert desk.scheduler.snapshot(desk.now).preloads == ()


def test_one_that_vanishes_after_an_empty_load_is_left_to_its_first_request() -> None:
    desk = started()
    desk.loaded("pin")
    desk.report()
    for _ in range(3):
        desk.later(100.0)
        desk.report()
    assert desk.loads() == ["pin"]
    assert desk.scheduler.snapshot(desk.now).preloads == ()


def test_one_that_cannot_be_beside_another_pin_is_said_and_not_tried() -> None:
    desk = Desk(Policy(preloads=("pin",), vram_budget_bytes=1500))
    desk.state.sizes |= {Variant("pin"): 1000, Variant("pina"): 1000}
    desk.report("pina")
    desk.state.residency.learn_options(Variant("pina"), desk.now)
    describe(desk, "pin")
    assert desk.loads() == []
    assert "pina" in desk.said("wish_not_granted")[0]["reason"]


def test_only_the_operator_loads_in_manual_mode_and_nobody_while_paused() -> None:
    for fact, back in (
        (ModeSet("manual"), ModeSet("auto")),
        (Paused(), Resumed()),
        (ModeSet("bypass"), ModeSet("auto")),
    ):
        desk = Desk(PINS)
        desk.tell(fact)
        desk.report()
        desk.later(5.0)
        desk.report()
        assert asked(desk) == [], fact
        desk.tell(back)
        desk.report()
        assert asked(desk) == ["pin"], fact


def test_a_description_that_is_old_is_asked_for_again() -> None:
    desk = Desk(PINS)
    desk.report()
    asks = desk.arrive("a")
    describe(desk, "pin")
    load(desk, "a")
    desk.later(5.0)
    desk.release(asks)
    desk.report("a")
    assert asked(desk) == ["pin", "pin"]


def settled_pin() -> Desk:
    desk = started()
    load(desk, "pin")
    desk.later(2.0)
    desk.report(resident("pin", expires_in_s=300.0))
    return desk


def test_after_upstream_was_away_pins_are_loaded_again() -> None:
    desk = settled_pin()
    desk.no_report(unreachable=True)
    desk.later(1.0)
    desk.report("x")
    assert asked(desk) == ["pin", "pin"]


def test_so_they_are_when_all_was_gone_at_once_before_its_time() -> None:
    desk = settled_pin()
    desk.later(5.0)
    desk.report()
    assert asked(desk) == ["pin", "pin"]


def test_but_not_when_its_time_was_over_or_somebody_may_have_unloaded_it() -> None:
    desk = settled_pin()
    desk.later(301.0)
    desk.report()
    assert asked(desk) == ["pin"]
    desk = settled_pin()
    desk.state.residency.outdated_at = desk.now
    desk.report()
    assert asked(desk) == ["pin"]


def test_what_goes_by_our_own_doing_is_no_restart() -> None:
    desk = started(policy=Policy(preloads=("pin",)))
    desk.loaded("pin", LoadFailure(500, "no such tensor"))
    desk.report()
    desk.release(desk.serve("a"))
    desk.report(resident("a", expires_in_s=300.0))
    desk.arrive("b")
    assert desk.evicted() == ["a"]
    desk.tell(EvictionAnswered("a", accepted=True))
    desk.report()
    assert desk.scheduler.snapshot(desk.now).preloads == ()


def test_a_victim_that_resists_is_left_alone_for_a_while() -> None:
    desk = started("x", policy=Policy(preloads=("pin",), unload_timeout_s=5.0, stuck_after_s=5.0, cool_down_s=30.0))
    assert desk.evicted() == ["x"]
    desk.later(6.0)
    assert desk.said("swap_given_up")
    desk.report("x")
    desk.later(2.0)
    desk.report("x")
    describe(desk, "pin")
    assert desk.phase is None
    desk.later(30.0)
    desk.report("x")
    describe(desk, "pin")
    assert desk.phase == "evicting"


def test_a_companion_that_is_proven_is_served_while_a_pin_is_loaded_beside_it() -> None:
    desk = Desk(PINS)
    desk.state.proofs.note([Variant("pin"), Variant("e")], "pin", Outcome.FITTED, trial=True)
    first = desk.arrive("e")
    desk.report()
    load(desk, "e")
    desk.release(first)
    describe(desk, "pin")
    assert desk.loads() == ["e", "pin"]
    assert desk.arrive("e") in desk.granted()
