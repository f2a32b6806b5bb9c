"""Finding out what the settings are judged by: what Ollama has, and what an earlier run learned.

Owns the asking, within bounds, and the log lines of `serve`. Must not judge (`alone` and `models` do). Nothing here
loads a model.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Final

import structlog

from ollama_swap_proxy.checks.alone import Doubt, doubts_alone
from ollama_swap_proxy.checks.models import Found, Known, doubts_of_models, named_models, nothing_learned
from ollama_swap_proxy.core import memory
from ollama_swap_proxy.core.state import State
from ollama_swap_proxy.core.tickets import Variant
from ollama_swap_proxy.core.variants import variant_options
from ollama_swap_proxy.settings.options import Settings
from ollama_swap_proxy.state_file import learned_in, reason_of
from ollama_swap_proxy.traits import ModelTraits
from ollama_swap_proxy.upstream.catalog import Catalog
from ollama_swap_proxy.upstream.control import Control, ControlError, control_session

ASKED_WITHIN_S: Final = 2.0
"""So long `check` waits for Ollama's first answer, which takes milliseconds where it is there."""

LOOKED_WITHIN_S: Final = 5.0
"""So long the single models may take; the first /api/show of a model reads its metadata from the disk."""

ASKED_AGAIN_AFTER_S: Final = 5.0
"""Where `serve` found no Ollama at its start it tries again, without hurry: it is told only once."""

MOST_LOOKED_AT: Final = 64
"""So many models are looked at, those named in the settings first."""

FRESH_S: Final = 60.0


def recalled(settings: Settings, learned: object | None) -> State:
    """Return the state of a scheduler that has taken in what an earlier run learned, damaged parts left out."""
    state = nothing_learned(settings)
    if learned is not None:
        memory.recall(state, learned)
    return state


async def survey(settings: Settings, catalog: Catalog, learned: State, version: str) -> Known:
    """Ask Ollama what it has, and look at the models that the settings speak of; with pins at others, too.

    ``version`` is Ollama's: what another version showed of models together counts no more.

    Raises:
        ControlError: it cannot be told what Ollama has.
    """
    learned.proofs.found(None, version)
    await catalog.refresh()
    tags = catalog.listed
    found = {name: Found(name, tag.size_bytes, tag.remote) for name, tag in tags.items()}
    wanted = named_models(settings)
    if any(table.pinned for table in settings.models.values()):
        wanted += [name for name in found if name not in wanted]
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LOOKED_WITHIN_S):
            await _look_at([name for name in wanted if name in found and not found[name].remote], catalog, found)
    return Known(learned, found)


async def _look_at(wanted: Iterable[str], catalog: Catalog, found: dict[str, Found]) -> None:
    for name in list(wanted)[:MOST_LOOKED_AT]:
        with contextlib.suppress(ControlError):
            entry = await catalog.find(name, FRESH_S)
            if entry is not None and not entry.remote:
                variant = Variant(entry.key, variant_options(entry.parameters, {}, entry.adapters))
                embedder = catalog.traits(entry).embedder
                found[name] = Found(name, found[name].file_bytes, variant=variant, embedder=embedder)


async def check(settings: Settings) -> tuple[list[Doubt], str]:
    """Judge the settings for `check`: return what is doubtful, and a line that says whether Ollama was asked."""
    doubts = doubts_alone(settings)
    learned: object | None = None
    try:
        if settings.state_path is not None:
            learned = await learned_in(settings.state_path, str(settings.upstream))
    except (OSError, ValueError) as error:
        text = f"{settings.state_path} could not be read, and is written anew by serve: {reason_of(error)}"
        doubts.append(Doubt("state_file", text))
    state = recalled(settings, learned)
    connect_timeout_s = min(settings.connect_timeout_s, ASKED_WITHIN_S)
    async with control_session() as session:
        control = Control(settings.upstream, session, connect_timeout_s=connect_timeout_s)
        catalog = Catalog(control, describe=ModelTraits(settings).of)
        try:
            version = await control.version(ASKED_WITHIN_S)
            known = await survey(settings, catalog, state, version)
            said = f"Ollama {version} at {settings.upstream} was asked: it has {len(known.found or ())} models."
        except ControlError as error:
            known = Known(state)
            said = f"What depends on Ollama's models was not checked: {error}."
        finally:
            catalog.cancel()
    return [*doubts, *doubts_of_models(settings, known)], said


class Checks:
    """Tells the doubts about the settings once, in the log of `serve`: those of the models when Ollama can be asked."""

    def __init__(self, settings: Settings, control: Control, catalog: Catalog) -> None:
        self._settings = settings
        self._control = control
        self._catalog = catalog
        self._asking: asyncio.Task[None] | None = None
        self._log = structlog.get_logger("checks")

    def start(self, learned: object | None) -> None:
        """Tell what can be told at once, and begin to ask for the rest, if any of it depends on Ollama's models."""
        settings, state = self._settings, recalled(self._settings, learned)
        self._tell(doubts_alone(settings))
        if not named_models(settings):
            self._tell(doubts_of_models(settings, Known(state)))
        else:
            self._asking = asyncio.get_running_loop().create_task(self._ask(state), name="check of the settings")

    async def close(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    async def _ask(self, learned: State) -> None:
        while True:
            with contextlib.suppress(ControlError):
                known = await survey(self._settings, self._catalog, learned, await self._control.version())
                self._tell(doubts_of_models(self._settings, known))
                return
            await asyncio.sleep(ASKED_AGAIN_AFTER_S)

    def _tell(self, doubts: Iterable[Doubt]) -> None:
        for doubt in doubts:
            self._log.warning("setting_doubtful", setting=doubt.about, reason=doubt.text)
