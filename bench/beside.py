"""The same clients through the proxy and, beside it, at a plain Ollama with its defaults: real sockets, real time.

    python bench/beside.py [--orders 3] [--only NAME] [--one-address] [--steps] [--check]
    OLLAMA_BIN=... SIMGPU=... python bench/beside.py --real

Without ``--real`` Ollama is the built-in simulator. Both have a card of 8000 MiB whose memory comes back 0.5 s late;
three models of 4500 MiB that load in 1, 1 and 3 s, and an embedder of 300 MiB. Every side of every workload begins
with a new Ollama, empty, and a proxy that has learned nothing, with its defaults. Clients have addresses of their own
(127.0.1.N), unless ``--one-address``.

What a plain Ollama makes of looping clients depends on the order in which they first come, for its queue is first come
first served: they play ``--orders`` times. How long B waits behind an endless A there is decided by A.

For each workload and side: the wall time, from the first request to the last answer; its ratio to what nobody can be
faster than (`offline_bound`, with OLLAMA_NUM_PARALLEL 1, Ollama's default; unloads, the memory's lag and what a real
Ollama adds to a load are not in it); loads; the median and the longest wait for a first byte; for how long two
generating models lived on the card together; loads that spilled to the CPU. Loads, overlaps and spills are counted in
the machine's own records.
Below it, where the seconds went in which somebody waited and no answer was being generated: loading (as the machine
saw it), and for the proxy each of its own steps.
``--check``: exit code 1 where the proxy is past its aim, or anything was not answered, or two models overlapped.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Final

import aiohttp
import structlog
from offline_bound import bound
from real_ollama import BOTH_ALIVE_FROM_S, LAG_S, read_ledger, real_ollama
from virtual_ollama import Model
from workloads import Ask, Stream, Workload, four_each, one_b_behind_endless_a, six_loopers
from yarl import URL

from ollama_swap_proxy.addresses import Address
from ollama_swap_proxy.config import Settings
from ollama_swap_proxy.demo.tally import Span, serving_spans
from ollama_swap_proxy.serving import Service
from ollama_swap_proxy.simulator import SimGPU, SimModel, SimulatedOllama
from ollama_swap_proxy.simulator.ledger import Ledger

EMBEDDER: Final = "embedder"
MODELS: Final = (
    Model("A", 1.0, unload_s=0.0),
    Model("B", 1.0, unload_s=0.0),
    Model("C", 3.0, unload_s=0.0),
    Model(EMBEDDER, 0.2, size_mib=300, unload_s=0.0, embeds=True),
)
OURS: Final = "the proxy"
PLAIN: Final = "plain Ollama"
TOKEN_MS, PROMPT_MS = 10, 10
ANSWER_S: Final = 0.28
STEPS: Final = {
    "swap_decided": "drain",
    "drain_ended": "evict",
    "eviction_sent": "evict",
    "eviction_confirmed": "settle",
    "load_started": "load",
    "swap_ended": "linger",
}
"""What the proxy is at from each of its log lines on. At no swap it lingers, or is between two answers."""


@dataclass(frozen=True, slots=True)
class Play:
    """A workload, and what the proxy shall reach on it: seconds of wall time or of the longest wait, and loads."""

    workload: Workload
    wall_within_s: float = float("inf")
    wait_within_s: float = float("inf")
    loads_within: int = 3


@dataclass(slots=True)
class Asked:
    """One request and what came of it, in monotonic seconds; ``problem`` is empty where all was well."""

    ask: Ask
    sent_at: float
    first_byte_at: float = 0.0
    ended_at: float = 0.0
    problem: str = ""

    @property
    def waited_s(self) -> float:
        """How long until the first byte, or the end where there was none."""
        return (self.first_byte_at or self.ended_at) - self.sent_at


@dataclass(slots=True)
class Course:
    """All requests of one side, and when the proxy was at which step."""

    asked: list[Asked] = field(default_factory=list)
    steps: list[tuple[float, str]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def listen(self, _: object, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Take in one log line of the proxy (a structlog processor: the last one)."""
        name, now = str(line.pop("event")), time.monotonic()
        if name in STEPS:
            self.steps.append((now, STEPS[name]))
        if name != "request":
            self.lines.append(f"{now - (self.asked[0].sent_at if self.asked else now):8.3f} {name} {dict(line)}")
        raise structlog.DropEvent


def plays(orders: int) -> list[Play]:
    """Return the workloads with their aims; the looping clients come in so many orders."""
    endless = one_b_behind_endless_a(Random("endless"), answers=10)
    rag = tuple(ask for _ in range(20) for ask in (Ask(EMBEDDER, PROMPT_MS / 1000), Ask("A", ANSWER_S)))
    alternating = Workload("chat and embedder, alternating x20", "rag", MODELS, (Stream("user", rag),), most_loads=2)
    loopers = [six_loopers(Random(f"{number} loopers"), (ANSWER_S, ANSWER_S)) for number in range(orders)]
    return [
        *(Play(workload, wall_within_s=18.0) for workload in loopers),
        Play(four_each(ANSWER_S), wall_within_s=9.3),
        Play(endless, wait_within_s=15.0),
        Play(alternating, loads_within=2),
    ]


