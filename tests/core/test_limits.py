"""Which setting counts for a model: its own, or that for all."""

from __future__ import annotations

import pytest

from ollama_swap_proxy.core import commands, limits, plans
from ollama_swap_proxy.core.policy import Policy
from ollama_swap_proxy.core.tickets import Traits, Upkeep
from tests.core.desk import Desk


def test_a_models_own_time_to_live_goes_before_that_of_all_and_0_is_one_of_its_own() -> None:
    state = Desk(Policy(ttl_s=60.0)).state
    plans.note_traits(state, "own", Traits(upkeep=Upkeep(ttl_s=5.0)))
    plans.note_traits(state, "never", Traits(upkeep=Upkeep(ttl_s=0.0)))
    assert [limits.ttl_s(state, key) for key in ("a", "own", "never")] == [60.0, 5.0, 0.0]


def test_a_pinned_model_has_no_time_to_live() -> None:
    state = Desk(Policy(ttl_s=60.0)).state
    plans.note_traits(state, "p", Traits(pinned=True, upkeep=Upkeep(ttl_s=5.0)))
    assert limits.ttl_s(state, "p") == 0.0


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A desk with ``a`` resident and idle; ``a`` and ``b`` have limits of their own."""
    own = Traits(upkeep=Upkeep(load_timeout_s=7.0, unload_timeout_s=3.0))
    monkeypatch.setattr("tests.core.desk.traits", lambda key: own if key in {"a", "b"} else Traits())
    desk = Desk()
    desk.release(desk.serve("a"))
    desk.report("a")
    return desk


def test_a_models_own_unload_timeout_counts_for_it_as_a_victim(desk: Desk) -> None:
    waits = desk.arrive("c")
    assert desk.evicted() == ["a"]
    desk.later(2.9)
    assert desk.rejected() == {}
    desk.later(0.1)
    assert desk.rejected()[waits].message.endswith("its unload was not confirmed within 3.0 s")


def test_a_models_own_load_timeout_counts_for_its_load_and_no_other(desk: Desk) -> None:
    waits = desk.arrive("b")
    desk.later(0.1)
    desk.report()
    (load,) = [c for c in desk.out if isinstance(c, commands.Load)]
    assert load.timeout_s == 7.0
    desk.later(9.0)
    assert desk.rejected()[waits].message == "the load was not answered within 7 s"
    desk.report()
    other = desk.arrive("c")
    desk.report()
    desk.later(100.0)
    assert other not in desk.rejected()
