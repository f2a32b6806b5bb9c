"""What loads teach: their cost, and how late memory comes back."""

from __future__ import annotations

from ollama_swap_proxy.core.forecast import Forecast, Spill
from ollama_swap_proxy.core.policy import VARIANTS_KEPT
from ollama_swap_proxy.core.tickets import Resident, Variant

A, B = Variant("a"), Variant("b")
SIZE = 1000


def _note(forecast: Forecast, vram: int, waited_s: float = 0.0, *, largest: int = 0, freed: int = 0) -> Spill:
    loaded = Resident("a", "a:latest", "d", SIZE, vram)
    return forecast.note_load(loaded, A, waited_s, largest_vram_bytes=largest, freed_bytes=freed)


def test_an_unknown_swap_costs_what_others_cost_on_average() -> None:
    forecast = Forecast(6.0)
    assert forecast.swap_cost_s(A) > 0
    forecast.note_swap(A, 2.0)
    assert forecast.swap_cost_s(A) == 2.0
    assert forecast.swap_cost_s(B) == 2.0


def test_a_new_duration_counts_more_than_it_would_in_a_plain_mean_but_not_alone() -> None:
    forecast = Forecast(6.0)
    for took_s in (10.0, 10.0, 10.0, 10.0, 20.0):
        forecast.note_swap(A, took_s)
    assert 12.0 < forecast.swap_cost_s(A) < 20.0


def test_the_first_wait_is_where_learning_begins_and_where_a_new_device_begins_anew() -> None:
    forecast = Forecast(6.0, settle_first_s=0.5)
    assert forecast.settle_s == 0.5
    _note(forecast, SIZE, 0.5)
    _note(forecast, 600, 0.5)
    assert forecast.settle_s == 1.0
    forecast.forget_settle()
    assert forecast.settle_s == 0.5
    assert Forecast(0.2, settle_first_s=0.5).settle_s == 0.2, "never longer than the longest"


def test_nothing_is_waited_for_until_a_load_spills_that_once_fitted() -> None:
    forecast = Forecast(6.0)
    assert _note(forecast, SIZE) is Spill.NONE
    assert forecast.settle_before_s(A) == 0.0
    waits = []
    for _ in range(5):
        assert _note(forecast, 600, forecast.settle_s) is Spill.RELOAD
        waits.append(forecast.settle_s)
    assert waits == [0.5, 1.0, 2.0, 4.0, 6.0]


def test_a_spill_after_the_longest_wait_proves_that_lag_is_not_the_cause() -> None:
    forecast = Forecast(6.0)
    _note(forecast, SIZE)
    for _ in range(5):
        _note(forecast, 600, forecast.settle_s)
    assert _note(forecast, 600, 6.0) is Spill.ACCEPTED
    assert forecast.settle_s == 0.0
    assert _note(forecast, 600, 0.0) is Spill.ACCEPTED


def test_a_model_first_seen_spilled_is_tried_once_after_the_longest_wait() -> None:
    forecast = Forecast(6.0)
    assert _note(forecast, 600, largest=SIZE) is Spill.RELOAD
    assert forecast.settle_before_s(A) == 6.0
    assert forecast.settle_before_s(B) == 0.0
    assert _note(forecast, SIZE, 6.0) is Spill.NONE
    assert forecast.settle_before_s(A) == 0.5  # only the wait was different: it was lag


def test_a_model_larger_than_anything_seen_is_left_as_it_is() -> None:
    assert _note(Forecast(6.0), 600, largest=SIZE - 1, freed=100) is Spill.ACCEPTED


def test_a_spill_no_larger_than_what_was_just_freed_is_suspected_of_lag() -> None:
    assert _note(Forecast(6.0), 600, largest=SIZE - 1, freed=400) is Spill.RELOAD


def test_a_load_on_the_cpu_alone_teaches_nothing() -> None:
    forecast = Forecast(6.0)
    loaded = Resident("a", "a:latest", "d", 0, 0)
    assert forecast.note_load(loaded, A, 0.0, largest_vram_bytes=0, freed_bytes=0) is Spill.NONE
    assert A not in forecast.fitted


