"""An Ollama in virtual time: a card, runners with slots, loads that take their time, and a clock that jumps.

Owns what takes how long on the card, the same for all who are compared. Must not decide what is loaded, or for whom.
It believes nothing on trust: a request for a model that is not resident, or an unload of one that is busy, is a defect
of who sent it and raises.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

EVICTION_ANSWER_S = 0.002
"""An unload request is answered before anything is unloaded."""


class Clock:
    """Jumps from one action to the next; those of the same moment run in the order in which they were asked for."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = count()

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Run ``action`` at ``when`` seconds, or now where that is past."""
        heapq.heappush(self._heap, (max(when, self.now), next(self._count), action))

    def after(self, pause_s: float, action: Callable[[], None]) -> None:
        """Run ``action`` in ``pause_s`` seconds."""
        self.at(self.now + pause_s, action)

    def step(self) -> None:
        """Run the next action.

        Raises:
            RuntimeError: if there is none.
        """
        if not self._heap:
            raise RuntimeError("nothing is going on, and somebody waits")
        self.now, _, action = heapq.heappop(self._heap)
        action()


@dataclass(frozen=True, slots=True)
class Model:
    """What Ollama can load: how long that takes, and how much of the card it needs."""

    name: str
    load_s: float
    size_mib: int = 4500
    unload_s: float = 0.1
    embeds: bool = False


@dataclass(eq=False, slots=True)
class Request:
    """One client request and what became of it. Times in seconds of the clock."""

    id: int
    client: str
    rank: str
    model: str
    hold_s: float
    arrived_at: float
    let_through_at: float = float("-inf")
    begun_at: float | None = None
    """When it got a slot: until then it waited, in whichever line."""
    answered_at: float | None = None
    refused: str = ""


@dataclass(slots=True)
class _Runner:
    running: int = 0
    queue: deque[Request] = field(default_factory=deque)


class VirtualOllama:
    """One card with ``total_mib``; each resident model serves ``slots`` requests side by side and queues the rest."""

    def __init__(self, clock: Clock, models: tuple[Model, ...], slots: int, total_mib: int, ps_s: float) -> None:
        self.models = {model.name: model for model in models}
        self.loads: list[tuple[float, str]] = []
        self.starts: list[Request] = []
        """All requests in the order in which they were let through to Ollama."""
        self.on_answered: Callable[[Request], None] = lambda _: None
        self._clock = clock
        self._slots, self._total_mib, self._ps_s = slots, total_mib, ps_s
        self._runners: dict[str, _Runner] = {}
        self._changing, self._changing_since, self._changing_s = 0, 0.0, 0.0
        self._waiting_loads: deque[tuple[Model, Callable[[], None]]] = deque()
        self._leaving: set[str] = set()

    # --- what can be seen -------------------------------------------------------------------------------------------
    @property
    def residents(self) -> tuple[str, ...]:
        """What is loaded, the one loaded first first."""
        return tuple(self._runners)

    @property
    def swapping_s(self) -> float:
        """For how long something was being loaded or unloaded, in seconds."""
        return self._changing_s + (self._clock.now - self._changing_since if self._changing else 0.0)

    def is_busy(self, name: str) -> bool:
        """Say whether requests are running on, or queued for, this resident."""
        runner = self._runners.get(name)
        return runner is not None and (runner.running > 0 or bool(runner.queue))

    def fits(self, names: set[str]) -> bool:
        """Say whether these models may all lie on the card together; one alone always may."""
        return len(names) <= 1 or sum(self.models[name].size_mib for name in names) <= self._total_mib

    def report(self, done: Callable[[tuple[Model, ...]], None]) -> None:
        """GET /api/ps."""
        self._clock.after(self._ps_s, lambda: done(tuple(self.models[name] for name in self._runners)))

    # --- what can be asked for --------------------------------------------------------------------------------------
    def start(self, request: Request) -> None:
        """Let a request through to its model, which must be resident."""
        runner = self._runners.get(request.model)
        if runner is None or request.model in self._leaving:
            raise RuntimeError(f"a request for {request.model} was let through; resident: {self.residents}")
        request.let_through_at = self._clock.now
        self.starts.append(request)
        runner.queue.append(request)
        self._fill_slots(runner)

    def unload(self, name: str, done: Callable[[], None] | None = None) -> None:
        """Unload an idle model; asking again changes nothing."""
        if self.is_busy(name):
            raise RuntimeError(f"{name} was asked to unload while it was busy")
        if name not in self._runners or name in self._leaving:
            return
        self._leaving.add(name)
        self._change()

        def gone() -> None:
            self._leaving.discard(name)
            del self._runners[name]
            self._changed()
            if done is not None:
                done()
            self._try_loads()

        self._clock.after(self.models[name].unload_s, gone)

    def load(self, name: str, done: Callable[[], None]) -> None:
        """Load a model; for one that finds no room, Ollama unloads what is idle, the oldest first."""
        self._waiting_loads.append((self.models[name], done))
        self._try_loads()

    def _try_loads(self) -> None:
        while self._waiting_loads:
            model, done = self._waiting_loads[0]
            if model.name not in self._runners and not self.fits({*self._runners, model.name}):
                idle = [name for name in self._runners if not self.is_busy(name)]
                if idle and not self._leaving:
                    self.unload(idle[0])
                return
            self._waiting_loads.popleft()
            self._load_now(model, done)

    def _load_now(self, model: Model, done: Callable[[], None]) -> None:
        if model.name in self._runners:
            self._clock.after(0.0, done)
            return
        self.loads.append((self._clock.now, model.name))
        self._change()

        def loaded() -> None:
            self._runners[model.name] = _Runner()
            self._changed()
            done()

        self._clock.after(model.load_s, loaded)

    # --- inside -----------------------------------------------------------------------------------------------------
    def _fill_slots(self, runner: _Runner) -> None:
        while runner.queue and runner.running < self._slots:
            request = runner.queue.popleft()
            runner.running += 1
            request.begun_at = self._clock.now
            self._clock.after(request.hold_s, lambda request=request: self._answer(runner, request))  # type: ignore[misc]

    def _answer(self, runner: _Runner, request: Request) -> None:
        runner.running -= 1
        request.answered_at = self._clock.now
        self._fill_slots(runner)
        self.on_answered(request)
        self._try_loads()

    def _change(self) -> None:
        if self._changing == 0:
            self._changing_since = self._clock.now
        self._changing += 1

    def _changed(self) -> None:
        self._changing -= 1
        if self._changing == 0:
            self._changing_s += self._clock.now - self._changing_since
