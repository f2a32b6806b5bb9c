"""The proxy in front of a real Ollama. Skipped without one.

``OLLAMA_BIN`` is its binary, ``SIMGPU`` a directory with a ``simgpu.py`` that puts a simulated card under it (it is not
published yet; bench/endure.py uses it, too).

On the card of 8000 MiB no two of the generating models fit together. Answers name their model in every token.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest
from yarl import URL

from ollama_swap_proxy.addresses import Address
from ollama_swap_proxy.config import Settings
from ollama_swap_proxy.serving import Service

NEEDED = ("OLLAMA_BIN", "SIMGPU")
MODELS = ["alpha:4500:0.3:token_ms=5", "bravo:5000:0.3:token_ms=5", "embedder:300:0.1:embed=1"]

pytestmark = [
    pytest.mark.skipif(not all(os.environ.get(name) for name in NEEDED), reason=f"needs {' and '.join(NEEDED)}"),
    pytest.mark.timeout(120),
]


@pytest.fixture(scope="module")
def ollama() -> Iterator[Any]:
    """A real Ollama over a simulated card whose memory comes back 0.3 s late."""
    sys.dont_write_bytecode = True
    sys.path.insert(0, os.environ["SIMGPU"])
    from simgpu import SimGPU  # type: ignore[import-not-found]

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    gpu = SimGPU(port=port, gpu_mib=8000, lag_s=0.3, models=MODELS).start()
    yield gpu
    gpu.stop()


@asynccontextmanager
async def in_front_of(ollama: Any, **more: Any) -> AsyncIterator[tuple[aiohttp.ClientSession, str, str]]:
    """Yield a session, the proxy's URL and that of the Ollama behind it."""
    here = Address("127.0.0.1", 0)
    settings = Settings(listen=here, admin=here, upstream=URL(ollama.url), shutdown_grace_s=1, **more)
    async with Service(settings) as service, aiohttp.ClientSession() as session:
        yield session, str(service.url), ollama.url


async def generate(session: aiohttp.ClientSession, base: str, model: str, tokens: int = 5, **options: int) -> str:
    body = {"model": model, "prompt": "hi", "options": {"num_predict": tokens, **options}}
    async with session.post(f"{base}/api/generate", json=body) as response:
        assert response.status == 200, await response.text()
        lines = [json.loads(line) async for line in response.content]
    assert lines[-1]["done"]
    return "".join(line["response"] for line in lines)


def alive(ollama: Any) -> dict[str, tuple[float, float]]:
    """When each engine process of a generating model lived, by process id."""
    spans: dict[str, tuple[float, float]] = {}
    for event in ollama.events():
        if event.get("model") == "embedder":
            continue
        pid = str(event.get("pid"))
        if event["event"] == "load_start":
            spans[pid] = (float(event["mono"]), float("inf"))
        elif event["event"] == "exit" and pid in spans:
            spans[pid] = (spans[pid][0], float(event["mono"]))
    return spans


def overlaps(ollama: Any) -> list[tuple[float, float]]:
    """Two processes alive together for more than 20 ms (an exit is noted up to 10 ms late)."""
    spans = sorted(alive(ollama).values())
    return [(a[1], b[0]) for a, b in itertools.pairwise(spans) if a[1] - b[0] > 0.02]


async def test_alternating_models_are_never_on_the_card_together(ollama: Any) -> None:
    async with in_front_of(ollama) as (session, proxy, _):
        for model in ("alpha", "bravo", "alpha", "bravo"):
            assert f"{model}.4" in await generate(session, proxy, model)
        async with session.get(f"{proxy}/api/ps") as response:
            listed = [entry["name"] for entry in (await response.json())["models"]]
    assert listed == ["bravo:latest"]
    assert overlaps(ollama) == []


async def test_clients_of_two_models_at_once_are_all_served_in_few_loads(ollama: Any) -> None:
    before = len(alive(ollama))
    async with in_front_of(ollama) as (session, proxy, _):
        asked = ["alpha", "bravo", "alpha", "bravo", "alpha", "bravo"]
        texts = await asyncio.gather(*(generate(session, proxy, model, 20) for model in asked))
    for model, text in zip(asked, texts, strict=True):
        assert f"{model}.19" in text
    assert len(alive(ollama)) - before <= 3
    assert overlaps(ollama) == []


ASKED: list[tuple[str, str, dict[str, Any] | bytes | None]] = [
    ("GET", "/", None),
    ("HEAD", "/", None),
    ("GET", "/api/version", None),
    ("GET", "/api/tags", None),
    ("GET", "/v1/models", None),
    ("GET", "/no/such/route", None),
    ("OPTIONS", "/api/chat", None),
    ("POST", "/api/show", {"model": "alpha"}),
    ("POST", "/api/generate", {"model": "nobody", "prompt": "hi"}),
    ("POST", "/api/generate", b"{no json"),
    ("POST", "/api/generate", {"model": "alpha", "prompt": "hi", "keep_alive": "soon"}),
    ("POST", "/api/chat", {"model": "embedder", "messages": [{"role": "user", "content": "hi"}]}),
    ("POST", "/v1/chat/completions", {"model": "nobody", "messages": [{"role": "user", "content": "hi"}]}),
    ("POST", "/v1/chat/completions", {"model": "alpha", "messages": []}),
    ("POST", "/v1/messages", {"model": "nobody", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}),
]


def normal(body: bytes) -> object:
    """Leave out what differs from answer to answer: request ids, and the order of models of the same age."""
    try:
        told = json.loads(body)
    except ValueError:
        return body
    if isinstance(told, dict):
        told.pop("request_id", None)
        for name in ("models", "data"):
            if isinstance(told.get(name), list):
                told[name].sort(key=json.dumps)
    return told


