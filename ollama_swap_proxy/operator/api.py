"""The admin API: /healthz, /readyz, /v1/snapshot, /v1/explain, and the operator's /v1/mode, /v1/pause, /v1/resume.

Owns the routes of the second listener. Must not touch the scheduler: everything that is shown is drawn from its
snapshot or is what it says to a question, and what the operator did is told as an event.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Awaitable, Callable
from typing import Final, get_args

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from ollama_swap_proxy import __version__
from ollama_swap_proxy.access import TURNED_AWAY, HostGuard
from ollama_swap_proxy.config import Settings
from ollama_swap_proxy.core import events
from ollama_swap_proxy.core.explain import Explanation, in_words
from ollama_swap_proxy.core.policy import Mode
from ollama_swap_proxy.core.snapshot import Snapshot, json_members
from ollama_swap_proxy.errors import ProxyError

Explain = Callable[[str], Awaitable[Explanation | str]]
"""Says what would happen to a request for a model, or in words why there is nothing to say; may raise `ProxyError`."""

MISSED_REPORTS = 3
"""Not ready when so many periodic reports in a row brought nothing."""

OVERDUE_S = 5.0
"""So long may a step of a swap be past its bound, which the core gives up at by itself: a margin for a busy machine."""

MODES: Final[tuple[Mode, ...]] = get_args(Mode)


class BadRequestError(Exception):
    """A body that is not what the route takes; the text says what is."""


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


def operator_app(
    snapshot: Callable[[], Snapshot], explain: Explain, tell: Callable[[events.Event], None], settings: Settings
) -> web.Application:
    """Build the application of the second listener.

    ``snapshot`` draws the picture of this moment; ``tell`` takes what the operator did.
    """
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
        return web.json_response({**about, **dataclasses.asdict(snapshot(), dict_factory=json_members)})

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
        return web.json_response({**dataclasses.asdict(told, dict_factory=json_members), "text": in_words(told)})

    app = web.Application(middlewares=[_only_for(HostGuard(settings.admin, settings.allowed_hosts))])
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/v1/snapshot", show_snapshot)])
    app.add_routes([web.get("/v1/explain", show_explanation)])
    app.add_routes(_controls(snapshot, tell))
    return app


def _controls(snapshot: Callable[[], Snapshot], tell: Callable[[events.Event], None]) -> list[web.RouteDef]:
    """Return the routes by which the operator changes something; each answers how things stand then."""

    def standing() -> web.Response:
        seen = snapshot()
        answer = {"mode": seen.mode, "mode_for_s": seen.mode_for_s, "paused_for_s": seen.paused_for_s}
        return web.json_response(answer)

    async def set_mode(request: web.Request) -> web.Response:
        tell(events.ModeSet(mode_in(await request.text())))
        return standing()

    async def pause(request: web.Request) -> web.Response:
        expect_nothing_in(await request.text())
        tell(events.Paused())
        return standing()

    async def resume(request: web.Request) -> web.Response:
        expect_nothing_in(await request.text())
        tell(events.Resumed())
        return standing()

    return [web.post("/v1/mode", set_mode), web.post("/v1/pause", pause), web.post("/v1/resume", resume)]


def mode_in(body: str) -> Mode:
    """Return the mode that a body asks for, as in ``{"mode": "manual"}``.

    Raises:
        BadRequestError: it asks for none, for an unknown one, or for something beside it.
    """
    given = _object_in(body)
    for mode in MODES:
        if given == {"mode": mode}:
            return mode
    raise BadRequestError(f'expected {{"mode": MODE}}, MODE one of {", ".join(MODES)}')


def expect_nothing_in(body: str) -> None:
    """Accept an empty body or an empty object.

    Raises:
        BadRequestError: it is something else.
    """
    if body and _object_in(body):
        raise BadRequestError("expected an empty object: {}")


def _object_in(body: str) -> dict[str, object]:
    try:
        given = json.loads(body)
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise BadRequestError("expected a JSON object")
    return given


def _only_for(guard: HostGuard) -> Middleware:
    """Keep web pages out: those that reach us by DNS rebinding, as the proxy port does, and those that only send.

    A page of another site can make a browser post here without a question, but neither as JSON nor without naming its
    origin.
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        host = request.headers.get("Host", "")
        if not guard.allows(host):
            return web.Response(status=403, headers=[TURNED_AWAY])
        if request.method in {"GET", "HEAD"}:
            return await handler(request)
        origin = request.headers.get("Origin")
        if origin is not None and origin.lower() != f"http://{host}".lower():
            return web.json_response({"error": "pages of other origins may change nothing here"}, status=403)
        if request.content_type != "application/json":
            return web.json_response({"error": "send Content-Type: application/json"}, status=415)
        try:
            return await handler(request)
        except BadRequestError as problem:
            return web.json_response({"error": str(problem)}, status=400)

    return check
