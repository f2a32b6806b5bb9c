"""A world in virtual time around the scheduler: an Ollama with a card, clients, and a clock that jumps.

It carries the scheduler's commands out as the gate and Ollama would, and checks the safety invariants at every step, so
that each test that runs in it is a test of those too. Knobs are plain attributes; time is a number.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ollama_swap_proxy.core import commands, events
from ollama_swap_proxy.core.events import LoadFailure
from ollama_swap_proxy.core.policy import Policy
from ollama_swap_proxy.core.scheduler import Scheduler
from ollama_swap_proxy.core.tickets import LoadRecipe, Report, Resident, Ticket, Variant

RECIPE = LoadRecipe("/api/generate", b"{}")


@dataclass
class Outcome:
    """What became of one ticket. Times in seconds of the world's clock."""

    ticket: Ticket
    hold_s: float
    granted_at: float | None = None
    rejected: commands.Rejection | None = None
    abandoned: bool = False
    ended_at: float | None = None

    @property
    def waited_s(self) -> float:
        assert self.granted_at is not None, self
        return self.granted_at - self.ticket.arrived_at


@dataclass
class World:
    """The scheduler in the middle of a simulated Ollama."""

    policy: Policy = field(default_factory=Policy)
    load_s: float = 2.0
    unload_s: float = 0.2
    ps_s: float = 0.005
    vram_lag_s: float = 0.0
    vram_bytes: int = 1000
    sizes: dict[str, int] = field(default_factory=dict)
    """Of models that are not ``vram_bytes`` large."""
    ps_is_safe: bool = True
    unreachable: bool = False
    ps_broken: str | None = None
    lost_unloads: int = 0
    failing_loads: dict[str, LoadFailure] = field(default_factory=dict)
    vanishing: set[str] = field(default_factory=set)
    stubborn: set[str] = field(default_factory=set)
    """Keys whose unload never happens."""

    def __post_init__(self) -> None:
        self.now = 0.0
        self.scheduler = Scheduler(replace(self.policy, settle_first_s=0.0))
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._ids = itertools.count(1)
        self._wake_at: float | None = None
        self.residents: dict[str, tuple[str, bool]] = {}
        """key -> options, spilled."""
        self.freed_at = float("-inf")
        self.busy: dict[int, Variant] = {}
        self.outcomes: dict[int, Outcome] = {}
        self.steps: list[tuple[float, str, dict[str, object]]] = []
        self.loads: list[tuple[float, Variant]] = []
        self.evictions: list[tuple[float, str]] = []
        self.tell(events.UpstreamIdentified("0.33.0", self.ps_is_safe))

    # --- time -------------------------------------------------------------------------------------------------------
    def at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (max(when, self.now), next(self._count), action))

    def run(self, until: float = 10_000.0) -> None:
        """Let time pass until ``until``, or until nobody waits and nothing runs."""
        while True:
            next_at = self._heap[0][0] if self._heap else float("inf")
            wake_at = self._wake_at if self._wake_at is not None else float("inf")
            moment = min(next_at, wake_at)
            if moment > until:
                self.now = until
                return
            if next_at == float("inf") and self._is_quiet():
                return
            self.now = max(self.now, moment)
            if next_at <= wake_at:
                heapq.heappop(self._heap)[2]()
            else:
                self._wake_at = None
                self.tell(events.TimePassed())

    def _is_quiet(self) -> bool:
        seen = self.scheduler.snapshot(self.now)
        return not seen.lines and not seen.leases and seen.swap is None

    # --- clients ----------------------------------------------------------------------------------------------------
    def ask(
        self,
        model: str,
        at: float | None = None,
        hold_s: float = 1.0,
        *,
        options: str = "",
        recipe: LoadRecipe | None = RECIPE,
        then: Callable[[Outcome], None] | None = None,
        briefly: bool = False,
        client: str = "c",
    ) -> Outcome:
        """A client asks for a model at a moment; its answer takes ``hold_s`` once granted."""
        when = self.now if at is None else at
        ticket = Ticket(next(self._ids), Variant(model, options), model, when, recipe, client, briefly)
        outcome = Outcome(ticket, hold_s)
        outcome.then = then  # type: ignore[attr-defined]
        self.outcomes[ticket.id] = outcome
        self.at(when, lambda: self.tell(events.Arrived(ticket)))
        return outcome

    def leave(self, outcome: Outcome, at: float) -> None:
        def go() -> None:
            if outcome.granted_at is None and outcome.rejected is None:
                outcome.abandoned, outcome.ended_at = True, self.now
                self.tell(events.Abandoned(outcome.ticket.id))
            elif outcome.ended_at is None:
                self._end(outcome)

        self.at(at, go)

    def _end(self, outcome: Outcome, *, failed: bool = False) -> None:
        if outcome.ended_at is not None:
            return
        outcome.ended_at = self.now
        self.busy.pop(outcome.ticket.id, None)
        if outcome.ticket.variant.key in self.vanishing and not self._busy_on(outcome.ticket.variant.key):
            self._drop(outcome.ticket.variant.key)
        self.tell(events.Released(outcome.ticket.id, failed))
        then = getattr(outcome, "then", None)
        if then is not None:
            then(outcome)

    def _busy_on(self, key: str) -> bool:
        return any(variant.key == key for variant in self.busy.values())

    # --- the scheduler ----------------------------------------------------------------------------------------------
    def tell(self, event: events.Event) -> None:
        for command in self.scheduler.handle(event, self.now):
            self._carry_out(command)

    def _carry_out(self, command: commands.Command) -> None:
        match command:
            case commands.Grant(ticket_id, _, loads):
                self._grant(self.outcomes[ticket_id], loads=loads)
            case commands.Reject(ticket_id, rejection):
                outcome = self.outcomes[ticket_id]
                assert self._waits(outcome), "I3"
                outcome.rejected, outcome.ended_at = rejection, self.now
                then = getattr(outcome, "then", None)
                if then is not None:
                    self.at(self.now, lambda: then(outcome))
            case commands.Observe():
                self._observe()
            case commands.Evict(key, _):
                self._evict(key)
            case commands.Load(variant, _, _, _):
                self.loads.append((self.now, variant))
                self.at(self.now + self.load_s, lambda: self._loaded(variant))
            case commands.WakeAt(at):
                self._wake_at = at
            case commands.Step(name, fields):
                self.steps.append((self.now, name, dict(fields)))

    @staticmethod
    def _waits(outcome: Outcome) -> bool:
        return outcome.granted_at is None and outcome.rejected is None and not outcome.abandoned

    def _grant(self, outcome: Outcome, *, loads: bool) -> None:
        variant = outcome.ticket.variant
        assert self._waits(outcome), "I3"
        if not loads and not self.unreachable and self.ps_broken is None:
            assert all(busy.key == variant.key for busy in self.busy.values()), f"I1: {variant} beside {self.busy}"
        outcome.granted_at = self.now
        self.busy[outcome.ticket.id] = variant
        ready_at = self.now
        if loads and self.residents.get(variant.key, ("?",))[0] != variant.options:
            ready_at += self.load_s
            self.loads.append((self.now, variant))
            self.at(ready_at, lambda: self._appear(variant))
        self.at(ready_at, lambda: self._first_byte(outcome))
        self.at(ready_at + outcome.hold_s, lambda: self._end(outcome))

    def _first_byte(self, outcome: Outcome) -> None:
        if outcome.ended_at is None:
            self.tell(events.Progressed(outcome.ticket.id, self.now))

    # --- Ollama -----------------------------------------------------------------------------------------------------
    def _appear(self, variant: Variant) -> None:
        spilled = self.now - self.load_s < self.freed_at + self.vram_lag_s
        self.residents[variant.key] = (variant.options, spilled)

    def _drop(self, key: str) -> None:
        if self.residents.pop(key, None) is not None:
            self.freed_at = self.now

    def _loaded(self, variant: Variant) -> None:
        failure = self.failing_loads.get(variant.key)
        if self.unreachable:
            failure = LoadFailure(502, "connection lost", transient=True)
        if failure is None:
            self._appear(variant)
            if variant.key in self.vanishing:
                self._drop(variant.key)
        self.tell(events.LoadEnded(variant, failure))

    def _evict(self, key: str) -> None:
        self.evictions.append((self.now, key))
        assert not self._busy_on(key), f"I2: {key} evicted while leased"
        assert any(v.key != key for v in self._waiting()) or self._is_reload(key), f"I7: nobody asked to evict {key}"
        self.at(self.now + 0.002, lambda: self.tell(events.EvictionAnswered(key, accepted=True)))
        if key in self.stubborn:
            return
        if self.lost_unloads > 0:
            self.lost_unloads -= 1
            return
        self.at(self.now + self.unload_s, lambda: self._drop(key))

    def _is_reload(self, key: str) -> bool:
        swap = self.scheduler._state.swap
        return (swap is not None and swap.target.key == key) or any(v.key == key for v in self._waiting())

    def _waiting(self) -> list[Variant]:
        return self.scheduler._state.line.variants()

    def _observe(self) -> None:
        asked_at = self.now

        def answer() -> None:
            if self.unreachable:
                self.tell(events.ResidencyUnknown(asked_at, "no connection", unreachable=True))
            elif self.ps_broken is not None:
                self.tell(events.ResidencyUnknown(asked_at, self.ps_broken))
            else:
                self.tell(events.ResidencyObserved(Report(asked_at, self._listed())))

        self.at(self.now + self.ps_s, answer)

    def _listed(self) -> tuple[Resident, ...]:
        return tuple(
            Resident(key, key, f"d-{key}", size, size // 2 if spilled else size)
            for key, (_, spilled) in self.residents.items()
            for size in [self.sizes.get(key, self.vram_bytes)]
        )

    # --- reading ----------------------------------------------------------------------------------------------------
    def said(self, name: str) -> list[dict[str, object]]:
        return [fields for _, step, fields in self.steps if step == name]
