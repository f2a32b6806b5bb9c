"""Who asks for what, when: the workloads that schedulers are compared on, named, generated and recorded.

Owns the workloads and the goals that belong to one of them alone. Must not know who schedules.

A client in a **closed loop** asks for the next thing a gap after its last answer, so that what a scheduler does changes
when later requests come. A workload is closed by its streams: a stream of one request is an open arrival.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from virtual_ollama import Model

NORMAL = "normal"
MAX_WAIT_S = 120.0
"""Of everybody in workloads of one class; the others' are given as multiples of it."""
EXCLUSIVE_MIB = 8000
"""A card on which no two of the usual models (4500 MiB) find room together."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of a stream: for which model, how long its answer takes, and after which gap it comes."""

    model: str
    hold_s: float
    gap_s: float = 0.0
    """Since the answer before it, or since the beginning."""


@dataclass(frozen=True, slots=True)
class Stream:
    """Requests that follow one another. Several streams may be the same client's: it asks for several at once."""

    client: str
    asks: tuple[Ask, ...]
    rank: str = NORMAL


@dataclass(frozen=True, slots=True)
class Workload:
    """Models, clients, the card, and what is asked of this workload alone."""

    name: str
    shape: str
    models: tuple[Model, ...]
    streams: tuple[Stream, ...]
    slots: int = 4
    total_mib: int = EXCLUSIVE_MIB
    max_wait_s: Mapping[str, float] = field(default_factory=lambda: {NORMAL: MAX_WAIT_S})
    most_loads: int | None = None
    most_swapping: float | None = None
    newcomer: str | None = None
    """The client whose first request must be among the first ``newcomer_within`` let through after it came."""
    newcomer_within: int = 1

    @property
    def requests(self) -> int:
        """How many requests there are."""
        return sum(len(stream.asks) for stream in self.streams)

    @property
    def asked_for(self) -> tuple[Model, ...]:
        """The models that anybody asks for."""
        used = {ask.model for stream in self.streams for ask in stream.asks}
        return tuple(model for model in self.models if model.name in used)

    @property
    def is_closed(self) -> bool:
        """Say whether anybody waits for an answer before asking again."""
        return any(len(stream.asks) > 1 for stream in self.streams)


CLOSED, BURST = "closed loop", "burst"


def chosen(seed: int, variations: int, *, long: bool) -> list[Workload]:
    """Return all workloads; of the generated kinds ``variations`` each, from ``seed`` on; ``long`` ones take longer."""
    random = Random(f"{seed} named")
    named = [
        abaacabc(),
        six_loopers(random),
        four_agents(random),
        saturation(random),
        one_b_behind_endless_a(random, answers=600 if long else 150),
        fair_share(),
        behind_a_batch("A"),
        behind_a_batch("B"),
        batch_under_people(),
        batch_and_interactive(random, minutes=20 if long else 8),
        rag(random, users=1),
        rag(random, users=4),
        *(slots(random, side_by_side) for side_by_side in (1, 4, 8)),
        zipf(random, requests=6000 if long else 1000),
    ]
    generated = []
    for number in range(seed, seed + variations):
        generated.append(some_burst(number))
        generated.append(some_loops(number))
    return named + generated


def abaacabc() -> Workload:
    """A B A A C A B C arriving together: three loads."""
    streams = tuple(Stream(f"client {n}", (Ask(model, 1.0),)) for n, model in enumerate("ABAACABC"))
    return Workload("A B A A C A B C", BURST, _models("ABC", [2, 2, 2]), streams, most_loads=3)


def six_loopers(random: Random, hold_s: tuple[float, float] = (0.3, 0.5)) -> Workload:
    """36 requests of six looping clients over three models, with gaps of 0.1 to 0.3 s: at most four loads."""
    streams = tuple(
        _loop(random, f"client {n}", "ABC"[n % 3], rounds=6, hold_s=hold_s, gap_s=(0.1, 0.3)) for n in range(6)
    )
    return Workload("six looping clients", CLOSED, _models("ABC", [1, 1, 3]), streams, most_loads=4)


def four_each(hold_s: float) -> Workload:
    """Four requests for each of three models, all at once: three loads."""
    streams = tuple(Stream(f"client {n}", (Ask("ABC"[n % 3], hold_s),)) for n in range(12))
    return Workload("a burst of four for each of three models", BURST, _models("ABC", [1, 1, 3]), streams, most_loads=3)


