"""Trying the proxy: is there an Ollama, which model does the curl line name, and what is printed."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from yarl import URL

from ollama_swap_proxy.addresses import Address
from ollama_swap_proxy.config import load_settings
from ollama_swap_proxy.first_run import announcement, answers, find_model, run

_MODELS: list[dict[str, Any]] = [
    {"name": "big:70b", "size": 900},
    {"name": "embedder:latest", "size": 10},
    {"name": "cloudy:cloud", "size": 1, "remote_host": "https://ollama.com:443"},
    {"name": "small:1b", "size": 100},
]


@pytest.fixture
async def ollama() -> AsyncIterator[URL]:
    """An Ollama that knows just enough to be asked for its models."""

    async def version(_: web.Request) -> web.Response:
        return web.json_response({"version": "0.32.4"})

    async def tags(_: web.Request) -> web.Response:
        return web.json_response({"models": _MODELS})

    async def show(request: web.Request) -> web.Response:
        name = (await request.json())["model"]
        return web.json_response({"capabilities": ["embedding"] if name.startswith("embedder") else ["completion"]})

    app = web.Application()
    app.add_routes([web.get("/api/version", version), web.get("/api/tags", tags), web.post("/api/show", show)])
    server = TestServer(app)
    await server.start_server()
    yield server.make_url("/").origin()
    await server.close()


async def test_an_ollama_that_answers_is_found_and_anything_else_is_not(ollama: URL) -> None:
    assert await answers(ollama)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert not await answers(URL(f"http://127.0.0.1:{closed.getsockname()[1]}"))
    other = TestServer(web.Application())
    await other.start_server()
    assert not await answers(other.make_url("/").origin())
    await other.close()


async def test_the_model_to_try_is_the_smallest_local_one_that_completes(ollama: URL) -> None:
    assert await find_model(ollama) == "small:1b"


async def test_no_model_is_no_error() -> None:
    assert await find_model(URL("http://127.0.0.1:9")) is None
    lines = announcement(Address("127.0.0.1", 1), Address("127.0.0.1", 2), URL("http://x:3"), None)
    assert any("ollama pull" in line for line in lines)


def test_the_announcement_names_an_address_that_can_be_connected_to() -> None:
    text = "\n".join(announcement(Address("0.0.0.0", 11435), Address("127.0.0.1", 2), URL("http://x:3"), "it's:1b"))
    assert "0.0.0.0" not in text
    assert "curl http://127.0.0.1:11435/api/generate -d '" in text
    assert """'{"model": "it'"'"'s:1b",""" in text


async def test_run_serves_a_simulated_ollama_where_none_answers_and_its_curl_line_works(tmp_path: Path) -> None:
    """And what was learned of it is not kept: for a real card it is worth nothing."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nowhere = f"127.0.0.1:{closed.getsockname()[1]}"
        here = {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "state_file": str(tmp_path / "state.json")}
        settings = load_settings({**here, "upstream": nowhere}, {})
        said: list[str] = []
        running = asyncio.create_task(run(settings, said.append))
        while not any(line.startswith("Stop with") for line in said):
            assert not running.done(), running.result()
            await asyncio.sleep(0.01)
    assert f"No Ollama answers at http://{nowhere}" in said[0]
    (line,) = (line for line in said if line.startswith("  curl "))
    _, url, _, body = shlex.split(line)
    async with ClientSession() as session, session.post(url, data=body) as response:
        assert response.status == 200
        assert "simulated" in (await response.json())["response"]
    os.kill(os.getpid(), signal.SIGTERM)
    assert await running == 0
    assert not os.listdir(tmp_path)  # noqa: PTH208 - a test may wait for its disk


async def test_run_uses_the_ollama_that_answers(ollama: URL) -> None:
    settings = load_settings({"listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "upstream": str(ollama)}, {})
    said: list[str] = []
    running = asyncio.create_task(run(settings, said.append))
    while not any(line.startswith("Stop with") for line in said):
        assert not running.done(), running.result()
        await asyncio.sleep(0.01)
    assert not any("simulated" in line for line in said)
    assert any("small:1b" in line for line in said)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await running == 0
