"""Models that stay beside others: trials, proofs, and what becomes of a set that does not fit."""

from __future__ import annotations

import pytest

from ollama_swap_proxy.core import commands, events
from ollama_swap_proxy.core.policy import Policy
from ollama_swap_proxy.core.tickets import Resident, Traits
from tests.core.desk import Desk, resident


def _desk(policy: Policy | None = None) -> Desk:
    """Return a desk on which the embedder ``e`` is resident and idle."""
    desk = Desk(policy)
    desk.release(desk.serve("e"))
    return desk


def _try_beside(desk: Desk, key: str, *seen: str | Resident) -> int:
    """Load a model beside what is resident; the report after it shows ``seen``."""
    asked = desk.arrive(key)
    desk.later(6.1)
    while desk.phase not in {"loading", None}:
        desk.report(*desk.state.residency.residents)
        desk.later(0.1)
    desk.loaded(key)
    desk.report(*seen)
    return asked


def _proven() -> Desk:
    desk = _desk()
    desk.release(_try_beside(desk, "a", "e", "a"))
    return desk


def test_a_pair_that_fits_is_tried_once_and_then_resident_together():
    desk = _desk()
    asked = _try_beside(desk, "a", "e", "a")
    assert desk.evicted() == []
    assert desk.said("company_judged")[-1]["outcome"] == "proven"
    assert asked in desk.granted()
    both = [desk.arrive("e"), desk.arrive("a")]
    assert set(both) <= set(desk.granted())


def test_a_trial_waits_for_everybody_in_the_set_and_until_memory_must_be_back():
    desk = Desk()
    desk.release(desk.serve("b"))
    embedding = desk.arrive("e")
    desk.later(0.06)
    desk.report()
    desk.later(6.1)
    desk.report()
    desk.loaded("e")
    desk.report("e")
    assert embedding in desk.granted()
    desk.arrive("a")
    assert desk.phase is None  # the embedder has the turn
    desk.later(10.1)
    desk.report("e")
    assert desk.phase == "draining"
    late = desk.arrive("e")
    assert late not in desk.granted()
    desk.release(embedding)
    assert desk.phase in {"evicting", "settling", "loading"}


def test_a_load_by_a_proof_drains_nobody_and_companions_go_on_being_served():
    desk = _proven()
    desk.report("e")
    desk.release(_try_beside(desk, "b", "e", "b"))
    embedding = desk.arrive("e")
    desk.report("e", "b")
    desk.arrive("a")
    assert desk.evicted() == ["b"]
    more = desk.arrive("e")
    assert {embedding, more} <= set(desk.granted())
    assert desk.said("swap_decided")[-1]["beside"] == ["e"]


def test_a_companion_is_not_granted_between_the_load_and_the_report_that_shows_what_it_left():
    desk = _proven()
    desk.report("e")  # its time was over
    desk.arrive("a")
    assert desk.phase == "loading"
    first = desk.arrive("e")
    desk.loaded("a")
    second = desk.arrive("e")
    assert first in desk.granted()
    assert second not in desk.granted()
    desk.report("e", "a")
    assert second in desk.granted()


def test_a_target_that_spills_in_a_trial_is_loaded_anew_alone():
    desk = _desk()
    asked = _try_beside(desk, "a", "e", resident("a", vram=500))
    assert desk.said("company_judged")[-1]["outcome"] == "failed"
    assert desk.evicted() == ["e"]
    desk.later(0.06)
    desk.report(resident("a", vram=500))
    assert desk.evicted() == ["e", "a"]
    desk.later(0.06)
    desk.report()
    desk.later(6.1)
    desk.report()
    desk.loaded("a")
    desk.report("a")
    assert asked in desk.granted()


def test_a_companion_that_was_lost_is_tried_in_the_other_order_and_then_never_again():
    desk = _desk()
    asked = _try_beside(desk, "a", "a")
    assert desk.said("company_judged")[-1]["lost"] == ["e"]
    desk.release(asked)
    desk.release(_try_beside(desk, "e", "e"))
    assert desk.said("company_judged")[-1]["outcome"] == "refused"
    desk.arrive("a")
    assert desk.evicted() == ["e"]
    assert desk.said("swap_decided")[-1]["trial"] is False


def test_a_companion_whose_time_was_over_during_the_load_decides_nothing():
    desk = _desk()
    desk.report(resident("e", expires_in_s=5.0))
    _try_beside(desk, "a", "a")
    assert desk.said("company_judged")[-1]["outcome"] == "undecided"


def test_a_proof_is_revoked_by_a_later_spill():
    desk = _proven()
    desk.report("e")
    desk.later(6.1)
    desk.report("e")
    _try_beside(desk, "a", "e", resident("a", vram=500))
    assert desk.said("company_judged")[-1]["outcome"] == "revoked"


def test_a_spill_so_soon_after_an_unload_that_memory_may_have_been_late_revokes_nothing():
    desk = _proven()
    desk.report("e")
    _try_beside(desk, "a", "e", resident("a", vram=500))
    assert desk.said("settle_learned")
    assert [each["outcome"] for each in desk.said("company_judged")] == ["proven"]
    assert desk.state.proofs.proven


