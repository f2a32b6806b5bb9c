"""The simulated scheduler: which engine runs, which waits, which has to go. Ollama's rules, not better ones.

Owns the queue and its one worker, who may use which runner, and the keep_alive timers; `reaper` owns how a runner ends.
Must not know HTTP, dialects or how tokens are paced (`engine`). Facts: docs/ollama.md ("The scheduler,
condensed") and the timelines in tests/transcripts. The workers here and in `reaper` are the original's two goroutines.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import deque

from ollama_swap_proxy.simulator.generation import SimError
from ollama_swap_proxy.simulator.models import LoadFailure, SimModel
from ollama_swap_proxy.simulator.reaper import Reaper
from ollama_swap_proxy.simulator.runner import FOREVER_S, Pending, Runner, Wanted, needs_reload, session_order
from ollama_swap_proxy.simulator.world import World

QUEUE_FULL = "server busy, please try again.  maximum pending requests exceeded"
PING_LIMIT_S = 10.0
"""How long an engine that does not answer is waited for; twice for one request (server/sched.go:1381)."""
FIT_SHARE = 0.8
"""A newcomer may load beside others if it is predicted to take no more than this of the free memory."""


class Machine:
    """Runners and their memory. `start` before use, `stop` after it; a restart is `stop` and `start`."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.reaper = Reaper(world, self._wake_queue)
        self._queue: deque[Pending] = deque()
        self._queued = asyncio.Event()
        self._unloaded: asyncio.Future[None] | None = None
        self._loading: Pending | None = None
        self._worker: asyncio.Task[None] | None = None
        self._numbers = itertools.count(1)
        self._pings = 0
        self._pinged = asyncio.Event()

    # ---- life

    async def start(self) -> None:
        """Start the two workers."""
        self._queued = asyncio.Event()
        self._worker = asyncio.create_task(self._work_queue(), name="simulator queue")
        self.reaper.start()

    async def stop(self) -> None:
        """Kill every engine and both workers; memory comes back after its lag, as always."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        for pending in self._queue:
            pending.granted.cancel()
        self._queue.clear()
        await self.reaper.stop()
        self._worker = self._loading = self._unloaded = None

    # ---- requests

    def attach(self, wanted: Wanted) -> Runner | None:
        """The fast path: a resident runner that serves this request as it is, at once and past the queue."""
        runner = self.world.table.get(wanted.key)
        if runner is None or runner is self.reaper.killing or needs_reload(runner, wanted):
            return None
        return self._use(runner, wanted)

    async def acquire(self, wanted: Wanted) -> Runner:
        """A runner for this request; waits in the queue, evicts and loads. Give it back with `release`.

        A cancelled caller is a client that left: if it owns the load under way, the load is aborted.

        Raises:
            SimError: 503 when the queue is full; whatever a failed load says.
        """
        runner = self.attach(wanted)
        if runner is not None:
            return runner
        if len(self._queue) >= self.world.limits.max_queue or self.world.faults.queue_full:
            self.world.ledger.note(self.world.now, "queue_full", wanted.name)
            raise SimError(503, QUEUE_FULL)
        await self._ping(self.world.table.get(wanted.key))
        pending = Pending(wanted, asyncio.get_running_loop().create_future())
        self.world.ledger.note(self.world.now, "queued", wanted.name)
        self._queue.append(pending)
        self._queued.set()
        try:
            return await pending.granted
        except asyncio.CancelledError:
            pending.left.set()
            if pending.granted.done() and not pending.granted.cancelled() and pending.granted.exception() is None:
                self.release(pending.granted.result())
            raise

    def release(self, runner: Runner) -> None:
        """A request has ended: the last one starts the keep_alive timer, or the end where it is zero."""
        runner.refs -= 1
        if runner.refs > 0 or self.world.table.get(runner.wanted.key) is not runner:
            return
        if runner.session_s <= 0:
            self.reaper.expire(runner)
            return
        runner.expires = self.world.now + (0.0 if runner.session_s == math.inf else runner.session_s)
        if runner.session_s != math.inf and (runner.timer is None or runner.expires < runner.timer_due):
            self._start_timer(runner)

    def unload(self, wanted: Wanted) -> None:
        """The API's unload: asks, promises nothing. Lost while the model loads; waits for what is under way."""
        runner = self.world.table.get(wanted.key)
        now = self.world.now
        if runner is None:
            loading = self._loading is not None and self._loading.wanted.key == wanted.key
            self.world.ledger.note(now, "unload_requested", wanted.name, effect="lost" if loading else "none")
            return
        if self.world.faults.lose_unloads and self.world.random.random() < self.world.faults.lose_unloads:
            self.world.ledger.note(now, "unload_requested", wanted.name, runner.number, effect="lost")
            return
        effect = "busy" if runner.refs > 0 else "idle"
        self.world.ledger.note(now, "unload_requested", wanted.name, runner.number, effect=effect)
        self._dismiss(runner, "unload")
        runner.expires = now

    def expire_all(self) -> None:
        """What out of memory does: every runner goes as soon as it is idle."""
        for runner in list(self.world.table.values()):
            self._dismiss(runner, "out of memory")

    def listed(self) -> list[Runner]:
        """What /api/ps lists; not to be asked while it is `locked`.

        Longest expiry first, by whole seconds; ties in no order.
        """
        runners = list(self.world.table.values())
        if len(runners) > 1:
            self.world.random.shuffle(runners)
            runners.sort(key=lambda r: -math.floor(self.expires_wall(r)))
        return runners

    @property
    def locked(self) -> bool:
        """Whether /api/ps has to wait: a process is being killed, or one that hangs is being asked."""
        return self.reaper.killing is not None or self._pings > 0

    async def unlocked(self) -> None:
        """Wait until /api/ps may look."""
        while self.locked:
            await self.reaper.settled()
            if self._pings:
                self._pinged.clear()
                await self._pinged.wait()

    def expires_wall(self, runner: Runner) -> float:
        """``expires_at`` in unix seconds: sliding while never idle, stale while busy again (sched.go:479, 1775)."""
        wall, now = self.world.clock.wall(), self.world.now
        if runner.session_s == math.inf:
            return wall + FOREVER_S + (0.0 if runner.expires is None else runner.expires - now)
        return wall + (runner.session_s if runner.expires is None else runner.expires - now)

    # ---- the queue's one worker

    async def _work_queue(self) -> None:
        while True:
            while not self._queue:
                self._queued.clear()
                await self._queued.wait()
            pending = self._queue.popleft()
            if pending.left.is_set():
                continue
            try:
                runner = await self._obtain(pending)
            except SimError as failure:
                if not pending.granted.done():
                    pending.granted.set_exception(failure)
                continue
            if runner is None:
                continue
            self._use(runner, pending.wanted)
            if pending.granted.done():
                self.release(runner)
            else:
                pending.granted.set_result(runner)

    async def _obtain(self, pending: Pending) -> Runner | None:
        """Evict until there is room, then load. None when the client left during the load."""
        while True:
            await self.reaper.settled()
            runner = self.world.table.get(pending.wanted.key)
            await self._ping(runner)
            if runner is not None and not needs_reload(runner, pending.wanted):
                return runner
            victim = runner or self._victim(pending.wanted.model)
            if victim is None:
                return await self._load(pending)
            await self._evict(victim, "reload" if runner else "eviction")

    def _victim(self, model: SimModel) -> Runner | None:
        """Who has to go before this model may load; None if it may. Alone, anything may."""
        if not self.world.table:
            return None
        if len(self.world.table) < (self.world.limits.max_loaded or 3):
            # The free memory is asked of one runner, whichever comes first in a random order.
            asked = self.world.random.choice(list(self.world.table.values()))
            free = self.world.card.predicted_beside(asked.number)
            if not self.world.gpu.total_mib or model.size_bytes <= FIT_SHARE * free:
                return None
        order = sorted(self.world.table.values(), key=session_order)
        return next((r for r in order if r.refs <= 0), order[0])

    async def _evict(self, victim: Runner, why: str) -> None:
        """Ask the victim to go and wait, without a limit, for whatever runner is gone next."""
        if victim.refs > 0 and self.world.faults.deadlock_on_eviction_under_load:
            victim.frozen = True
        self._unloaded = asyncio.get_running_loop().create_future()
        self._dismiss(victim, why)
        try:
            await self._unloaded
        finally:
            self._unloaded = None

    async def _load(self, pending: Pending) -> Runner | None:
        wanted, number, now = pending.wanted, next(self._numbers), self.world.now
        model = wanted.model
        layers = wanted.options.get("num_gpu")
        size_vram = self.world.card.take(number, model.size_bytes, layers if isinstance(layers, int) else -1)
        self.world.ledger.note(now, "load_start", wanted.name, number, generating=not model.embed, size_vram=size_vram)
        self._loading = pending
        end = "load_aborted"
        try:
            if await self._wait_for_load(pending, size_vram):
                end = ""
        except SimError:
            end = "load_failed"
            raise
        finally:
            self._loading = None
            if end:
                self.world.ledger.note(self.world.now, end, wanted.name, number)
                self.reaper.return_memory(number, wanted.name)
        if end:
            return None
        runner = Runner(
            number,
            wanted,
            session_s=0.0 if self.world.faults.vanish else self.world.limits.keep_alive_s,
            size=model.size_bytes if self.world.gpu.total_mib else 0,
            size_vram=size_vram,
            slots=asyncio.Semaphore(1 if model.embed else self.world.limits.num_parallel),
        )
        self.world.table[wanted.key] = runner
        spilled = size_vram < model.size_bytes
        self.world.note("load_done", runner, spilled=spilled, size=model.size_bytes, size_vram=size_vram)
        return runner

    async def _wait_for_load(self, pending: Pending, size_vram: int) -> bool:
        """Let the load's time pass; False when its client left.

        Raises:
            SimError: the load fails.
        """
        wanted, world = pending.wanted, self.world
        if size_vram < wanted.model.size_bytes and not self.world.gpu.spill:
            await self._passes(pending, world.scaled(0.2 * wanted.model.load_s))
            raise SimError(500, "llama-server process has terminated: exit status 1: cudaMalloc failed: out of memory")
        failure = self._failure_of_load(wanted.name)
        if failure is not None:
            if await self._passes(pending, world.scaled(failure.after * wanted.model.load_s)):
                raise SimError(failure.status, failure.text)
            return False
        if not await self._passes(pending, world.scaled(wanted.model.load_s)):
            return False
        give_up = self.world.now + world.scaled(world.limits.load_timeout_s)
        while self.world.faults.hang_load and self.world.faults.hang_load in {"*", wanted.name, wanted.model.name}:
            if not await self._passes(pending, 0.02):
                return False
            if self.world.now > give_up:
                raise SimError(500, "timed out waiting for llama-server to start - ")
        return True

    def _failure_of_load(self, name: str) -> LoadFailure | None:
        failure = self.world.faults.fail_load
        if failure is None or failure.model not in {"", name, name.removesuffix(":latest")} or failure.times == 0:
            return None
        if failure.times is not None:
            failure.times -= 1
        return failure

    async def _passes(self, pending: Pending, seconds: float) -> bool:
        """Wait that long; False at once when the client that owns this load leaves."""
        time_up = asyncio.ensure_future(self.world.clock.sleep(seconds))
        left = asyncio.ensure_future(pending.left.wait())
        try:
            await asyncio.wait({time_up, left}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            time_up.cancel()
            left.cancel()
        return not pending.left.is_set()

    async def _ping(self, runner: Runner | None) -> None:
        """Ask an engine whether it is well; one that hangs is waited for, and nobody else sees the table meanwhile."""
        if runner is None or not runner.hung:
            return
        self._pings += 1
        try:
            await self.world.clock.sleep(self.world.scaled(PING_LIMIT_S))
        finally:
            self._pings -= 1
            self._pinged.set()

    # ---- ends

    def _use(self, runner: Runner, wanted: Wanted) -> Runner:
        runner.refs += 1
        if wanted.keep_alive_s is not None:
            runner.session_s = wanted.keep_alive_s
        return runner

    def _start_timer(self, runner: Runner) -> None:
        """One timer for each runner, moved later lazily: an end of a request need not cost a new one."""
        if runner.timer is not None:
            runner.timer.cancel()
        runner.timer_due = self.world.now if runner.expires is None else runner.expires
        wait_s = max(0.0, runner.timer_due - self.world.now)
        runner.timer = self.world.clock.call_later(wait_s, lambda: self._time_is_up(runner))

    def _time_is_up(self, runner: Runner) -> None:
        runner.timer = None
        if runner.refs > 0 or runner.session_s == math.inf or runner.expires is None:
            return
        if runner.expires > self.world.now + 0.001:
            self._start_timer(runner)
        else:
            self.reaper.expire(runner)

    def _dismiss(self, runner: Runner, why: str) -> None:
        runner.session_s = 0.0
        runner.why = why
        if runner.timer is not None:
            runner.timer.cancel()
            runner.timer = None
        if runner.refs <= 0:
            self.reaper.expire(runner)

    def _wake_queue(self) -> None:
        """Some runner is gone: the event carries no name, and is lost when nobody waits for it."""
        if self._unloaded is not None and not self._unloaded.done():
            self._unloaded.set_result(None)