@pytest.mark.parametrize(("method", "path", "body"), ASKED)
async def test_what_loads_nothing_is_answered_as_without_us_and_evicts_nobody(
    ollama: Any, method: str, path: str, body: dict[str, Any] | bytes | None
) -> None:
    async with in_front_of(ollama) as (session, proxy, direct):
        await generate(session, proxy, "bravo")
        before = len(alive(ollama))
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        answers = []
        for base in (direct, proxy):
            async with session.request(method, base + path, data=data) as response:
                headers = {name for name in response.headers if name not in {"Date", "Content-Length"}}
                answers.append((response.status, headers, normal(await response.read())))
        assert answers[0] == answers[1]
        assert len(alive(ollama)) == before
        async with session.get(f"{direct}/api/ps") as response:
            assert [entry["name"] for entry in (await response.json())["models"]] == ["bravo:latest"]


async def test_a_client_that_leaves_while_its_model_loads_finds_it_loaded(ollama: Any) -> None:
    async with in_front_of(ollama) as (session, proxy, _):
        await generate(session, proxy, "alpha")
        before = len(alive(ollama))
        leaver = asyncio.create_task(generate(session, proxy, "bravo"))
        await asyncio.sleep(0)
        for _ in range(200):
            if len(alive(ollama)) > before:
                break
            await asyncio.sleep(0.02)
        leaver.cancel()
        assert "bravo.4" in await generate(session, proxy, "bravo")
        assert len(alive(ollama)) == before + 1


async def test_a_clients_keep_alive_is_overruled_and_nothing_is_loaded_anew(ollama: Any) -> None:
    here = Address("127.0.0.1", 0)
    settings = Settings(listen=here, admin=here, upstream=URL(ollama.url), shutdown_grace_s=1, keep_alive=3000.0)
    async with Service(settings) as service, aiohttp.ClientSession() as session:
        await generate(session, str(service.url), "alpha")
        before = len(alive(ollama))
        for own, tokens in ((5, 5), ("1h", 5), (0, 200)):
            body = {"model": "alpha", "prompt": "hi", "keep_alive": own, "options": {"num_predict": tokens}}
            async with session.post(f"{service.url}/api/generate", json=body) as response:
                assert response.status == 200
                await response.read()
            await asyncio.sleep(0.5)
            async with session.get(f"{ollama.url}/api/ps") as response:
                (listed,) = (await response.json())["models"]
            ends_at = datetime.fromisoformat(re.sub(r"(\.\d{6})\d*", r"\1", listed["expires_at"]))
            assert 2900 < (ends_at - datetime.now(UTC)).total_seconds() < 3001
        assert len(alive(ollama)) == before


async def test_a_client_that_leaves_its_answer_ends_it_in_ollama(ollama: Any) -> None:
    async with in_front_of(ollama) as (session, proxy, _):
        body = {"model": "alpha", "prompt": "hi", "options": {"num_predict": 2000}}
        async with session.post(f"{proxy}/api/generate", json=body) as response:
            await response.content.readline()
        for _ in range(100):
            ended = [event for event in ollama.events("serve_end") if event.get("outcome") == "aborted"]
            if ended:
                break
            await asyncio.sleep(0.02)
        assert ended


async def test_an_embedder_a_chat_and_both_other_dialects_are_served(ollama: Any) -> None:
    talk = [{"role": "user", "content": "hi"}]
    async with in_front_of(ollama) as (session, proxy, _):
        for path, body in (
            ("/api/embed", {"model": "embedder", "input": ["hi"]}),
            ("/api/chat", {"model": "alpha", "messages": talk, "stream": False, "options": {"num_predict": 3}}),
            ("/v1/chat/completions", {"model": "alpha", "messages": talk, "max_tokens": 3}),
            ("/v1/messages", {"model": "alpha", "messages": talk, "max_tokens": 3}),
        ):
            async with session.post(proxy + path, json=body) as response:
                assert response.status == 200, (path, await response.text())
                assert await response.json()
    assert overlaps(ollama) == []


async def test_an_embedder_loaded_after_a_chat_model_stays_across_swaps_once_it_was_loaded_anew(ollama: Any) -> None:
    async def embed(session: aiohttp.ClientSession, proxy: str) -> None:
        async with session.post(f"{proxy}/api/embed", json={"model": "embedder", "input": "x"}) as response:
            assert response.status == 200, await response.text()

    def embedders() -> int:
        return sum(e["event"] == "load_start" and e.get("model") == "embedder" for e in ollama.events())

    async with in_front_of(ollama) as (session, proxy, _):
        for model in ("bravo", "alpha", "bravo", "alpha"):
            await generate(session, proxy, model)
            await embed(session, proxy)
        before = embedders()
        for model in ("bravo", "alpha", "bravo"):
            await generate(session, proxy, model)
            await embed(session, proxy)
            async with session.get(f"{proxy}/api/ps") as response:
                listed = {entry["name"] for entry in (await response.json())["models"]}
            assert listed == {f"{model}:latest", "embedder:latest"}
    assert embedders() == before
    assert overlaps(ollama) == []


@pytest.mark.parametrize(("least", "loads"), [(0, 4), (1024, 1)])
async def test_clients_with_different_contexts_share_a_runner_where_the_operator_wants_that(
    ollama: Any, least: int, loads: int
) -> None:
    async with in_front_of(ollama, models={"alpha": {"min_num_ctx": least}}) as (session, proxy, _):
        await generate(session, proxy, "bravo")
        before = len(alive(ollama))
        for options in ({"num_ctx": 1024}, {"num_ctx": 512}, {}, {"num_ctx": 1024}):
            assert "alpha.4" in await generate(session, proxy, "alpha", **options)
        assert len(alive(ollama)) - before == loads
