"""Who must go and who stays for a target, by what is resident now."""

from __future__ import annotations

from ollama_swap_proxy.core import plans
from ollama_swap_proxy.core.tickets import Variant
from tests.core.desk import Desk

A = Variant("a")


def _evicted(desk: Desk, target: Variant) -> list[str]:
    return [resident.key for resident in plans.evicted(desk.state, target)]


def test_everybody_else_must_go_and_the_target_itself_only_with_other_options() -> None:
    desk = Desk()
    desk.report("b", "a")
    assert _evicted(desk, A) == ["b"]
    assert _evicted(desk, Variant("c")) == ["a", "b"]
    desk = Desk()
    desk.serve("d")
    assert _evicted(desk, Variant("d", "num_ctx=1")) == ["d"]


def test_an_embedder_that_we_loaded_stays_beside_the_target_but_only_by_a_trial() -> None:
    desk = Desk()
    desk.release(desk.serve("e"))
    assert _evicted(desk, A) == []
    assert plans.plan(desk.state, A).staying == {"e"}
    assert plans.is_trial(desk.state, A)
    assert not plans.is_trial(desk.state, Variant("e"))


def test_a_plan_is_made_anew_after_each_report() -> None:
    desk = Desk()
    desk.report("b")
    assert _evicted(desk, A) == ["b"]
    desk.report()
    assert _evicted(desk, A) == []
