"""The residency view: reports of what is resident, shared by all who ask at once.

Owns single flight and freshness of reports. Must not poll by itself (the gate does), keep history, or turn "unknown"
into "gone".
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ollama_swap_proxy.core.events import ResidencyObserved, ResidencyUnknown
from ollama_swap_proxy.core.tickets import Report
from ollama_swap_proxy.upstream.catalog import Catalog
from ollama_swap_proxy.upstream.control import Control, ControlError
from ollama_swap_proxy.upstream.flight import Flight

Observation = ResidencyObserved | ResidencyUnknown


class ResidencyView:
    """Fetches reports. ``clock`` is the one that the scheduler's times come from (`loop.time`)."""

    def __init__(
        self,
        control: Control,
        catalog: Catalog,
        report_timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._control = control
        self._catalog = catalog
        self._report_timeout_s = report_timeout_s
        self._clock = clock
        self._flight: Flight[Observation] = Flight("residency report", self._report)

    async def observe(self, *, fresh: bool = False) -> Observation:
        """Return a report, or why there is none. Raises nothing.

        All who ask while a report is under way share it; with ``fresh`` one that was asked for earlier is too old, and
        the next one is shared.
        """
        return await self._flight.join(fresh=fresh)

    def cancel(self) -> None:
        """End the report under way; whoever waits for it is cancelled."""
        self._flight.cancel()

    async def _report(self) -> Observation:
        asked_at = self._clock()
        try:
            listed = await self._control.ps(self._report_timeout_s)
        except ControlError as error:
            reason = "late" if error.kind == "timeout" else str(error)
            return ResidencyUnknown(asked_at, reason, unreachable=error.is_away)
        return ResidencyObserved(Report(asked_at, await self._catalog.resolve(listed)))
