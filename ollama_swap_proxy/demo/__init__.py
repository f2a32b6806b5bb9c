"""`ollama-swap-proxy demo`: the same three clients with the proxy and without it, side by side, for some 20 s.

Owns the course of the demonstration: two simulated Ollamas of one kind, the proxy in front of one of them. `traffic`
are the clients, `screen` is what you watch, `tally` counts afterwards. Must not flatter: both sides get the same
clients at the same time on equal cards, both Ollamas have their defaults, no fault is switched on, and every figure is
counted in the clients' own records and the two machines' ledgers.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace

import structlog
from rich.console import Console
from yarl import URL

from ollama_swap_proxy.addresses import Address
from ollama_swap_proxy.config import Settings
from ollama_swap_proxy.demo.screen import Screen, Side
from ollama_swap_proxy.demo.tally import closing_table, conclusion, count
from ollama_swap_proxy.demo.traffic import CHAT, Crowd
from ollama_swap_proxy.serving import Service
from ollama_swap_proxy.settings.tables import RuleTable
from ollama_swap_proxy.settings.values import NO_STATE_FILE
from ollama_swap_proxy.simulator import DEFAULT_MODELS, SimGPU, SimulatedOllama

DURATION_S = 20.0
"""For so long the clients ask; what is open then is still answered."""

LAST_ANSWERS_S = 15.0
"""How long: three swaps and their answers, twice over."""

TURN_LIMIT_S = 3.0
"""Shorter than the default (10 s), because the whole demonstration is."""

SETTLE_FIRST_S, SETTLE_MAX_S = 0.5, 1.0
"""The first is the default, stretched as all times are; the other is shorter than it (6 s) for the same reason."""

LAG_S = 0.3
MODELS = tuple(replace(model, reply=None, load_s=model.load_s / 2) for model in DEFAULT_MODELS if not model.embed)
"""Any two of them do not fit on the card together. They load fast, and their answers are short, so that 20 s show
several swaps: a load takes one to two answers, as it does in life."""


async def run(*, time_scale: float = 1.0, console: Console | None = None) -> int:
    """Play the demonstration and return the exit code, 0. Ctrl-C ends it early, with the figures so far.

    ``time_scale`` stretches everything; below about 0.1 the proxy's own reaction times show.
    """
    async with AsyncExitStack() as exit_stack:
        beside, behind = [
            await exit_stack.enter_async_context(SimulatedOllama(MODELS, SimGPU(lag_s=LAG_S), time_scale=time_scale))
            for _ in range(2)
        ]
        with_us, without = Side("with", Crowd(time_scale), behind), Side("without", Crowd(time_scale), beside)
        screen = Screen(console or Console(highlight=False), with_us, without, time_scale)
        exit_stack.enter_context(_log_lines_go_to(screen))
        service = await exit_stack.enter_async_context(Service(_settings(URL(behind.url), time_scale)))
        screen.introduce(DURATION_S * time_scale, service.settings, MODELS)
        stopped = exit_stack.enter_context(_interruption())
        with screen.live():
            await _until(
                stopped,
                with_us.crowd.visit(service.url, DURATION_S * time_scale, LAST_ANSWERS_S * time_scale),
                without.crowd.visit(URL(beside.url), DURATION_S * time_scale, LAST_ANSWERS_S * time_scale),
            )
        now = asyncio.get_running_loop().time()
        figures = [count(side.crowd, side.ollama.ledger, now) for side in (with_us, without)]
        screen.close(closing_table(*figures), conclusion(*figures), early=stopped.is_set())
    return 0


async def _until(stopped: asyncio.Event, *visits: Coroutine[None, None, None]) -> None:
    """Let both crowds visit to the end, or until ``stopped``."""

    async def all_visits() -> None:
        async with asyncio.TaskGroup() as group:
            for visit in visits:
                group.create_task(visit, name="visit")

    async with asyncio.TaskGroup() as group:
        playing = group.create_task(all_visits(), name="both sides")
        interruption = group.create_task(stopped.wait(), name="interruption")
        await asyncio.wait({playing, interruption}, return_when=asyncio.FIRST_COMPLETED)
        playing.cancel()
        interruption.cancel()


def _settings(upstream: URL, scale: float) -> Settings:
    any_port = Address("127.0.0.1", 0)
    return Settings(
        listen=any_port,
        admin=any_port,
        upstream=upstream,
        turn_limit_s=TURN_LIMIT_S * scale,
        settle_first_s=SETTLE_FIRST_S * scale,
        settle_max_s=SETTLE_MAX_S * scale,
        shutdown_grace_s=0,
        state_file=NO_STATE_FILE,
        rules=(RuleTable.model_validate({"class": "interactive", "model": CHAT.model}),),
    )


@contextmanager
def _log_lines_go_to(screen: Screen) -> Iterator[None]:
    before = structlog.get_config()
    structlog.configure(
        processors=[screen.tell_step],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.configure(**before)


@contextmanager
def _interruption() -> Iterator[asyncio.Event]:
    """Turn Ctrl-C into an event: then the figures so far are shown, and nothing is left running."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGINT, stopped.set)
    try:
        yield stopped
    finally:
        loop.remove_signal_handler(signal.SIGINT)
