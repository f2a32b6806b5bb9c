"""Asking Ollama to unload one runner, by whatever name still reaches it.

Owns the choice of the name. Must not confirm anything: only a later report proves an unload.
"""

from __future__ import annotations

from ollama_swap_proxy.core.events import EvictionAnswered
from ollama_swap_proxy.upstream.catalog import Catalog
from ollama_swap_proxy.upstream.control import Control, ControlError


async def evict(control: Control, catalog: Catalog, key: str, listed_name: str) -> EvictionAnswered:
    """Ask for the runner of ``key`` by its listed name, or else by every other name of its key. Raises nothing.

    A name that was deleted or re-created while resident no longer reaches the runner: Ollama answers 404, or 200
    without any effect (server/sched.go:1713). Then another name of the same weights does.
    """
    for name in await catalog.names_reaching(key, listed_name):
        try:
            answer = await control.unload(name)
        except ControlError as error:
            return EvictionAnswered(key, accepted=False, reason=f"the request to unload {name} failed: {error}")
        if answer.status == 200:
            return EvictionAnswered(key, accepted=True)
        if answer.status != 404:
            return EvictionAnswered(key, accepted=False, reason=f"Ollama did not unload {name}: {answer.error}")
    reason = f"{listed_name} was deleted or re-created while it was resident, and no other name reaches its runner"
    return EvictionAnswered(key, accepted=False, reason=reason)
