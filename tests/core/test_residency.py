"""What reports change, and when a view is fresh."""

from __future__ import annotations

from ollama_swap_proxy.core.residency import Residency
from ollama_swap_proxy.core.tickets import Report, Resident, Variant

A = Variant("a")


def _resident(key: str, vram: int = 100, expires_in_s: float | None = None) -> Resident:
    return Resident(key, f"{key}:latest", f"digest-{key}", vram, vram, expires_in_s)


def _view(*keys: str, at: float = 1.0) -> Residency:
    view = Residency()
    view.take_in(Report(at, tuple(map(_resident, keys))), at)
    return view


def test_a_report_says_who_appeared_and_who_is_gone() -> None:
    view = _view("a")
    change = view.take_in(Report(2.0, (_resident("b"),)), 2.1)
    assert change is not None
    assert [r.key for r in change.found] == ["b"]
    assert [r.key for r in change.gone] == ["a"]
    assert view.vram_freed_at == 2.1


def test_an_older_report_changes_nothing() -> None:
    view = _view("a", at=5.0)
    assert view.take_in(Report(4.0, ()), 6.0) is None
    assert "a" in view.residents


def test_a_victim_without_vram_starts_no_settle_clock() -> None:
    view = Residency()
    view.take_in(Report(1.0, (_resident("a", vram=0),)), 1.0)
    view.take_in(Report(2.0, ()), 2.0)
    assert view.vram_freed_at == float("-inf")


def test_nothing_is_fresh_before_the_first_report_after_its_age_or_once_outdated() -> None:
    assert not Residency().is_fresh(0.0, 1.0)
    view = _view("a", at=1.0)
    assert view.is_fresh(2.0, 1.0)
    assert not view.is_fresh(2.1, 1.0)
    view.outdated_at = 1.5
    assert not view.is_fresh(1.6, 1.0)


def test_a_view_is_not_fresh_past_a_residents_expiry() -> None:
    view = Residency()
    view.take_in(Report(1.0, (_resident("a", expires_in_s=0.3),)), 1.0)
    assert view.is_fresh(1.2, 1.0)
    assert not view.is_fresh(1.4, 1.0)


def test_options_are_unknown_until_learned_and_forgotten_when_the_model_is_gone() -> None:
    view = _view("a")
    assert view.holds_unknown_variant("a")
    assert not view.holds(A)
    view.learn_options(A, 1.0)
    assert view.holds(A)
    view.take_in(Report(2.0, ()), 2.0)
    view.take_in(Report(3.0, (_resident("a"),)), 3.0)
    assert view.holds_unknown_variant("a")


def test_a_report_from_before_the_load_does_not_make_its_options_forgotten() -> None:
    view = _view()
    view.learn_options(A, 5.0)
    view.take_in(Report(4.9, ()), 5.1)
    view.take_in(Report(5.2, (_resident("a"),)), 5.2)
    assert view.holds(A)


def test_a_foreign_resident_may_be_tried_only_when_it_is_alone() -> None:
    assert _view("a").may_be_tried("a")
    assert not _view("a", "b").may_be_tried("a")


def test_a_resident_outlives_whom_it_was_loaded_beside_and_whose_memory_was_on_its_way_back() -> None:
    view = _view("a")
    view.take_in(Report(2.0, (_resident("a"), _resident("b"))), 2.0)
    assert not view.outlives("b")
    view.take_in(Report(3.0, (_resident("b"),)), 3.0)
    assert view.outlives("b")
    assert view.loaded_beside["b"] == {"a"}
    view.take_in(Report(4.0, (_resident("b"), _resident("c"))), 4.0)
    assert view.outlives("c")


def test_who_went_for_a_load_is_not_outlived_by_what_was_loaded() -> None:
    view = _view("a")
    view.take_in(Report(2.0, (_resident("b"),)), 2.0)
    assert not view.outlives("b")


def test_a_load_of_ours_tells_what_was_on_its_way_back_when_it_was_sent() -> None:
    view = _view("a")
    view.take_in(Report(2.0, ()), 2.0)
    view.take_in(Report(3.0, (_resident("b"),)), 3.0)
    view.note_load("b", 2.5, 6.0)
    assert view.loaded_beside["b"] == {"a"}
    view.note_load("b", 8.5, 6.0)
    assert view.loaded_beside["b"] == set()
    view.note_load("b", 1.5, 6.0)
    assert view.loaded_beside["b"] == set()


def test_a_load_or_an_unload_of_ours_disproves_an_older_report():
    view = _view("a", "b")
    view.learn_options(Variant("a"), 1.0)
    view.learn_options(Variant("b"), 1.0)
    assert not view.is_disproved("a")
    view.evicted_at["a"] = 2.0
    assert view.is_disproved("a")
    assert not view.is_disproved("b"), "it lies there as before"
    view.doubt_options()
    assert view.is_disproved("b"), "a request may load it again"
    view.take_in(Report(2.0, (_resident("b"),)), 2.1)
    assert not view.is_disproved("b")
    view.note_load_ended(3.0)
    assert view.is_disproved("b")
    view.take_in(Report(3.0, (_resident("b"),)), 3.1)
    assert not view.is_disproved("b")
