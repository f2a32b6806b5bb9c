"""The admin API: /healthz, /readyz and /v1/snapshot.

Owns the routes of the second listener. Must not touch the scheduler: everything here is drawn from its snapshot.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from aiohttp import web

from ollama_swap_proxy import __version__
from ollama_swap_proxy.core.snapshot import Snapshot

STALE_REPORT_S = 15.0
"""Not ready when the last good report is older: three periodic reports of the default interval were missed."""

STEP_BOUND_S = {"evicting": 90.0, "settling": 15.0, "confirming": 30.0}
"""Not ready when a step of a swap takes longer. Drains and loads have bounds of their own and may take minutes."""


def unready_reasons(seen: Snapshot) -> list[str]:
    """Say what keeps us from doing our job now; empty when nothing does."""
    reasons = []
    if seen.unreachable_for_s is not None:
        reasons.append(f"upstream does not answer: {seen.unknown}")
    elif seen.report_age_s is None:
        reasons.append("no report of what is resident has come yet")
    elif seen.report_age_s > STALE_REPORT_S:
        reasons.append(f"what is resident is unknown for {seen.report_age_s:.0f} s: {seen.unknown or 'no report'}")
    if seen.swap is not None and seen.swap.phase_s > STEP_BOUND_S.get(seen.swap.phase, float("inf")):
        reasons.append(f"the swap to {seen.swap.target} is {seen.swap.phase} for {seen.swap.phase_s:.0f} s")
    if seen.stopping:
        reasons.append("stopping")
    return reasons


def operator_app(snapshot: Callable[[], Snapshot], upstream: str) -> web.Application:
    """Build the application of the second listener. ``snapshot`` draws the picture of this moment."""
    started = time.monotonic()

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        reasons = unready_reasons(snapshot())
        return web.json_response({"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200)

    async def show_snapshot(_: web.Request) -> web.Response:
        about = {"version": __version__, "upstream": upstream, "uptime_s": round(time.monotonic() - started, 3)}
        return web.json_response({**about, **dataclasses.asdict(snapshot())})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/v1/snapshot", show_snapshot)])
    return app
