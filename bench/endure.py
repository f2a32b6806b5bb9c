"""Endurance: a thousand alternations between two models that do not fit together, on an Ollama that misbehaves.

    python bench/endure.py [--rounds 1000] [--seed 1] [--time-scale 0.04]
    OLLAMA_BIN=... SIMGPU=... python bench/endure.py --real [--rounds 200]

Each round asks for the other model than the round before, sometimes with company that wants the same, sometimes before
the last answer has ended. Faults (simulated Ollama): memory comes back 0 to 5 s late, 5 % of the unloads are lost, 2 %
of the reports blocked for 20 s, 5 % of the clients leave at any moment, and an Ollama that must evict under load never
moves again. Exit code 1 when the verdict is bad: a hang, an answer that is not 200 or not whole, two models alive on
the card, an eviction that Ollama had to make by itself, or anything left behind at the end.

**What is scaled**: ``--time-scale`` stretches the simulator's times (loads, tokens, memory) and, of the proxy's own,
those that are settings: report_timeout_s, settle_first_s, settle_max_s, unload_timeout_s, ps_max_age_s, turn_limit_s.
Constants are not: a lost unload is noticed after 1 s, reports are polled every 50 ms, a report that failed is asked for
again after 250 ms, the first lesson of a spill is a settle wait of 0.5 s or settle_max_s, whichever is less. So the
times *over the floor* are worse than in real life, where a load takes 25 times as long; read them as what we add, not
as shares.

**The floor** of a round is what its swap cannot do without: ending the victim, its memory's way back, the load. No
proxy can know when memory is back, so one that loads too early is faster here, and spills.

``--real``: a real Ollama over a simulated GPU (`real_ollama` says what that needs). Only late memory (0 to 1.5 s) and
leaving clients can be had there, and nothing is scaled. Two models count as alive together from 20 ms on.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

import aiohttp
import structlog
from real_ollama import BOTH_ALIVE_FROM_S, read_ledger, real_ollama
from yarl import URL

from ollama_swap_proxy.addresses import Address
from ollama_swap_proxy.config import Settings
from ollama_swap_proxy.errors import MARK
from ollama_swap_proxy.serving import Service
from ollama_swap_proxy.simulator import Faults, SimGPU, SimModel, SimulatedOllama
from ollama_swap_proxy.simulator.ledger import Ledger

MODELS = (SimModel("alpha", 4500, load_s=1.0, token_ms=20), SimModel("bravo", 5000, load_s=1.5, token_ms=20))
NAMES = ("alpha", "bravo")
LEAVING_SHARE, COMPANY_SHARE, EARLY_SHARE = 0.05, 0.25, 0.1
HANG_AFTER_S = 60.0
"""Far beyond any chain of faults that can be explained; a swap here takes half a second."""
REAL_LAG_S = 1.5


@dataclass(slots=True)
class Asked:
    """One request and what came of it; times are monotonic seconds. ``problem`` is empty where all was well."""

    model: str
    sent_at: float
    first_byte_at: float = 0.0
    ended_at: float = 0.0
    left: bool = False
    problem: str = ""


@dataclass(slots=True)
class Course:
    """What happened: all requests, the first one of each round, and what the proxy logged."""

    asked: list[Asked] = field(default_factory=list)
    rounds: list[Asked] = field(default_factory=list)
    events: Counter[str] = field(default_factory=Counter)
    swaps: Counter[str] = field(default_factory=Counter)
    settles: list[float] = field(default_factory=list)
    recent: deque[str] = field(default_factory=lambda: deque(maxlen=60))

    def listen(self, _: object, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Take in one log line of the proxy (a structlog processor: the last one)."""
        name = str(line.pop("event"))
        self.events[name] += 1
        if name == "swap_decided":
            self.swaps[f"for a {line['reason']}"] += 1
        elif name == "swap_ended":
            self.swaps[f"ended: {line['outcome']}"] += 1
        elif name == "settle_learned":
            self.settles.append(line["wait_s"])
        elif name == "control_call_failed":
            line["exc_info"] = repr(line.get("exc_info"))
        self.recent.append(f"{time.monotonic():.3f} {name} {line}")
        raise structlog.DropEvent


async def ask(session: aiohttp.ClientSession, url: URL, asked: Asked, begun: asyncio.Event, tokens: int) -> None:
    """Send one request and check its answer: status 200, every token of the right model, an end."""
    body = {"model": asked.model, "prompt": "x", "options": {"num_predict": tokens}}
    try:
        async with session.post(url / "api/generate", json=body) as response:
            if response.status != 200:
                asked.problem = f"{response.status} {response.headers.get(MARK, 'of Ollama')}: {await response.text()}"
                return
            answer = b""
            async for chunk in response.content.iter_any():
                asked.first_byte_at = asked.first_byte_at or time.monotonic()
                begun.set()
                answer += chunk
        if answer.count(b'"done":false') < tokens or f" {asked.model}.{tokens - 1}" not in answer.decode():
            asked.problem = "200, but the answer is not whole"
    except aiohttp.ClientError as error:
        asked.problem = f"broken connection: {error!r}"
    finally:
        begun.set()
        asked.ended_at = time.monotonic()


