"""What the relay costs: direct, the naive forty lines, us; alternating in one run, each in a process of its own.

    python bench/relay.py                  the whole proxy, its gate included
    python bench/relay.py --bare           the relay alone
    python bench/relay.py --uvloop         all on uvloop; without it all on plain asyncio, installed or not
    python bench/relay.py --parallel 32    with this setting, instead of learning it (naive has no limit)
    python bench/relay.py --at-least 1.5   exit 1 if us/naive is less, in requests a second, in any row

Light GET (/api/version) and a warm one-token POST (/api/generate), at 1 and 32 connections. Each figure is the median
of the rounds. "added" is the p50 latency over direct; "cpu" the server process's CPU time for one request, the figure
that a busy machine disturbs least.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
CASES = [(kind, connections) for kind in ("GET", "POST") for connections in (1, 32)]
START_LIMIT_S = 20.0
Figures = dict[str, float]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def answers(port: int, path: str = "/api/version") -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as sock:
        sock.settimeout(2)
        sock.sendall(b"GET %b HTTP/1.0\r\n\r\n" % path.encode())
        return b" 200 " in sock.recv(64)
    return False


def cpu_s(pid: int) -> float:
    """Give the CPU time of a process so far, where Linux tells it in nanoseconds; else 0."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    return 0.0


def loop_of(pid: int) -> str:
    """Say on which event loop a process runs: it has mapped uvloop's library only if it uses it."""
    with contextlib.suppress(OSError):
        return "uvloop" if "/uvloop/" in Path(f"/proc/{pid}/maps").read_text() else "asyncio"
    return "unknown"


@contextlib.contextmanager
def running(port: int, loop: str, *command: str) -> Iterator[int]:
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "OLLAMA_SWAP_PROXY_STATE_FILE": "none"}
    process = subprocess.Popen(
        [sys.executable, str(HERE / "on_loop.py"), loop, *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    try:
        limit = time.monotonic() + START_LIMIT_S
        while not answers(port):
            if process.poll() is not None or time.monotonic() > limit:
                sys.exit(f"did not start: {' '.join(command)}")
            time.sleep(0.05)
        yield process.pid
    finally:
        process.terminate()
        process.wait(10)


def measure(port: int, pid: int, kind: str, connections: int, seconds: float) -> Figures:
    command = [sys.executable, str(HERE / "load.py"), str(port), kind, str(connections), str(seconds)]
    before = cpu_s(pid)
    figures: Figures = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    figures["cpu_us"] = (cpu_s(pid) - before) / figures["answers"] * 1e6
    if figures["not_ok"]:
        sys.exit(f"{figures['not_ok']:.0f} answers of {kind} at port {port} were no 200")
    return figures


def medians(rounds: list[Figures]) -> Figures:
    return {name: statistics.median(figures[name] for figures in rounds) for name in rounds[0]}


def run(
    *, bare: bool, loop: str, parallel: int, rounds: int, seconds: float
) -> dict[tuple[str, int], dict[str, Figures]]:
    upstream, naive, us, admin = (free_port() for _ in range(4))
    url = f"http://127.0.0.1:{upstream}"
    ours = [str(HERE / "bare_relay.py"), str(us), url]
    if not bare:
        listen = ["--listen", f"127.0.0.1:{us}", "--admin", f"127.0.0.1:{admin}"]
        ours = ["ollama_swap_proxy", "serve", "--upstream", url, *listen]
    os.environ["OLLAMA_SWAP_PROXY_PARALLEL"] = str(parallel)
    results = {}
    with (
        running(upstream, loop, str(HERE / "recorded_upstream.py"), str(upstream)) as direct_pid,
        running(naive, loop, str(HERE / "naive_relay.py"), str(naive), url) as naive_pid,
        running(us, loop, *ours) as our_pid,
    ):
        servers = {"direct": (upstream, direct_pid), "naive": (naive, naive_pid), "us": (us, our_pid)}
        print("event loops: " + ", ".join(f"{name} {loop_of(pid)}" for name, (_, pid) in servers.items()))
        for kind, connections in CASES:
            figures: dict[str, list[Figures]] = {name: [] for name in servers}
            for _ in range(rounds):
                for name, server in servers.items():
                    figures[name].append(measure(*server, kind, connections, seconds))
            results[kind, connections] = {name: medians(of_name) for name, of_name in figures.items()}
    return results


def show(results: dict[tuple[str, int], dict[str, Figures]]) -> float:
    """Print the table and return the least ratio us/naive."""
    columns = ("req/s", "us/naive", "p50 us", "p99 us", "added us", "us/naive", "cpu us", "us/naive")
    print(f"{'':16}{'':8}" + "".join(f"{column:>10}" for column in columns))
    ratios = []
    for (kind, connections), by_name in results.items():
        direct, naive = by_name["direct"], by_name["naive"]
        for name, figures in by_name.items():
            added = figures["p50_us"] - direct["p50_us"]
            rate = latency = cpu = ""
            if name == "us":
                ratios.append(figures["per_s"] / naive["per_s"])
                rate = f"{ratios[-1]:.2f}"
                latency = f"{added / (naive['p50_us'] - direct['p50_us']):.2f}"
                cpu = f"{figures['cpu_us'] / (naive['cpu_us'] or 1):.2f}"
            print(
                f"{f'{kind} x {connections}':16}{name:8}{figures['per_s']:10.0f}{rate:>10}{figures['p50_us']:10.0f}"
                f"{figures['p99_us']:10.0f}{added:10.0f}{latency:>10}{figures['cpu_us']:10.1f}{cpu:>10}"
            )
    return min(ratios)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--bare", action="store_true")
    arguments.add_argument("--uvloop", action="store_true")
    arguments.add_argument("--parallel", type=int, default=0)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=float, default=1.0)
    arguments.add_argument("--at-least", type=float, default=0.0)
    given = arguments.parse_args()
    loop = "uvloop" if given.uvloop else "asyncio"
    least = show(run(bare=given.bare, loop=loop, parallel=given.parallel, rounds=given.rounds, seconds=given.seconds))
    sys.exit(0 if least >= given.at_least else 1)


if __name__ == "__main__":
    main()
