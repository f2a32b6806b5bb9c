"""A real Ollama over a simulated GPU, for the benchmarks that can be run on one (``--real``).

Owns how it is started and how its events are read as a `Ledger`. Needs OLLAMA_BIN, its binary, and SIMGPU, a directory
with a ``simgpu.py`` that is not published yet: so for now only its author can run this.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from ollama_swap_proxy.simulator.ledger import Ledger

PORT = 21534
GPU_MIB = 8000
LAG_S = 0.5
BOTH_ALIVE_FROM_S = 0.02
"""Two models count as alive together from here on: the end of a process is written down up to 10 ms late."""


@asynccontextmanager
async def real_ollama(models: Sequence[str]) -> AsyncIterator[Any]:
    """Start one with these models (``NAME:MIB:LOAD_S[:KEY=VALUE,...]``), with Ollama's own defaults; stop it again."""
    sys.dont_write_bytecode = True
    if os.environ["SIMGPU"] not in sys.path:
        sys.path.insert(0, os.environ["SIMGPU"])
    from simgpu import SimGPU  # type: ignore[import-not-found]  # noqa: PLC0415  # no part of the project

    gpu = await asyncio.to_thread(SimGPU(port=PORT, gpu_mib=GPU_MIB, lag_s=LAG_S, models=models).start)
    try:
        yield gpu
    finally:
        await asyncio.to_thread(gpu.stop)


def read_ledger(events: list[dict[str, Any]], embedders: frozenset[str] = frozenset()) -> Ledger:
    """Read its events as what the simulator notes. The end of a process is told without the beginning of its end; what
    it was still answering when it was killed, or had answered just before, ends with it.
    """
    ledger, answering = Ledger(), Counter[int]()
    for event in sorted(events, key=lambda event: float(event["mono"])):
        at, kind, model, pid = event["mono"], event["event"], str(event.get("model")), int(event.get("pid", 0))
        more: dict[str, Any] = {}
        if kind == "load_done":
            more = {"spilled": bool(event.get("spilled"))}
        elif kind == "load_start":
            more = {"generating": model not in embedders}
        elif kind in {"serve_start", "serve_end"}:
            answering[pid] += 1 if kind == "serve_start" else -1
        elif kind == "exit":
            for _ in range(answering.pop(pid, 0)):
                ledger.note(at, "serve_end", model, pid)
        ledger.note(at, kind, model, pid, **more)
    return ledger