async def visit(session: aiohttp.ClientSession, url: URL, asked: Asked, begun: asyncio.Event, stay_s: float) -> None:
    """Ask, and leave after ``stay_s`` if there is no answer by then; say so where it hangs."""
    leaves = stay_s < HANG_AFTER_S
    try:
        async with asyncio.timeout(stay_s):
            await ask(session, url, asked, begun, tokens=4)
    except TimeoutError:
        asked.left, asked.problem = leaves, "" if leaves else "hang"


async def alternate(
    service: Service, course: Course, rounds: int, random: Random, each_round: Callable[[], None]
) -> None:
    """Play all rounds; ends early at the first hang, which would only repeat itself."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as group:
        for number in range(rounds):
            each_round()
            first, *company = [Asked(NAMES[number % 2], time.monotonic()) for _ in range(_party(random))]
            course.rounds.append(first)
            visits, begun = [], asyncio.Event()
            for asked in (first, *company):
                course.asked.append(asked)
                stay_s = random.uniform(0, _typical_s(course)) if random.random() < LEAVING_SHARE else HANG_AFTER_S
                visits.append(
                    group.create_task(visit(session, service.url, asked, begun, stay_s), name=f"round {number}")
                )
            if random.random() < EARLY_SHARE:
                await begun.wait()
            else:
                await asyncio.wait(visits)
            if any(asked.problem == "hang" for asked in course.asked[-8:]):
                print("\n".join(course.recent))
                return
            if sys.stderr.isatty() and number % 10 == 0:
                print(f"\r{number} of {rounds}", end="", file=sys.stderr, flush=True)


def _party(random: Random) -> int:
    return random.randint(2, 4) if random.random() < COMPANY_SHARE else 1


def _typical_s(course: Course) -> float:
    took = [asked.ended_at - asked.sent_at for asked in course.rounds[-20:] if asked.ended_at and not asked.left]
    return 1.5 * sum(took) / len(took) if took else 1.0


@asynccontextmanager
async def simulated(
    scale: float, seed: int
) -> AsyncIterator[tuple[Settings, Callable[[], Ledger], Callable[[], None]]]:
    """A simulated Ollama with its faults on; yields the proxy's settings, its ledger, and what to do each round."""
    faults = Faults(
        lose_unloads=0.05, ps_block_s=20 * scale, ps_block_probability=0.02, deadlock_on_eviction_under_load=True
    )
    gpu = SimGPU(total_mib=8000, lag_s=(0.0, 5.0))
    async with SimulatedOllama(MODELS, gpu, time_scale=scale, num_parallel=4, faults=faults, seed=seed) as ollama:
        settings = Settings(
            listen=Address("127.0.0.1", 0),
            admin=Address("127.0.0.1", 0),
            upstream=URL(ollama.url),
            report_timeout_s=max(0.1, 2 * scale),
            settle_first_s=0.5 * scale,
            settle_max_s=6 * scale,
            unload_timeout_s=max(20.0, 60 * scale),
            ps_max_age_s=max(0.1, scale),
            turn_limit_s=10 * scale,
            shutdown_grace_s=1,
        )
        yield settings, lambda: ollama.ledger, lambda: None


@asynccontextmanager
async def real(seed: int) -> AsyncIterator[tuple[Settings, Callable[[], Ledger], Callable[[], None]]]:
    """The same over a real Ollama; see `real_ollama`."""
    random = Random(seed)
    async with real_ollama(["alpha:4500:0.5", "bravo:5000:0.4"]) as gpu:
        settings = Settings(
            listen=Address("127.0.0.1", 0), admin=Address("127.0.0.1", 0), upstream=URL(gpu.url), shutdown_grace_s=1
        )
        yield settings, lambda: read_ledger(gpu.events()), lambda: gpu.set(lag_s=random.uniform(0, REAL_LAG_S))


def over_the_floor(course: Course, ledger: Ledger) -> list[tuple[float, float]]:
    """Return (floor, time over it) in seconds of every round that swapped and whose clients stayed, as did the last."""
    found = []
    processes = ledger.residencies()
    for before, asked in zip(course.rounds, course.rounds[1:], strict=False):
        if before.left or asked.left or asked.problem or before.problem:
            continue
        served = [other.ended_at for other in course.asked if _was_served_before(other, before, asked)]
        free_at = max(asked.sent_at, *served)
        floor_s = 0.0
        for process in processes:
            if process.ready is not None and free_at <= process.ready <= asked.first_byte_at:
                floor_s += process.ready - process.started
            gone_at = process.evicted if process.evicted is not None else process.exited
            if gone_at is not None and process.returned is not None and free_at <= gone_at <= asked.first_byte_at:
                floor_s += process.returned - gone_at
        if floor_s:
            found.append((floor_s, asked.first_byte_at - free_at - floor_s))
    return found


