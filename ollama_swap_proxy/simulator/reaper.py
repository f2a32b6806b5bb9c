"""How a runner ends: one worker, one runner at a time, each with its wait for memory that nobody may have asked for.

Owns the expiry queue, the kill, and the return of the memory. Must not choose who ends: `machine` does.
Facts: server/sched.go:414-467 (one goroutine, serial) and 1441-1499 (the wait for memory).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ollama_swap_proxy.simulator.runner import Runner
from ollama_swap_proxy.simulator.world import World

RECOVERY_LIMIT_S = 5.0
RECOVERY_TICK_S = 0.25
RETRY_BUSY_S = 0.01
ENOUGH_SHARE = 0.75
"""The wait ends when so much of the victim's memory has come back."""
KILL_S = 0.002


class Reaper:
    """Ends runners, serially. ``gone`` is called after each end, once its wait for memory is over.

    ``killing`` is the runner whose process is being ended right now: nobody gets it any more.
    """

    def __init__(self, world: World, gone: Callable[[], None]) -> None:
        self._world = world
        self._gone = gone
        self._expired: asyncio.Queue[Runner] = asyncio.Queue()
        self.killing: Runner | None = None
        self._killed = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the worker."""
        self._expired = asyncio.Queue()
        self._worker = asyncio.create_task(self._work(), name="simulator expiry")

    async def stop(self) -> None:
        """Stop the worker and kill every runner at once."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
            self._worker = None
        for runner in list(self._world.table.values()):
            self._world.note("evict", runner, why="restart")
            self._bury(runner)

    def expire(self, runner: Runner) -> None:
        """Queue its end; that event sticks, whatever keep_alive a request brings before it is dealt with."""
        if not runner.ending:
            runner.ending = True
            self._expired.put_nowait(runner)

    async def settled(self) -> None:
        """Wait while a process is being killed: both of the server's locks are held then."""
        while self.killing is not None:
            await self._killed.wait()

    def return_memory(self, number: int, name: str) -> None:
        """The process is dead: its memory comes back after the card's lag."""
        world = self._world
        world.card.end(number)
        lag_s = world.scaled(world.gpu.draw_lag_s(world.random))

        def back() -> None:
            world.card.back(number)
            world.ledger.note(world.now, "vram_returned", name, number)

        if lag_s > 0:
            world.clock.call_later(lag_s, back)
        else:
            back()

    async def _work(self) -> None:
        world = self._world
        while True:
            runner = await self._expired.get()
            if world.faults.slow_unload_s:
                await world.clock.sleep(world.scaled(world.faults.slow_unload_s))
            while runner.refs > 0:
                await world.clock.sleep(RETRY_BUSY_S)
            # The victim itself is asked: it knows what it left free when it loaded, not what has gone since.
            free_before = world.card.left[runner.number]
            await self._kill(runner)
            await self._await_recovery(runner, free_before)
            self._gone()

    async def _kill(self, runner: Runner) -> None:
        """End the process; /api/ps says nothing meanwhile."""
        self._world.note("evict", runner, why=runner.why)
        self.killing, self._killed = runner, asyncio.Event()
        try:
            await self._world.clock.sleep(self._world.scaled(KILL_S))
            self._bury(runner)
        finally:
            self.killing = None
            self._killed.set()

    def _bury(self, runner: Runner) -> None:
        table = self._world.table
        if table.get(runner.wanted.key) is runner:
            del table[runner.wanted.key]
        if runner.timer is not None:
            runner.timer.cancel()
            runner.timer = None
        self._world.note("exit", runner)
        runner.gone.set()
        self.return_memory(runner.number, runner.wanted.name)

    async def _await_recovery(self, runner: Runner, free_before: int) -> None:
        """Right when it was alone on the card; beside another runner a lottery: 5 s too long, or nothing at all."""
        world = self._world
        if not runner.size_vram:
            return
        if world.table:
            wrapped = world.random.random() < world.faults.short_wait_beside_another
            await world.clock.sleep(world.scaled(RECOVERY_TICK_S if wrapped else RECOVERY_LIMIT_S))
            return
        waited_s = 0.0
        while waited_s < RECOVERY_LIMIT_S:
            await world.clock.sleep(world.scaled(RECOVERY_TICK_S))
            waited_s += RECOVERY_TICK_S
            # The difference is unsigned: a newcomer that took memory meanwhile ends the wait too.
            recovered = world.card.free_bytes - free_before
            if recovered < 0 or recovered > ENOUGH_SHARE * runner.size_vram:
                return
