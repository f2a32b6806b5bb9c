"""What a request needs: which variant of its model, and the empty request by which we could load that.

Owns the way from what a request asks for and what the catalog knows to a ticket's variant and recipe. Must not ask
Ollama or wait.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ollama_swap_proxy.core.endpoints import Endpoint
from ollama_swap_proxy.core.tickets import LoadRecipe, Traits, Variant
from ollama_swap_proxy.core.variants import load_recipe, variant_options
from ollama_swap_proxy.upstream.catalog import Entry


@dataclass(frozen=True, slots=True)
class Plan:
    """What a request needs. ``name`` is as on disk; ``recipe`` None: no empty request can load it."""

    name: str
    variant: Variant
    recipe: LoadRecipe | None
    traits: Traits


def make_plan(endpoint: Endpoint, given: Mapping[str, object], entry: Entry, traits: Traits) -> Plan:
    """Say what a request on this endpoint needs that gave these runner options of its own."""
    options = variant_options(entry.parameters, given, entry.adapters)
    recipe = load_recipe(endpoint, entry.spelled, given, entry.capabilities or None)
    return Plan(entry.spelled, Variant(entry.key, options), recipe, traits)