def _was_served_before(other: Asked, before: Asked, asked: Asked) -> bool:
    return other.model == before.model and other.ended_at > 0 and other.sent_at <= asked.sent_at


def judge(course: Course, ledger: Ledger, *, is_real: bool, left_behind: str) -> bool:
    """Print the figures and the verdict; say whether it is good."""
    problems = Counter(asked.problem for asked in course.asked if asked.problem)
    alive = [overlap for overlap in ledger.overlaps() if overlap.kind == "alive"]
    if is_real:
        alive = [overlap for overlap in alive if overlap.end - overlap.start > BOTH_ALIVE_FROM_S]
    own_evictions = [entry for entry in ledger.of("evict") if entry.fields.get("why") in {"eviction", "reload"}]
    left = sum(asked.left for asked in course.asked)
    print(f"requests             {len(course.asked)} in {len(course.rounds)} rounds; {left} clients left")
    print(f"loads                {len(ledger.loads())}; swaps {dict(sorted(course.swaps.items()))}")
    lost = sum(entry.fields.get("effect") == "lost" for entry in ledger.of("unload_requested"))
    print(f"lost unloads         {lost}; repeated {course.events['eviction_repeated']}")
    print(f"unknown residency    {course.events['residency_unknown']} times")
    _tell_spills(course, ledger)
    _tell_times(over_the_floor(course, ledger))
    odd = ("control_call_failed", "judged_wrongly")
    checks = [
        ("hangs", problems.pop("hang", 0)),
        ("answers that were not 200, or not whole", sum(problems.values())),
        ("two models alive on the card", len(alive)),
        ("evictions that Ollama made by itself", len(own_evictions)),
        ("complaints of the proxy about itself", sum(course.events[name] for name in odd)),
        ("left behind at the end", int(bool(left_behind))),
    ]
    print("\nverdict")
    for what, count in checks:
        print(f"  {'ok ' if not count else 'BAD'} {what}: {count}")
    for problem, count in problems.items():
        print(f"      {count} x {problem}")
    for overlap in alive[:5]:
        print(f"      {overlap}")
    if left_behind:
        print(f"      {left_behind}")
    return not any(count for _, count in checks)


def _tell_spills(course: Course, ledger: Ledger) -> None:
    """Say how many loads landed partly on the CPU, and what became of each."""
    spills, loads = ledger.spills(), ledger.loads()
    undone: Counter[str] = Counter()
    for spill in spills:
        after = next((load for load in loads if load.started > spill.started and load.outcome == "ok"), None)
        same = after is not None and after.model == spill.model
        undone["still there" if after is None else "loaded again in full" if same else "replaced by the next swap"] += 1
    print(f"spills               {len(spills)}: {dict(undone)}; settle waits learned {course.settles}")


def _tell_times(times: list[tuple[float, float]]) -> None:
    if not times:
        return
    floors, overs = sorted(floor for floor, _ in times), sorted(over for _, over in times)
    p50, p99 = len(times) // 2, min(len(times) - 1, len(times) * 99 // 100)
    print(f"floor of a swap      p50 {floors[p50]:.3f} s, p99 {floors[p99]:.3f} s ({len(times)} swaps)")
    print(f"over the floor       p50 {overs[p50]:.3f} s, p99 {overs[p99]:.3f} s, worst {overs[-1]:.3f} s")


async def _rest(service: Service) -> str:
    """Wait until nothing is under way; return what still is after 30 s, or nothing."""
    async with aiohttp.ClientSession() as session:
        for _ in range(300):
            async with session.get(service.admin_url / "v1/snapshot") as response:
                snapshot = await response.json()
            if not (snapshot["leases"] or snapshot["lines"] or snapshot["swap"]):
                return ""
            await asyncio.sleep(0.1)
    return str(snapshot)


async def endure(args: argparse.Namespace) -> bool:
    """Run it all; say whether the verdict is good."""
    course, random = Course(), Random(args.seed)
    structlog.configure(processors=[course.listen])
    world = real(args.seed) if args.real else simulated(args.time_scale, args.seed)
    began = time.monotonic()
    async with world as (settings, ledger, each_round):
        async with Service(settings) as service:
            await alternate(service, course, args.rounds, random, each_round)
            left_behind = await _rest(service)
        print(f"\ntook                 {time.monotonic() - began:.0f} s, seed {args.seed}")
        return judge(course, ledger(), is_real=args.real, left_behind=left_behind)


def main() -> int:
    """Read the arguments; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="alternations; 1000, with --real 200")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--time-scale", type=float, default=0.04, help="of the simulated Ollama")
    parser.add_argument("--real", action="store_true", help="a real Ollama over a simulated GPU")
    args = parser.parse_args()
    args.rounds = args.rounds or (200 if args.real else 1000)
    return 0 if asyncio.run(endure(args)) else 1


if __name__ == "__main__":
    sys.exit(main())
