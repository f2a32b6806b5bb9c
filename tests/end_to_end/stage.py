"""The proxy in front of a simulated Ollama, both on real sockets, and the words in which the tests drive them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

from ollama_swap_proxy.addresses import Address
from ollama_swap_proxy.config import Settings
from ollama_swap_proxy.core.snapshot import Snapshot
from ollama_swap_proxy.serving import Service
from ollama_swap_proxy.simulator import SimGPU, SimModel, SimulatedOllama

SOON_S = 5.0
"""Nothing that a test waits for takes this long unless it hangs."""

PROMPT_S = 0.2
"""Within this a departure must have reached upstream (the promise of issue and README)."""

SCALE = 0.02
"""How much faster the simulated hardware is than a real one: loads, tokens, unloads, memory. Our own times are not
scaled."""

A = SimModel("a", 4500, load_s=1.5, token_ms=50)
B = SimModel("b", 5000, load_s=1.5, token_ms=50)
C = SimModel("c", 4800, load_s=1.5, token_ms=50)
EMBEDDER = SimModel("embedder", 300, load_s=1, embed=True)
SIGHTED = SimModel("sighted", 4000, load_s=1.5, token_ms=50, vision=True, tools=True, thinking=True)
MODELS = (A, B, C, EMBEDDER, SIGHTED)
"""On the 8000 MiB card no two of the generating ones fit together."""

MARK = "X-Ollama-Swap-Proxy-Error"


@dataclass(frozen=True)
class Answer:
    """One whole answer."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str | None:
        """Our own error's code; None for what Ollama answered."""
        return self.headers.get(MARK)


