"""What a request for a model needs, by what the catalog knows of it: which variant, and how we could load it.

Owns the way from an entry to a need. Must not judge a request (`bodies` does) nor decide anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ollama_swap_proxy.core import endpoints, names
from ollama_swap_proxy.core.endpoints import Endpoint
from ollama_swap_proxy.core.tickets import Need, Traits, Variant
from ollama_swap_proxy.core.variants import load_recipe, variant_options
from ollama_swap_proxy.upstream.catalog import Catalog, Entry


def need_of(endpoint: Endpoint, given: Mapping[str, object], entry: Entry, traits: Traits) -> Need:
    """Return what a request needs that comes by this endpoint with these runner options."""
    options = variant_options(entry.parameters, given, entry.adapters)
    recipe = load_recipe(endpoint, entry.spelled, given, entry.capabilities or None)
    return Need(entry.spelled, Variant(entry.key, options), recipe, traits)


AskedByAll = Callable[[str, Mapping[str, object]], Mapping[str, object]]
"""Returns, by canonical name and the model's own parameters, the runner options that all requests for it are given."""


def nothing_asked(_name: str, _parameters: Mapping[str, object]) -> Mapping[str, object]:
    """Return no options: requests reach Ollama with their own."""
    return {}


async def plain_need(
    catalog: Catalog, model: str, max_age_s: float, asked_by_all: AskedByAll = nothing_asked
) -> Need | str:
    """Return what a request for this name without options of its own needs, as of at most ``max_age_s`` ago; or, in
    words, why it would need no lease.

    Raises:
        ControlError: it cannot be told.
    """
    parsed = names.parse(model)
    if isinstance(parsed, names.InvalidName):
        return f"{model!r} names no model: {parsed.reason}"
    entry = None if isinstance(parsed, names.CloudName) else await catalog.find(parsed.canonical, max_age_s)
    if isinstance(parsed, names.CloudName) or (entry is not None and entry.remote):
        return f"{model} runs elsewhere: its requests are passed on at once"
    if entry is None:
        return f"Ollama has no model {model}: requests for it are passed on at once, for Ollama to answer"
    traits = catalog.traits(entry)
    return need_of(plain_endpoint(traits), asked_by_all(parsed.canonical, entry.parameters), entry, traits)


def plain_endpoint(traits: Traits) -> Endpoint:
    """Return by which endpoint a model is asked if nothing else is known of the request."""
    return endpoints.EMBED if traits.embedder else endpoints.GENERATE
