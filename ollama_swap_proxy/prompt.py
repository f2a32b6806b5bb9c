"""A future whose waiting task goes on at once, instead of on the event loop's next turn.

Owns the hot path's only way of waiting. A turn of the loop costs a system call and a dozen calls of Python; a warm
request waits for two things (its connection's next request, the end of its answer), so it matters. Must not be
awaited by more than one task.

It stands on asyncio's protocol for objects that are like futures (``_asyncio_future_blocking``; asyncio/futures.py,
`isfuture`): a task hands such an object its wakeup, and nothing forbids to call that from a plain callback of the loop.
The task then runs inside that callback and in its context: a context variable that the task has set is not seen there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextvars import Context
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Prompt(Generic[T]):
    """Something that one task waits for. `set_result` says what came, `wake` lets the task go on.

    `tell` does both. The task runs inside: make that the last thing you do, or be ready for whatever it may call.
    """

    __slots__ = ("_asyncio_future_blocking", "_cancelled", "_context", "_is_done", "_loop", "_result", "_wakeup")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._asyncio_future_blocking = False
        self._is_done = False
        self._cancelled = False
        self._wakeup: Callable[[Any], object] | None = None
        self._context: Context | None = None

    def set_result(self, result: T) -> None:
        """Say what came, once."""
        self._result = result
        self._is_done = True

    def tell(self, result: T) -> None:
        """Say what came, and let the waiting task go on; do nothing if something came before."""
        if not self._is_done:
            self._result = result
            self._is_done = True
            self.wake()

    def wake(self) -> None:
        """Run the waiting task until it waits for something else; from within another task, as soon as possible."""
        wakeup, self._wakeup = self._wakeup, None
        if wakeup is None:
            return
        if asyncio.current_task(self._loop) is None:
            wakeup(self)
        else:
            self._loop.call_soon(wakeup, self, context=self._context)

    def __await__(self) -> Generator[Any, None, T]:
        if self._cancelled:
            raise asyncio.CancelledError
        if not self._is_done:
            self._asyncio_future_blocking = True
            yield self  # the task that goes on has asked for `result`, and been told of a cancel
        return self._result

    # --- what asyncio's tasks ask of a future ---

    get_loop = staticmethod(asyncio.get_running_loop)
    """Return the loop of the task that waits; it runs while that is asked."""

    def add_done_callback(self, wakeup: Callable[[Any], object], *, context: Context | None = None) -> None:
        """Take the wakeup of the task that waits."""
        self._wakeup = wakeup
        self._context = context

    def cancel(self, msg: object = None) -> bool:  # noqa: ARG002 - asyncio's shape
        """Have the waiting task cancelled, on the loop's next turn; return False if there is nothing to cancel."""
        if self._is_done:
            return False
        self._is_done = self._cancelled = True
        if self._wakeup is not None:
            self._loop.call_soon(self._wakeup, self, context=self._context)
            self._wakeup = None
        return True

    def done(self) -> bool:
        """Say whether it has come or was cancelled."""
        return self._is_done

    def cancelled(self) -> bool:
        """Say whether it was cancelled."""
        return self._cancelled

    def result(self) -> T:
        """Return what came. Raises CancelledError if it was cancelled."""
        if self._cancelled:
            raise asyncio.CancelledError
        return self._result
