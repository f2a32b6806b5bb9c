"""What really happened in the simulated machine, with monotonic times: the judge that tests and benchmarks read.

Owns the record and what can be computed from it. Must not influence anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened.

    Kinds: ``load_start``, ``load_done`` (spilled, size, size_vram), ``load_failed`` (text), ``load_aborted``,
    ``evict`` (the end
    of a process begins; why: "unload", "expiry", "eviction", "reload", "restart"), ``exit`` (it is dead and no longer
    listed), ``vram_returned``, ``serve_start``, ``serve_end`` (outcome: ok, aborted, failed; tokens),
    ``unload_requested``
    (effect: "idle", "busy", "none", "lost"), ``queued``, ``queue_full``. ``runner`` pairs entries of one engine
    process.
    """

    at: float
    kind: str
    model: str
    runner: int = 0
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Load:
    """One start of an engine process. ``ended`` is None while it still loads; ``outcome``: loading, ok, failed,
    aborted.
    """

    model: str
    runner: int
    started: float
    ended: float | None
    outcome: str
    spilled: bool

    @property
    def seconds(self) -> float:
        """How long it took, 0 while it is under way."""
        return 0.0 if self.ended is None else self.ended - self.started


@dataclass(slots=True)
class Residency:
    """One engine process in video memory: from the start of its load to the return of its memory. None: not yet."""

    model: str
    runner: int
    generating: bool
    started: float
    ready: float | None = None
    evicted: float | None = None
    exited: float | None = None
    returned: float | None = None
    on_gpu: bool = True


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two generating models that held video memory at the same time.

    ``kind``: ``"alive"``, both processes lived; ``"returning"``, the older one was dead and its memory not back yet.
    """

    older: str
    newer: str
    start: float
    end: float
    kind: Literal["alive", "returning"]


@dataclass(slots=True)
class Ledger:
    """All entries of one simulated machine, oldest first."""

    entries: list[Entry] = field(default_factory=list)

    def note(self, at: float, kind: str, model: str, runner: int = 0, **fields: object) -> None:
        """Write one entry."""
        self.entries.append(Entry(at, kind, model, runner, fields))

    def of(self, *kinds: str, model: str | None = None) -> list[Entry]:
        """Entries of these kinds, of one model (with or without ``:latest``) or of all."""
        full = model if model is None or ":" in model else f"{model}:latest"
        return [e for e in self.entries if e.kind in kinds and (full is None or e.model == full)]

    def count(self, kind: str, model: str | None = None) -> int:
        """How many entries of a kind."""
        return len(self.of(kind, model=model))

    def loads(self, model: str | None = None) -> list[Load]:
        """Every start of an engine, in order."""
        ends = {e.runner: e for e in self.of("load_done", "load_failed", "load_aborted")}
        outcome = {"load_done": "ok", "load_failed": "failed", "load_aborted": "aborted"}
        found = []
        for start in self.of("load_start", model=model):
            end = ends.get(start.runner)
            found.append(
                Load(
                    start.model,
                    start.runner,
                    start.at,
                    end.at if end else None,
                    outcome[end.kind] if end else "loading",
                    bool(end and end.fields.get("spilled")),
                )
            )
        return found

    def spills(self) -> list[Load]:
        """Loads that ended partly on the CPU."""
        return [load for load in self.loads() if load.spilled]

    def residencies(self) -> list[Residency]:
        """Every engine process, in the order of their starts."""
        found: dict[int, Residency] = {}
        for entry in self.entries:
            if entry.kind == "load_start":
                generating = bool(entry.fields.get("generating", True))
                found[entry.runner] = Residency(entry.model, entry.runner, generating, entry.at)
            elif entry.runner in found:
                _follow(found[entry.runner], entry)
        return list(found.values())

    def overlaps(self, until: float = float("inf")) -> list[Overlap]:
        """Intervals in which two generating models held video memory; open ends are cut at ``until``."""
        found: list[Overlap] = []
        spans = [r for r in self.residencies() if r.generating and r.on_gpu]
        for number, newer in enumerate(spans):
            newer_end = _first(newer.returned, until)
            for older in spans[:number]:
                alive_end = min(_first(older.exited, until), newer_end)
                gone_end = min(_first(older.returned, until), newer_end)
                if newer.started < alive_end:
                    found.append(Overlap(older.model, newer.model, newer.started, alive_end, "alive"))
                if max(newer.started, alive_end) < gone_end:
                    start = max(newer.started, _first(older.exited, until))
                    found.append(Overlap(older.model, newer.model, start, gone_end, "returning"))
        return found

    def own_seconds(self) -> float:
        """The wall time that unloading and loading took by themselves: each load, and each end until its memory is
        back.

        What a perfect proxy in front would need for the same swaps; queueing and serving are not in it.
        """
        loads = sum(load.seconds for load in self.loads())
        ends = sum(
            r.returned - r.evicted for r in self.residencies() if r.returned is not None and r.evicted is not None
        )
        return loads + ends

    def tokens(self) -> int:
        """How many tokens were generated in all."""
        return sum(int(e.fields.get("tokens", 0)) for e in self.of("serve_end"))

    def served(self) -> Iterator[tuple[str, str]]:
        """(model, outcome) of each answer, in the order of their ends."""
        return ((e.model, str(e.fields.get("outcome"))) for e in self.of("serve_end"))


def _first(moment: float | None, otherwise: float) -> float:
    return otherwise if moment is None else moment


def _follow(residency: Residency, entry: Entry) -> None:
    match entry.kind:
        case "load_done":
            residency.ready = entry.at
            residency.on_gpu = entry.fields.get("size_vram") != 0
        case "evict":
            residency.evicted = entry.at
        case "exit" | "load_failed" | "load_aborted":
            residency.exited = entry.at
            residency.evicted = entry.at if residency.evicted is None else residency.evicted
        case "vram_returned":
            residency.returned = entry.at
