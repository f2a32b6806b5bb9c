"""A small client for tests of the simulator: JSON in, JSON out, on a session of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, Self

import aiohttp

from ollama_swap_proxy.simulator import SimulatedOllama


class Client:
    """``async with Client(ollama) as client: await client.post("/api/generate", model="alpha")``."""

    def __init__(self, ollama: SimulatedOllama) -> None:
        self._ollama = ollama
        self.session = aiohttp.ClientSession()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.session.get(self._ollama.url + path) as response:
            return response.status, _json(await response.text())

    async def post(self, path: str, **fields: object) -> tuple[int, Any]:
        async with self.session.post(self._ollama.url + path, json=fields) as response:
            return response.status, _json(await response.text())

    async def lines(self, path: str, **fields: object) -> list[Any]:
        async with self.session.post(self._ollama.url + path, json=fields) as response:
            return [json.loads(line) for line in (await response.text()).splitlines()]

    async def generate(self, model: str, tokens: int = 2, **fields: object) -> tuple[int, Any]:
        options = {"num_predict": tokens, **(fields.pop("options", None) or {})}  # type: ignore[dict-item]
        return await self.post("/api/generate", model=model, prompt="hi", stream=False, options=options, **fields)

    async def load(self, model: str, **fields: object) -> tuple[int, Any]:
        return await self.post("/api/generate", model=model, **fields)

    async def unload(self, model: str) -> tuple[int, Any]:
        return await self.post("/api/generate", model=model, keep_alive=0)

    async def resident(self) -> list[str]:
        return [model["name"] for model in (await self.get("/api/ps"))[1]["models"]]


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Poll until it holds."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - a test looks from outside
            await asyncio.sleep(0.001)
