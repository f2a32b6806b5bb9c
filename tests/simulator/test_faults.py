"""Every fault knob does what it says, and nothing once it is turned back."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest

from ollama_swap_proxy.simulator import Faults, LoadFailure, SimGPU, SimModel, SimulatedOllama
from tests.simulator.client import Client, until

ALPHA = SimModel("alpha", 4500, load_s=0.01, token_ms=1)
BRAVO = SimModel("bravo", 5000, load_s=0.01, token_ms=1)


@pytest.fixture
async def ollama() -> AsyncIterator[SimulatedOllama]:
    gpu = SimGPU(8000, lag_s=0.02)
    async with SimulatedOllama([ALPHA, BRAVO], gpu, time_scale=0.2, keep_alive_s=60) as running:
        yield running


@pytest.fixture
async def client(ollama: SimulatedOllama) -> AsyncIterator[Client]:
    async with Client(ollama) as running:
        yield running


async def test_lose_unloads(ollama: SimulatedOllama, client: Client):
    await client.load("alpha")
    ollama.faults.lose_unloads = 1.0
    assert (await client.unload("alpha"))[1]["done_reason"] == "unload"
    assert [e.fields["effect"] for e in ollama.ledger.of("unload_requested")] == ["lost"]
    ollama.faults.lose_unloads = 0.0
    await client.unload("alpha")
    await until(lambda: ollama.ledger.count("exit") == 1)


async def test_ps_block_s(ollama: SimulatedOllama, client: Client):
    ollama.faults.ps_block_s = 0.05
    started = time.monotonic()
    assert await client.resident() == []
    assert time.monotonic() - started >= 0.05
    ollama.faults.ps_block_probability = 0.0
    started = time.monotonic()
    await client.resident()
    assert time.monotonic() - started < 0.05


async def test_ps_status(ollama: SimulatedOllama, client: Client):
    ollama.faults.ps_status = 500
    assert (await client.get("/api/ps"))[0] == 500
    assert (await client.get("/api/version"))[0] == 200


async def test_ps_malformed(ollama: SimulatedOllama, client: Client):
    ollama.faults.ps_malformed = True
    status, body = await client.get("/api/ps")
    assert status == 200
    assert isinstance(body, str)
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        json.loads(body)


async def test_hang_load_hangs_only_the_named_model(ollama: SimulatedOllama, client: Client):
    ollama.faults.hang_load = "bravo"
    assert (await client.load("alpha"))[0] == 200
    hanging = asyncio.create_task(client.load("bravo"))
    await until(lambda: ollama.ledger.count("load_start", "bravo") == 1)
    await asyncio.sleep(0.05)
    assert not hanging.done()
    ollama.faults.hang_load = ""
    assert (await hanging)[0] == 200


async def test_fail_load_fails_so_often_with_that_answer(ollama: SimulatedOllama, client: Client):
    ollama.faults.fail_load = LoadFailure("no such tensor", status=500, model="alpha", times=2)
    assert await client.load("alpha") == (500, {"error": "no such tensor"})
    assert (await client.load("bravo"))[0] == 200
    assert (await client.generate("alpha"))[0] == 500
    assert (await client.load("alpha"))[0] == 200
    assert [load.outcome for load in ollama.ledger.loads("alpha")] == ["failed", "failed", "ok"]


async def test_crash_in_stream_ends_with_an_error_line_and_the_next_request_reloads(ollama, client):
    await client.load("alpha")
    ollama.faults.crash_in_stream = 2
    lines = await client.lines("/api/generate", model="alpha", prompt="hi")
    assert [line.get("response") for line in lines[:2]] == [" alpha.0", " alpha.1"]
    assert list(lines[-1]) == ["error"]
    ollama.faults.crash_in_stream = None
    assert await client.resident() == ["alpha:latest"]
    assert (await client.generate("alpha"))[0] == 200
    assert len(ollama.ledger.loads("alpha")) == 2


async def test_hang_in_stream_goes_on_when_it_is_taken_back(ollama: SimulatedOllama, client: Client):
    await client.load("alpha")
    ollama.faults.hang_in_stream = 1
    running = asyncio.create_task(client.generate("alpha", 3))
    await asyncio.sleep(0.05)
    assert not running.done()
    ollama.faults.hang_in_stream = None
    assert (await running)[1]["response"] == " alpha.0 alpha.1 alpha.2"


async def test_cut_in_stream_ends_without_done_and_without_error(ollama: SimulatedOllama, client: Client):
    ollama.faults.cut_in_stream = 2
    lines = await client.lines("/api/generate", model="alpha", prompt="hi")
    assert [line["done"] for line in lines] == [False, False]
    _, whole = await client.generate("alpha", 5)
    assert (whole["done"], whole["response"]) == (False, " alpha.0 alpha.1")
    ollama.faults.cut_in_stream = 0
    assert await client.lines("/api/generate", model="alpha", prompt="hi") == []


async def test_oom_in_stream_expires_every_runner(ollama: SimulatedOllama, client: Client):
    await client.load("alpha")
    ollama.faults.oom_in_stream = 1
    status, body = await client.generate("alpha", 3)
    assert status == 500
    assert "out of memory" in body["error"]
    await until(lambda: ollama.ledger.count("exit") == 1)


async def test_slow_unload_s_leaves_the_model_listed_meanwhile(ollama: SimulatedOllama, client: Client):
    await client.load("alpha")
    ollama.faults.slow_unload_s = 0.25  # times the scale
    await client.unload("alpha")
    assert await client.resident() == ["alpha:latest"]
    await until(lambda: ollama.ledger.count("exit") == 1)
    assert await client.resident() == []


async def test_refuse_connections_closes_the_port_and_opens_it_again(ollama: SimulatedOllama, client: Client):
    assert (await client.get("/api/version"))[0] == 200
    ollama.faults.refuse_connections = True
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", ollama.port)
    assert (await client.get("/api/version"))[0] == 200  # on the connection that is open
    ollama.faults.refuse_connections = False
    async with Client(ollama) as other:
        assert (await other.get("/api/version"))[0] == 200


async def test_drop_connections(ollama: SimulatedOllama, client: Client):
    ollama.faults.drop_connections = True
    with pytest.raises(aiohttp.ClientError):
        await client.get("/api/version")
    ollama.faults.drop_connections = False
    assert (await client.get("/api/version"))[0] == 200


async def test_queue_full_spares_what_is_loaded(ollama: SimulatedOllama, client: Client):
    await client.load("alpha")
    ollama.faults.queue_full = True
    assert (await client.generate("alpha"))[0] == 200
    assert (await client.generate("bravo"))[0] == 503


async def test_vanish_is_a_server_with_keep_alive_zero(ollama: SimulatedOllama, client: Client):
    ollama.faults.vanish = True
    await client.load("alpha")
    await until(lambda: ollama.ledger.count("exit") == 1)
    await client.generate("alpha", keep_alive="5m")
    assert await client.resident() == ["alpha:latest"]


async def test_deadlock_on_eviction_under_load_stops_everything_until_a_restart(ollama, client):
    await client.load("alpha")
    ollama.faults.deadlock_on_eviction_under_load = True
    busy = asyncio.create_task(client.generate("alpha", 10_000))
    await until(lambda: ollama.ledger.count("serve_start") == 1)
    newcomer = asyncio.create_task(client.generate("bravo"))
    await until(lambda: ollama.ledger.count("queued", "bravo") == 1)
    late = asyncio.create_task(client.generate("alpha", 1))
    await asyncio.sleep(0.08)
    assert [task.done() for task in (busy, newcomer, late)] == [False, False, False]
    assert ollama.ledger.loads("bravo") == []
    await ollama.restart()
    await asyncio.gather(busy, newcomer, late, return_exceptions=True)
    assert (await client.generate("bravo"))[0] == 200


async def test_deadlock_needs_a_busy_victim(ollama: SimulatedOllama, client: Client):
    ollama.faults.deadlock_on_eviction_under_load = True
    await client.generate("alpha")
    assert (await client.generate("bravo"))[0] == 200


async def test_leak_slot_on_disconnect_hangs_the_runner_until_it_is_unloaded(ollama: SimulatedOllama, client: Client):
    await client.load("alpha")
    ollama.faults.leak_slot_on_disconnect = True
    asked = {"model": "alpha", "prompt": "x", "options": {"num_predict": 5000}}
    async with client.session.post(f"{ollama.url}/api/generate", json=asked) as response:
        await response.content.readline()
        response.close()
    await until(lambda: ollama.ledger.count("serve_end") == 1)
    stuck = asyncio.create_task(client.generate("alpha", 1))
    await asyncio.sleep(0.05)
    assert not stuck.done()
    stuck.cancel()
    await client.unload("alpha")
    await until(lambda: ollama.ledger.count("exit") == 1)
    assert (await client.generate("alpha", 1))[0] == 200


async def test_a_hung_engine_blocks_ps_until_it_was_asked_twice():
    gpu = SimGPU(8000, lag_s=0.01)
    async with SimulatedOllama([ALPHA], gpu, time_scale=0.005) as ollama, Client(ollama) as client:
        await client.load("alpha")
        ollama.hang_engine("alpha")
        asking = asyncio.create_task(client.generate("alpha", 1))
        await until(lambda: ollama.machine.locked)
        started = time.monotonic()
        await client.resident()
        assert time.monotonic() - started > 0.04
        assert (await asking)[0] == 200
        assert len(ollama.ledger.loads("alpha")) == 2


def test_every_fault_is_off_at_first():
    off = {False, None, ""}
    knobs = {f.name: getattr(Faults(), f.name) for f in dataclasses.fields(Faults) if not f.name.startswith("_")}
    defaults = {"ps_block_probability": 1.0, "short_wait_beside_another": 0.25}
    assert {name for name, value in knobs.items() if value not in off} == set(defaults)
