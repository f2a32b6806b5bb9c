"""What the operator set for a model counts for every name of it."""

from __future__ import annotations

from ollama_swap_proxy.config import Settings
from ollama_swap_proxy.core.tickets import Traits
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