def test_one_lag_is_learned_once_however_many_models_it_made_spill() -> None:
    """Two suspects of one lag: the first that fits after a longer wait teaches it, the second does not double it."""
    forecast = Forecast(6.0)
    spilled, whole = Resident("m", "m:latest", "d", SIZE, 600), Resident("m", "m:latest", "d", SIZE, SIZE)
    for target in (A, B):
        forecast.note_load(spilled, target, 0.0, largest_vram_bytes=SIZE, freed_bytes=0)
    for target in (A, B):
        forecast.note_load(whole, target, 6.0, largest_vram_bytes=SIZE, freed_bytes=0)
    assert forecast.settle_s == 0.5


def test_of_any_number_of_variants_the_newest_lessons_are_kept() -> None:
    forecast = Forecast(6.0)
    for vram, waited_s in ((SIZE, 0.0), (600, 0.0), (600, 6.0)):  # fits, spills, spills after the longest wait
        for number in range(10_000):
            variant = Variant("m", f"num_ctx={number}")
            forecast.note_swap(variant, 2.0)
            forecast.note_swap(A, 7.0)
            loaded = Resident("m", "m:latest", "d", SIZE, vram)
            forecast.note_load(loaded, variant, waited_s, largest_vram_bytes=SIZE, freed_bytes=0)
    learned = (forecast.swap_s, forecast.fitted, forecast.suspects, forecast.accepted, forecast.settle_before_spills_s)
    assert max(map(len, learned)) == VARIANTS_KEPT
    assert forecast.swap_cost_s(A) == 7.0, "what is used goes on being known"


def test_what_is_forgotten_is_what_was_used_longest_ago() -> None:
    forecast = Forecast(6.0)
    for number in range(VARIANTS_KEPT):
        forecast.note_swap(Variant("m", str(number)), 2.0)
    forecast.note_swap(Variant("m", "0"), 2.0)
    forecast.note_swap(B, 2.0)
    assert Variant("m", "0") in forecast.swap_s
    assert Variant("m", "1") not in forecast.swap_s


def test_an_unload_that_is_slow_behind_another_teaches_to_let_ollama_look_for_the_memory_first() -> None:
    forecast = Forecast(6.0)
    forecast.note_unload(0.01, 1.0)
    forecast.note_unload(4.0, 60.0)  # slow for a reason of its own
    assert forecast.settle_before_s(A) == 0.0
    forecast.note_unload(1.2, 1.0)
    assert forecast.settle_before_s(A) == 0.3
    assert forecast.settle_s == 0.0  # what spills teach is another matter
    forecast.forget_settle()
    assert forecast.settle_before_s(A) == 0.0


def test_no_wait_is_learned_where_the_operator_wants_none() -> None:
    forecast = Forecast(0.0)
    forecast.note_unload(1.2, 1.0)
    assert forecast.settle_before_s(A) == 0.0


def test_loads_unloads_and_answers_are_learned_apart() -> None:
    forecast = Forecast(6.0)
    forecast.note_load_time(A, 4.0)
    forecast.note_unload_time("a", 0.3)
    forecast.note_answer(A, 10.0)
    forecast.note_answer(A, 20.0)
    assert (forecast.load_takes_s(A), forecast.unload_takes_s("a"), forecast.answer_takes_s(A)) == (4.0, 0.3, 11.0)
    assert (forecast.load_takes_s(B), forecast.unload_takes_s("b")) == (4.0, 0.3), "an unknown one is like the others"


def test_of_any_number_of_variants_the_answers_of_some_are_kept() -> None:
    forecast = Forecast(6.0)
    for number in range(VARIANTS_KEPT + 10):
        forecast.note_answer(Variant("m", str(number)), 1.0)
    assert len(forecast.answer_s) == VARIANTS_KEPT
