"""The simulated Ollama as one thing to start and stop.

Owns the listening socket and the parts' lives. Must not hold behaviour of its own.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable
from random import Random
from types import TracebackType
from typing import Self

from ollama_swap_proxy.simulator import anthropic, names, native, openai, responses
from ollama_swap_proxy.simulator.inference import Inference
from ollama_swap_proxy.simulator.ledger import Ledger
from ollama_swap_proxy.simulator.library import Library
from ollama_swap_proxy.simulator.machine import Machine
from ollama_swap_proxy.simulator.model_json import utc_time
from ollama_swap_proxy.simulator.models import DEFAULT_MODELS, Faults, SimGPU, SimModel
from ollama_swap_proxy.simulator.runner import Wanted, effective_options
from ollama_swap_proxy.simulator.server import Front
from ollama_swap_proxy.simulator.store_api import Store
from ollama_swap_proxy.simulator.wire import Connection
from ollama_swap_proxy.simulator.world import Limits, World


class DeskScribe:
    """Time and ids for the dialects."""

    def __init__(self, world: World) -> None:
        self._world = world

    def unix_s(self) -> int:
        """Now, in whole seconds."""
        return int(self._world.clock.wall())

    def iso(self) -> str:
        """Now, as Go writes it in UTC."""
        return utc_time(self._world.clock.wall())

    def number(self, below: int) -> int:
        """A random number."""
        return self._world.random.randrange(below)

    def hex(self, digits: int) -> str:
        """Random hex digits."""
        return f"{self._world.random.getrandbits(4 * digits):0{digits}x}"


class SimulatedOllama:
    """A simulated Ollama on ``host`` and ``port`` (0: any free one), with one simulated card.

    ``max_loaded`` 0 means three, as Ollama's default on one card. ``time_scale`` stretches loads, tokens, unloads and
    the memory's lag, but not keep_alive. ``seed`` drives every random choice. ``faults`` may be turned at any time;
    ``ledger`` is the record of what the machine really did.

        async with SimulatedOllama([SimModel("alpha", 4500)], SimGPU(8000, lag_s=0.05)) as ollama:
            ...  # ollama.url
    """

    def __init__(
        self,
        models: Iterable[SimModel] = DEFAULT_MODELS,
        gpu: SimGPU | None = None,
        *,
        max_loaded: int = 0,
        num_parallel: int = 1,
        max_queue: int = 512,
        keep_alive_s: float = 300.0,
        context_length: int = 4096,
        version: str = "0.33.0",
        faults: Faults | None = None,
        time_scale: float = 1.0,
        seed: int = 0,
        host: str = "127.0.0.1",
        port: int = 0,
        no_cloud: bool = True,
        load_timeout_s: float = 300.0,
    ) -> None:
        limits = Limits(max_loaded, num_parallel, max_queue, keep_alive_s, context_length, time_scale, load_timeout_s)
        self.faults = faults or Faults()
        random = Random(seed)  # noqa: S311 - chance, not secrets
        self.world = World(gpu or SimGPU(), limits, self.faults, Ledger(), random)
        self.machine = Machine(self.world)
        self.library = Library(models, self.world.clock.wall())
        self.host, self.port = host, port
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._opening: asyncio.Task[None] | None = None
        self._running = False
        self._behind: list[asyncio.Task[None]] = []
        scribe = DeskScribe(self.world)
        surfaces = {**native.SURFACES, **openai.SURFACES, **responses.SURFACES, **anthropic.SURFACES}
        self._front = Front(
            self.machine,
            Store(self.machine, self.library),
            Inference(self.machine, self.library, scribe, no_cloud=no_cloud),
            self.faults,
            surfaces,
            version=version,
            no_cloud=no_cloud,
            loopback=_is_loopback(host),
        )

    @property
    def ledger(self) -> Ledger:
        """What the machine really did."""
        return self.world.ledger

    @property
    def gpu(self) -> SimGPU:
        """The card; mutable."""
        return self.world.gpu

    @property
    def url(self) -> str:
        """Where it listens, without a slash at the end."""
        shown = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{shown}:{self.port}"

    async def start(self) -> None:
        """Listen and serve."""
        await self.machine.start()
        self._running = True
        self.faults.watch(self._doors_changed)
        if not self.faults.refuse_connections:
            await self._open_doors(self._bound_socket())

    async def stop(self) -> None:
        """Stop listening, cut every connection, end every runner."""
        self._running = False
        self.faults.watch(None)
        await self._close_doors()
        for task in self._behind:
            task.cancel()
        await asyncio.gather(*self._behind, return_exceptions=True)
        self._behind.clear()
        await asyncio.gather(*(connection.cut() for connection in list(self._connections)))
        await self.machine.stop()

    async def restart(self) -> None:
        """What a restart of the server does: all connections and runners gone, same port, same models, same memory."""
        await self.stop()
        await self.start()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def load_behind_our_back(self, name: str, *, keep_alive_s: float | None = None) -> None:
        """Load a model as another client of the same server would, past whatever stands in front. Waits for the load.

        Raises:
            KeyError: no such model.
            SimError: the load fails.
        """
        manifest = self.library.find(name)
        if manifest is None:
            raise KeyError(name)
        options = effective_options(manifest.model, {}, self.world.limits.context_length)
        wanted = Wanted(manifest.name.short, manifest.digest, manifest.model, options, keep_alive_s)
        self.machine.release(await self.machine.acquire(wanted))

    def hang_engine(self, name: str) -> None:
        """Stop a resident model's engine, as a stuck driver does.

        It says nothing more; the next request for it finds that out in 20 s, in which /api/ps says nothing either.

        Raises:
            KeyError: it is not resident.
        """
        runner = {runner.wanted.name: runner for runner in self.world.table.values()}[names.parse(name).short]
        runner.frozen = runner.hung = True

    # ---- the socket

    def _bound_socket(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self.host, self.port))
            listener.listen(1024)
        except OSError:
            listener.close()
            raise
        listener.setblocking(False)  # noqa: FBT003 - the socket module's own form
        self.port = listener.getsockname()[1]
        return listener

    async def _open_doors(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self._front, self._connections), sock=listener)

    async def _close_doors(self) -> None:
        if self._opening is not None:
            await self._opening
            self._opening = None
        if self._server is not None:
            self._server.close()
            self._server = None

    def _doors_changed(self) -> None:
        """``faults.refuse_connections`` was turned."""
        if self.faults.refuse_connections and self._server is not None:
            self._server.close()
            self._server = None
        elif not self.faults.refuse_connections and self._running and self._server is None:
            listener = self._bound_socket()
            self._opening = asyncio.get_running_loop().create_task(self._open_doors(listener))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
