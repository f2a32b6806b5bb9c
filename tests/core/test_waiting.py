"""Expected waits: that they follow who goes first, what runs, and what is under way; and how good they are."""

from __future__ import annotations

import pickle

import pytest

from ollama_swap_proxy.core import waiting
from ollama_swap_proxy.core.classes import TicketClass
from ollama_swap_proxy.core.policy import Policy
from ollama_swap_proxy.core.tickets import Ticket, Variant
from tests.core.desk import RECIPE, Desk
from tests.core.world import World

LOAD_S, UNLOAD_S, ANSWER_S = 4.0, 0.5, 3.0
SWAP_S = UNLOAD_S + LOAD_S


def desk(policy: Policy | None = None, *, lingers: bool = False) -> Desk:
    """A desk that has learned what models a, b and c take, with a resident and idle."""
    known = Desk(policy or Policy(parallel=1), lingers=lingers)
    known.release(known.serve("a"))
    forecast = known.state.forecast
    for learned in (forecast.load_s, forecast.answer_s, forecast.swap_s, forecast.unload_s):
        learned.clear()
    for key in "abc":
        forecast.note_load_time(Variant(key), LOAD_S)
        forecast.note_swap(Variant(key), SWAP_S)
        forecast.note_unload_time(key, UNLOAD_S)
        forecast.note_answer(Variant(key), ANSWER_S)
    known.report("a")
    return known


def expected(known: Desk, ticket_id: int) -> float:
    return waiting.expected_grants(known.state, known.now)[ticket_id] - known.now


def asked(known: Desk, key: str, client: str = "new") -> float | None:
    """The expected wait of one who has not come yet."""
    return waiting.expected_wait_s(known.state, Ticket(0, Variant(key), key, known.now, RECIPE, client), known.now)


def test_who_would_be_granted_now_is_expected_to_wait_for_nothing() -> None:
    assert asked(desk(), "a") == 0.0


def test_behind_a_running_request_the_rest_of_its_usual_time_is_waited_for() -> None:
    known = desk()
    known.arrive("a")
    known.now += 1.0
    assert asked(known, "a") == pytest.approx(ANSWER_S - 1.0, abs=0.01)
    known.now += 3.0
    assert asked(known, "a") == pytest.approx(1.0, abs=0.01), "what is late is expected to go on for a quarter as long"


def test_each_place_in_the_line_counts_as_much_as_the_leases_allow() -> None:
    for parallel, turns_before in ((1, 3), (2, 1)):
        known = desk(Policy(parallel=parallel))
        for _ in range(3):
            known.arrive("a")
        assert asked(known, "a", client="c") == pytest.approx(turns_before * ANSWER_S, abs=0.01)


def test_another_client_goes_before_the_second_request_of_one_that_waits() -> None:
    known = desk()
    for _ in range(3):
        known.arrive("a")
    assert asked(known, "a") == pytest.approx(2 * ANSWER_S, abs=0.01)


def test_for_a_model_that_is_not_resident_the_swap_is_waited_for() -> None:
    assert asked(desk(), "b") == pytest.approx(SWAP_S, abs=0.01)


def test_the_drain_comes_before_the_swap() -> None:
    known = desk()
    known.arrive("a")
    assert asked(known, "b") == pytest.approx(ANSWER_S + SWAP_S, abs=0.01)


def test_of_a_full_line_for_the_resident_only_its_turn_is_waited_for() -> None:
    known = desk()
    for _ in range(10):
        known.arrive("a")
    ends_s = 4 * ANSWER_S  # the limit is 10 s: the fourth request begins before it
    assert asked(known, "b") == pytest.approx(ends_s + SWAP_S, abs=0.1)


def test_models_that_go_first_are_waited_for_with_their_turns() -> None:
    known = desk()
    known.arrive("a")
    first = known.arrive("b")
    assert expected(known, first) == pytest.approx(ANSWER_S + SWAP_S, abs=0.01)
    assert asked(known, "c") == pytest.approx(2 * (ANSWER_S + SWAP_S), abs=0.01)


def test_a_higher_class_does_not_wait_for_the_others_turns() -> None:
    known = desk()
    known.arrive("a")
    known.arrive("b")
    urgent = Ticket(0, Variant("c"), "c", known.now, RECIPE, klass=TicketClass("high", 20, 30.0))
    wait_s = waiting.expected_wait_s(known.state, urgent, known.now)
    assert wait_s == pytest.approx(ANSWER_S + SWAP_S, abs=0.01)


