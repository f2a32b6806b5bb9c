"""What the parts of the simulated machine share: the card, the table of runners, settings, time, chance and the record.

Owns nothing but the references. Must not hold behaviour.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from ollama_swap_proxy.simulator.card import Card
from ollama_swap_proxy.simulator.clock import Clock, RealClock
from ollama_swap_proxy.simulator.ledger import Ledger
from ollama_swap_proxy.simulator.models import Faults, SimGPU
from ollama_swap_proxy.simulator.runner import Runner


@dataclass(frozen=True, slots=True)
class Limits:
    """The server's settings. ``max_loaded`` 0: three, as on one card. ``time_scale`` stretches all but keep_alive."""

    max_loaded: int = 0
    num_parallel: int = 1
    max_queue: int = 512
    keep_alive_s: float = 300.0
    context_length: int = 4096
    time_scale: float = 1.0
    load_timeout_s: float = 300.0


@dataclass(slots=True)
class World:
    """One simulated machine's parts. ``table`` holds the resident runners by the key of their weights."""

    gpu: SimGPU = field(default_factory=SimGPU)
    limits: Limits = field(default_factory=Limits)
    faults: Faults = field(default_factory=Faults)
    ledger: Ledger = field(default_factory=Ledger)
    random: Random = field(default_factory=lambda: Random(0))  # noqa: S311 - chance, not secrets
    clock: Clock = field(default_factory=RealClock)
    table: dict[str, Runner] = field(default_factory=dict)
    card: Card = field(init=False)

    def __post_init__(self) -> None:
        self.card = Card(self.gpu)

    @property
    def now(self) -> float:
        """Monotonic seconds."""
        return self.clock.now()

    def scaled(self, seconds: float) -> float:
        """A duration of the simulated hardware, in real seconds."""
        return seconds * self.limits.time_scale

    def note(self, kind: str, runner: Runner, **fields: object) -> None:
        """Write about a runner into the ledger."""
        self.ledger.note(self.clock.now(), kind, runner.wanted.name, runner.number, **fields)
