"""What would happen now, and why; and that nothing does."""

from __future__ import annotations

import dataclasses
import json
import pickle

from ollama_swap_proxy.core.events import LoadFailure
from ollama_swap_proxy.core.explain import Explanation, in_words
from ollama_swap_proxy.core.policy import Policy
from ollama_swap_proxy.core.tickets import Ticket, Variant
from tests.core.desk import RECIPE, Desk, resident, traits
from tests.core.world import World


def explained(desk: Desk, key: str, options: str = "") -> Explanation:
    """Ask, and see that nothing changes by it."""
    before = pickle.dumps(desk.state)
    ticket = Ticket(0, Variant(key, options), key, desk.now, RECIPE, "operator", traits=traits(key))
    told = desk.scheduler.explain(ticket, desk.now)
    assert pickle.dumps(desk.state) == before
    assert json.loads(json.dumps(dataclasses.asdict(told)))["model"] == key
    return told


def serving(policy: Policy | None = None, *, lingers: bool = False) -> Desk:
    """A desk with model a resident and idle."""
    desk = Desk(policy or Policy(parallel=1), lingers=lingers)
    desk.release(desk.serve("a"))
    desk.report("a")
    return desk


def test_a_resident_model_with_a_free_lease_is_served_at_once() -> None:
    told = explained(serving(), "a")
    assert (told.prospect, told.resident, told.victims, told.expected_wait_s) == ("granted", True, (), 0.0)
    assert in_words(told) == (
        "A request for a would be served at once: it is resident, and a lease is free.\n"
        "Expected wait: 0 s, in class normal."
    )


def test_a_busy_model_is_waited_for_by_its_leases() -> None:
    desk = serving()
    desk.arrive("a")
    desk.arrive("a")
    told = explained(desk, "a")
    assert told.prospect == "waits_for_lease"
    assert told.why == "it is resident, 1 of at most 1 requests run and 1 wait"
    assert told.expected_wait_s is not None


def test_for_another_model_the_idle_one_would_go_and_it_says_why() -> None:
    told = explained(serving(), "b")
    assert told.prospect == "swap"
    (victim,) = told.victims
    assert victim.name == "a"
    assert "only one of a" in victim.because
    assert "residency is exclusive" in victim.because
    assert "a would have to go: only one of a (0 MiB) and b (size unknown)" in in_words(told)


def test_a_model_that_is_used_keeps_its_turn_and_it_says_until_when() -> None:
    desk = serving()
    desk.arrive("a")
    told = explained(desk, "b")
    assert told.prospect == "waits_for_turn"
    assert told.why.startswith("a has the turn for 10.0 s at most; ")
    assert told.expected_wait_s is not None


def test_an_idle_model_that_lingers_says_so() -> None:
    desk = serving(Policy(parallel=1), lingers=True)
    desk.state.forecast.swap_s[Variant("b")] = 10.0
    told = explained(desk, "b")
    assert told.prospect == "waits_for_turn"
    assert "kept for who is likely to come back" in told.why


def test_who_waits_for_longer_comes_first() -> None:
    desk = serving()
    desk.arrive("a")
    desk.arrive("b")
    desk.now += 2.0
    told = explained(desk, "c")
    assert (told.prospect, told.why) == ("waits_for_turn", "b, waited for since 2 s, comes first")


def test_with_others_that_wait_for_the_same_model_the_turn_is_what_counts() -> None:
    desk = serving()
    desk.arrive("a")
    desk.arrive("b")
    assert explained(desk, "b").why.startswith("a has the turn")


def test_a_swap_under_way_is_named_with_its_step() -> None:
    desk = serving()
    desk.arrive("b")
    assert explained(desk, "b").why == "a swap to it is under way (evicting)"
    assert explained(desk, "c").why == "a swap to b is under way (evicting)"
    assert explained(desk, "c").prospect == "waits_for_swap"


def test_a_model_that_failed_to_load_would_be_turned_away() -> None:
    desk = serving()
    desk.arrive("b")
    desk.later(0.1)
    desk.report()
    desk.loaded("b", LoadFailure(500, "no such tensor"))
    told = explained(desk, "b")
    assert (told.prospect, told.expected_wait_s) == ("cool_down", None)
    assert told.why == "it failed to load lately, and is not tried for 10 s: no such tensor"


def test_what_cannot_be_beside_a_pin_would_be_turned_away() -> None:
    desk = Desk(Policy(vram_budget_bytes=1))
    desk.release(desk.serve("pin1"))
    desk.report("pin1")
    desk.state.sizes[Variant("pin1")] = 1000
    told = explained(desk, "b")
    assert told.prospect == "rejected"
    assert told.why.startswith("pinned_out: b")


def test_a_full_line_turns_away() -> None:
    desk = serving(Policy(parallel=1, line_limit=1))
    desk.arrive("a")
    desk.arrive("b")
    assert explained(desk, "c").why == "line_full: 1 requests wait already (line_limit)"


def test_an_embedder_would_be_tried_beside_the_model_that_is_there() -> None:
    told = explained(serving(), "e1")
    assert (told.victims, told.stays, told.trial) == ((), ("a",), True)
    assert "have not been tried together" in told.stays_because
    assert "That would be a trial" in in_words(told)


def test_what_is_known_of_a_model_by_the_asker_alone_is_not_remembered() -> None:
    desk = serving()
    explained(desk, "e1")
    assert "e1" not in desk.state.traits
    assert Variant("e1") not in desk.state.recipes


def test_a_pause_after_a_swap_that_was_given_up_is_told() -> None:
    desk = serving(Policy(unload_timeout_s=10.0, cool_down_s=30.0))
    desk.arrive("b")
    desk.later(10.5)
    told = explained(desk, "c")
    assert told.prospect == "held_off"
    assert "not tried again for 30 s" in told.why


def test_unknown_residency_is_told() -> None:
    desk = serving()
    desk.no_report()
    assert explained(desk, "b").why == "what is resident is unknown: late"


def test_other_options_of_the_resident_model_are_a_swap() -> None:
    told = explained(serving(), "a", "num_ctx=8192")
    assert (told.resident, [victim.name for victim in told.victims]) == (False, ["a"])
    assert "same model with other runner options" in told.victims[0].because


def test_a_model_that_others_loaded_is_seen_too() -> None:
    desk = Desk()
    desk.report(resident("x"))
    assert explained(desk, "x").resident
    assert [victim.name for victim in explained(desk, "b").victims] == ["x"]


def test_a_history_in_which_somebody_asks_at_each_step_is_the_same() -> None:
    def play(*, curious: bool) -> list[object]:
        world = World(load_s=2.0)
        for number in range(30):
            world.ask("abcd"[number % 4], at=number * 0.7, hold_s=0.5 + number % 3, client=f"c{number % 5}")
        for step in range(400):
            world.run(until=step * 0.25)
            if curious:
                for key in "abcx":
                    world.scheduler.explain(Ticket(0, Variant(key), key, world.now, RECIPE), world.now)
        return [world.steps, [(outcome.granted_at, outcome.ended_at) for outcome in world.outcomes.values()]]

    assert play(curious=True) == play(curious=False)
