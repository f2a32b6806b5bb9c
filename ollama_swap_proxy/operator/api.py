"""The admin API: /healthz, /readyz and /v1/snapshot.

Owns the routes of the second listener. Must not touch the scheduler: everything here is drawn from its snapshot.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

from aiohttp import web

from ollama_swap_proxy import __version__
from ollama_swap_proxy.config import Settings
from ollama_swap_proxy.core.snapshot import Snapshot

MISSED_REPORTS = 3
"""Not ready when so many periodic reports in a row brought nothing."""

CONFIRMING_BOUND_S = 30.0
"""How long a loaded model may be missing from every report. Ollama lists it before it answers the load."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """From when on something counts as stuck, in seconds. Drains and loads have bounds of their own: minutes."""

    report_age_s: float
    step_s: Mapping[str, float]

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the bounds that follow from the settings, each with a margin for the step's own work."""
        return cls(
            report_age_s=MISSED_REPORTS * max(settings.ps_interval_s, settings.report_timeout_s),
            step_s={
                "evicting": settings.unload_timeout_s + 5.0,
                "settling": settings.settle_max_s + 5.0,
                "confirming": CONFIRMING_BOUND_S,
            },
        )


def unready_reasons(seen: Snapshot, bounds: Bounds) -> list[str]:
    """Say what keeps us from doing our job now; empty when nothing does."""
    reasons = []
    if seen.unreachable_for_s is not None:
        reasons.append(f"upstream does not answer: {seen.unknown}")
    elif seen.report_age_s is None:
        reasons.append("no report of what is resident has come yet")
    elif seen.report_age_s > bounds.report_age_s:
        reasons.append(f"what is resident is unknown for {seen.report_age_s:.0f} s: {seen.unknown or 'no report'}")
    if seen.swap is not None and seen.swap.phase_s > bounds.step_s.get(seen.swap.phase, float("inf")):
        reasons.append(f"the swap to {seen.swap.target} is {seen.swap.phase} for {seen.swap.phase_s:.0f} s")
    if seen.stopping:
        reasons.append("stopping")
    return reasons


def operator_app(snapshot: Callable[[], Snapshot], settings: Settings) -> web.Application:
    """Build the application of the second listener. ``snapshot`` draws the picture of this moment."""
    started = time.monotonic()
    bounds = Bounds.of(settings)
    upstream = str(settings.upstream)

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        reasons = unready_reasons(snapshot(), bounds)
        return web.json_response({"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200)

    async def show_snapshot(_: web.Request) -> web.Response:
        about = {"version": __version__, "upstream": upstream, "uptime_s": round(time.monotonic() - started, 3)}
        return web.json_response({**about, **dataclasses.asdict(snapshot())})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/v1/snapshot", show_snapshot)])
    return app
