"""What happens to one request: which endpoint, whose lease, then the relay.

Owns stops 1, 3 and 6 of the design: reads the body of a gated request, has it judged, takes the lease, and hands the
rest to the relay. Must not decide whose turn it is, nor touch a byte. When in doubt it takes a lease; what Ollama is
certain to answer without loading anything goes straight through and costs no resident model its place.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Final

import structlog

from ollama_swap_proxy.access import TURNED_AWAY, HostGuard
from ollama_swap_proxy.bodies import SYNCHRONOUS_LIMIT_BYTES, Body, library_names, read_at_once, read_intent
from ollama_swap_proxy.callers import Callers
from ollama_swap_proxy.config import Settings
from ollama_swap_proxy.core import endpoints, events, names
from ollama_swap_proxy.core.endpoints import Endpoint
from ollama_swap_proxy.core.explain import Explanation
from ollama_swap_proxy.core.requests import Intent, Kind, surely_refused_by
from ollama_swap_proxy.core.tickets import Need, Ticket
from ollama_swap_proxy.errors import ProxyError
from ollama_swap_proxy.gate import Gate
from ollama_swap_proxy.journal import Journal, Journey
from ollama_swap_proxy.listener.answers import Answer, OwnAnswer
from ollama_swap_proxy.listener.content import MalformedBody
from ollama_swap_proxy.listener.request import HTTP_11, ClientRequest, RequestHead
from ollama_swap_proxy.num_ctx import LeastNumCtx
from ollama_swap_proxy.upstream.catalog import Catalog, Entry
from ollama_swap_proxy.upstream.control import ControlError
from ollama_swap_proxy.upstream.needs import need_of, plain_endpoint, plain_need
from ollama_swap_proxy.upstream.relay import Relay

INTERNAL_ERROR: Final = "internal_error"

FRESH_ENTRY_S: Final = 1.0
"""A model that is not resident is looked up again when we last saw it longer ago: no swap for one that was deleted."""

PLANS_KEPT: Final = 1024
"""For so many pairs of endpoint and model what a request without options needs is remembered."""

WAITED_LINES: Final = b"X-Ollama-Swap-Proxy-Waited: %.3f\r\nX-Ollama-Swap-Proxy-Swapped: %b\r\n"
"""What an answer tells of its request with `response_headers`: seconds, and whether a swap was made meanwhile."""

_NO_HEAD: Final = RequestHead("", "", HTTP_11, [], [])

LIBRARY_BODY_LIMIT_BYTES: Final = 256 * 1024
"""A pull, create, copy or delete names its model in a small body; of a larger one we only know that it came."""


class App:
    """The handler of the proxy port."""

    def __init__(self, gate: Gate, catalog: Catalog, relay: Relay, guard: HostGuard, settings: Settings) -> None:
        self._gate = gate
        self._catalog = catalog
        self._relay = relay
        self._guard = guard
        self._journal = Journal()
        self._at_once_bytes = min(SYNCHRONOUS_LIMIT_BYTES, settings.body_limit_bytes or SYNCHRONOUS_LIMIT_BYTES)
        self._settings = settings
        self._callers = Callers(settings)
        self._least_num_ctx = LeastNumCtx(settings)
        self._plans: dict[tuple[Endpoint, str, str], Need] = {}
        self._loop = asyncio.get_running_loop()
        self._log = structlog.get_logger("app")

    def close(self) -> None:
        """Write the log lines that are left."""
        self._journal.write()

    async def handle(self, request: ClientRequest) -> Answer:
        """Serve one request of any kind."""
        message = request.message
        endpoint = endpoints.match(message.method, message.path)
        dialect = endpoints.dialect_of(message.path) if endpoint is None else endpoint.dialect
        began_at = self._loop.time()
        client = request.client.address
        journey = Journey(self._gate.next_id(), message.method, message.path, dialect, client, began_at)
        try:
            if not self._guard.allows(message.host):
                journey.error, journey.status = TURNED_AWAY[1], 403
                return OwnAnswer(403, [TURNED_AWAY], b"")  # an empty body, as Ollama's own
            if endpoint is not None:
                return await self._gated(request, endpoint, journey)
            if endpoints.changes_library(message.method, message.path):
                return await self._change_library(request, journey)
            return await self._relay.forward(request, None, record=journey)
        except ProxyError as error:
            journey.error = error.code
            journey.status = error.status
            return OwnAnswer.of_error(error, dialect)
        except asyncio.CancelledError:
            journey.error = "stopping" if request.client.was_cut else "client_left"
            raise
        except MalformedBody:
            journey.error = "bad_body"
            raise  # the listener answers it as Go does
        except Exception:
            journey.error = INTERNAL_ERROR
            if request.client.answer_begun:
                raise  # too late for an answer: the listener says so and cuts the connection
            self._log.exception("handler_failed", id=journey.id)
            journey.status = 500
            return OwnAnswer.of_error(ProxyError(INTERNAL_ERROR, 500, "the proxy failed; see its log"), dialect)
        finally:
            self._journal.end(journey)

    async def explain(self, model: str) -> Explanation | str:
        """Say what would happen to a plain request for this model that came now from nowhere in particular; or, in
        words, why it would need no lease. Ollama is asked what it knows of the name; nothing is done.

        Raises:
            ProxyError: what Ollama has under this name cannot be found out.
        """
        try:
            need = await plain_need(self._catalog, model, FRESH_ENTRY_S, self._least_num_ctx.asked_by_all)
        except ControlError as error:
            raise _not_found_out(error) from None
        if isinstance(need, str):
            return need
        endpoint = plain_endpoint(need.traits)
        caller = self._callers.identify(_NO_HEAD, "", endpoint.path, names.canonical(need.name))
        ticket = Ticket(
            0, need.variant, need.name, self._loop.time(), need.recipe, klass=caller.klass, traits=need.traits
        )
        return self._gate.explain(ticket)

    async def _gated(self, request: ClientRequest, endpoint: Endpoint, journey: Journey) -> Answer:
        journey.gated = True
        if self._gate.bypasses():
            return await self._bypassed(request, endpoint, journey)
        content = request.content
        data = content.read_nowait() if content.is_eof() else b""
        intent = None
        if data and len(data) <= self._at_once_bytes:
            intent = read_at_once(endpoint, request.message.fields.get(b"content-encoding"), data)
        kept: Body | bytes = data
        stored: Body | None = None
        try:
            if intent is None:
                stored = Body(self._settings.body_memory_bytes, self._settings.body_limit_bytes)
                await _read(request, stored, data)
                intent = await read_intent(endpoint, request.message.path, request.headers, stored)
                kept = stored.as_bytes() if stored.in_memory else stored
            journey.model = intent.name or intent.model
            if intent.name in self._least_num_ctx.names and isinstance(kept, bytes):
                intent, kept = await self._with_least_num_ctx(endpoint, intent, kept, journey)
            entry, plan = None, None
            if intent.kind is Kind.LEASE:
                entry = self._catalog.cached(intent.name)
                plan = self._plan(endpoint, intent, entry) if entry else None
                if plan is None or not self._gate.serves(plan.variant):  # not resident, for all we know
                    entry = await self._find(intent.name)
                    plan = self._plan(endpoint, intent, entry) if entry else None
            journey.why = _why_no_lease(endpoint, intent, entry)
            if plan is None or journey.why:
                return await self._pass_on(request, intent, kept, journey)
            return await self._leased(request, self._ticket(request, endpoint, intent, plan, journey), kept, journey)
        finally:
            if stored is not None:
                stored.close()

    async def _with_least_num_ctx(
        self, endpoint: Endpoint, intent: Intent, body: bytes, journey: Journey
    ) -> tuple[Intent, bytes]:
        """Raise the context that a request asks for, where the operator wants that; else return it as it is."""
        entry = self._catalog.cached(intent.name) or await self._find(intent.name)
        if intent.kind is not Kind.LEASE or entry is None:
            return intent, body
        raised = await self._least_num_ctx.raised(endpoint, intent, entry.parameters, body)
        if raised is None:
            return intent, body
        journey.changed = f"num_ctx={raised[0].options['num_ctx']}"
        journey.resized = True
        return raised

    async def _bypassed(self, request: ClientRequest, endpoint: Endpoint, journey: Journey) -> Answer:
        """Relay in bypass mode. It is counted as a lease where it can be told for which model; nothing is rejected for
        being unreadable, or larger than what we keep (where its length is told).
        """
        limit_bytes = self._settings.body_limit_bytes
        if limit_bytes and request.content_length > limit_bytes:
            return await self._relay.forward(request, None, record=journey, unbuffered=True)
        stored = Body(self._settings.body_memory_bytes, limit_bytes)
        try:
            await _read(request, stored, b"")
            kept = stored.as_bytes() if stored.in_memory else stored
            try:
                intent = await read_intent(endpoint, request.message.path, request.headers, stored)
                journey.model = intent.name or intent.model
                is_lease = intent.kind is Kind.LEASE
                entry = (self._catalog.cached(intent.name) or await self._find(intent.name)) if is_lease else None
                plan = self._plan(endpoint, intent, entry) if entry else None
            except ProxyError:
                return await self._relay.forward(request, kept, record=journey, unbuffered=True)
            journey.why = _why_no_lease(endpoint, intent, entry)
            if plan is None or journey.why:
                return await self._pass_on(request, intent, kept, journey)
            return await self._leased(request, self._ticket(request, endpoint, intent, plan, journey), kept, journey)
        finally:
            stored.close()

    async def _find(self, name: str) -> Entry | None:
        """Look a model up that is not known to be resident, or not known at all."""
        try:
            return await self._catalog.find(name, FRESH_ENTRY_S)
        except ControlError as error:
            raise _not_found_out(error) from None

    async def _pass_on(self, request: ClientRequest, intent: Intent, body: Body | bytes, journey: Journey) -> Answer:
        """Relay a request that loads nothing, and look again if Ollama saw that differently."""
        try:
            return await self._relay.forward(request, body, record=journey, unbuffered=True)
        finally:
            if intent.kind is Kind.UNLOAD:
                self._gate.tell(events.ViewOutdated("an unload request passed by"))
            elif intent.kind is not Kind.CLOUD and journey.why != "remote model" and 200 <= journey.status < 300:
                self._log.warning("judged_wrongly", id=journey.id, model=journey.model, why=journey.why)
                self._gate.tell(events.ViewOutdated("a request that we took for one that loads nothing was answered"))

    async def _leased(self, request: ClientRequest, ticket: Ticket, body: Body | bytes, journey: Journey) -> Answer:
        held = self._gate.ask(ticket, journey)
        if held is None:
            request.client.begin_waiting()
            try:
                held = await self._gate.wait(ticket, journey)
            finally:
                request.client.end_waiting()
        journey.waited_s, journey.swapped = held.granted_at - ticket.arrived_at, held.swapped
        if self._settings.response_headers:
            journey.own_lines = WAITED_LINES % (journey.waited_s, b"true" if held.swapped else b"false")
        failed = True
        try:
            answer = await self._relay.forward(
                request,
                body,
                record=journey,
                unbuffered=True,
                on_response_head=functools.partial(self._gate.first_byte, held) if held.loads else None,
            )
            if journey.cut and request.client.saw_eof and not journey.cut_code:
                journey.error = "client_left"  # it closed first, and Ollama ended the answer because of that
            failed = (journey.cut and not journey.error) or journey.status >= 500
        except asyncio.CancelledError:
            failed = False  # a client that leaves is no fault of the model's
            raise
        else:
            return answer
        finally:
            self._gate.release(held, failed=failed)

    def _ticket(
        self, request: ClientRequest, endpoint: Endpoint, intent: Intent, plan: Need, journey: Journey
    ) -> Ticket:
        caller = self._callers.identify(request.message, request.client.address, endpoint.path, intent.name)
        journey.client, journey.klass = caller.client, caller.klass.name
        keep_alive_s = intent.keep_alive_s
        stays_briefly = keep_alive_s is not None and keep_alive_s < self._settings.ps_max_age_s
        return Ticket(  # in this order, for names would cost each request as much again
            journey.id,
            plan.variant,
            plan.name,
            self._loop.time(),
            plan.recipe,
            caller.client,
            stays_briefly,
            caller.klass,
            caller.patience_s,
            plan.traits,
            keep_alive_s is not None,
        )

    def _plan(self, endpoint: Endpoint, intent: Intent, entry: Entry) -> Need:
        if intent.options:
            return need_of(endpoint, intent.options, entry, self._catalog.traits(entry))
        key = (endpoint, entry.spelled, entry.digest)
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= PLANS_KEPT:
                self._plans.clear()
            plan = self._plans[key] = need_of(endpoint, intent.options, entry, self._catalog.traits(entry))
        return plan

    async def _change_library(self, request: ClientRequest, journey: Journey) -> Answer:
        """Relay a pull, create, copy or delete, and tell the catalog and the gate afterwards."""
        changed: set[str | None] = {None}
        kept: bytes | None = None
        if request.content_length <= LIBRARY_BODY_LIMIT_BYTES and not request.message.chunked:
            body = Body(LIBRARY_BODY_LIMIT_BYTES)
            await _read(request, body, b"")
            kept = body.as_bytes()
            changed = library_names(kept)
        try:
            return await self._relay.forward(request, kept, record=journey, unbuffered=True)
        finally:
            for name in changed:
                entry = self._catalog.cached(name) if name is not None else None
                self._catalog.library_changed(name)
                if entry is not None:
                    self._gate.tell(events.ModelChanged(entry.key))


async def _read(request: ClientRequest, body: Body, begun: bytes) -> None:
    """Read a request's body before anything waits for it: only then is a client that leaves noticed at once.

    ``begun`` is what has been read of it already.
    """
    if begun:
        await body.append(begun)
    content = request.content
    if not content.is_eof():
        request.let_client_send()
    while chunk := await content.readany():
        await body.append(chunk)


def _why_no_lease(endpoint: Endpoint, intent: Intent, entry: Entry | None) -> str:
    """Say why a request loads nothing; nothing where it needs a lease."""
    if intent.kind is not Kind.LEASE:
        return intent.reason or intent.kind.value
    if entry is None:
        return "unknown model"
    if entry.remote:
        return "remote model"
    if surely_refused_by(intent, entry.capabilities or None):
        return f"{endpoint.path} is not among the model's capabilities"
    return ""


def _not_found_out(error: ControlError) -> ProxyError:
    if error.is_away:
        return ProxyError("upstream_down", 502, f"Ollama does not answer: {error}", 5)
    text = f"what Ollama has under this name could not be found out: {error}"
    return ProxyError("catalog_unknown", 503, text, retry_after_s=5)