@dataclass
class Stage:
    """(ollama, service, session) and what is done with them."""

    ollama: SimulatedOllama
    service: Service
    session: aiohttp.ClientSession
    running: list[asyncio.Task[Answer]] = field(default_factory=list)

    async def request(self, method: str, path: str, *, direct: bool = False, **how: Any) -> Answer:
        base = self.ollama.url if direct else str(self.service.url).rstrip("/")
        async with self.session.request(method, URL(base + path, encoded=True), **how) as response:
            return Answer(response.status, response.headers, await response.read())

    async def post(self, path: str, body: Any = None, *, direct: bool = False, **how: Any) -> Answer:
        """Send JSON (or ``bytes`` as they are)."""
        given = {"data": body} if isinstance(body, bytes) else {"json": body}
        return await self.request("POST", path, direct=direct, **given, **how)

    async def ask(self, model: str, tokens: int = 2, *, direct: bool = False, **fields: Any) -> Answer:
        """One generate that is not streamed."""
        return await self.post("/api/generate", generate(model, tokens, stream=False, **fields), direct=direct)

    async def served(self, model: str, tokens: int = 2, **fields: Any) -> None:
        """Ask, and see that it is answered by this model."""
        answer = await self.ask(model, tokens, **fields)
        assert answer.status == 200, answer.body
        assert answer.json["done"] is True

    def begin(self, model: str, tokens: int = 2, **fields: Any) -> asyncio.Task[Answer]:
        """Ask in the background; whatever is left is cancelled at the end."""
        task = asyncio.get_running_loop().create_task(self.ask(model, tokens, **fields), name=f"ask {model}")
        self.running.append(task)
        return task

    @contextlib.asynccontextmanager
    async def streaming(
        self, model: str, tokens: int = 30_000, *, direct: bool = False, **fields: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer that has begun and goes on until the block ends: then its client leaves."""
        base = self.ollama.url if direct else str(self.service.url).rstrip("/")
        response = await self.session.post(base + "/api/generate", json=generate(model, tokens, **fields))
        try:
            assert response.status == 200
            assert await response.content.readline()
            yield response
        finally:
            response.close()

    @property
    def snapshot(self) -> Snapshot:
        assert self.service._gate is not None
        return self.service._gate.snapshot()

    @property
    def phase(self) -> str:
        """Where the swap under way is, empty when there is none."""
        swap = self.snapshot.swap
        return "" if swap is None else swap.phase

    @property
    def waiting(self) -> int:
        return sum(line.waiting for line in self.snapshot.lines)

    async def wait_for_line(self, length: int) -> None:
        await eventually(lambda: self.waiting == length)

    @property
    def loads(self) -> list[str]:
        """Which models were loaded, in order."""
        return [load.model.removesuffix(":latest") for load in self.ollama.ledger.loads()]

    @property
    def resident(self) -> list[str]:
        """Who is resident now, by the simulated machine itself."""
        return sorted(runner.wanted.name.removesuffix(":latest") for runner in self.ollama.world.table.values())

    @property
    def overlaps(self) -> list[Any]:
        """Times in which two generating models lived together."""
        now = self.ollama.world.now
        return [overlap for overlap in self.ollama.ledger.overlaps(until=now) if overlap.kind == "alive"]

    @property
    def evictions_by_ollama(self) -> list[str]:
        """Why Ollama had to end a runner by itself to make room: must not happen, that is where real servers hang."""
        return [e.fields["why"] for e in self.ollama.ledger.of("evict") if e.fields["why"] in {"eviction", "reload"}]

    def unloads(self, effect: str | None = None) -> int:
        """How many unload requests came, of all or of one effect."""
        asked = self.ollama.ledger.of("unload_requested")
        return sum(1 for entry in asked if effect in {None, entry.fields["effect"]})


def generate(model: str, tokens: int = 2, **fields: Any) -> dict[str, Any]:
    """The body of a generate request; ``options`` of the caller's are added to ours."""
    options = {"num_predict": tokens, **fields.pop("options", {})}
    return {"model": model, "prompt": "x", "options": options, **fields}


def settings_for(upstream: str, **more: Any) -> Settings:
    here = Address("127.0.0.1", 0)
    given = {"listen": here, "admin": here, "upstream": URL(upstream), "shutdown_grace_s": 1, "ps_interval_s": 0.5}
    given["companions"] = "none"  # one model at a time, unless a test is about companions
    given["settle_first_s"] = 0  # nor a wait for memory, unless it is about that
    return Settings(**(given | more))


@contextlib.asynccontextmanager
async def before(ollama: SimulatedOllama, session: aiohttp.ClientSession, **settings: Any) -> AsyncIterator[Stage]:
    """The proxy in front of an Ollama that runs already, and outlives it."""
    async with Service(settings_for(ollama.url, **settings)) as service:
        stage = Stage(ollama, service, session)
        try:
            away = ollama.faults.refuse_connections
            await eventually(lambda: stage.snapshot.report_age_s is not None or away)
            yield stage
        finally:
            for task in stage.running:
                task.cancel()
            await asyncio.gather(*stage.running, return_exceptions=True)


@contextlib.asynccontextmanager
async def client_session() -> AsyncIterator[aiohttp.ClientSession]:
    """A client without a pool's limits, whose connections close when its answers do."""
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield session


@contextlib.asynccontextmanager
async def staged(
    models: Iterable[SimModel] = MODELS,
    /,
    *,
    gpu: SimGPU | None = None,
    simulated: dict[str, Any] | None = None,
    away: bool = False,
    **settings: Any,
) -> AsyncIterator[Stage]:
    """Start both; ``simulated`` goes to the simulated Ollama, everything else to our settings.

    ``away``: at our start nothing listens where Ollama should be.
    """
    more = {"num_parallel": 4, "time_scale": SCALE} | (simulated or {})
    async with SimulatedOllama(models, gpu or SimGPU(8000, lag_s=0.0), **more) as ollama, client_session() as session:
        ollama.faults.refuse_connections = away
        async with before(ollama, session, **settings) as stage:
            yield stage


async def eventually(condition: Callable[[], object], limit_s: float = SOON_S) -> float:
    """Wait until it is true; give the seconds it took."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    while not condition():
        assert loop.time() - start < limit_s, "it never came true"
        await asyncio.sleep(0.002)
    return loop.time() - start


async def within(limit_s: float, work: Any) -> Any:
    """Await it, for so long at the most."""
    async with asyncio.timeout(limit_s):
        return await work
