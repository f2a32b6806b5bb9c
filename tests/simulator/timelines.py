"""The order of what happened: polled GET /api/ps and what the engine processes did, recorded against played."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ollama_swap_proxy.simulator.ledger import Ledger
from tests.simulator.transcripts import Wire, play

KINDS = {"load_start", "load_done", "exit", "vram_returned", "serve_start", "serve_end"}
ENDS = {"load_aborted": "exit", "load_failed": "exit"}
"""To the recorder's engine, a load that comes to nothing is a process that ends."""
CLOSE_MS = 60.0
"""Facts closer than this in a recording have no order: its engine events are up to 10 ms late, its polls 25 apart."""


@dataclass(frozen=True)
class Fact:
    """Something that happened between ``since`` and ``at``; ``label`` says what, and which one of its kind."""

    at: float
    label: str
    since: float


def recorded(timeline: Mapping[str, Any]) -> list[Fact]:
    """The facts of a recorded timeline, in milliseconds."""
    facts = [(row["first_at_ms"], _residents(row["models"])) for row in timeline["rows"]]
    facts = [fact for number, fact in enumerate(facts) if not number or fact[1] != facts[number - 1][1]]
    facts += [
        (event["at_ms"], _event(event["event"], event["model"], event.get("spilled")))
        for event in timeline.get("engine_events", ())
        if event["at_ms"] >= 0 and event.get("outcome") != "aborted"
    ]
    return _numbered([(at, label, at) for at, label in facts])


class Poller:
    """Polls GET /api/ps and keeps each change: when it was seen, what it was, when the poll before it was sent."""

    def __init__(self, port: int, every_s: float) -> None:
        self._port = port
        self._every_s = every_s
        self._changes: list[tuple[float, str, float]] = []
        self.begun = time.monotonic()
        self.looked = asyncio.Event()
        """Set once the state before everything else has been seen."""

    async def run(self) -> None:
        """Poll until cancelled."""
        sent = Wire(b"GET /api/ps HTTP/1.1\r\nHost: localhost\r\n\r\n", b"")
        before = self.begun
        while True:
            asked = time.monotonic()
            answer = await play(self._port, sent, hold_back=None, leave_after_s=None)
            label = _residents(json.loads(answer.body)["models"])
            if not self._changes or self._changes[-1][1] != label:
                self._changes.append((time.monotonic(), label, before))
            before = asked
            self.looked.set()
            await asyncio.sleep(self._every_s)

    def facts(self, ledger: Ledger) -> list[Fact]:
        """What was seen since the start, with what the ledger says."""
        facts = list(self._changes)
        facts += [
            (
                entry.at,
                _event(ENDS.get(entry.kind, entry.kind), _full(entry.model), entry.fields.get("spilled")),
                entry.at,
            )
            for entry in ledger.of(*KINDS, *ENDS)
            if entry.at >= self.begun and entry.fields.get("outcome") != "aborted"
        ]
        return _numbered(facts)


def _residents(models: Sequence[Mapping[str, Any]]) -> str:
    shown = [
        f"{model['name']} {'spilled' if model['size_vram'] < model['size'] else 'whole'} {model['context_length']}"
        for model in models
    ]
    return f"ps [{', '.join(sorted(shown))}]"


def _event(kind: str, model: str, spilled: object) -> str:
    return f"{kind} {model.partition(':')[0]}{' spilled' if spilled else ''}"


def _full(model: str) -> str:
    return model if ":" in model else f"{model}:latest"


def _numbered(facts: list[tuple[float, str, float]]) -> list[Fact]:
    counts: Counter[str] = Counter()
    numbered = []
    for at, label, since in sorted(facts):
        counts[label] += 1
        numbered.append(Fact(at, f"{label} #{counts[label]}", since))
    return numbered


def compare(expected: Sequence[Fact], actual: Sequence[Fact]) -> Iterator[str]:
    """What happened otherwise: facts that are missing or too many, and pairs in another order."""
    moments = {fact.label: fact for fact in actual}
    missing = [fact.label for fact in expected if fact.label not in moments]
    if missing:
        yield f"never happened: {missing}; this did: {[fact.label for fact in actual]}"
        return
    labels = {fact.label for fact in expected}
    last = max(moments[label].at for label in labels)
    extra = [fact.label for fact in actual if fact.label not in labels and fact.at < last]
    if extra:
        yield f"happened although it should not: {extra}"
    for number, earlier in enumerate(expected):
        for later in expected[number + 1 :]:
            if later.at - earlier.at > CLOSE_MS and moments[later.label].at < moments[earlier.label].since:
                yield f"{later.label} came before {earlier.label}"
