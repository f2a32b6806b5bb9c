"""The simulated scheduler, seen through its API and its ledger."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest

from ollama_swap_proxy.simulator import SimGPU, SimModel, SimulatedOllama
from tests.simulator.client import Client, until

ALPHA = SimModel("alpha", 4500, load_s=0.03, token_ms=1)
BRAVO = SimModel("bravo", 5000, load_s=0.03, token_ms=1)
BIG = SimModel("big", 12000, load_s=0.03, token_ms=1)
EMBEDDER = SimModel("embedder", 300, load_s=0.01, embed=True)
MODELS = [ALPHA, BRAVO, BIG, EMBEDDER]


def simulated(**settings) -> SimulatedOllama:
    settings.setdefault("time_scale", 0.2)
    return SimulatedOllama(settings.pop("models", MODELS), settings.pop("gpu", SimGPU(8000, lag_s=0.1)), **settings)


@pytest.fixture
async def ollama() -> AsyncIterator[SimulatedOllama]:
    async with simulated() as running:
        yield running


@pytest.fixture
async def client(ollama: SimulatedOllama) -> AsyncIterator[Client]:
    async with Client(ollama) as running:
        yield running


async def test_a_model_is_listed_only_once_it_is_loaded(ollama: SimulatedOllama, client: Client):
    ollama.faults.hang_load = "alpha"
    loading = asyncio.create_task(client.load("alpha"))
    await until(lambda: ollama.ledger.count("load_start") == 1)
    assert await client.resident() == []
    ollama.faults.hang_load = ""
    await loading
    assert await client.resident() == ["alpha:latest"]


async def test_an_unload_while_the_model_loads_is_lost(ollama: SimulatedOllama, client: Client):
    ollama.faults.hang_load = "alpha"
    loading = asyncio.create_task(client.load("alpha"))
    await until(lambda: ollama.ledger.count("load_start") == 1)
    assert (await client.unload("alpha"))[0] == 200
    ollama.faults.hang_load = ""
    await loading
    assert await client.resident() == ["alpha:latest"]
    assert [e.fields["effect"] for e in ollama.ledger.of("unload_requested")] == ["lost"]


async def test_an_eviction_by_ollama_waits_for_the_memory_and_never_overlaps(ollama: SimulatedOllama, client: Client):
    await client.generate("alpha")
    status, _ = await client.generate("bravo")
    assert status == 200
    assert await client.resident() == ["bravo:latest"]
    assert ollama.ledger.overlaps() == []
    assert ollama.ledger.spills() == []


async def test_a_load_right_after_an_api_unload_spills_because_memory_is_still_returning(ollama, client):
    await client.generate("alpha")
    await client.unload("alpha")
    await until(lambda: ollama.ledger.count("exit") == 1)
    assert await client.resident() == []
    await client.load("bravo")
    [model] = (await client.get("/api/ps"))[1]["models"]
    assert 0 < model["size_vram"] < model["size"]
    assert [load.model for load in ollama.ledger.spills()] == ["bravo:latest"]
    await until(lambda: ollama.ledger.count("vram_returned") == 1)
    [overlap] = ollama.ledger.overlaps()
    assert (overlap.older, overlap.newer, overlap.kind) == ("alpha:latest", "bravo:latest", "returning")


async def test_a_load_after_the_memory_came_back_does_not_spill(ollama: SimulatedOllama, client: Client):
    await client.generate("alpha")
    await client.unload("alpha")
    await until(lambda: ollama.ledger.count("vram_returned") == 1)
    await client.load("bravo")
    assert ollama.ledger.spills() == []
    assert ollama.ledger.overlaps() == []
    own = ollama.ledger.own_seconds()
    assert 2 * 0.03 * 0.2 + 0.1 * 0.2 <= own < 1.0


async def test_a_model_too_big_for_the_card_runs_partly_on_the_cpu_and_slower(ollama: SimulatedOllama, client: Client):
    _, spilled = await client.generate("big", 20)
    [model] = (await client.get("/api/ps"))[1]["models"]
    assert model["size_vram"] == model["size"] * 22 // 33
    third_on_the_cpu = 1 + (4 - 1) / 3
    assert spilled["eval_duration"] >= 0.99 * 20 * 0.001e9 * 0.2 * third_on_the_cpu


async def test_without_spill_a_model_that_does_not_fit_fails_to_load():
    async with simulated(gpu=SimGPU(8000, lag_s=0.1, spill=False)) as ollama, Client(ollama) as client:
        status, body = await client.load("big")
        assert status == 500
        assert "out of memory" in body["error"]
        await until(lambda: ollama.ledger.count("vram_returned") == 1)
        assert (await client.load("alpha"))[0] == 200


async def test_memory_that_other_programs_hold_makes_a_load_spill(ollama: SimulatedOllama, client: Client):
    ollama.gpu.external_mib = 6000
    await client.load("alpha")
    assert [load.spilled for load in ollama.ledger.loads("alpha")] == [True]


async def test_an_embedder_loads_beside_a_generating_model(ollama: SimulatedOllama, client: Client):
    await client.load("alpha")
    await client.post("/api/embed", model="embedder", input="x")
    assert sorted(await client.resident()) == ["alpha:latest", "embedder:latest"]
    assert ollama.ledger.overlaps() == []


async def test_a_busy_model_is_unloaded_only_after_its_request(ollama: SimulatedOllama, client: Client):
    await client.load("alpha")
    running = asyncio.create_task(client.generate("alpha", 100))
    await until(lambda: ollama.ledger.count("serve_start") == 1)
    await client.unload("alpha")
    assert await client.resident() == ["alpha:latest"]
    status, body = await running
    assert (status, body["eval_count"]) == (200, 100)
    await until(lambda: ollama.ledger.count("exit") == 1)


async def test_an_explicit_keep_alive_cancels_a_pending_unload(ollama: SimulatedOllama, client: Client):
    await client.load("alpha")
    running = asyncio.create_task(client.generate("alpha", 100))
    await until(lambda: ollama.ledger.count("serve_start") == 1)
    await client.unload("alpha")
    await asyncio.gather(running, client.generate("alpha", 1, keep_alive="10m"))
    await asyncio.sleep(0.02)
    assert await client.resident() == ["alpha:latest"]


async def test_a_runner_goes_when_its_keep_alive_is_over(ollama: SimulatedOllama, client: Client):
    await client.generate("alpha", keep_alive="10m")
    await client.generate("alpha", keep_alive="30ms")
    await until(lambda: ollama.ledger.count("exit") == 1)
    assert ollama.ledger.of("evict")[0].fields["why"] == "expiry"


async def test_a_use_in_time_puts_the_expiry_off(ollama: SimulatedOllama, client: Client):
    await client.generate("alpha", keep_alive="60ms")
    for _ in range(5):
        await asyncio.sleep(0.02)
        await client.generate("alpha", 1)
    assert ollama.ledger.count("exit") == 0
    await until(lambda: ollama.ledger.count("exit") == 1)


async def test_other_runner_options_reload_the_model(ollama: SimulatedOllama, client: Client):
    await client.generate("alpha")
    await client.generate("alpha", options={"temperature": 0.5})
    await client.generate("alpha", options={"num_ctx": 4096})
    assert len(ollama.ledger.loads("alpha")) == 1
    await client.generate("alpha", options={"num_ctx": 2048})
    assert len(ollama.ledger.loads("alpha")) == 2
    assert (await client.get("/api/ps"))[1]["models"][0]["context_length"] == 2048
    await client.generate("alpha")
    assert len(ollama.ledger.loads("alpha")) == 3


async def test_names_that_share_weights_share_a_runner_under_the_loaders_name(ollama: SimulatedOllama, client: Client):
    await client.post("/api/copy", source="alpha", destination="alias")
    await client.post("/api/create", model="child", **{"from": "alpha"}, system="Be brief.", stream=False)
    await client.generate("child")
    await client.generate("alias")
    await client.generate("alpha")
    assert await client.resident() == ["child:latest"]
    assert len(ollama.ledger.loads()) == 1
    await client.unload("alias")
    await until(lambda: ollama.ledger.count("exit") == 1)


async def test_a_full_queue_is_a_503_and_what_is_loaded_goes_past_it():
    async with simulated(max_queue=1) as ollama, Client(ollama) as client:
        await client.load("embedder")
        await client.post("/api/embed", model="embedder", input="x")
        ollama.faults.hang_load = "alpha"
        first = asyncio.create_task(client.load("alpha"))
        await until(lambda: ollama.ledger.count("load_start", "alpha") == 1)
        second = asyncio.create_task(client.load("alpha"))
        await until(lambda: ollama.ledger.count("queued", "alpha") == 2)
        status, body = await client.load("bravo")
        assert status == 503
        assert body["error"] == "server busy, please try again.  maximum pending requests exceeded"
        assert (await client.post("/api/embed", model="embedder", input="x"))[0] == 200
        ollama.faults.hang_load = ""
        assert [status for status, _ in await asyncio.gather(first, second)] == [200, 200]


async def test_the_client_that_owns_a_load_takes_it_with_it(ollama: SimulatedOllama, client: Client):
    ollama.faults.hang_load = "alpha"
    owner = asyncio.create_task(client.load("alpha"))
    await until(lambda: ollama.ledger.count("load_start") == 1)
    waiter = asyncio.create_task(client.load("alpha"))
    await until(lambda: ollama.ledger.count("queued") == 2)
    owner.cancel()
    await until(lambda: ollama.ledger.count("load_aborted") == 1)
    ollama.faults.hang_load = ""
    assert (await waiter)[0] == 200
    assert [load.outcome for load in ollama.ledger.loads("alpha")] == ["aborted", "ok"]


async def test_a_client_that_leaves_the_queue_is_skipped(ollama: SimulatedOllama, client: Client):
    ollama.faults.hang_load = "alpha"
    owner = asyncio.create_task(client.load("alpha"))
    await until(lambda: ollama.ledger.count("load_start") == 1)
    leaver = asyncio.create_task(client.load("bravo"))
    await until(lambda: ollama.ledger.count("queued") == 2)
    leaver.cancel()
    await until(ollama.machine._queue[0].left.is_set)
    ollama.faults.hang_load = ""
    await owner
    await client.generate("alpha")
    assert ollama.ledger.loads("bravo") == []


async def test_a_client_that_leaves_its_answer_frees_the_runner_at_once(ollama: SimulatedOllama, client: Client):
    await client.load("alpha")
    running = asyncio.create_task(client.generate("alpha", 10_000))
    await until(lambda: ollama.ledger.count("serve_start") == 1)
    running.cancel()
    await until(lambda: ollama.ledger.count("serve_end") == 1)
    assert list(ollama.ledger.served()) == [("alpha:latest", "aborted")]
    assert (await client.generate("alpha"))[0] == 200


@pytest.mark.parametrize(("slots", "together"), [(1, 1), (3, 3)])
async def test_so_many_answers_run_side_by_side_as_there_are_slots(slots: int, together: int):
    async with simulated(num_parallel=slots) as ollama, Client(ollama) as client:
        await client.load("alpha")
        await asyncio.gather(*(client.generate("alpha", 20) for _ in range(3)))
        most = running = 0
        for entry in ollama.ledger.of("serve_start", "serve_end"):
            running += 1 if entry.kind == "serve_start" else -1
            most = max(most, running)
        assert most == together


async def test_three_models_are_resident_at_most():
    models = [SimModel(f"m{number}", 100, load_s=0.0) for number in range(4)]
    async with simulated(models=models, time_scale=0.02) as ollama, Client(ollama) as client:
        for model in models:
            await client.load(model.name)
        assert len(await client.resident()) == 3


async def test_max_loaded_one_swaps_though_both_would_fit():
    models = [SimModel("one", 100, load_s=0.0), SimModel("two", 100, load_s=0.0)]
    async with simulated(models=models, max_loaded=1) as ollama, Client(ollama) as client:
        await client.load("one")
        await client.load("two")
        assert await client.resident() == ["two:latest"]


async def test_a_cpu_only_server_reports_no_size_and_checks_no_memory():
    async with simulated(gpu=SimGPU(0, lag_s=0.0)) as ollama, Client(ollama) as client:
        await client.load("alpha")
        await client.load("bravo")
        models = (await client.get("/api/ps"))[1]["models"]
        assert [(m["size"], m["size_vram"]) for m in models] == [(0, 0), (0, 0)]
        assert ollama.ledger.overlaps() == []


async def test_a_restart_drops_everything_and_keeps_the_port(ollama: SimulatedOllama, client: Client):
    await client.load("alpha")
    running = asyncio.create_task(client.generate("alpha", 10_000))
    await until(lambda: ollama.ledger.count("serve_start") == 1)
    url = ollama.url
    await ollama.restart()
    assert ollama.url == url
    with pytest.raises(aiohttp.ClientError):
        await running
    assert await client.resident() == []
    assert (await client.generate("alpha"))[0] == 200


async def test_somebody_else_can_load_a_model(ollama: SimulatedOllama, client: Client):
    await ollama.load_behind_our_back("alpha")
    assert await client.resident() == ["alpha:latest"]
    with pytest.raises(KeyError):
        await ollama.load_behind_our_back("nosuch")


async def test_an_answer_says_how_long_the_load_took_and_a_warm_one_that_it_took_none(client: Client):
    _, cold = await client.generate("alpha")
    _, warm = await client.generate("alpha")
    assert cold["load_duration"] > 5_000_000
    assert warm["load_duration"] < 5_000_000
    assert cold["response"] == warm["response"] == " alpha.0 alpha.1"
