"""``python -m ollama_swap_proxy.simulator``: a simulated Ollama by itself, until it is interrupted."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys

from ollama_swap_proxy.simulator import DEFAULT_MODELS, SimGPU, SimModel, SimulatedOllama


def parse_model(text: str) -> SimModel:
    """``NAME=VRAM_MIB:LOAD_S[:TOKEN_MS]``; the name may hold a colon, and ``embed`` in it makes an embedder."""
    name, _, numbers = text.rpartition("=")
    parts = [float(part) for part in numbers.split(":")]
    if not name or len(parts) not in {2, 3}:
        raise ValueError(text)
    token_ms = parts[2] if len(parts) == 3 else 5.0
    return SimModel(name, parts[0], load_s=parts[1], token_ms=token_ms, embed="embed" in name)


async def serve(args: argparse.Namespace) -> None:
    """Serve until SIGINT or SIGTERM."""
    done = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):
            asyncio.get_running_loop().add_signal_handler(number, done.set)
    gpu = SimGPU(args.gpu_mib, lag_s=args.lag_s)
    models = args.models or DEFAULT_MODELS
    async with SimulatedOllama(
        models, gpu, host=args.host, port=args.port, time_scale=args.time_scale, num_parallel=args.num_parallel
    ) as ollama:
        sys.stdout.write(f"simulated Ollama at {ollama.url}\n")
        sys.stdout.flush()
        await done.wait()


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(prog="python -m ollama_swap_proxy.simulator", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=11434)
    parser.add_argument("--models", nargs="*", type=parse_model, metavar="NAME=VRAM_MIB:LOAD_S[:TOKEN_MS]")
    parser.add_argument("--gpu-mib", type=float, default=8192.0)
    parser.add_argument("--lag-s", type=float, default=0.5, help="how long memory takes to come back")
    parser.add_argument("--time-scale", type=float, default=1.0, help="stretches all simulated times but keep_alive")
    parser.add_argument("--num-parallel", type=int, default=1)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
