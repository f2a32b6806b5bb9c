"""What swaps cost on this card, learned: load and unload times, the settle wait, and who fits.

Owns the estimates. Must not act on them: `turns` and `swapping` do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from ollama_swap_proxy.core.policy import SETTLE_FIRST_S
from ollama_swap_proxy.core.tickets import Resident, Variant

_WEIGHT_OF_NEWEST = 0.4
_FIRST_GUESS_S = 5.0


class Spill(Enum):
    """What a load that landed partly on the CPU means."""

    NONE = "none"
    RELOAD = "reload"
    """Memory probably came back late: load once more at the next idle moment."""
    ACCEPTED = "accepted"
    """It does not fit, or a longest wait has not helped: Ollama runs it partly on the CPU."""


@dataclass(slots=True)
class Forecast:
    """Learned times in seconds, and the settle wait.

    Settle: Ollama empties /api/ps before the driver has given the memory back (transcript spill_after_api_unload). The wait starts
    at 0, grows when a load spills that once fitted, and ends at ``settle_max_s``. A spill after the longest wait proves that lag
    is not the cause: then the wait from before it grew is taken up again.
    """

    settle_max_s: float
    settle_s: float = 0.0
    settle_before_growth_s: float = 0.0
    swap_s: dict[Variant, float] = field(default_factory=dict)
    fitted: set[Variant] = field(default_factory=set)
    judged: set[Variant] = field(default_factory=set)

    def swap_cost_s(self, target: Variant) -> float:
        """Return the expected duration of a whole swap to the target, in seconds."""
        known = self.swap_s.get(target)
        if known is not None:
            return known
        return sum(self.swap_s.values()) / len(self.swap_s) if self.swap_s else _FIRST_GUESS_S

    def note_swap(self, target: Variant, took_s: float) -> None:
        """Learn from a swap: ``took_s`` is from the end of the drain to the confirmed load."""
        before = self.swap_s.get(target)
        self.swap_s[target] = took_s if before is None else before + _WEIGHT_OF_NEWEST * (took_s - before)

    def note_load(self, loaded: Resident, target: Variant, waited_s: float, largest_vram_bytes: int) -> Spill:
        """Learn from a confirmed load whether memory had come back; ``waited_s`` is the settle wait that preceded it."""
        if loaded.spilled_bytes == 0:
            if loaded.size_vram_bytes > 0:
                if target in self.judged and target not in self.fitted:
                    self._grow()
                self.fitted.add(target)
            return Spill.NONE
        if target in self.fitted:
            if waited_s >= self.settle_max_s:
                self.settle_s = self.settle_before_growth_s
                self.fitted.discard(target)
                self.judged.add(target)
                return Spill.ACCEPTED
            self._grow()
            return Spill.RELOAD
        if target not in self.judged and loaded.size_bytes <= largest_vram_bytes and waited_s < self.settle_max_s:
            self.judged.add(target)
            return Spill.RELOAD
        self.judged.add(target)
        return Spill.ACCEPTED

    def settle_for_reload_s(self, target: Variant) -> float:
        """Return the wait before a load that undoes a spill: the longest for a model that was never seen to fit."""
        return self.settle_s if target in self.fitted else self.settle_max_s

    def _grow(self) -> None:
        if self.settle_s == 0.0:
            self.settle_before_growth_s = 0.0
        self.settle_s = min(self.settle_max_s, max(2 * self.settle_s, SETTLE_FIRST_S))
