"""What the operator set for a model counts for every name of it."""

from __future__ import annotations

from ollama_swap_proxy.config import Settings
from ollama_swap_proxy.core.tickets import Traits, Upkeep
from ollama_swap_proxy.traits import ModelTraits

SET = ModelTraits(
    Settings.model_validate(
        {"models": {"chat": {"pinned": True, "groups": ["rag"]}, "copy:8b": {"priority": 7, "groups": ["b"]}}}
    )
)


def test_a_model_that_can_only_embed_is_an_embedder() -> None:
    assert SET.of(["x:latest"], {"embedding"}) == Traits(embedder=True)
    assert SET.of(["x:latest"], {"embedding", "completion"}) == Traits()
    assert SET.of(["x:latest"], ()) == Traits()


def test_a_pin_under_one_name_and_a_priority_under_another_are_the_models() -> None:
    both = SET.of(["Chat:latest", "copy:8b"], {"completion"})
    assert both == Traits(pinned=True, priority=7, groups=frozenset({"rag", "b"}))
    assert SET.of(["chat:7b"], ()) == Traits()


def test_the_home_model_has_no_time_to_live_under_any_of_its_names() -> None:
    made = ModelTraits(Settings.model_validate({"home": "chat", "models": {"copy": {"ttl_s": 5}}}))
    assert made.of(["chat:latest", "copy:latest"], ()).upkeep.ttl_s == 0
    assert made.of(["chat:latest"], {"embedding"}) == Traits(embedder=True, upkeep=Upkeep(ttl_s=0.0))
    assert made.of(["copy:latest"], ()).upkeep.ttl_s == 5


def test_of_several_keep_alives_the_longest_counts_and_0_is_the_shortest() -> None:
    tables = {"a": {"keep_alive": 5}, "b": {"keep_alive": -1}, "c": {"keep_alive": 0}}
    made = ModelTraits(Settings.model_validate({"models": tables}))
    assert made.of(["a:latest", "b:latest", "c:latest"], ()).upkeep.keep_alive == -1
    assert made.of(["a:latest", "c:latest"], ()).upkeep.keep_alive == 5


def test_of_several_names_with_a_time_the_longest_counts_and_0_has_no_end() -> None:
    tables = {"a": {"ttl_s": 5}, "b": {"ttl_s": 9}, "c": {"ttl_s": 0}, "d": {"priority": 1}}
    made = ModelTraits(Settings.model_validate({"models": tables}))
    assert made.of(["a:latest", "b:latest", "d:latest"], ()).upkeep.ttl_s == 9
    assert made.of(["a:latest", "c:latest"], ()).upkeep.ttl_s == 0
    assert made.of(["d:latest"], ()).upkeep.ttl_s is None
