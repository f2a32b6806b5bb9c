"""The gate: the only caller of the scheduler, and the loop that carries its commands out.

Owns the clock, the tasks of control calls, and the promise that each ticket becomes exactly one of a lease, an error,
an abandoned wait. Must not decide anything: what to do is `core.scheduler`'s. A command can never re-enter ``handle``:
events that come up while commands are carried out wait in a queue.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Protocol

import structlog

from ollama_swap_proxy.core import commands, events
from ollama_swap_proxy.core.events import LoadFailure
from ollama_swap_proxy.core.explain import Explanation
from ollama_swap_proxy.core.scheduler import Scheduler
from ollama_swap_proxy.core.snapshot import Snapshot
from ollama_swap_proxy.core.tickets import Ticket
from ollama_swap_proxy.errors import ProxyError
from ollama_swap_proxy.upstream.catalog import Catalog
from ollama_swap_proxy.upstream.control import Control, ControlError
from ollama_swap_proxy.upstream.eviction import evict
from ollama_swap_proxy.upstream.needs import AskedByAll, nothing_asked, plain_need
from ollama_swap_proxy.upstream.view import ResidencyView

PROGRESS_INTERVAL_S = 1.0
"""How often the scheduler is told which streams moved; it needs no more to tell a stuck drain from a slow one."""


Otherwise = Callable[[str], events.Event]
"""Makes the event for a call that failed by a defect of ours, of the reason."""


class Moving(Protocol):
    """What the gate reads of a leased request: when upstream first and last sent a byte (loop time; None before), and
    whether the answer is streamed. It can be cut off: then it fails with this error, or in mid-answer breaks off.
    """

    first_byte_at: float | None
    last_byte_at: float | None
    streamed: bool

    def cut_off(self, error: ProxyError, /) -> None:
        """End the request, if it is being relayed."""


@dataclass(slots=True)
class Held:
    """A lease in the hands of a request. Times are the loop's seconds."""

    ticket: Ticket
    granted_at: float
    swapped: bool
    loads: bool
    moving: Moving | None = None
    told_at: float | None = None