async def follow(stream: Stream, address: str, url: URL, course: Course) -> None:
    """Be one client: ask, read the answer to its end, pause, ask again."""
    connector = aiohttp.TCPConnector(local_addr=(address, 0))
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=180)) as session:
        for ask in stream.asks:
            await asyncio.sleep(ask.gap_s)
            asked = Asked(ask, time.monotonic())
            course.asked.append(asked)
            await speak(session, url, asked)


async def speak(session: aiohttp.ClientSession, url: URL, asked: Asked) -> None:
    """Send one request and read its answer."""
    ask = asked.ask
    if ask.model == EMBEDDER:
        path, body = "api/embed", {"model": ask.model, "input": "x"}
    else:
        tokens = round((ask.hold_s * 1000 - PROMPT_MS) / TOKEN_MS)
        path, body = "api/generate", {"model": ask.model, "prompt": "x", "options": {"num_predict": tokens}}
    try:
        async with session.post(url / path, json=body) as response:
            async for _ in response.content.iter_any():
                asked.first_byte_at = asked.first_byte_at or time.monotonic()
            if response.status != 200:
                asked.problem = f"status {response.status}"
    except (aiohttp.ClientError, TimeoutError) as error:
        asked.problem = repr(error)
    asked.ended_at = time.monotonic()


@asynccontextmanager
async def simulated() -> AsyncIterator[tuple[URL, Callable[[], Ledger]]]:
    """Yield a new simulated Ollama's URL and its records."""
    models = tuple(
        SimModel(model.name, model.size_mib, model.load_s, token_ms=TOKEN_MS, prompt_ms=PROMPT_MS, embed=model.embeds)
        for model in MODELS
    )
    async with SimulatedOllama(models, SimGPU(total_mib=8000, lag_s=LAG_S)) as ollama:
        yield URL(ollama.url), lambda: ollama.ledger


@asynccontextmanager
async def real() -> AsyncIterator[tuple[URL, Callable[[], Ledger]]]:
    """Yield a new real Ollama's URL and its records."""
    models = [
        f"{model.name}:{model.size_mib}:{model.load_s}:token_ms={TOKEN_MS},prompt_ms={PROMPT_MS}"
        + (",embed=1" if model.embeds else "")
        for model in MODELS
    ]
    async with real_ollama(models) as gpu:
        yield URL(gpu.url), lambda: read_ledger(gpu.events(), frozenset({EMBEDDER}))


async def measure(play: Play, options: argparse.Namespace, *, with_us: bool) -> Side:
    """Play one workload to one side."""
    course = Course()
    async with (real if options.real else simulated)() as (upstream, ledger):
        if with_us:
            structlog.configure(processors=[course.listen])
            course.steps.append((time.monotonic(), "linger"))
            any_port = Address("127.0.0.1", 0)
            async with Service(Settings(listen=any_port, admin=any_port, upstream=upstream)) as service:
                await _visit(play.workload, service.url, course, one_address=options.one_address)
        else:
            await _visit(play.workload, upstream, course, one_address=options.one_address)
        return Side(course, ledger())


async def _visit(workload: Workload, url: URL, course: Course, *, one_address: bool) -> None:
    clients = sorted({stream.client for stream in workload.streams})
    async with asyncio.TaskGroup() as group:
        for stream in workload.streams:
            address = "127.0.0.1" if one_address else f"127.0.1.{1 + clients.index(stream.client)}"
            group.create_task(follow(stream, address, url, course), name=stream.client)


@dataclass(frozen=True, slots=True)
class Side:
    """What one side made of a workload, counted in its clients' and its machine's records."""

    course: Course
    ledger: Ledger

    @property
    def waits_s(self) -> list[float]:
        """How long each request waited for its first byte."""
        return [asked.waited_s for asked in self.course.asked]

    @property
    def loads(self) -> int:
        """How often anything was loaded."""
        return len(self.ledger.loads())

    @property
    def wall_s(self) -> float:
        """From the first request to the last answer."""
        asked = self.course.asked
        return max(each.ended_at for each in asked) - min(each.sent_at for each in asked)

    @property
    def slowed_s(self) -> float:
        """By how much longer answers were generated than they take on the card; one at a time, as by default."""
        end = max(asked.ended_at for asked in self.course.asked)
        took_s = sum(until - begin for begin, until in serving_spans(self.ledger, end))
        return max(0.0, took_s - sum(asked.ask.hold_s for asked in self.course.asked))

    @property
    def overlap_s(self) -> float:
        """For how long two generating models lived on the card together."""
        lasted = [each.end - each.start for each in self.ledger.overlaps() if each.kind == "alive"]
        return sum(seconds for seconds in lasted if seconds > BOTH_ALIVE_FROM_S)

    def lost(self) -> dict[str, float]:
        """Return where the seconds went in which somebody waited and no answer was being generated."""
        waiting = [(asked.sent_at, asked.first_byte_at or asked.ended_at) for asked in self.course.asked]
        end = max(asked.ended_at for asked in self.course.asked)
        serving = serving_spans(self.ledger, end)
        loading = [(load.started, load.ended or end) for load in self.ledger.loads()]
        steps = self.course.steps
        edges = sorted({at for spans in (waiting, serving, loading) for span in spans for at in span} | {*dict(steps)})
        lost: dict[str, float] = defaultdict(float)
        for begin, until in itertools.pairwise(edges):
            middle = (begin + until) / 2
            if not _covers(waiting, middle) or _covers(serving, middle):
                continue
            step = next((name for at, name in reversed(steps) if at <= middle), "Ollama's own")
            lost["loading" if _covers(loading, middle) else step] += until - begin
        return dict(lost)


