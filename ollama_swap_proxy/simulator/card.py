"""The simulated card's memory: who holds it, what is on its way back, what is free.

Owns the accounting. Must not decide when a process starts or ends: `machine` does.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ollama_swap_proxy.simulator.models import MIB, SimGPU

LAYERS = 33
"""Layers that an engine puts on the card or leaves to the CPU, one by one: the grain of a spill."""


@dataclass(slots=True)
class Card:
    """Memory in bytes, by the number of the engine process that holds or held it."""

    gpu: SimGPU
    held: dict[int, int] = field(default_factory=dict)
    returning: dict[int, int] = field(default_factory=dict)
    left: dict[int, int] = field(default_factory=dict)
    """What was free when a process had taken its share: what its server goes on believing."""

    @property
    def free_bytes(self) -> int:
        """What a new process can really get."""
        return self.predicted_free_bytes - self._sum(self.returning)

    @property
    def predicted_free_bytes(self) -> int:
        """What the scheduler believes while runners live on the card: its own accounts, blind to memory on its way
        back.
        """
        return int((self.gpu.total_mib - self.gpu.external_mib) * MIB) - self._sum(self.held)

    def predicted_beside(self, process: int) -> int:
        """What the scheduler believes to be free when it asks this runner: what that saw when it loaded, if less."""
        return min(self.predicted_free_bytes, self.left[process])

    def take(self, process: int, size: int, layers: int = -1) -> int:
        """Give a starting engine as many of its layers as fit; returns the bytes that it holds on the card.

        ``layers``: no more than so many (num_gpu), negative for all.
        """
        room = max(0, self.free_bytes - int(self.gpu.fit_margin_mib * MIB))
        fitting = LAYERS if size <= room else int(LAYERS * room / size)
        if layers >= 0:
            fitting = min(fitting, layers)
        self.held[process] = size if fitting >= LAYERS else size * fitting // LAYERS
        self.left[process] = self.free_bytes
        return self.held[process]

    def end(self, process: int) -> None:
        """The process is dead; its memory is on its way back."""
        self.returning[process] = self.held.pop(process, 0)
        self.left.pop(process, None)

    def back(self, process: int) -> None:
        """The memory of a dead process is free again."""
        self.returning.pop(process, None)

    @staticmethod
    def _sum(accounts: dict[int, int]) -> int:
        return sum(accounts.values())