def four_agents(random: Random) -> Workload:
    """Four agents, each with its own model and 60 requests between tool calls, where a load takes 20 s."""
    streams = tuple(
        _loop(random, f"agent {name}", name, rounds=60, hold_s=(2.0, 4.0), gap_s=(0.1, 2.0)) for name in "ABCD"
    )
    return Workload("four agents, 20 s swaps", CLOSED, _models("ABCD", [20] * 4), streams)


def saturation(random: Random) -> Workload:
    """Six models, each with more clients than slots that never pause, where a load takes 20 s."""
    streams = tuple(
        _loop(random, f"client {n}", "ABCDEF"[n % 6], rounds=40, hold_s=(2.0, 4.0), gap_s=(0.0, 0.0)) for n in range(36)
    )
    return Workload("six saturated models", "saturation", _models("ABCDEF", [20] * 6), streams, most_swapping=0.35)


def one_b_behind_endless_a(random: Random, answers: int) -> Workload:
    """A is never idle: three streams of it overlap; one request for B comes soon after they began."""
    endless = tuple(
        Stream(f"a{n}", tuple(Ask("A", random.uniform(0.8, 1.2), 0.3 * n if k == 0 else 0.0) for k in range(answers)))
        for n in range(3)
    )
    return Workload(
        "one B behind endless A", "endless", _models("AB", [2, 2]), (*endless, Stream("b", (Ask("B", 1.0, 2.0),)))
    )


def fair_share() -> Workload:
    """X has 100 requests queued when the first of Y, for the same model, comes."""
    queued = tuple(Stream("X", (Ask("A", 1.0),)) for _ in range(100))
    return Workload(
        "100 of X, then one of Y", "fair share", _models("A", [2]), (*queued, Stream("Y", (Ask("A", 1.0, 5.0),))),
        newcomer="Y", newcomer_within=2,
    )  # fmt: skip


def behind_a_batch(model: str) -> Workload:
    """A person's request, for the batch's model (A) or another, comes when 100 of a batch are queued."""
    batch = tuple(Stream("batch", (Ask("A", 2.0),), "batch") for _ in range(100))
    person = Stream("person", (Ask(model, 1.0, 15.1),), "interactive")
    name = "person behind 100 batch" + (", other model" if model != "A" else "")
    limits = {"interactive": MAX_WAIT_S / 4, "batch": 3600.0}
    return Workload(name, "classes", _models("AB", [2, 2]), (*batch, person), max_wait_s=limits, newcomer="person")


def batch_under_people() -> Workload:
    """One batch request beside people who keep every slot busy for much longer than it may wait."""
    people = tuple(Stream(f"person {n}", (Ask("A", 1.0),) * 250, "interactive") for n in range(8))
    limits = {"interactive": MAX_WAIT_S / 4, "batch": 2 * MAX_WAIT_S}
    batch = Stream("batch", (Ask("A", 1.0, 5.0),), "batch")
    return Workload("batch under endless people", "classes", _models("A", [2]), (*people, batch), max_wait_s=limits)


def slots(random: Random, side_by_side: int) -> Workload:
    """Clients without pause over one model, twice as many as Ollama serves side by side."""
    streams = tuple(
        _loop(random, f"client {n}", "A", rounds=40, hold_s=(2.0, 4.0), gap_s=(0.0, 0.0))
        for n in range(2 * side_by_side)
    )
    return Workload(f"saturated, slots: {side_by_side}", "slots", _models("A", [2]), streams, slots=side_by_side)


def batch_and_interactive(random: Random, minutes: float) -> Workload:
    """A batch of hours for one model, and people who ask now and then for that and for another."""
    batch = tuple(
        Stream("batch", (Ask("A", random.uniform(2, 5)),), "batch") for _ in range(int(minutes * 60 * 4 / 3.5 * 0.7))
    )
    people = tuple(
        Stream(f"person {n}", tuple(
            Ask("AB"[n % 2], random.uniform(1, 3), random.uniform(5, 40)) for _ in range(int(minutes * 2))
        ), "interactive")
        for n in range(4)
    )  # fmt: skip
    limits = {"interactive": MAX_WAIT_S / 4, "batch": 3600.0}
    return Workload("batch and interactive", "classes", _models("AB", [4, 4]), (*batch, *people), max_wait_s=limits)


def rag(random: Random, users: int) -> Workload:
    """Each user's question is embedded, then answered, twenty times; both models fit on the card together."""
    models = (Model("chat", 3.0), Model("embed", 1.0, size_mib=300, embeds=True))
    streams = []
    for n in range(users):
        rounds = [
            (Ask("embed", 0.05, random.uniform(0.2, 1.0)), Ask("chat", random.uniform(0.5, 2))) for _ in range(20)
        ]
        streams.append(Stream(f"user {n}", tuple(ask for asks in rounds for ask in asks)))
    name = f"RAG, {users} user{'s' * (users > 1)}"
    return Workload(name, "rag", models, tuple(streams), most_loads=2)


