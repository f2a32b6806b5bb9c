"""Who decides what is loaded and for whom: our scheduler, and the rivals that it is measured against.

Owns the translation between the scheduler's vocabulary and the virtual Ollama (`Ours`: the only place in the benchmark
that builds tickets and events), and the rivals' rules. Must not measure.

The rivals are given more than they could have: they know at once, and for certain, when a model is loaded or gone,
where our scheduler asks /api/ps and waits for its answers; they know how long a load takes; and on a card with room for
two models they keep both. Wait limits are equal: a ticket that nears its maximum ends the turn of the model that holds
the card, for all who let others overtake it, after the same shortest turn as in our scheduler.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

from virtual_ollama import EVICTION_ANSWER_S, Clock, Model, Request, VirtualOllama

from ollama_swap_proxy.core import commands, events
from ollama_swap_proxy.core.classes import NORMAL, TicketClass
from ollama_swap_proxy.core.policy import SHORTEST_TURN_S, Policy
from ollama_swap_proxy.core.scheduler import Scheduler
from ollama_swap_proxy.core.tickets import LoadRecipe, Report, Resident, Ticket, Traits, Variant
from ollama_swap_proxy.gate import PROGRESS_INTERVAL_S

MIB = 1 << 20

RANKS = {"batch": NORMAL.rank - 10, NORMAL.name: NORMAL.rank, "interactive": NORMAL.rank + 10}
"""Of the classes that workloads use."""

Refuse = Callable[[Request], None]


class Contestant(Protocol):
    """Told of each request that comes and ends; lets them through to Ollama, and has it load and unload."""

    def arrived(self, request: Request) -> None:
        """Take in a request, which waits until it is let through."""

    def answered(self, request: Request) -> None:
        """Take in that a request is over."""


class Ours:
    """The scheduler itself, its commands carried out on the virtual Ollama as the gate would."""

    def __init__(
        self, clock: Clock, ollama: VirtualOllama, max_wait_s: Mapping[str, float], refuse: Refuse, line_limit: int
    ) -> None:
        self._clock, self._ollama, self._refuse = clock, ollama, refuse
        self._classes = {name: TicketClass(name, RANKS[name], limit_s) for name, limit_s in max_wait_s.items()}
        # Nothing to settle: on this card memory is back with the unload.
        self._scheduler = Scheduler(Policy(line_limit=line_limit, settle_first_s=0.0), clock.now)
        self._waiting: dict[int, Request] = {}
        self._leased: dict[int, Request] = {}
        self._wake_number = 0
        self._tells_progress = False
        self._tell(events.UpstreamIdentified("0.33.0", ps_is_safe=True))

    # --- facts ------------------------------------------------------------------------------------------------------
    def arrived(self, request: Request) -> None:
        """Take in a request, which waits until it is let through."""
        self._waiting[request.id] = request
        self._tell(events.Arrived(_ticket(request, self._ollama.models[request.model], self._classes[request.rank])))

    def answered(self, request: Request) -> None:
        """Take in that a request is over."""
        del self._leased[request.id]
        began_at = request.begun_at
        self._tell(events.Released(request.id, stream=None if began_at is None else (began_at, self._clock.now)))

    def _tell(self, event: events.Event) -> None:
        for command in self._scheduler.handle(event, self._clock.now):
            self._carry_out(command)

    # --- commands ---------------------------------------------------------------------------------------------------
    def _carry_out(self, command: commands.Command) -> None:
        match command:
            case commands.Grant(ticket_id):
                self._grant(ticket_id)
            case commands.Reject(ticket_id, rejection):
                request = self._waiting.pop(ticket_id)
                request.refused = rejection.code
                self._refuse(request)
            case commands.Observe():
                self._observe()
            case commands.Evict(key, _):
                self._ollama.unload(key)
                self._clock.after(EVICTION_ANSWER_S, lambda: self._tell(events.EvictionAnswered(key, accepted=True)))
            case commands.Load(variant, _, _, _):
                self._ollama.load(variant.key, lambda: self._tell(events.LoadEnded(variant)))
            case commands.WakeAt(at):
                self._wake(at)
            case commands.Step():
                pass
            case _:
                raise NotImplementedError(command)

    def _grant(self, ticket_id: int) -> None:
        request = self._waiting.pop(ticket_id)
        self._leased[ticket_id] = request
        self._ollama.start(request)
        if not self._tells_progress:
            self._tells_progress = True
            self._clock.after(PROGRESS_INTERVAL_S, self._tell_progress)

    def _tell_progress(self) -> None:
        """Tell, as the gate does and as often, which answers moved."""
        now = self._clock.now
        for ticket_id in [number for number, request in self._leased.items() if request.begun_at is not None]:
            self._tell(events.Progressed(ticket_id, now, self._leased[ticket_id].begun_at))
        self._tells_progress = bool(self._leased)
        if self._tells_progress:
            self._clock.after(PROGRESS_INTERVAL_S, self._tell_progress)

    def _observe(self) -> None:
        asked_at = self._clock.now
        self._ollama.report(lambda seen: self._tell(events.ResidencyObserved(Report(asked_at, _residents(seen)))))

    def _wake(self, at: float | None) -> None:
        self._wake_number += 1
        number = self._wake_number
        if at is not None:
            self._clock.at(at, lambda: self._woken(number))

    def _woken(self, number: int) -> None:
        if number == self._wake_number:
            self._tell(events.TimePassed())


def _ticket(request: Request, model: Model, klass: TicketClass) -> Ticket:
    recipe = LoadRecipe("/api/embed" if model.embeds else "/api/generate", b"{}")
    return Ticket(
        request.id,
        Variant(model.name),
        model.name,
        request.arrived_at,
        recipe,
        request.client,
        klass=klass,
        traits=Traits(embedder=model.embeds),
    )


def _residents(models: tuple[Model, ...]) -> tuple[Resident, ...]:
    return tuple(
        Resident(model.name, model.name, "", size, size, traits=Traits(embedder=model.embeds))
        for model in models
        for size in [model.size_mib * MIB]
    )


class Rival:
    """A rule that is soon told, with a drain before each unload as everybody has.

    ``overtakes`` lets requests for what is resident go before older ones that need a swap (llama-swap's rule, and what
    makes a queue a model's); without it the order of arrival is kept strictly. ``longest`` gives the card to the model
    for which most wait, not to the one whose first request is oldest.
    """

    def __init__(
        self,
        clock: Clock,
        ollama: VirtualOllama,
        max_wait_s: Mapping[str, float],
        *,
        overtakes: bool,
        longest: bool,
    ) -> None:
        self._clock, self._ollama, self._max_wait_s = clock, ollama, max_wait_s
        self._overtakes, self._longest = overtakes, longest
        self._lines: dict[str, deque[Request]] = {}
        self._swapping = False
        self._turn_began_at = clock.now

    def arrived(self, request: Request) -> None:
        """Take in a request, which waits until it is let through."""
        self._lines.setdefault(request.model, deque()).append(request)
        if self._overtakes:
            self._clock.at(self._due_at(request), self._move)
        self._move()

    def answered(self, _: Request) -> None:
        """Take in that a request is over."""
        self._move()

    def _move(self) -> None:
        while not self._swapping and self._lines:
            target = self._next_for_a_swap()
            closed = self._victims(target.model) if target is not None and self._ends_turn(target) else ()
            if not self._let_through(target, closed):
                if target is not None:
                    self._swap_if_idle(target.model)
                return

    def _let_through(self, target: Request | None, closed: tuple[str, ...]) -> bool:
        """Start who may go; say whether anybody did."""
        ready = [name for name in self._lines if name in self._ollama.residents and name not in closed]
        started = False
        for name in ready:
            line = self._lines[name]
            while line and (self._overtakes or target is None or line[0].id < target.id):
                self._ollama.start(line.popleft())
                started = True
            if not line:
                del self._lines[name]
        return started

    def _next_for_a_swap(self) -> Request | None:
        heads = [line[0] for name, line in self._lines.items() if name not in self._ollama.residents]
        if not heads:
            return None
        overdue = [head for head in heads if self._clock.now >= self._due_at(head)]
        if self._longest and not overdue:
            return max(heads, key=lambda head: (len(self._lines[head.model]), -head.id))
        return min(overdue or heads, key=lambda head: head.id)

    def _due_at(self, request: Request) -> float:
        return request.arrived_at + self._max_wait_s[request.rank] - self._ollama.models[request.model].load_s

    def _ends_turn(self, target: Request) -> bool:
        """Say whether the turn of what is resident is over for this request although others wait for that."""
        if not self._overtakes or self._clock.now < self._due_at(target):
            return False
        ends_at = self._turn_began_at + shortest_turn_s(self._ollama.models[target.model])
        if self._clock.now < ends_at:
            self._clock.at(ends_at, self._move)
            return False
        return True

    def _victims(self, target: str) -> tuple[str, ...]:
        """Return who must go, the one loaded first first."""
        stay = list(self._ollama.residents)
        victims = []
        while stay and not self._ollama.fits({*stay, target}):
            victims.append(stay.pop(0))
        return tuple(victims)

    def _swap_if_idle(self, target: str) -> None:
        victims = self._victims(target)
        if any(self._ollama.is_busy(victim) for victim in victims):
            return
        self._swapping = True
        missing = len(victims)

        def gone() -> None:
            nonlocal missing
            missing -= 1
            if missing == 0:
                self._ollama.load(target, self._loaded)

        for victim in victims:
            self._ollama.unload(victim, gone)
        if not victims:
            self._ollama.load(target, self._loaded)

    def _loaded(self) -> None:
        self._swapping = False
        self._turn_began_at = self._clock.now
        self._move()


def shortest_turn_s(model: Model) -> float:
    """Return for how long a model may hold the card before a late ticket for ``model`` ends its turn."""
    return max(SHORTEST_TURN_S, 2 * model.load_s)
