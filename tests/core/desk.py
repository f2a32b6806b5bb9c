"""The scheduler on a desk: one fact at a time by hand, for tests of single decisions. Each fact takes a millisecond."""

from __future__ import annotations

from dataclasses import replace

from ollama_swap_proxy.core import commands, events
from ollama_swap_proxy.core.classes import NORMAL, TicketClass
from ollama_swap_proxy.core.events import LoadFailure
from ollama_swap_proxy.core.gaps import Gaps
from ollama_swap_proxy.core.policy import Policy
from ollama_swap_proxy.core.scheduler import Scheduler
from ollama_swap_proxy.core.tickets import LoadRecipe, Report, Resident, Ticket, Traits, Variant

RECIPE = LoadRecipe("/api/generate", b"{}")


def traits(key: str) -> Traits:
    """Tell by its name what a model is: ``e...`` embeds, ``pin...`` is pinned."""
    return Traits(embedder=key.startswith("e"), pinned=key.startswith("pin"))


def resident(key: str, *, size: int = 1000, vram: int | None = None, expires_in_s: float | None = None) -> Resident:
    return Resident(key, key, f"d-{key}", size, size if vram is None else vram, expires_in_s, traits(key))


class NobodyComesBack(Gaps):
    """No linger: an idle model makes room at once."""

    def linger_s(self, variant: Variant, swap_cost_s: float, since: float) -> float:  # noqa: ARG002 - its shape
        return 0.0

    def outlook(self, variant: Variant, swap_cost_s: float, ends_at: float) -> tuple[float, float]:  # noqa: ARG002
        return 0.0, 1.0


class Desk:
    """``out`` holds the commands of the last fact, ``all`` those of every fact. Times in seconds.

    An idle model keeps its turn only if the desk ``lingers``: most decisions are easier to see without.
    """

    def __init__(self, policy: Policy | None = None, *, safe: bool = True, lingers: bool = False) -> None:
        self.scheduler = Scheduler(replace(policy or Policy(), settle_first_s=0.0))  # memory is back at once
        if not lingers:
            self.state.gaps = NobodyComesBack()
        self.now = 0.0
        self.out: list[commands.Command] = []
        self.all: list[commands.Command] = []
        self._ids = 0
        self.tell(events.UpstreamIdentified("0.33.0", safe))

    @property
    def state(self):
        return self.scheduler._state

    def tell(self, event: events.Event) -> list[commands.Command]:
        self.now += 0.001
        self.out = self.scheduler.handle(event, self.now)
        self.all += self.out
        return self.out

    def arrive(
        self,
        key: str,
        options: str = "",
        *,
        recipe: LoadRecipe | None = RECIPE,
        briefly: bool = False,
        client: str = "c",
        klass: TicketClass = NORMAL,
        patience_s: float | None = None,
    ) -> int:
        self._ids += 1
        ticket = Ticket(
            self._ids, Variant(key, options), key, self.now, recipe, client, briefly, klass, patience_s, traits(key)
        )
        self.tell(events.Arrived(ticket))
        return ticket.id

    def report(self, *keys: str | Resident, asked_at: float | None = None) -> None:
        residents = tuple(resident(key) if isinstance(key, str) else key for key in keys)
        self.tell(events.ResidencyObserved(Report(self.now + 0.0005 if asked_at is None else asked_at, residents)))

    def no_report(self, *, unreachable: bool = False) -> None:
        self.tell(events.ResidencyUnknown(self.now, "late", unreachable))

    def release(self, ticket_id: int, *, failed: bool = False) -> None:
        self.tell(events.Released(ticket_id, failed))

    def progress(self, ticket_id: int) -> None:
        self.tell(events.Progressed(ticket_id, self.now))

    def loaded(self, key: str, failure: LoadFailure | None = None, options: str = "") -> None:
        self.tell(events.LoadEnded(Variant(key, options), failure))

    def later(self, seconds: float) -> None:
        self.now += seconds
        self.tell(events.TimePassed())

    def serve(self, key: str, options: str = "", klass: TicketClass = NORMAL) -> int:
        """Bring a model in by a swap that works, its first request being answered since; return the lease's id."""
        ticket_id = self.arrive(key, options, klass=klass)
        self.report()
        self.loaded(key, options=options)
        self.report(key)
        assert ticket_id in self.granted(), self.out
        self.progress(ticket_id)
        return ticket_id

    # --- reading ----------------------------------------------------------------------------------------------------
    def granted(self) -> list[int]:
        return [c.ticket_id for c in self.all if isinstance(c, commands.Grant)]

    def rejected(self) -> dict[int, commands.Rejection]:
        return {c.ticket_id: c.rejection for c in self.all if isinstance(c, commands.Reject)}

    def evicted(self) -> list[str]:
        return [c.key for c in self.all if isinstance(c, commands.Evict)]

    def loads(self) -> list[str]:
        return [str(c.variant) for c in self.all if isinstance(c, commands.Load)]

    def observes(self) -> int:
        return sum(isinstance(c, commands.Observe) for c in self.all)

    def said(self, name: str) -> list[dict[str, object]]:
        return [dict(c.fields) for c in self.all if isinstance(c, commands.Step) and c.name == name]

    @property
    def phase(self) -> str | None:
        swap = self.scheduler.snapshot(self.now).swap
        return swap.phase if swap else None
