"""Everything that runs, wired together: two listeners, the gate and what it stands on; signals and the graceful stop.

Owns construction, start and end. Must not hold behaviour of requests (`app`) or settings (`config`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import structlog
from aiohttp import web
from yarl import URL

from ollama_swap_proxy import __version__
from ollama_swap_proxy.access import HostGuard
from ollama_swap_proxy.addresses import Address
from ollama_swap_proxy.app import App
from ollama_swap_proxy.checks.survey import Checks
from ollama_swap_proxy.config import Settings, env_name
from ollama_swap_proxy.core.events import Recalled, Stopping
from ollama_swap_proxy.core.scheduler import Scheduler
from ollama_swap_proxy.gate import Gate
from ollama_swap_proxy.listener.server import ProxyServer
from ollama_swap_proxy.num_ctx import LeastNumCtx
from ollama_swap_proxy.operator.api import operator_app
from ollama_swap_proxy.state_file import StateFile
from ollama_swap_proxy.traits import ModelTraits
from ollama_swap_proxy.upstream.catalog import Catalog
from ollama_swap_proxy.upstream.control import Control, control_session
from ollama_swap_proxy.upstream.relay import Relay
from ollama_swap_proxy.upstream.view import ResidencyView

Ready = Callable[[Address, Address], None]
"""Told the addresses of the proxy port and of the operator's listener once both accept."""


class ListenError(Exception):
    """Addresses cannot be listened on; each of ``reasons`` names the setting, the address, why, and what to do."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = tuple(reasons)


def _why_not(setting: str, address: Address, error: OSError) -> str:
    is_name = isinstance(error, socket.gaierror)
    reason = "this name is not known" if is_name else os.strerror(error.errno) if error.errno else str(error)
    return f"{setting} {address}: {reason}; choose another by --{setting} or {env_name(setting)}"


class Service:
    """A running proxy. ``async with Service(settings) as service`` starts it and ends it gracefully.

    Within it ``url`` and ``admin_url`` tell where it listens (of use with port 0).
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.listen = settings.listen
        self.admin = settings.admin
        self._log = structlog.get_logger("serving")
        self._exit = AsyncExitStack()
        self._server: ProxyServer | None = None
        self._gate: Gate | None = None
        self._app: App | None = None

    @property
    def url(self) -> URL:
        """Where clients connect to."""
        return URL(f"http://{self.listen}")

    @property
    def admin_url(self) -> URL:
        """Where the operator's listener is."""
        return URL(f"http://{self.admin}")

    async def start(self) -> None:
        """Open both listeners.

        Raises:
            ListenError: addresses cannot be listened on, and which; nothing is left open.
        """
        try:
            await self._start()
        except BaseException:
            await self._exit.aclose()
            raise

    async def _start(self) -> None:
        settings, loop = self.settings, asyncio.get_running_loop()
        session = await self._exit.enter_async_context(control_session())
        control = Control(settings.upstream, session, connect_timeout_s=settings.connect_timeout_s)
        catalog = Catalog(control, loop.time, ModelTraits(settings).of)
        view = ResidencyView(control, catalog, settings.report_timeout_s, clock=loop.time)
        scheduler = Scheduler(settings.policy(), loop.time())
        gate = self._gate = Gate(scheduler, control, catalog, view, LeastNumCtx(settings).asked_by_all)
        self._exit.push_async_callback(gate.close)
        state_file = StateFile(settings.state_path, str(settings.upstream), scheduler.remembered)
        learned = await state_file.read()
        if learned is not None:
            gate.tell(Recalled(learned))
        self._exit.push_async_callback(state_file.close)
        state_file.start()
        checks = Checks(settings, control, catalog)
        self._exit.push_async_callback(checks.close)
        relay = Relay(settings.upstream, connect_timeout_s=settings.connect_timeout_s)
        self._exit.push_async_callback(relay.close)
        guard = HostGuard(settings.listen, settings.allowed_hosts)
        app = self._app = App(gate, catalog, relay, guard, settings)
        self._exit.callback(app.close)
        self._server = ProxyServer(app.handle)
        await self._open(gate, app, self._server)
        gate.start()
        self._log.info(
            "started",
            version=__version__,
            listen=str(self.listen),
            admin=str(self.admin),
            upstream=str(settings.upstream),
        )
        checks.start(learned)

    async def _open(self, gate: Gate, app: App, server: ProxyServer) -> None:
        """Open both listeners; the second is tried though the first failed, so that all is said at once."""
        settings, reasons = self.settings, list[str]()
        try:
            self.admin = await self._open_admin(gate, app)
        except OSError as error:
            reasons.append(_why_not("admin", settings.admin, error))
        self._exit.push_async_callback(server.stop, 0.0)
        try:
            self.listen = _address(await server.listen(settings.listen.host, settings.listen.port))
        except OSError as error:
            reasons.append(_why_not("listen", settings.listen, error))
        if reasons:
            raise ListenError(reasons)

    async def _open_admin(self, gate: Gate, app: App) -> Address:
        settings = self.settings
        runner = web.AppRunner(
            operator_app(gate.snapshot, app.explain, gate.tell, settings),
            access_log=None,
            handle_signals=False,
            shutdown_timeout=1.0,
        )
        await runner.setup()
        self._exit.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, settings.admin.host, settings.admin.port).start()
        return _address([address[:2] for address in runner.addresses])

    async def stop(self, grace_s: float | None = None) -> None:
        """End: no new connections, queued requests answered 503, running ones within ``grace_s`` (the setting's)."""
        gate, server = self._gate, self._server
        if server is not None and gate is not None:
            self._log.info("stopping", running=len(gate.snapshot().leases), waiting=len(gate.snapshot().lines))
            limit_s = self.settings.shutdown_grace_s if grace_s is None else grace_s
            cut = await server.stop(limit_s, lambda: gate.tell(Stopping()))
            if self._app is not None:
                self._app.close()  # the lines of requests come before ours
            self._log.info("stopped", cut=cut)
        await self._exit.aclose()

    def abort(self) -> None:
        """Cut everything that still runs: `stop` then ends at once."""
        if self._server is not None:
            self._server.abort()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


async def serve(settings: Settings, *, ready: Ready | None = None) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code. A second signal ends at once.

    Exit codes: 0 after a stop, 1 when an address cannot be listened on.
    """
    loop = asyncio.get_running_loop()
    service = Service(settings)
    asked_to_stop = asyncio.Event()

    def on_signal() -> None:
        if asked_to_stop.is_set():
            service.abort()
        asked_to_stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        await service.start()
    except ListenError as error:
        for reason in error.reasons:
            structlog.get_logger("serving").error("cannot_listen", reason=reason)
        return 1
    if ready is not None:
        ready(service.listen, service.admin)
    await asked_to_stop.wait()
    await service.stop()
    return 0


def _address(bound: list[tuple[str, int]]) -> Address:
    host, port = bound[0]
    return Address(host, port)
