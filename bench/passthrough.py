"""What passes straight through never waits behind a swap: added latency over 20 swaps, paired with direct calls.

    python bench/passthrough.py [--swaps 20] [--goal-ms 5] [--one-process]

While one client makes the proxy swap twenty times, GET /, /api/tags, /api/ps and /api/version are asked through the
proxy and directly in the same instant, the two in alternating order; the difference of a pair is what the proxy adds.
/api/ps says nothing while Ollama ends a runner, with and without us: that is why the pairs start together.

Three processes: a simulated Ollama, the proxy as `serve` starts it (log lines and all), and this one. On a machine that
has other work, each further process is a further wait for the processor: two controls tell. The first table is the same
traffic without any swap; the last row of each has direct calls of / on both sides, so that its "added" is noise.
``--one-process`` runs all three in one event loop: then only what the proxy itself does can come between the two calls
of a pair, its log lines and garbage collections included. Exit code 1 when a p99 during the swaps misses the goal.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from yarl import URL

from ollama_swap_proxy import logs
from ollama_swap_proxy.addresses import Address
from ollama_swap_proxy.config import Settings
from ollama_swap_proxy.serving import Service
from ollama_swap_proxy.simulator import SimGPU, SimulatedOllama
from ollama_swap_proxy.simulator.__main__ import parse_model

PATHS = ("/", "/api/tags", "/api/ps", "/api/version")
CONTROL = "/ (control)"
MODELS = ("alpha=4500:0.6:5", "bravo=5000:0.6:5")
LAG_S = 0.3
QUIET_S = 10.0
PAUSE_S = 0.004
"""Between two pairs: enough for the loops to be idle again, so that each pair measures itself."""


@dataclass(slots=True)
class Pairs:
    """The times of one path in seconds: direct, proxied, and how many pairs began during a swap."""

    direct_s: list[float] = field(default_factory=list)
    proxied_s: list[float] = field(default_factory=list)
    in_swap: int = 0


class Line:
    """One kept-alive HTTP/1.1 connection, as plain as a client can be, so that little of it is measured."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self._reader, self._writer, self._host = reader, writer, host

    @classmethod
    async def open(cls, port: int) -> Line:
        """Connect to a port of this machine."""
        return cls(*await asyncio.open_connection("127.0.0.1", port), f"127.0.0.1:{port}")

    async def ask(self, method: str, path: str, body: bytes = b"") -> float:
        """Send one request, read the whole answer, and return how long that took, in seconds."""
        sized = f"Content-Length: {len(body)}\r\n" if body else ""
        began = time.perf_counter()
        self._writer.write(f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\n{sized}\r\n".encode() + body)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith(b"http/1.1 200"), head
        if b"transfer-encoding: chunked" in head:
            while size := int(await self._reader.readline(), 16):
                await self._reader.readexactly(size + 2)
            await self._reader.readexactly(2)
        else:
            await self._reader.readexactly(int(head.partition(b"content-length:")[2].split()[0]))
        return time.perf_counter() - began


@asynccontextmanager
async def process(*args: str, log: Path) -> AsyncIterator[None]:
    """Run a Python module of the package until the end of the block."""
    root = str(Path(__file__).parents[1])
    environ = {**os.environ, "PYTHONPATH": root, "OLLAMA_SWAP_PROXY_STATE_FILE": "none"}
    with log.open("wb") as output:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *args, env=environ, stdout=output, stderr=output
        )
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        await child.wait()


async def swap(port: int, swaps: int, during: asyncio.Event) -> None:
    """Ask for one model after the other; ``during`` is set while the answer waits for its swap."""
    line = await Line.open(port)
    for number in range(swaps + 1):
        body = {"model": MODELS[number % 2].partition("=")[0], "prompt": "x", "stream": False}
        during.set()
        await line.ask("POST", "/api/generate", json.dumps({**body, "options": {"num_predict": 10}}).encode())
        during.clear()
        await asyncio.sleep(0.05)


async def measure(proxy: int, ollama: int, during: asyncio.Event, until: asyncio.Task[None]) -> dict[str, Pairs]:
    """Ask in pairs until all swaps are over."""
    found = {path: Pairs() for path in (*PATHS, CONTROL)}
    direct, through_us, control = await Line.open(ollama), await Line.open(proxy), await Line.open(ollama)
    rows, number = list(found), 0
    while not until.done():
        row = rows[number % len(rows)]
        pairs, path, proxied = found[row], row.split()[0], control if row == CONTROL else through_us
        pairs.in_swap += during.is_set()
        if number // len(rows) % 2:
            direct_s, proxied_s = await asyncio.gather(direct.ask("GET", path), proxied.ask("GET", path))
        else:
            proxied_s, direct_s = await asyncio.gather(proxied.ask("GET", path), direct.ask("GET", path))
        pairs.direct_s.append(direct_s)
        pairs.proxied_s.append(proxied_s)
        number += 1
        await asyncio.sleep(PAUSE_S)
    await until
    return found


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def wait_for(port: int) -> None:
    """Wait until something listens there."""
    for _ in range(200):
        try:
            (await asyncio.open_connection("127.0.0.1", port))[1].close()
        except OSError:
            await asyncio.sleep(0.05)
        else:
            return
    raise TimeoutError(f"nothing listens on port {port}")


