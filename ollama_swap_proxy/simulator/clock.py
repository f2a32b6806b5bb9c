"""Where the simulator gets its time, so that a test can hold it.

Owns the one real clock. Must not be asked for a date by `machine`: wall time only goes into answers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """Something that can be called off."""

    def cancel(self) -> None:
        """Call it off."""


class Clock(Protocol):
    """Monotonic seconds, wall seconds and waiting."""

    def now(self) -> float:
        """Monotonic seconds."""

    def wall(self) -> float:
        """Unix seconds."""

    async def sleep(self, seconds: float) -> None:
        """Let that much time pass."""

    def call_later(self, seconds: float, action: Callable[[], None]) -> Timer:
        """Run ``action`` after that time."""


class RealClock:
    """The running event loop's time."""

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def wall(self) -> float:
        """Unix seconds."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Let that much time pass."""
        await asyncio.sleep(max(0.0, seconds))

    def call_later(self, seconds: float, action: Callable[[], None]) -> Timer:
        """Run ``action`` after that time; at most a day ahead, which no test outlives."""
        return asyncio.get_running_loop().call_later(min(seconds, 86400.0), action)
