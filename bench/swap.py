"""Swaps on the simulated Ollama, three scenes, each with a floor that no proxy can beat.

    python bench/swap.py [--time-scale 1.0]

- *alternating*: one client asks A, B, A, B ... eight times.
- *burst*: twelve requests over three models arrive together.
- *endless*: a stream of overlapping requests for A never ends; one request for B arrives.

For each the table says how many loads there were, how long two models held the card together (must be 0), and the wall
time over the simulator's own unload and load times plus its tokens: 1.00 is a proxy that costs nothing.
Times are scaled by ``--time-scale``; ratios are what to compare.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from dataclasses import dataclass

import aiohttp
from yarl import URL

from ollama_swap_proxy import logs
from ollama_swap_proxy.addresses import Address
from ollama_swap_proxy.config import Settings
from ollama_swap_proxy.serving import Service
from ollama_swap_proxy.simulator import SimGPU, SimModel, SimulatedOllama

MODELS = (
    SimModel("a", 4500, load_s=1.0, token_ms=20),
    SimModel("b", 5000, load_s=1.5, token_ms=20),
    SimModel("c", 4800, load_s=1.2, token_ms=20),
)
TOKENS = 10
LAG_S = 0.0


@dataclass
class Scene:
    """What one scene measured. Times in seconds."""

    name: str
    wall_s: float
    floor_s: float
    loads: int
    overlap_s: float
    note: str = ""


async def ask(session: aiohttp.ClientSession, base: URL, model: str, tokens: int = TOKENS) -> float:
    """Send one request and return how long it took, in seconds."""
    began = time.perf_counter()
    body = {"model": model, "prompt": "x", "options": {"num_predict": tokens}}
    async with session.post(base / "api/generate", json=body) as response:
        response.raise_for_status()
        await response.read()
    return time.perf_counter() - began


async def alternating(session: aiohttp.ClientSession, base: URL, _: float) -> str:
    """A, B, A, B ... by one client."""
    for turn in range(8):
        await ask(session, base, "ab"[turn % 2])
    return ""


async def burst(session: aiohttp.ClientSession, base: URL, _: float) -> str:
    """Twelve requests over three models at once."""
    waits = await asyncio.gather(*(ask(session, base, "abc"[n % 3]) for n in range(12)))
    return f"longest request {max(waits):.1f} s"


async def endless(session: aiohttp.ClientSession, base: URL, scale: float) -> str:
    """Overlapping requests for A without end; one for B."""
    stop = asyncio.Event()

    async def stream(offset_s: float) -> None:
        await asyncio.sleep(offset_s)
        while not stop.is_set():
            await ask(session, base, "a", 50)

    async with asyncio.TaskGroup() as group:
        for number in range(3):  # staggered, so that A is never idle
            group.create_task(stream(number * scale / 3), name="endless a")
        await asyncio.sleep(2.0 * scale)
        waited_s = await ask(session, base, "b")
        stop.set()
    return f"B had its answer after {waited_s:.1f} s"


SCENES = (alternating, burst, endless)


async def measure(scene_number: int, scale: float) -> Scene:
    """Play one scene on a fresh simulator behind a fresh proxy."""
    play = SCENES[scene_number]
    gpu = SimGPU(total_mib=8000, lag_s=LAG_S)
    async with SimulatedOllama(MODELS, gpu, time_scale=scale, num_parallel=4) as ollama:
        settings = Settings(
            listen=Address("127.0.0.1", 0),
            admin=Address("127.0.0.1", 0),
            upstream=URL(ollama.url),
            shutdown_grace_s=5,
            settle_first_s=LAG_S,
        )
        async with Service(settings) as service, aiohttp.ClientSession() as session:
            await ask(session, service.url, "c", 1)
            before = len(ollama.ledger.loads())
            own_before_s, tokens_before = ollama.ledger.own_seconds(), ollama.ledger.tokens()
            began = time.perf_counter()
            note = await play(session, service.url, scale)
            wall_s = time.perf_counter() - began
            own_s = ollama.ledger.own_seconds() - own_before_s
            serving_s = _serving_s(ollama.ledger.entries, began_tokens=tokens_before)
            overlap_s = sum(
                overlap.end - overlap.start for overlap in ollama.ledger.overlaps() if overlap.kind == "alive"
            )
            loads = len(ollama.ledger.loads()) - before
    return Scene(play.__name__, wall_s, own_s + serving_s, loads, overlap_s, note)


def _serving_s(entries: list, began_tokens: int) -> float:  # type: ignore[type-arg]
    """Return for how long at least one answer was being generated, after the warm-up's."""
    total, open_count, since, seen = 0.0, 0, 0.0, 0
    for entry in entries:
        if entry.kind == "serve_start":
            if open_count == 0:
                since = entry.at
            open_count += 1
        elif entry.kind == "serve_end":
            open_count -= 1
            seen += int(entry.fields.get("tokens", 0))
            if open_count == 0 and seen > began_tokens:
                total += entry.at - since
    return total


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time-scale", type=float, default=1.0, help="multiply the simulator's times")
    scale = parser.parse_args().time_scale
    logs.configure(level="error")
    print(f"{'scene':<12} {'loads':>5} {'overlap s':>9} {'wall s':>8} {'floor s':>8} {'wall/floor':>10}")
    for number in range(len(SCENES)):
        scene = asyncio.run(measure(number, scale))
        ratio = scene.wall_s / scene.floor_s if scene.floor_s else float("nan")
        print(
            f"{scene.name:<12} {scene.loads:>5} {scene.overlap_s:>9.2f} {scene.wall_s:>8.2f} {scene.floor_s:>8.2f} "
            f"{ratio:>10.2f}  {scene.note}"
        )


if __name__ == "__main__":
    main()