def zipf(random: Random, requests: int) -> Workload:
    """20 models, the n-th asked for 1/n as often as the first, by clients that do not wait for each other."""
    names = [f"m{n:02}" for n in range(1, 21)]
    models = _models(names, [random.choice([1, 2, 4]) for _ in names])
    picks = random.choices(names, [1 / n for n in range(1, 21)], k=requests)
    at, streams = 0.0, []
    for number, model in enumerate(picks):
        at += random.expovariate(0.5)
        streams.append(Stream(f"client {number % 50}", (Ask(model, random.uniform(0.5, 2.0), at),)))
    return Workload("Zipf over 20 models", "zipf", models, tuple(streams))


def some_burst(seed: int) -> Workload:
    """Between two and six models, each with up to twelve requests, all in the same second."""
    random = Random(f"{seed} burst")
    names = "ABCDEF"[: random.randint(2, 6)]
    streams = [
        Stream(f"client {name}{n}", (Ask(name, random.uniform(0.5, 4.0), random.random()),))
        for name in names
        for n in range(random.randint(1, 12))
    ]
    models = _models(names, [random.uniform(1, 8) for _ in names])
    return Workload(f"generated burst {seed}", BURST, models, tuple(streams))


def some_loops(seed: int) -> Workload:
    """Between two and four models with one to three looping clients each, of their own pace."""
    random = Random(f"{seed} loops")
    names = "ABCD"[: random.randint(2, 4)]
    streams = []
    for name in names:
        for n in range(random.randint(1, 3)):
            hold_s, gap_s = random.uniform(0.3, 1.5), random.uniform(0.05, 0.5)
            holds_s, gaps_s = (hold_s * 0.7, hold_s * 1.3), (gap_s * 0.5, gap_s * 1.5)
            rounds = random.randint(6, 12)
            streams.append(_loop(random, f"client {name}{n}", name, rounds=rounds, hold_s=holds_s, gap_s=gaps_s))
    models = _models(names, [random.uniform(1.5, 6) for _ in names])
    return Workload(f"generated loops {seed}", CLOSED, models, tuple(streams))


def recorded(log: Path) -> Workload:
    """Read a workload out of the proxy's own log (``log_format = "json"``).

    Each request comes when it came then, and holds its lease as long; a load takes what its loads took (the median;
    2 s for a model that was never loaded). Sizes are not in the log: models exclude each other.

    Raises:
        ValueError: if the log tells of no request that needed a model.
    """
    came: list[tuple[float, dict[str, Any]]] = []
    load_s: dict[str, list[float]] = defaultdict(list)
    for line in _log_lines(log):
        event = line.get("event")
        if event == "request" and line.get("model") and not line.get("passed") and not line.get("error"):
            ended_at = datetime.fromisoformat(line["timestamp"]).timestamp()
            came.append((ended_at - line["total_s"], line))
        elif event == "swap_ended" and line.get("outcome") == "loaded":
            load_s[line["target"]].append(line["load_s"])
    if not came:
        raise ValueError(f"{log} tells of no request that needed a model")
    first_at = min(at for at, _ in came)
    streams = tuple(
        Stream(line["client"], (Ask(line["model"], line["total_s"] - line["waited_s"], at - first_at),))
        for at, line in sorted(came, key=lambda pair: pair[0])
    )
    names = sorted({stream.asks[0].model for stream in streams})
    models = tuple(Model(name, median(load_s.get(name, [2.0]))) for name in names)
    return Workload(f"recorded: {log.name}", "recorded", models, streams)


def _log_lines(log: Path) -> Iterable[dict[str, Any]]:
    with log.open(encoding="utf-8") as lines:
        yield from (json.loads(line) for line in lines if line.startswith("{"))


def _models(names: Iterable[str], load_s: list[float]) -> tuple[Model, ...]:
    return tuple(Model(name, seconds) for name, seconds in zip(names, load_s, strict=True))


def _loop(
    random: Random, client: str, model: str, *, rounds: int, hold_s: tuple[float, float], gap_s: tuple[float, float]
) -> Stream:
    first = Ask(model, random.uniform(*hold_s), random.uniform(0.0, 0.1))
    later = (Ask(model, random.uniform(*hold_s), random.uniform(*gap_s)) for _ in range(rounds - 1))
    return Stream(client, (first, *later))