def test_of_a_swap_under_way_only_what_is_left_is_waited_for() -> None:
    known = desk()
    ticket = known.arrive("b")
    assert known.phase == "evicting"
    assert expected(known, ticket) == pytest.approx(SWAP_S, abs=0.01)
    known.later(0.4)
    assert expected(known, ticket) == pytest.approx(SWAP_S - 0.4, abs=0.01)
    known.report()
    assert known.phase == "loading"
    known.later(1.0)
    assert expected(known, ticket) == pytest.approx(LOAD_S - 1.0, abs=0.01)
    known.later(7.0)
    assert expected(known, ticket) == pytest.approx(2.0, abs=0.01), "a load that is late is not over at once"


def test_a_client_that_has_always_come_back_is_expected_to_use_its_turn_up() -> None:
    known = desk(lingers=True)
    for _ in range(8):
        known.release(known.arrive("a", client="looper"))
        known.now += 0.2
        known.report("a")
    known.arrive("a", client="looper")
    wait_s = asked(known, "b")
    assert wait_s == pytest.approx(10.0 + SWAP_S, abs=0.5)


def test_who_stands_too_far_behind_is_told_nothing() -> None:
    known = desk()
    for number in range(waiting.TURNS_FORESEEN + 5):
        known.arrive(f"m{number:02}")
    assert asked(known, "c") is None


def test_a_model_left_in_peace_for_a_while_is_waited_for_until_then() -> None:
    known = desk(Policy(unload_timeout_s=10.0, cool_down_s=30.0))
    known.arrive("b")
    known.later(10.5)
    assert known.phase is None
    assert asked(known, "b") == pytest.approx(30.0 + SWAP_S, abs=0.01)


def test_to_look_ahead_changes_nothing() -> None:
    known = desk()
    for key in "aabbc":
        known.arrive(key)
    before = pickle.dumps(known.state)
    asked(known, "c")
    known.scheduler.snapshot(known.now)
    assert pickle.dumps(known.state) == before


def test_the_snapshot_tells_it_for_each_line() -> None:
    known = desk()
    known.arrive("a")
    known.arrive("b")
    (line,) = known.scheduler.snapshot(known.now).lines
    assert line.expected_wait_s == pytest.approx(ANSWER_S + SWAP_S, abs=0.01)


@pytest.mark.parametrize(("at", "retry_after_s"), [(100.0, 1), (100.2, 1), (112.3, 13), (900.0, 59), (None, 59)])
def test_a_retry_after_is_what_client_libraries_obey(at: float | None, retry_after_s: int) -> None:
    assert waiting.retry_after_s(at, 100.0) == retry_after_s


def test_who_finds_the_line_full_comes_back_when_it_has_room() -> None:
    known = desk(Policy(parallel=1, line_limit=1))
    known.arrive("a")
    known.arrive("a")
    turned_away = known.arrive("a")
    assert known.rejected()[turned_away].retry_after_s == ANSWER_S


def test_who_waited_too_long_comes_back_when_it_would_have_been_served() -> None:
    known = desk(Policy(parallel=1))
    known.arrive("a")
    impatient = known.arrive("b", patience_s=0.5)
    known.later(0.6)
    assert known.rejected()[impatient].retry_after_s == 7  # 3 s less 0.6, and the swap


def test_after_five_loads_of_each_model_the_median_error_is_at_most_a_quarter() -> None:
    """Three clients with their own models, hold times and pauses, on a card for one."""
    world = World(policy=Policy(parallel=1), load_s=4.0, unload_s=0.3)
    for number, model in enumerate("abc"):
        for round_ in range(14):
            world.ask(model, at=round_ * 40.0 + number * 5.0 + round_ % 3, hold_s=2.0 + number, client=model)
    world.run(until=5 * 40.0)
    assert min(sum(variant.key == key for _, variant in world.loads) for key in "abc") >= 5
    world.scheduler._state.accuracy._errors.clear()
    world.run()
    assert len(world.scheduler._state.accuracy._errors) >= 10
    error = world.scheduler.snapshot(world.now).forecast_error
    assert error is not None
    assert error <= 0.25
