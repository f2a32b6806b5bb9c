"""What is resident, as far as we know.

Owns the last report and what became of the models in it. Must not say what may be together (`together` does), nor start
anything (`swapping` does).
Residency is three-valued: resident, gone, unknown. Unknown never counts as gone, and never as room.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ollama_swap_proxy.core.policy import POLL_S
from ollama_swap_proxy.core.tickets import Report, Resident, Variant

FREED_KEPT_S = 60.0
"""A resident found so soon after another one has gone may have been loaded while that one's memory was still taken."""


@dataclass(frozen=True, slots=True)
class Change:
    """What a report changed: who appeared, who is gone."""

    found: tuple[Resident, ...]
    gone: tuple[Resident, ...]


@dataclass(slots=True)
class Residency:
    """The view: the last good report, how old it is, and what we know beyond it.

    ``options`` holds, by key, the runner options of residents whose variant we know (we loaded them, or saw the
    request that did), and ``options_since`` when we learned it; a resident without an entry is of unknown variant.
    ``leaving`` are those that were asked to unload and given up on: Ollama keeps the request and unloads them when they
    fall idle.
    """

    residents: dict[str, Resident] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    options_since: dict[str, float] = field(default_factory=dict)
    seen_since: dict[str, float] = field(default_factory=dict)
    """By key: when a resident was first listed, this time."""
    leaving: set[str] = field(default_factory=set)
    known: bool = False
    asked_at: float = float("-inf")
    at: float = float("-inf")
    outdated_at: float = float("-inf")
    load_ended_at: float = float("-inf")
    """When a load that was asked for last ended, in whatever way."""
    evicted_at: dict[str, float] = field(default_factory=dict)
    """By key, when it was last asked to unload: those of whom no report asked for since then has come."""
    first_expiry_at: float = float("inf")
    vram_freed_at: float = float("-inf")
    vram_freed_bytes: int = 0
    """GPU memory of what has disappeared since the last load of ours: as much may have been on its way back then."""
    largest_vram_bytes: int = 0
    loaded_beside: dict[str, frozenset[str]] = field(default_factory=dict)
    """By key, whose memory was taken when a resident was loaded: who was there, and who had just gone."""
    loaded_anew: set[str] = field(default_factory=set)
    """Residents that were loaded anew for the sake of a newcomer: once is enough, whoever came between."""
    freed_at: dict[str, float] = field(default_factory=dict)
    """When who disappeared lately with GPU memory; those gone for longer than `FREED_KEPT_S` are forgotten."""

    def take_in(self, report: Report, now: float) -> Change | None:
        """Replace the view by a newer report, which came at ``now``; None if the report is older than what we have."""
        if report.asked_at < self.asked_at:
            return None
        listed = {resident.key: resident for resident in report.residents}
        gone = tuple(r for key, r in self.residents.items() if key not in listed)
        found = tuple(r for key, r in listed.items() if key not in self.residents)
        self.freed_at = {key: at for key, at in self.freed_at.items() if now - at <= FREED_KEPT_S}
        taken = frozenset((*listed, *self.freed_at))
        self.loaded_beside |= {resident.key: taken - {resident.key} for resident in found}
        self.seen_since = {key: self.seen_since.get(key, now) for key in listed}
        for resident in gone:
            self.leaving.discard(resident.key)
            self.loaded_anew.discard(resident.key)
            del self.loaded_beside[resident.key]
            if resident.size_vram_bytes > 0:
                self.vram_freed_at = self.freed_at[resident.key] = now
                self.vram_freed_bytes += resident.size_vram_bytes
        for key in [key for key, since in self.options_since.items() if key not in listed and since <= report.asked_at]:
            del self.options[key], self.options_since[key]
        self.evicted_at = {key: at for key, at in self.evicted_at.items() if at > report.asked_at}
        self.residents = listed
        self.known, self.asked_at, self.at = True, report.asked_at, now
        lifetimes = [r.expires_in_s for r in listed.values() if r.expires_in_s is not None and r.expires_in_s > 0]
        self.first_expiry_at = now + max(POLL_S, min(lifetimes, default=float("inf")))
        self.largest_vram_bytes = max(self.largest_vram_bytes, sum(r.size_vram_bytes for r in listed.values()))
        return Change(found, gone)

    def note_load_ended(self, now: float) -> None:
        """Doubt who is resident until a report is asked for that shows what a load has left."""
        self.outdated_at = self.load_ended_at = now

    def is_disproved(self, key: str) -> bool:
        """Say whether a load or an unload of ours came behind the report, so that it does not show who may be used.

        Ollama may have made room for a load by itself. Of an unload only the model itself is in doubt; and all, where a
        request may load it again with other options.
        """
        evicted = self.evicted_at
        return self.asked_at < self.load_ended_at or (bool(evicted) and (key in evicted or key not in self.options))

    def learn_options(self, variant: Variant, since: float) -> None:
        """Note with which options a model is resident; reports asked for before ``since`` do not know of it yet."""
        self.options[variant.key] = variant.options
        self.options_since[variant.key] = since

    def note_load(self, key: str, sent_at: float, returns_within_s: float) -> None:
        """Note when a resident's load was sent: memory freed longer than ``returns_within_s`` before had come back, and
        who went after it went for it: upstream makes room before it loads.
        """
        returning = {gone for gone, at in self.freed_at.items() if sent_at - returns_within_s < at <= sent_at}
        self.loaded_beside[key] = frozenset((*self.residents, *returning)) - {key}

    def forget_options(self) -> None:
        """Doubt all we know beyond the report: upstream was away, and what it lists may have been loaded by anybody."""
        self.doubt_options()
        self.leaving.clear()

    def doubt_options(self) -> None:
        """Doubt with which options anything is resident."""
        self.options.clear()
        self.options_since.clear()

    def is_fresh(self, now: float, max_age_s: float) -> bool:
        """Say whether a warm request may go by this view without asking for a newer one."""
        return (
            self.known
            and self.asked_at >= self.outdated_at
            and now - self.at <= max_age_s
            and now < self.first_expiry_at
        )

    def is_newer_than(self, moment: float) -> bool:
        """Say whether we know what is resident by a report asked for at or after this moment."""
        return self.known and self.asked_at >= moment

    def name_of(self, key: str) -> str:
        """Return the name that a resident is listed by; of one that is gone, its key."""
        resident = self.residents.get(key)
        return key if resident is None else resident.name

    def holds(self, variant: Variant) -> bool:
        """Say whether exactly this variant is resident, its options known."""
        return variant.key in self.residents and self.options.get(variant.key) == variant.options

    def surely_holds(self, variant: Variant, now: float, max_age_s: float) -> bool:
        """Say whether exactly this variant is resident by a view that is fresh, and not about to vanish.

        ``now`` and ``max_age_s`` as for `is_fresh`. It is `holds` and more, written out: asked twice for each request.
        """
        key = variant.key
        return (
            key in self.residents
            and self.options.get(key) == variant.options
            and key not in self.leaving
            and self.is_fresh(now, max_age_s)
        )

    def outlives(self, key: str) -> bool:
        """Say whether a resident was loaded beside a model that is gone.

        Ollama asks any one resident how much memory is free before it lets a newcomer in; the answer is no more than
        that one saw when it was loaded itself, so the memory of who is gone counts as taken (discover/runner.go:285).
        """
        return not self.loaded_beside[key] <= self.residents.keys()

    def holds_unknown_variant(self, key: str) -> bool:
        """Say whether the model is resident with runner options that we do not know."""
        return key in self.residents and key not in self.options

    def may_be_tried(self, key: str) -> bool:
        """Say whether the model is resident, alone, with unknown options: then a first request may show them.

        Beside another resident it may not: if the options differ, upstream reloads it, and must perhaps evict to do so.
        """
        return self.holds_unknown_variant(key) and len(self.residents) == 1
