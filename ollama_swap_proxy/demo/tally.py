"""What came of it: figures of one side, counted in its clients' records and its machine's ledger, and the table.

Owns the arithmetic and its wording. Must not know what a good figure is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from rich.table import Table

from ollama_swap_proxy.demo.traffic import CHAT, CLIENTS, Crowd
from ollama_swap_proxy.simulator.ledger import Ledger

Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Figures:
    """One side. Times in seconds; ``waits_s`` by client: until the first byte of each answer, in the order asked."""

    answers: dict[str, int]
    waits_s: dict[str, list[float]]
    loads: int
    swapping_s: float
    """For how long the card was being loaded, or unloaded until its memory was back."""
    lost_s: float
    """For how long somebody waited and no answer was being generated."""
    spills: int
    errors: int
    lasted_s: float


def count(crowd: Crowd, ledger: Ledger, now: float) -> Figures:
    """Count one side as of ``now``; who still waits then has waited until then."""
    questions = crowd.questions
    answered = Counter(q.client.name for q in questions if q.ended_at is not None and not q.error)
    waits: dict[str, list[float]] = {client.name: [] for client in CLIENTS}
    for question in questions:
        waits[question.client.name].append(question.waited_s(now))
    waiting = [(q.sent_at, q.sent_at + q.waited_s(now)) for q in questions]
    began_at = min((q.sent_at for q in questions), default=now)
    return Figures(
        answers={client.name: answered[client.name] for client in CLIENTS},
        waits_s=waits,
        loads=len(ledger.loads()),
        swapping_s=ledger.own_seconds(),
        lost_s=time_in_first_only(waiting, serving_spans(ledger, now)),
        spills=len(ledger.spills()),
        errors=sum(bool(q.error) for q in questions),
        lasted_s=max((q.ended_at or now for q in questions), default=now) - began_at,
    )


def serving_spans(ledger: Ledger, now: float) -> list[Span]:
    """When the machine generated each answer; one that is under way lasts until ``now``."""
    open_since: dict[int, list[float]] = {}
    spans = []
    for entry in ledger.of("serve_start", "serve_end"):
        if entry.kind == "serve_start":
            open_since.setdefault(entry.runner, []).append(entry.at)
        elif open_since.get(entry.runner):
            spans.append((open_since[entry.runner].pop(0), entry.at))
    return [*spans, *((at, now) for starts in open_since.values() for at in starts)]


def time_in_first_only(first: Iterable[Span], second: Iterable[Span]) -> float:
    """How long at least one span of the first kind lasted while none of the second did."""
    edges = [
        (at, kind, step)
        for kind, spans in enumerate((first, second))
        for a, b in spans
        for at, step in ((a, 1), (b, -1))
    ]
    depth, total, since = [0, 0], 0.0, 0.0
    for at, kind, step in sorted(edges):
        if depth[0] and not depth[1]:
            total += at - since
        depth[kind] += step
        since = at
    return total


def closing_table(with_us: Figures, without: Figures) -> Table:
    """The two sides beside each other."""
    sides = (with_us, without)
    table = Table(title="The same clients, at the same time, on equal cards", title_justify="left", pad_edge=False)
    table.add_column("measured", no_wrap=True)
    table.add_column("with the proxy", justify="right", style="bold")
    table.add_column("Ollama alone", justify="right")
    table.add_row("answers in all", *(str(sum(side.answers.values())) for side in sides))
    for client in CLIENTS:
        table.add_row(f"  to {client.name}", *(str(side.answers[client.name]) for side in sides))
    table.add_section()
    table.add_row("all waits: median, worst", *(_waits(_all(side)) for side in sides))
    for client in CLIENTS:
        table.add_row(f"  of {client.name}", *(_waits(side.waits_s[client.name]) for side in sides))
    table.add_section()
    table.add_row("models loaded", *(str(side.loads) for side in sides))
    table.add_row("the card loads or unloads", *(f"{side.swapping_s:.1f} s" for side in sides))
    table.add_row("somebody waits, nobody is served", *(f"{side.lost_s:.1f} s" for side in sides))
    table.add_row("loads that spilled to the CPU", *(str(side.spills) for side in sides))
    table.add_row("errors", *(str(side.errors) for side in sides))
    return table


def conclusion(with_us: Figures, without: Figures) -> str:
    """Say in a sentence or two what it came to, whichever side did better."""
    sides = (with_us, without)
    ours, theirs = (sum(side.answers.values()) for side in sides)
    ours_s, theirs_s = (max(_all(side), default=0.0) for side in sides)
    person = [f"{median(side.waits_s[CHAT.name] or [0.0]):.1f} s" for side in sides]
    work = f"{ours} answers instead of {theirs}, with {with_us.loads} loads instead of {without.loads}."
    usual = f"The person usually waited {person[0]} instead of {person[1]}"
    return f"{work} {usual}; the longest wait of all was {ours_s:.1f} s instead of {theirs_s:.1f} s."


def _all(side: Figures) -> list[float]:
    return [wait for waits in side.waits_s.values() for wait in waits]


def _waits(waits_s: list[float]) -> str:
    return f"{median(waits_s):.1f} s, {max(waits_s):4.1f} s" if waits_s else "-"
