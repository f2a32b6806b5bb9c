"""What is known of a model whatever runs: its capabilities, and what the operator set for any of its names.

Owns the way from settings and capabilities to traits. Must not ask Ollama (the catalog does).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from ollama_swap_proxy.core import names
from ollama_swap_proxy.core.tickets import Traits, Upkeep
from ollama_swap_proxy.settings.options import Settings
from ollama_swap_proxy.settings.tables import ModelTable


class ModelTraits:
    """The operator's settings of single models, by their canonical names."""

    def __init__(self, settings: Settings) -> None:
        self._tables = settings.models
        self._home = settings.home

    def of(self, every_name: Collection[str], capabilities: Collection[str]) -> Traits:
        """Return the traits of the model that has these names: pinned by one is pinned, the highest priority counts,
        and of times the longest; the home model has no time to live.

        A model that can only embed is an embedder; of no known capability it is none.
        """
        embedder = "embedding" in capabilities and "completion" not in capabilities
        tables = self._tables
        if not tables and not self._home:
            return Traits(embedder)
        canonical = {names.canonical(name) for name in every_name}
        known = [tables[name] for name in sorted(canonical & tables.keys())]
        upkeep = _upkeep(known)._replace(ttl_s=0.0) if self._home in canonical else _upkeep(known)
        if not known:
            return Traits(embedder, upkeep=upkeep)
        return Traits(
            embedder,
            pinned=any(table.pinned for table in known),
            priority=max(table.priority for table in known),
            groups=frozenset(group for table in known for group in table.groups),
            upkeep=upkeep,
        )


def _upkeep(tables: list[ModelTable]) -> Upkeep:
    times = {
        name: _longest(getattr(table, name) for table in tables) for name in Upkeep._fields if name != "keep_alive"
    }
    kept = [table.keep_alive for table in tables if table.keep_alive is not None]
    for_ever = any(time < 0 for time in kept)
    return Upkeep(**times, keep_alive=-1.0 if for_ever else max(kept, default=None))


def _longest(given_s: Iterable[float | None]) -> float | None:
    """Return the longest of the times that are given; 0 stands for one without an end."""
    times = [time for time in given_s if time is not None]
    return max(times, key=lambda time: time or float("inf"), default=None)
