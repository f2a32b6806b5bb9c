"""What is known of a model whatever runs: its capabilities, and what the operator set for any of its names.

Owns the way from settings and capabilities to traits. Must not ask Ollama (the catalog does).
"""

from __future__ import annotations

from collections.abc import Collection

from ollama_swap_proxy.core import names
from ollama_swap_proxy.core.tickets import Traits
from ollama_swap_proxy.settings.options import Settings


class ModelTraits:
    """The operator's settings of single models, by their canonical names."""

    def __init__(self, settings: Settings) -> None:
        self._tables = settings.models

    def of(self, every_name: Collection[str], capabilities: Collection[str]) -> Traits:
        """Return the traits of the model that has these names: pinned by one is pinned, the highest priority counts.

        A model that can only embed is an embedder; of no known capability it is none.
        """
        embedder = "embedding" in capabilities and "completion" not in capabilities
        tables = self._tables
        known = [tables[name] for name in map(names.canonical, every_name) if name in tables] if tables else []
        if not known:
            return Traits(embedder)
        return Traits(
            embedder,
            pinned=any(table.pinned for table in known),
            priority=max(table.priority for table in known),
            groups=frozenset(group for table in known for group in table.groups),
        )
