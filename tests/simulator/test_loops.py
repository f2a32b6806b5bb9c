"""The simulator serves on the faster event loop too, which the command line uses where it is installed."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from ollama_swap_proxy.simulator import SimulatedOllama


def test_it_serves_on_uvloop():
    uvloop = pytest.importorskip("uvloop")

    async def ask() -> str:
        async with SimulatedOllama() as ollama, aiohttp.request("GET", ollama.url) as response:
            return await response.text()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(ask()) == "Ollama is running"