def _beside_a_chat_model() -> Desk:
    """Return a desk on which an embedder was loaded beside a chat model; all is idle."""
    desk = Desk()
    desk.release(desk.serve("a"))
    desk.release(_try_beside(desk, "e", "a", "e"))
    return desk


def _unload(desk: Desk, *left: str) -> None:
    """See the victims go until only these are left."""
    for gone in range(len(desk.state.residency.residents) - len(left), -1, -1):
        desk.later(0.06)
        desk.report(*left, *[key for key in desk.state.residency.residents if key not in left][:gone])


def test_an_embedder_that_would_outlive_a_chat_model_is_loaded_anew_before_the_next_one():
    """Ollama asks it how much is free, and it goes on counting what was taken when it was loaded itself."""
    desk = _beside_a_chat_model()
    asked = desk.arrive("b")
    decided = desk.said("swap_decided")[-1]
    assert (decided["target"], decided["reason"]) == ("e", "companion")
    assert set(decided["victims"]) == {"a", "e"}
    _unload(desk)
    assert desk.phase == "settling"  # what is still on its way back it would count as taken, too
    desk.later(6.1)
    desk.report()
    assert (desk.phase, desk.loads()[-1]) == ("loading", "e")
    desk.loaded("e")
    desk.report("e")
    assert desk.said("swap_decided")[-1]["beside"] == ["e"]
    assert (desk.phase, desk.loads()[-1]) == ("loading", "b")
    desk.loaded("b")
    desk.report("e", "b")
    assert asked in desk.granted()
    assert desk.said("company_judged")[-1]["outcome"] == "proven"
    evicted = len(desk.evicted())
    desk.release(asked)
    desk.arrive("a")
    assert desk.evicted()[evicted:] == ["b"]  # from now on it stays


def test_nobody_is_evicted_to_load_an_embedder_anew_for_who_has_left():
    desk = _beside_a_chat_model()
    running = desk.arrive("a")
    asked = desk.arrive("b")
    desk.later(10.1)
    desk.report("a", "e")
    assert desk.said("swap_decided")[-1]["reason"] == "companion"
    desk.tell(events.Abandoned(asked))
    desk.later(5.1)
    desk.report("a", "e")
    assert desk.said("swap_ended")[-1]["outcome"] == "asker_left"
    desk.release(running)
    desk.report("a", "e")
    assert desk.evicted() == []


def test_a_chat_model_that_outlives_an_embedder_is_not_loaded_anew_for_it():
    desk = _proven()
    desk.report("a")
    _try_beside(desk, "e", "a", "e")
    assert desk.evicted() == []
    assert desk.loads()[-1] == "e"


def test_a_pinned_model_is_loaded_anew_only_after_outliving_one_has_cost_its_place():
    desk = Desk()
    desk.release(desk.serve("a"))
    desk.release(_try_beside(desk, "pin", "a", "pin"))
    asked = desk.arrive("b")
    assert desk.said("swap_decided")[-1]["reason"] == "request"
    _unload(desk, "pin")
    desk.later(6.1)
    desk.report("pin")
    desk.loaded("b")
    desk.report("b")
    assert desk.said("company_judged")[-1]["outcome"] == "undecided"  # not the set's fault
    while desk.phase != "loading":
        desk.later(0.5)
        desk.report("b")
    desk.loaded("pin")
    desk.report("b", "pin")
    desk.release(asked)
    desk.arrive("a")
    assert desk.said("swap_decided")[-1]["reason"] == "companion"
    assert desk.said("swap_decided")[-1]["target"] == "pin"


def _play(desk: Desk, seconds: float, *, since: int) -> None:
    """Carry out what was commanded since, and what is, as an Ollama would on whose card all fits, for so long."""
    there = list(desk.state.residency.residents)
    done, until = since, desk.now + seconds
    while desk.now < until:
        while done < len(desk.all):
            command = desk.all[done]
            done += 1
            if isinstance(command, commands.Evict):
                there.remove(command.key)
                desk.tell(events.EvictionAnswered(command.key, accepted=True))
            elif isinstance(command, commands.Load):
                there.append(command.variant.key)
                desk.loaded(command.variant.key, options=command.variant.options)
        desk.later(0.06)
        desk.report(*there)


def test_an_embedder_that_a_pinned_model_went_for_is_there_when_that_one_has_come_back():
    """Loaded after the pinned model it costs that one its place: the pinned model goes, and comes back behind it."""
    desk = Desk()
    desk.release(desk.serve("pin"))
    first = _try_beside(desk, "e", "e")
    _play(desk, 10, since=len(desk.all) - len(desk.out))
    desk.release(first)
    assert set(desk.state.residency.residents) == {"e", "pin"}
    desk.report("pin")  # its time was over
    loads, evicted, since = len(desk.loads()), len(desk.evicted()), len(desk.all)
    asked = desk.arrive("e")
    _play(desk, 60, since=since)
    assert desk.loads()[loads:] == ["e", "pin"]
    assert desk.evicted()[evicted:] == ["pin"]
    assert asked in desk.granted()


