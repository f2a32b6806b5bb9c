"""Single flight: one call at a time, shared by all who want its answer.

Owns who shares which call. Must not know what the call does, cache an answer or bound its time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Flight(Generic[T]):
    """Runs ``call`` for all who join; a joiner that is cancelled leaves, the call goes on for the others.

    ``call`` must be bounded in time. What it raises, every joiner gets.
    """

    def __init__(self, name: str, call: Callable[[], Awaitable[T]]) -> None:
        self._name = name
        self._call = call
        self._running: asyncio.Task[T] | None = None
        self._queued: asyncio.Task[T] | None = None

    async def join(self, *, fresh: bool = False) -> T:
        """Return the answer of the call under way, or of a new one.

        With ``fresh`` a call that has begun already is too old: all who ask so share the next one.
        """
        running = self._running
        if running is None or running.done() or fresh:
            if self._queued is None:
                self._queued = asyncio.create_task(self._fly(), name=self._name)
                self._queued.add_done_callback(_retrieve)
            return await asyncio.shield(self._queued)
        return await asyncio.shield(running)

    async def _fly(self) -> T:
        if self._running is not None and not self._running.done():
            await asyncio.wait({self._running})
        self._running, self._queued = self._queued, None
        return await self._call()

    def cancel(self) -> None:
        """End the calls under way; whoever waits for them is cancelled too."""
        for task in (self._running, self._queued):
            if task is not None:
                task.cancel()
        self._running = self._queued = None


def _retrieve(task: asyncio.Task[T]) -> None:
    """Look at the outcome, so that a failure whose joiners have all left is no complaint of the loop."""
    if not task.cancelled():
        task.exception()