def _covers(spans: list[Span], moment: float) -> bool:
    return any(begin <= moment < end for begin, end in spans)


def tell(play: Play, sides: dict[str, Side]) -> list[str]:
    """Print one workload's table; return what was not as it shall be."""
    least = bound(replace(play.workload, models=MODELS, slots=1))
    size = f"{play.workload.requests} requests; nobody needs less than {least.makespan_s:.1f} s and {least.loads} loads"
    print(f"{play.workload.name}  ({size})")
    columns = (
        ("wall s", 8),
        ("/least", 8),
        ("loads", 7),
        ("p50 s", 8),
        ("longest s", 11),
        ("overlap s", 11),
        ("spills", 8),
    )
    print(f"  {'':<14}" + "".join(f"{name:>{width}}" for name, width in columns))
    for name, side in sides.items():
        print(
            f"  {name:<14}{side.wall_s:>8.1f}{side.wall_s / least.makespan_s:>8.2f}{side.loads:>7}"
            f"{statistics.median(side.waits_s):>8.2f}{max(side.waits_s):>11.2f}{side.overlap_s:>11.2f}"
            f"{len(side.ledger.spills()):>8}"
        )
    ours, plain = sides[OURS], sides[PLAIN]
    ratios = f"{plain.wall_s / ours.wall_s:>8.2f}{'':>8}{plain.loads / ours.loads:>7.2f}"
    print(f"  {'plain / proxy':<14}{ratios}{'':>8}{max(plain.waits_s) / max(ours.waits_s):>11.2f}")
    for name, side in sides.items():
        parts = sorted(side.lost().items(), key=lambda part: -part[1])
        lost = ", ".join(f"{what} {seconds:.2f}" for what, seconds in parts if seconds >= 0.005)
        print(f"  {name} waited for, serving nobody, s: {lost}; answers slowed by spills {side.slowed_s:.2f}")
    bad = [f"not answered: {asked.problem}" for side in sides.values() for asked in side.course.asked if asked.problem]
    if ours.overlap_s:
        bad.append(f"two models lived on the card together for {ours.overlap_s:.2f} s")
    bad += _judge(play, ours)
    print(flush=True)
    return bad


def _judge(play: Play, ours: Side) -> list[str]:
    bad = []
    for what, value, within in (
        ("wall time, s", ours.wall_s, play.wall_within_s),
        ("longest wait, s", max(ours.waits_s), play.wait_within_s),
        ("loads", float(ours.loads), float(play.loads_within)),
    ):
        if within < float("inf"):
            print(f"  {'reached' if value <= within else 'MISSED '}  {what}: {value:.1f} (aim {within:g})")
        if value > within:
            bad.append(f"{what}: {value:.1f} (aim {within:g})")
    return bad


def main() -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", action="store_true", help="a real Ollama over a simulated GPU")
    parser.add_argument("--orders", type=int, default=3, help="so often the looping clients play")
    parser.add_argument("--only", default="", help="workloads whose name contains this")
    parser.add_argument("--one-address", action="store_true", help="all clients come from 127.0.0.1")
    parser.add_argument("--steps", action="store_true", help="also print the proxy's log")
    parser.add_argument("--check", action="store_true", help="exit with 1 if an aim is missed")
    options = parser.parse_args()
    bad = []
    for play in plays(options.orders):
        if options.only not in play.workload.name:
            continue
        sides = {}
        for name in (OURS, PLAIN):
            sides[name] = asyncio.run(measure(play, options, with_us=name == OURS))
        if options.steps:
            print("\n".join(sides[OURS].course.lines))
        bad += [f"{play.workload.name}: {what}" for what in tell(play, sides)]
    for what in bad:
        print(f"MISSED {what}")
    return 1 if options.check and bad else 0


if __name__ == "__main__":
    sys.exit(main())
