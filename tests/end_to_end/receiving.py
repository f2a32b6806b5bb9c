"""An upstream that only receives: one resident model, every body hashed as it comes, nothing kept.

For what the simulated Ollama is too faithful: it reads a body into memory and parses it, which would hide how much
memory and time the proxy itself takes.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web
from yarl import URL

from ollama_swap_proxy.serving import Service
from tests.end_to_end.stage import client_session, eventually, settings_for

DIGEST = "0" * 64
WEIGHTS = f"/models/blobs/sha256-{'1' * 64}"


@dataclass(frozen=True)
class Received:
    """One request: its target, head and body."""

    method: str
    target: str
    headers: Mapping[str, str]
    size: int
    sha256: str


@dataclass
class Receiver:
    """What came, in order; control calls are not noted."""

    requests: list[Received] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.Response:
        control = self._control(request)
        if control is not None:
            return control
        hashed, size = hashlib.sha256(), 0
        async for data in request.content.iter_any():
            hashed.update(data)
            size += len(data)
        self.requests.append(
            Received(request.method, request.raw_path, request.headers, size, hashed.hexdigest()),
        )
        return web.json_response({"model": "a", "done": True, "done_reason": "load"})

    def _control(self, request: web.Request) -> web.Response | None:
        model = {"name": "a:latest", "model": "a:latest", "digest": DIGEST, "size": 1000, "size_vram": 1000}
        answers = {
            "/api/version": {"version": "0.33.0"},
            "/api/tags": {"models": [model]},
            "/api/ps": {"models": [{**model, "expires_at": "2319-01-01T00:00:00Z"}]},
            "/api/show": {"modelfile": f"FROM {WEIGHTS}\n", "capabilities": ["completion", "vision"]},
        }
        answer = answers.get(request.path)
        return None if answer is None else web.json_response(answer)


@dataclass
class Reception:
    """The proxy in front of a receiver."""

    receiver: Receiver
    service: Service
    session: aiohttp.ClientSession


@contextlib.asynccontextmanager
async def receiving(**settings) -> AsyncIterator[Reception]:
    receiver = Receiver()
    runner = web.ServerRunner(web.Server(receiver.handle, access_log=None, auto_decompress=False))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        upstream = URL.build(scheme="http", host="127.0.0.1", port=runner.addresses[0][1])
        async with Service(settings_for(str(upstream), **settings)) as service, client_session() as session:
            assert service._gate is not None
            await eventually(lambda: service._gate.snapshot().residents)
            yield Reception(receiver, service, session)
    finally:
        await runner.cleanup()