@asynccontextmanager
async def three_processes() -> AsyncIterator[tuple[int, int]]:
    """Start a simulated Ollama and the proxy by themselves; yield the ports of the proxy and of Ollama."""
    ollama, proxy, admin = free_port(), free_port(), free_port()
    simulator = ["--port", str(ollama), "--gpu-mib", "8000", "--lag-s", str(LAG_S), "--models", *MODELS]
    serve = ["--listen", f"127.0.0.1:{proxy}", "--admin", f"127.0.0.1:{admin}", "--upstream", f"127.0.0.1:{ollama}"]
    with tempfile.TemporaryDirectory() as scratch:
        async with (
            process("ollama_swap_proxy.simulator", *simulator, log=Path(scratch, "simulator")),
            process("ollama_swap_proxy", "serve", *serve, log=Path(scratch, "proxy")),
        ):
            await wait_for(ollama)
            await wait_for(proxy)
            gc.disable()  # ours would be measured, not the proxy's
            yield proxy, ollama


@asynccontextmanager
async def one_process() -> AsyncIterator[tuple[int, int]]:
    """The same within this process."""
    any_port = Address("127.0.0.1", 0)
    models = [parse_model(model) for model in MODELS]
    with tempfile.TemporaryFile("w") as log:
        logs.configure("json", stream=log)
        async with SimulatedOllama(models, SimGPU(8000, lag_s=LAG_S)) as ollama:
            settings = Settings(listen=any_port, admin=any_port, upstream=URL(ollama.url), shutdown_grace_s=0)
            async with Service(settings) as service:
                yield service.listen.port, ollama.port


async def run(swaps: int, *, together: bool) -> tuple[dict[str, Pairs], dict[str, Pairs]]:
    """Measure without swaps, then during as many; return both."""
    async with one_process() if together else three_processes() as (proxy, ollama):
        during = asyncio.Event()
        await swap(proxy, 0, during)
        resting = asyncio.create_task(asyncio.sleep(QUIET_S), name="no swaps")
        quiet = await measure(proxy, ollama, during, resting)
        swapping = asyncio.create_task(swap(proxy, swaps, during), name="swaps")
        return quiet, await measure(proxy, ollama, during, swapping)


def quantile_ms(values: list[float], share: float) -> float:
    """Return a quantile in milliseconds."""
    return 1000 * sorted(values)[min(len(values) - 1, int(share * len(values)))]


def report(found: dict[str, Pairs], goal_ms: float) -> bool:
    """Print the table; say whether every path reaches the goal."""
    head = ("path", "pairs", "in a swap", "direct p50", "p99", "proxied p50", "p99", "added p50", "p99", "worst")
    print("{:<13} {:>6} {:>9} {:>11} {:>7} {:>12} {:>7} {:>10} {:>7} {:>7}   ms".format(*head))
    good = True
    for path, pairs in found.items():
        added = [proxied - direct for direct, proxied in zip(pairs.direct_s, pairs.proxied_s, strict=True)]
        good &= path == CONTROL or quantile_ms(added, 0.99) <= goal_ms
        numbers = [quantile_ms(values, share) for values in (pairs.direct_s, pairs.proxied_s) for share in (0.5, 0.99)]
        numbers += [quantile_ms(added, share) for share in (0.5, 0.99, 1.0)]
        columns = (f"{ms:>{width}.2f}" for ms, width in zip(numbers, (11, 7, 12, 7, 10, 7, 7), strict=True))
        print(f"{path:<13} {len(added):>6} {pairs.in_swap:>9}", *columns)
    return good


def main() -> int:
    """Read the arguments; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--goal-ms", type=float, default=5.0)
    parser.add_argument("--one-process", action="store_true", help="for machines that have other work")
    args = parser.parse_args()
    quiet, swapping = asyncio.run(run(args.swaps, together=args.one_process))
    print("Without swaps")
    report(quiet, args.goal_ms)
    print(f"\nDuring {args.swaps} swaps")
    good = report(swapping, args.goal_ms)
    print(f"\nGoal: at most {args.goal_ms:g} ms added (p99): {'reached' if good else 'MISSED'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
