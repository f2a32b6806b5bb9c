"""What things take on this card, learned: swaps, loads, unloads, answers, and how late memory comes back.

Owns the estimates. Must not act on them: `turns` and `loading` do, and `waiting` adds them up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

from ollama_swap_proxy.core.keeping import keep
from ollama_swap_proxy.core.policy import RECOVERY_LOOK_S, RECOVERY_WAIT_S, SETTLE_FIRST_S, SLOW_UNLOAD_S, VARIANTS_KEPT
from ollama_swap_proxy.core.tickets import Resident, Variant

_WEIGHT_OF_NEWEST = 0.4
_FIRST_GUESS_S = 5.0
_FIRST_UNLOAD_S = 0.1
_WEIGHT_OF_NEWEST_ANSWER = 0.1
"""Answers differ more from each other than loads do, and there are more of them."""

K = TypeVar("K")


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

    Settle: Ollama empties /api/ps before the driver has given the memory back (transcript spill_after_api_unload).
    The wait starts at ``settle_first_s``, grows when a load spills that once fitted, and ends at ``settle_max_s``. A
    spill after the longest wait proves that lag is not the cause: then the wait from before that model's spills is
    taken up again.

    ``fitted`` lay wholly in GPU memory once. ``suspects`` spilled at first sight though they may fit: no larger than
    what was seen resident, or what spilled is no more than what had just been freed (else the largest of several
    models would spill at each swap, and never be found out). Their next load comes after the longest wait, and decides.
    ``accepted`` spill whatever we do. Of each kind the newest `VARIANTS_KEPT` are kept, in order of their last lesson.
    """

    settle_max_s: float
    settle_first_s: float = 0.0
    settle_s: float = field(init=False)
    look_s: float = 0.0
    """The least wait, from when on unloads were seen to be slow behind one another."""
    swap_s: dict[Variant, float] = field(default_factory=dict)
    load_s: dict[Variant, float] = field(default_factory=dict)
    unload_s: dict[str, float] = field(default_factory=dict)
    """By key: with which options a model goes makes no difference."""
    answer_s: dict[Variant, float] = field(default_factory=dict)
    """For how long a request has its lease: so long, in the mean, does it keep a drain or the next in line waiting."""
    fitted: dict[Variant, None] = field(default_factory=dict)
    suspects: dict[Variant, float] = field(default_factory=dict)
    """With the settle wait that was in force when they spilled."""
    accepted: dict[Variant, None] = field(default_factory=dict)
    settle_before_spills_s: dict[Variant, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin with the first wait."""
        self.settle_s = min(self.settle_first_s, self.settle_max_s)

    def swap_cost_s(self, target: Variant) -> float:
        """Return the expected duration of a whole swap to the target, in seconds."""
        return _known_or_mean(self.swap_s, target, _FIRST_GUESS_S)

    def load_takes_s(self, target: Variant) -> float:
        """Return the expected time from a load's beginning to its confirmation, in seconds."""
        return _known_or_mean(self.load_s, target, _FIRST_GUESS_S)

    def unload_takes_s(self, key: str) -> float:
        """Return the expected time from asking an idle model to unload to its confirmation, in seconds."""
        return _known_or_mean(self.unload_s, key, _FIRST_UNLOAD_S)

    def answer_takes_s(self, variant: Variant) -> float:
        """Return for how long a request of this variant is expected to have its lease, in seconds."""
        return _known_or_mean(self.answer_s, variant, _FIRST_GUESS_S)

    def note_swap(self, target: Variant, took_s: float) -> None:
        """Learn from a swap: ``took_s`` is from the end of the drain to the confirmed load."""
        _learn(self.swap_s, target, took_s)

    def note_load_time(self, target: Variant, took_s: float) -> None:
        """Learn from a load that worked at the first try: ``took_s`` is until it was confirmed."""
        _learn(self.load_s, target, took_s)

    def note_unload_time(self, key: str, took_s: float) -> None:
        """Learn from an unload: ``took_s`` is until no report listed the model any more."""
        _learn(self.unload_s, key, took_s)

    def note_answer(self, variant: Variant, took_s: float) -> None:
        """Learn from a lease that ended after ``took_s``. Asked for each request: nothing is moved for a known one."""
        before = self.answer_s.get(variant)
        if before is None:
            keep(self.answer_s, variant, took_s, VARIANTS_KEPT)
        else:
            self.answer_s[variant] = before + _WEIGHT_OF_NEWEST_ANSWER * (took_s - before)

    @property
    def settle_usual_s(self) -> float:
        """The wait between the last unload and a load of no suspect, in seconds."""
        return max(self.settle_s, self.look_s)

    def settle_before_s(self, target: Variant) -> float:
        """Return the wait between the last unload and the load of this target, in seconds."""
        return self.settle_max_s if target in self.suspects else self.settle_usual_s

    def note_unload(self, took_s: float, after_last_s: float) -> None:
        """Learn from an unload whether Ollama was still waiting for the memory of the one before.

        ``took_s`` is until it was confirmed, ``after_last_s`` how long before it was asked for anything had been freed.
        """
        if took_s >= SLOW_UNLOAD_S and after_last_s < RECOVERY_WAIT_S:
            self.look_s = min(RECOVERY_LOOK_S, self.settle_max_s)

    def note_load(
        self, loaded: Resident, target: Variant, waited_s: float, *, largest_vram_bytes: int, freed_bytes: int
    ) -> Spill:
        """Learn from a confirmed load whether memory had come back.

        ``waited_s`` is the settle wait before it, ``largest_vram_bytes`` the most that was ever resident together,
        ``freed_bytes`` the GPU memory of what had disappeared since the load before.
        """
        if loaded.spilled_bytes == 0:
            if loaded.size_vram_bytes > 0:
                self._note_fit(target)
            return Spill.NONE
        longest_waited = waited_s >= self.settle_max_s
        if target in self.fitted:
            before_s = self.settle_before_spills_s.get(target, self.settle_s)
            keep(self.settle_before_spills_s, target, before_s, VARIANTS_KEPT)
            if not longest_waited:
                self._grow()
                return Spill.RELOAD
            self.settle_s = before_s
            self._accept(target)
            return Spill.ACCEPTED
        may_fit = loaded.size_bytes <= largest_vram_bytes or loaded.spilled_bytes <= freed_bytes
        if target in self.accepted or longest_waited or not may_fit:
            self._accept(target)
            return Spill.ACCEPTED
        keep(self.suspects, target, self.settle_s, VARIANTS_KEPT)
        return Spill.RELOAD

    def forget_settle(self) -> None:
        """Begin anew: another version of Ollama, or another device, gives memory back in its own time."""
        self.settle_s, self.look_s = min(self.settle_first_s, self.settle_max_s), 0.0
        self.suspects.clear()
        self.accepted.clear()
        self.settle_before_spills_s.clear()

    def _note_fit(self, target: Variant) -> None:
        if target in self.suspects and self.settle_s <= self.suspects[target]:
            self._grow()  # only the wait was different: it was lag (and no other spill has taught that meanwhile)
        keep(self.fitted, target, None, VARIANTS_KEPT)
        self.suspects.pop(target, None)
        self.accepted.pop(target, None)
        self.settle_before_spills_s.pop(target, None)

    def _accept(self, target: Variant) -> None:
        keep(self.accepted, target, None, VARIANTS_KEPT)
        self.fitted.pop(target, None)
        self.suspects.pop(target, None)
        self.settle_before_spills_s.pop(target, None)

    def _grow(self) -> None:
        self.settle_s = min(self.settle_max_s, max(2 * self.settle_s, SETTLE_FIRST_S))


def _known_or_mean(known: dict[K, float], about: K, first_guess: float) -> float:
    """Return what is known of this one, else what is usual, else the guess."""
    learned = known.get(about)
    if learned is not None:
        return learned
    return sum(known.values()) / len(known) if known else first_guess


def _learn(known: dict[K, float], about: K, took_s: float) -> None:
    before = known.get(about)
    keep(known, about, took_s if before is None else before + _WEIGHT_OF_NEWEST * (took_s - before), VARIANTS_KEPT)
