"""The contract: the simulated Ollama answers as a real one did, field by field.

Every group of recordings is replayed (`transcripts`) in its circumstances (`scenes`), each answer is compared with the
recorded one (`matching`), and where a timeline was recorded, the order of what happened too (`timelines`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence

import pytest

from ollama_swap_proxy.simulator.models import SimGPU
from ollama_swap_proxy.simulator.service import SimulatedOllama
from tests.simulator import matching, timelines
from tests.simulator.scenes import SCENES, Scene, Stage
from tests.simulator.transcripts import (
    GROUPS,
    Answer,
    Exchange,
    play,
    read,
    read_timeline,
    wire,
)

DIFFERENT_ON_PURPOSE: dict[tuple[str, str], str] = {}
"""(group, name of an exchange) -> why the simulator answers otherwise. An entry that no longer differs fails."""
POLL_EVERY_S = 0.004


class Replay:
    """One group under way: starts each exchange when its recorded start has come, in order of what was before it."""

    def __init__(self, scene: Scene, exchanges: Sequence[Exchange], stage: Stage) -> None:
        self._scene = scene
        self._exchanges = exchanges
        self._stage = stage
        self._started = [asyncio.Event() for _ in exchanges]
        self._ended = [asyncio.Event() for _ in exchanges]
        self.answers: list[Answer] = [Answer() for _ in exchanges]

    async def run(self) -> list[Answer]:
        async with asyncio.TaskGroup() as group:
            for number in range(len(self._exchanges)):
                group.create_task(self._play(number), name=self._exchanges[number].name)
        return self.answers

    async def _play(self, number: int) -> None:
        exchange = self._exchanges[number]
        await self._wait_for_turn(number)
        for name, act in self._scene.before.items():
            if exchange.name.startswith(name) and (exchange.name == name or name not in self._names()):
                await act(self._stage)
        scale = self._scene.time_scale
        sent = wire(exchange.request, self._stage.sim.port, dict(self._scene.replace), dict(self._scene.bodies))
        leave_after_ms = exchange.leaves_after_ms
        self._started[number].set()
        self.answers[number] = await play(
            self._stage.sim.port,
            sent,
            hold_back=self._scene.hold_back.get(exchange.name),
            leave_after_s=None if leave_after_ms is None else leave_after_ms * scale / 1000,
        )
        self._ended[number].set()

    def _names(self) -> set[str]:
        return {exchange.name for exchange in self._exchanges}

    async def _wait_for_turn(self, number: int) -> None:
        """Until all that came before it in the recording has come, and then as long as it took from there."""
        start = self._exchanges[number].start_ms
        latest = 0.0
        for other, exchange in enumerate(self._exchanges[:number]):
            await self._started[other].wait()
            latest = max(latest, exchange.start_ms)
            if exchange.end_ms <= start:
                await self._ended[other].wait()
                latest = max(latest, exchange.end_ms)
        if number:
            await asyncio.sleep((start - latest) * self._scene.time_scale / 1000)


@contextlib.asynccontextmanager
async def running(scene: Scene) -> AsyncIterator[Stage]:
    """A simulator in the circumstances of a group."""
    gpu = SimGPU(total_mib=scene.gpu_mib, lag_s=0.8)
    settings = {"version": "0.0.0", "time_scale": scene.time_scale, **scene.settings}
    async with SimulatedOllama(scene.models, gpu, **settings) as sim:
        stage = Stage(sim)
        for model in scene.loaded:
            if model == "embedder":
                await stage.post("/api/embed", model=model, input="x")
            else:
                await stage.load(model)
        yield stage


async def replay(group: str) -> dict[str, list[str]]:
    """Play a group; the name of each exchange (and "timeline") with all that differs."""
    scene = SCENES.get(group, Scene())
    exchanges = [scene.amend(exchange) for exchange in read(group)]
    timeline = read_timeline(group)
    async with running(scene) as stage:
        poller = timelines.Poller(stage.sim.port, POLL_EVERY_S)
        polling = asyncio.create_task(poller.run(), name="poller") if timeline else None
        if polling:
            await poller.looked.wait()
        answers = await Replay(scene, exchanges, stage).run()
        found: dict[str, list[str]] = {}
        context = matching.Context(loose=scene.loose)
        for exchange, answer in zip(exchanges, answers, strict=True):
            found.setdefault(exchange.name, []).extend(matching.differences(exchange, answer, context, stage.sim.port))
        if timeline and polling:
            found["timeline"] = await _compare_timeline(timelines.recorded(timeline), poller, stage)
            polling.cancel()
            await asyncio.gather(polling, return_exceptions=True)
    return found


async def _compare_timeline(expected: list[timelines.Fact], poller: timelines.Poller, stage: Stage) -> list[str]:
    """Compare once everything has happened that was recorded, or should have."""
    deadline = time.monotonic() + 2.0
    while True:
        found = list(timelines.compare(expected, poller.facts(stage.sim.ledger)))
        if not any(line.startswith("never happened") for line in found) or time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("group", GROUPS)
async def test_answers_as_the_recorded_ollama_did(group: str):
    """Each exchange of the group, and the order of its timeline."""
    found = await replay(group)
    known = {name for where, name in DIFFERENT_ON_PURPOSE if where == group}
    assert not {name: lines for name, lines in found.items() if lines and name not in known}
    assert known == {name for name in known if found.get(name)}, "an entry of DIFFERENT_ON_PURPOSE no longer differs"


def test_every_exception_names_a_recording():
    """No dead entry: each names an exchange that there is."""
    assert all(name in {one.name for one in read(group)} | {"timeline"} for group, name in DIFFERENT_ON_PURPOSE)