def test_a_pinned_model_that_comes_back_evicts_no_other_that_has_just_come_back():
    """As long as the wait for memory is short, each counts as having outlived the other, and they swap for ever."""
    desk = Desk()
    desk.release(desk.serve("b"))
    desk.release(_try_beside(desk, "pin1", "b", "pin1"))
    desk.release(_try_beside(desk, "pin2", "b", "pin1", "pin2"))
    desk.report("pin1", "pin2")  # the time of the chat model was over: both outlive it
    _try_beside(desk, "b", "b")  # which costs both their places
    loads, evicted = len(desk.loads()), len(desk.evicted())
    _play(desk, 60, since=len(desk.all) - len(desk.out))
    assert desk.evicted()[evicted:] == []
    assert len(desk.loads()) - loads <= 1
    assert set(desk.state.residency.residents) == {"b", "pin1", "pin2"}


@pytest.mark.parametrize("companions", ["none"])
def test_the_strict_form_keeps_one_model_at_a_time(companions):
    desk = _desk(Policy(companions=companions))
    desk.arrive("a")
    assert desk.evicted() == ["e"]


def test_with_fit_two_generating_models_are_tried_together():
    desk = Desk(Policy(residency="fit"))
    desk.release(desk.serve("a"))
    _try_beside(desk, "b", "a", "b")
    assert desk.evicted() == []
    assert desk.said("company_judged")[-1]["outcome"] == "proven"


def test_what_cannot_be_beside_a_pin_is_refused_at_once_with_the_numbers():
    desk = Desk(Policy(residency="fit", vram_budget_bytes=1500 * 2**20))
    desk.release(desk.serve("b"))
    asked = desk.arrive("pin")
    desk.later(0.06)
    desk.report()
    desk.later(6.1)
    desk.report()
    desk.loaded("pin")
    desk.report(resident("pin", size=1000 * 2**20))
    desk.release(asked)
    desk.state.sizes[next(iter(v for v in desk.state.recipes if v.key == "b"))] = 1000 * 2**20
    refused = desk.arrive("b")
    rejection = desk.rejected()[refused]
    assert rejection.code == "pinned_out"
    assert "pin (1000 MiB)" in rejection.message
    assert "1500 MiB" in rejection.message


def test_a_newcomer_that_spills_beside_a_pin_goes_again():
    desk = Desk()
    desk.release(desk.serve("pin"))
    _try_beside(desk, "a", "pin", resident("a", vram=500))
    assert desk.evicted() == ["a"]
    desk.later(0.06)
    desk.report("pin")
    assert desk.said("swap_ended")[-1]["outcome"] == "did_not_fit"


def test_beside_a_pin_of_unknown_options_what_fits_is_tried_once_for_as_long_as_the_pin_stays():
    desk = Desk()
    desk.report("pin")
    desk.release(_try_beside(desk, "a", "pin", "a"))
    desk.report("pin")
    desk.arrive("a")
    assert [each["trial"] for each in desk.said("swap_decided")] == [True, False]
    assert desk.state.proofs.to_json()["proven"] == []
    desk.report()
    assert not desk.state.proofs.proven


def test_a_declared_group_whose_trial_fails_is_only_told_of(monkeypatch):
    monkeypatch.setattr("tests.core.desk.traits", lambda _: Traits(groups=frozenset({"g"})))
    desk = Desk()
    desk.release(desk.serve("a"))
    asked = _try_beside(desk, "b", "a", resident("b", vram=800))
    assert desk.said("company_judged")[-1]["outcome"] == "failed"
    assert desk.evicted() == []
    assert asked in desk.granted()


def test_a_companion_alone_does_not_end_the_turn_of_what_it_stays_beside():
    desk = _proven()
    running = desk.arrive("a")
    desk.arrive("e")
    desk.report("a", "e")
    assert desk.state.swap is None
    assert running in desk.granted()
    assert not [c for c in desk.out if isinstance(c, commands.Evict)]


def test_a_target_that_goes_again_was_perhaps_in_use_already():
    """After upstream was away nobody knows which options a busy model has: it is loaded anew beside who came."""
    desk = Desk()
    runs = desk.serve("a")
    desk.no_report(unreachable=True)
    desk.later(1.1)
    desk.report("a", "pin")
    desk.arrive("a")
    desk.later(20.0)
    for _ in range(30):
        if desk.phase == "loading":
            break
        desk.report("a", "pin")
        desk.later(0.3)
    assert desk.phase == "loading"
    desk.loaded("a")
    desk.report(resident("a", vram=500), "pin")
    assert (desk.phase, desk.evicted()) == ("draining", [])
    desk.release(runs)
    desk.report(resident("a", vram=500), "pin")
    assert desk.evicted() == ["a"]
