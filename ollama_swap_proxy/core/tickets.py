"""The words for a request that needs a model: variant, ticket, lease.

Owns the value types that the scheduler, the gate and the app pass between them. Must not decide anything.
A ticket is not to be changed: one is made for each request, and to make a frozen one costs several times as much.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from ollama_swap_proxy.core.classes import NORMAL, TicketClass


class Variant(NamedTuple):
    """A model with one set of runner options: what a turn, a swap and a load are for.

    ``key`` is the weights (Ollama shares one runner between all names with the same weights blob; server/sched.go:110).
    ``options`` is the canonical spelling of the effective runner options; two variants of one key never share a runner.
    """

    key: str
    options: str = ""

    def __str__(self) -> str:
        return f"{self.key}[{self.options}]" if self.options else self.key


@dataclass(frozen=True, slots=True)
class LoadRecipe:
    """How to make Ollama load a variant by an empty request of ours.

    ``path`` is ``/api/generate``, ``/api/chat`` or ``/api/embed``; ``body`` the JSON to send. It carries the variant's
    runner options and no keep_alive: keep_alive is sticky on the runner and a value of ours would outlive us.
    """

    path: str
    body: bytes


class Upkeep(NamedTuple):
    """What the operator set for one model alone, in seconds; None: as for all models (`policy.Policy`)."""

    ttl_s: float | None = None
    drain_timeout_s: float | None = None
    unload_timeout_s: float | None = None
    load_timeout_s: float | None = None
    first_byte_timeout_s: float | None = None
    idle_stream_timeout_s: float | None = None
    keep_alive: float | None = None


AS_FOR_ALL = Upkeep()


class Traits(NamedTuple):
    """What is known of a model whatever runs: from the catalog (``embedder``: it can only embed) and the operator.

    ``pinned``: never a victim. ``priority``: the lowest leaves first. ``groups``: who it may be resident with.
    """

    embedder: bool = False
    pinned: bool = False
    priority: int = 0
    groups: frozenset[str] = frozenset()
    upkeep: Upkeep = AS_FOR_ALL


NO_TRAITS = Traits()


class Need(NamedTuple):
    """What a request for a model needs: which variant, and the empty request by which we could load it.

    ``name`` is as on disk. ``recipe`` is None where no empty request can load it.
    """

    name: str
    variant: Variant
    recipe: LoadRecipe | None
    traits: Traits


@dataclass(slots=True)
class Ticket:
    """One client request that waits for its model.

    ``name`` is the canonical model name that the request used. ``recipe`` is None where no empty request can load the
    model (audio, options that we cannot read): then the request itself loads it, alone.
    ``stays_briefly`` says that the request carries a keep_alive so short that the view is stale when it ends.
    ``client`` is who asks, as far as the shell can tell.
    """

    id: int
    variant: Variant
    name: str
    arrived_at: float
    recipe: LoadRecipe | None
    client: str = ""
    stays_briefly: bool = False
    klass: TicketClass = NORMAL
    patience_s: float | None = None
    """How long it would wait, where the client said so: less than ``give_up_after_s``. 0: not at all."""
    traits: Traits = NO_TRAITS
    sets_keep_alive: bool = False
    """The request carries a keep_alive of its own, which Ollama keeps on the runner."""


@dataclass(slots=True)
class Lease:
    """The right, held by one request, to use a resident model. A model with leases is never evicted."""

    ticket: Ticket
    granted_at: float
    last_byte_at: float | None = None
    loads: bool = False
    """True while this request is the one that makes Ollama load the model."""
    cut_asked_at: float | None = None
    """When it was last asked for that its request be cut."""
    overruled: bool = False
    """Its own keep_alive, a short one, has been overruled while it ran."""
    relayed: bool = False
    """It runs or ran in bypass mode: nobody knows which runner serves it, so no swap goes on beside it."""

    @property
    def moved_at(self) -> float:
        """The last moment at which this lease is known to have moved (granted, or streamed a byte)."""
        return self.last_byte_at if self.last_byte_at is not None else self.granted_at


@dataclass(frozen=True, slots=True)
class Resident:
    """A model that upstream's report lists as loaded.

    ``name`` is the listed one, ``traits`` are those of all its names.
    ``expires_in_s`` is advice only: Ollama's own may lie in the past while it is busy.
    """

    key: str
    name: str
    digest: str
    size_bytes: int
    size_vram_bytes: int
    expires_in_s: float | None = None
    traits: Traits = NO_TRAITS

    @property
    def spilled_bytes(self) -> int:
        """How much of it runs on the CPU; 0 for a model that lies wholly in GPU memory."""
        return max(0, self.size_bytes - self.size_vram_bytes)


@dataclass(frozen=True, slots=True)
class Report:
    """One answer of GET /api/ps, with the keys resolved. ``asked_at`` is when we asked."""

    asked_at: float
    residents: tuple[Resident, ...] = field(default=())