class Gate:
    """Lets requests through when it is their model's turn. Use within one event loop; `start` before anything else."""

    def __init__(
        self,
        scheduler: Scheduler,
        control: Control,
        catalog: Catalog,
        view: ResidencyView,
        asked_by_all: AskedByAll = nothing_asked,
    ) -> None:
        self._scheduler = scheduler
        self.serves, self.bypasses = scheduler.serves, scheduler.bypasses
        """See `Scheduler`: both are asked for every request, so they are not wrapped."""
        self.next_id = itertools.count(1).__next__
        """Gives each request its number: the ``id`` of its ticket, its lease and its log lines."""
        self._control = control
        self._catalog = catalog
        self._view = view
        self._asked_by_all = asked_by_all
        self._loop = asyncio.get_running_loop()
        self._log = structlog.get_logger("gate")
        self._events: deque[events.Event] = deque()
        self._handling = False
        self._waiting: dict[int, asyncio.Future[commands.Grant | commands.Reject]] = {}
        self._decided: dict[int, commands.Grant | commands.Reject] = {}
        self._held: dict[int, Held] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake: asyncio.TimerHandle | None = None
        self._progress: asyncio.TimerHandle | None = None
        self._identified = False

    # --- for requests -----------------------------------------------------------------------------------------------
    def ask(self, ticket: Ticket, moving: Moving | None = None) -> Held | None:
        """Put a ticket in that arrives now (`arrived_at`: the loop's time); return the lease if there is one at once.

        Else return None: then `wait` for it, in the same step. The bytes of ``moving`` are followed as long as it has
        the lease, so that a slow answer is told from a stuck one.

        Raises:
            ProxyError: the ticket was rejected.
        """
        self.tell(events.Arrived(ticket), ticket.arrived_at)
        decision = self._decided.pop(ticket.id, None)
        if decision is None:
            self._waiting[ticket.id] = self._loop.create_future()
            return None
        return self._hold(ticket, decision, ticket.arrived_at, moving)

    async def wait(self, ticket: Ticket, moving: Moving | None = None) -> Held:
        """Wait for a ticket that `ask` put in. Cancel it when the client leaves: the ticket is gone at once.

        Raises:
            ProxyError: the ticket was rejected.
        """
        waiter = self._waiting[ticket.id]
        try:
            decision = await waiter
        except asyncio.CancelledError:
            # The client may leave in the very step in which its ticket is granted: then it is a lease that ends.
            granted = waiter.done() and not waiter.cancelled() and isinstance(waiter.result(), commands.Grant)
            self.tell(events.Released(ticket.id) if granted else events.Abandoned(ticket.id))
            raise
        finally:
            self._waiting.pop(ticket.id, None)
        return self._hold(ticket, decision, self._loop.time(), moving)

    def _hold(
        self, ticket: Ticket, decision: commands.Grant | commands.Reject, now: float, moving: Moving | None
    ) -> Held:
        if isinstance(decision, commands.Reject):
            raise _error_of(decision.rejection)
        held = self._held[ticket.id] = Held(ticket, now, decision.swapped, decision.loads, moving)
        if self._progress is None:
            self._progress = self._loop.call_later(PROGRESS_INTERVAL_S, self._tell_progress)
        return held

    def first_byte(self, held: Held, _status: int = 200) -> None:
        """Tell at once that the answer began, with any status: needed of a request by which Ollama loads the model."""
        if held.loads:
            held.told_at = self._loop.time()
            self.tell(events.Progressed(held.ticket.id, held.told_at))

    def release(self, held: Held, *, failed: bool) -> None:
        """Give the lease back; ``failed`` says that upstream answered with 500 or more, or broke off."""
        if self._held.pop(held.ticket.id, None) is not None:
            self.tell(events.Released(held.ticket.id, failed, _stream(held.moving)))

    # --- for everybody ----------------------------------------------------------------------------------------------
    def tell(self, event: events.Event, now: float | None = None) -> None:
        """Tell the scheduler a fact and carry out what it asks for. ``now`` is the loop's time, if it is at hand."""
        if self._handling:
            self._events.append(event)
            return
        self._handling = True
        try:
            for command in self._scheduler.handle(event, self._loop.time() if now is None else now):
                self._carry_out(command)
            while self._events:
                for command in self._scheduler.handle(self._events.popleft(), self._loop.time()):
                    self._carry_out(command)
        finally:
            self._handling = False

    def snapshot(self) -> Snapshot:
        """Return what there is to see."""
        return self._scheduler.snapshot(self._loop.time())

    def explain(self, ticket: Ticket) -> Explanation:
        """Say what would become of this ticket if it were put in now; nothing is done."""
        return self._scheduler.explain(ticket, self._loop.time())

    def start(self) -> None:
        """Begin: the first thing that the scheduler asks for is a report, and before it goes the version."""
        self.tell(events.TimePassed())

    async def close(self) -> None:
        """End all control calls. Waiting tickets must have been answered before (`events.Stopping`)."""
        for timer in (self._wake, self._progress):
            if timer is not None:
                timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._view.cancel()
        self._catalog.cancel()

    # --- carrying out -----------------------------------------------------------------------------------------------
    def _carry_out(self, command: commands.Command) -> None:  # noqa: C901  # one case a command
        match command:
            case commands.Grant() | commands.Reject():
                waiter = self._waiting.get(command.ticket_id)
                if waiter is None:
                    self._decided[command.ticket_id] = command
                else:
                    self._answer(waiter, command)
            case commands.Cut():
                self._cut(command)
            case commands.Observe():
                asked_at = self._loop.time()
                self._spawn("observe", self._observe(), lambda why: events.ResidencyUnknown(asked_at, why))
            case commands.Evict(key, name):
                unload = evict(self._control, self._catalog, key, name)
                self._spawn(
                    f"unload {name}", unload, lambda why: events.EvictionAnswered(key, accepted=False, reason=why)
                )
            case commands.Load(variant, name):
                load = self._load(command)
                self._spawn(f"load {name}", load, lambda why: events.LoadEnded(variant, LoadFailure(502, why)))
            case commands.Describe(name):
                self._spawn(f"describe {name}", self._describe(name), lambda why: events.Described(name, None, why))
            case commands.KeepAlive(key, name):
                kept = self._keep_alive(command)
                self._spawn(f"keep_alive {name}", kept, lambda why: events.KeptAlive(key, why))
            case commands.WakeAt(at):
                self._wake_at(at)
            case commands.Step(name, fields, warning):
                (self._log.warning if warning else self._log.info)(name, **fields)

    def _answer(
        self, waiter: asyncio.Future[commands.Grant | commands.Reject], decision: commands.Grant | commands.Reject
    ) -> None:
        if not waiter.done():
            waiter.set_result(decision)
        elif isinstance(decision, commands.Grant):
            self._events.append(events.Released(decision.ticket_id))  # its client left in this very step

    def _cut(self, command: commands.Cut) -> None:
        held = self._held.get(command.ticket_id)
        moving = held.moving if held is not None else None
        if held is None or moving is None:
            return
        moved_at, since = moving.last_byte_at, command.unless_moved_since
        if since is not None and moved_at is not None and moved_at > since:
            self._events.append(self._progress_of(held, moving, moved_at))
            return
        error = _error_of(command.rejection)
        self._log.warning("request_cut", id=held.ticket.id, model=held.ticket.name, reason=error.message)
        self._loop.call_soon(moving.cut_off, error)  # not in here: it ends a lease at once

    def _wake_at(self, at: float | None) -> None:
        if self._wake is not None:
            self._wake.cancel()
        self._wake = None if at is None else self._loop.call_at(at, self.tell, events.TimePassed())

    async def _observe(self) -> events.Event:
        if not self._identified:
            await self._identify()
        observation = await self._view.observe(fresh=True)
        if isinstance(observation, events.ResidencyUnknown) and observation.unreachable:
            self._identified = False
        return observation

    async def _identify(self) -> None:
        try:
            identity = await self._control.identify()
        except ControlError:
            return  # the report that follows says that upstream is away
        self._identified = True
        self._log.info("upstream_identified", version=identity.version, ps_is_safe=identity.ps_is_safe)
        self.tell(identity)

    async def _load(self, command: commands.Load) -> events.Event:
        failure = await self._control.load(command.recipe, command.timeout_s)
        return events.LoadEnded(command.variant, failure)

    async def _keep_alive(self, command: commands.KeepAlive) -> events.Event:
        try:
            await self._control.keep_alive(command.recipe, command.keep_alive)
        except ControlError as error:
            return events.KeptAlive(command.key, str(error))
        return events.KeptAlive(command.key)

    async def _describe(self, name: str) -> events.Event:
        try:
            need = await plain_need(self._catalog, name, 0.0, self._asked_by_all)
        except ControlError as error:
            return events.Described(name, None, f"what Ollama has under this name could not be found out: {error}")
        return events.Described(name, None, need) if isinstance(need, str) else events.Described(name, need)

    def _tell_progress(self) -> None:
        self._progress = None
        for held in list(self._held.values()):
            moving = held.moving
            moved_at = moving.last_byte_at if moving is not None else None
            if moving is not None and moved_at is not None and moved_at != held.told_at:
                self.tell(self._progress_of(held, moving, moved_at))
        if self._held:
            self._progress = self._loop.call_later(PROGRESS_INTERVAL_S, self._tell_progress)

    @staticmethod
    def _progress_of(held: Held, moving: Moving, moved_at: float) -> events.Progressed:
        held.told_at = moved_at
        return events.Progressed(held.ticket.id, moved_at, moving.first_byte_at if moving.streamed else None)

    def _spawn(self, name: str, call: Coroutine[None, None, events.Event], otherwise: Otherwise) -> None:
        task = self._loop.create_task(self._tell_outcome(name, call, otherwise), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell_outcome(self, name: str, call: Coroutine[None, None, events.Event], otherwise: Otherwise) -> None:
        """Tell the scheduler how a call ended, whatever happens in it: it waits for that."""
        try:
            outcome = await call
        except Exception as error:  # noqa: BLE001 - the next lines log it and tell the scheduler
            self._log.exception("control_call_failed", call=name)
            outcome = otherwise(f"{type(error).__name__} in the proxy; see its log")
        self.tell(outcome)


def _error_of(rejection: commands.Rejection) -> ProxyError:
    return ProxyError(rejection.code, rejection.status, rejection.message, rejection.retry_after_s)


def _stream(moving: Moving | None) -> tuple[float, float] | None:
    """Return when the first and the last byte of a streamed answer came, else None: one that came at once is none."""
    if moving is None or not moving.streamed or moving.first_byte_at is None or moving.last_byte_at is None:
        return None
    if moving.first_byte_at == moving.last_byte_at:
        return None
    return moving.first_byte_at, moving.last_byte_at
