"""One workload played to one contestant after the other, and the scores.

Owns the clients (who ask again a gap after their last answer) and what is measured. Must not judge it: `goals` does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from contestants import Contestant, Ours, Rival
from offline_bound import Bound, bound
from virtual_ollama import Clock, Request, VirtualOllama
from workloads import Stream, Workload

OURS: Final = "this scheduler"
FIRST_COME: Final = "first come first served"
LONGEST_QUEUE: Final = "longest queue first"
READY_FIRST: Final = "ready model first"

PS_S = 0.005
LONGEST_S = 200_000.0
"""Nobody is waited for longer: a contestant that is not done by then has left somebody waiting for ever."""

Maker = Callable[[Clock, VirtualOllama, Workload, Callable[[Request], None]], Contestant]


@dataclass(frozen=True, slots=True)
class Waits:
    """How long the requests of one class waited, in seconds. ``margin_s`` is the maximum less the longest wait."""

    p50_s: float
    p95_s: float
    max_s: float
    margin_s: float


@dataclass(frozen=True, slots=True)
class Score:
    """What one contestant made of one workload."""

    contestant: str
    makespan_s: float
    loads: int
    swapping: float
    waits: dict[str, Waits]
    refused: int
    newcomer_after: int | None
    """How many were let through from the newcomer's arrival until it was, itself included."""


@dataclass(frozen=True, slots=True)
class Result:
    """One workload, everybody's scores, ours first; the bound is for waits within the limits, or as long as ours."""

    workload: Workload
    bound: Bound
    scores: tuple[Score, ...]


def _ours(clock: Clock, ollama: VirtualOllama, workload: Workload, refuse: Callable[[Request], None]) -> Contestant:
    return Ours(clock, ollama, workload.max_wait_s, refuse, line_limit=workload.requests)


def _rival(*, overtakes: bool, longest: bool) -> Maker:
    return lambda clock, ollama, workload, _: Rival(
        clock, ollama, workload.max_wait_s, overtakes=overtakes, longest=longest
    )


CONTESTANTS: dict[str, Maker] = {
    OURS: _ours,
    FIRST_COME: _rival(overtakes=False, longest=False),
    LONGEST_QUEUE: _rival(overtakes=True, longest=True),
    READY_FIRST: _rival(overtakes=True, longest=False),
}


class Play:
    """One workload played to one contestant."""

    def __init__(self, workload: Workload, maker: Maker) -> None:
        self.clock = Clock()
        self.ollama = VirtualOllama(self.clock, workload.models, workload.slots, workload.total_mib, PS_S)
        self.ollama.on_answered = self._answered
        self.requests: list[Request] = []
        self._left = workload.requests
        self._next: dict[int, Callable[[], None]] = {}
        self._contestant = maker(self.clock, self.ollama, workload, self._over)
        for stream in workload.streams:
            self.clock.at(stream.asks[0].gap_s, lambda stream=stream: self._ask(stream, 0))  # type: ignore[misc]

    def run(self) -> None:
        """Play it to the end.

        Raises:
            RuntimeError: if somebody is left waiting for ever.
        """
        while self._left:
            self.clock.step()
            if self.clock.now > LONGEST_S:
                raise RuntimeError(f"{self._left} requests are without an answer after {LONGEST_S:.0f} s")

    def _ask(self, stream: Stream, number: int) -> None:
        ask = stream.asks[number]
        request = Request(
            len(self.requests) + 1, stream.client, stream.rank, ask.model, ask.hold_s, arrived_at=self.clock.now
        )
        self.requests.append(request)
        if number + 1 < len(stream.asks):
            gap_s = stream.asks[number + 1].gap_s
            self._next[request.id] = lambda: self.clock.after(gap_s, lambda: self._ask(stream, number + 1))
        self._contestant.arrived(request)

    def _answered(self, request: Request) -> None:
        self._contestant.answered(request)
        self._over(request)

    def _over(self, request: Request) -> None:
        self._left -= 1
        following = self._next.pop(request.id, None)
        if following is not None:
            following()


def score(workload: Workload, name: str) -> Score:
    """Play a workload to a contestant and say how it went."""
    play = Play(workload, CONTESTANTS[name])
    play.run()
    makespan_s = play.clock.now - min(stream.asks[0].gap_s for stream in workload.streams)
    waits = {
        rank: _waits([request for request in play.requests if request.rank == rank], limit_s)
        for rank, limit_s in workload.max_wait_s.items()
    }
    return Score(
        contestant=name,
        makespan_s=makespan_s,
        loads=len(play.ollama.loads),
        swapping=play.ollama.swapping_s / makespan_s,
        waits=waits,
        refused=sum(1 for request in play.requests if request.refused),
        newcomer_after=_newcomer_after(play.ollama.starts, workload.newcomer),
    )


def _waits(requests: list[Request], limit_s: float) -> Waits:
    waited = sorted(request.begun_at - request.arrived_at for request in requests if request.begun_at is not None)
    if not waited:
        return Waits(0.0, 0.0, 0.0, limit_s)
    p95_s = waited[min(len(waited) - 1, int(0.95 * len(waited)))]
    return Waits(waited[len(waited) // 2], p95_s, waited[-1], limit_s - waited[-1])


def _newcomer_after(starts: list[Request], newcomer: str | None) -> int | None:
    first = next((request for request in starts if request.client == newcomer), None)
    if first is None:
        return None
    meanwhile = [request for request in starts if request.let_through_at >= first.arrived_at]
    return meanwhile.index(first) + 1


def measure(workload: Workload) -> Result:
    """Let everybody play one workload."""
    scores = tuple(score(workload, name) for name in CONTESTANTS)
    overrun_s = max(0.0, *(-waits.margin_s for waits in scores[0].waits.values()))
    return Result(workload, bound(workload, overrun_s), scores)
