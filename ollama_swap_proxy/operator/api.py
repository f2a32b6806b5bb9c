"""The admin API: /healthz, /readyz, /v1/snapshot and /v1/explain.

Owns the routes of the second listener. Must not touch the scheduler: everything here is drawn from its snapshot, or is
what it would say to a question.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from ollama_swap_proxy import __version__
from ollama_swap_proxy.access import TURNED_AWAY, HostGuard
from ollama_swap_proxy.config import Settings
from ollama_swap_proxy.core.explain import Explanation, in_words
from ollama_swap_proxy.core.snapshot import Snapshot
from ollama_swap_proxy.errors import ProxyError

Explain = Callable[[str], Awaitable[Explanation | str]]
"""Says what would happen to a request for a model, or in words why there is nothing to say; may raise `ProxyError`."""

MISSED_REPORTS = 3
"""Not ready when so many periodic reports in a row brought nothing."""

OVERDUE_S = 5.0
"""So long may a step of a swap be past its bound, which the core gives up at by itself: a margin for a busy machine."""


def oldest_report_s(settings: Settings) -> float:
    """Return the age in seconds from which on the last report is too old for us to be ready."""
    return MISSED_REPORTS * max(settings.ps_interval_s, settings.report_timeout_s)


def unready_reasons(seen: Snapshot, oldest_report_s: float) -> list[str]:
    """Say what keeps us from doing our job now; empty when nothing does."""
    reasons = []
    if seen.unreachable_for_s is not None:
        reasons.append(f"upstream does not answer: {seen.unknown}")
    elif seen.report_age_s is None:
        reasons.append("no report of what is resident has come yet")
    elif seen.report_age_s > oldest_report_s:
        reasons.append(f"what is resident is unknown for {seen.report_age_s:.0f} s: {seen.unknown or 'no report'}")
    if seen.swap is not None and seen.swap.overdue_s > OVERDUE_S:
        late = f"{seen.swap.overdue_s:.0f} s past its bound"
        reasons.append(f"the swap to {seen.swap.target} is {seen.swap.phase} for {seen.swap.phase_s:.0f} s, {late}")
    reasons += [f"a swap was given up: {resisting.reason}" for resisting in seen.resisting]
    if seen.stopping:
        reasons.append("stopping")
    return reasons


def operator_app(snapshot: Callable[[], Snapshot], explain: Explain, settings: Settings) -> web.Application:
    """Build the application of the second listener. ``snapshot`` draws the picture of this moment."""
    started = time.monotonic()
    oldest_s = oldest_report_s(settings)
    upstream = str(settings.upstream)

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        reasons = unready_reasons(snapshot(), oldest_s)
        return web.json_response({"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200)

    async def show_snapshot(_: web.Request) -> web.Response:
        about = {"version": __version__, "upstream": upstream, "uptime_s": round(time.monotonic() - started, 3)}
        return web.json_response({**about, **dataclasses.asdict(snapshot())})

    async def show_explanation(request: web.Request) -> web.Response:
        model = request.query.get("model", "")
        if not model:
            return web.json_response({"error": "which model? ask with ?model=NAME"}, status=400)
        try:
            told = await explain(model)
        except ProxyError as error:
            return web.json_response({"error": error.message}, status=error.status)
        if isinstance(told, str):
            return web.json_response({"error": told}, status=404)
        return web.json_response({**dataclasses.asdict(told), "text": in_words(told)})

    app = web.Application(middlewares=[_only_for(HostGuard(settings.admin, settings.allowed_hosts))])
    app.add_routes(
        [
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
            web.get("/v1/snapshot", show_snapshot),
            web.get("/v1/explain", show_explanation),
        ]
    )
    return app


def _only_for(guard: HostGuard) -> Middleware:
    """Keep web pages out that reach us by DNS rebinding, as the proxy port does."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not guard.allows(request.headers.get("Host", "")):
            return web.Response(status=403, headers=[TURNED_AWAY])
        return await handler(request)

    return check
