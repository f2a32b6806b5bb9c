"""Swaps as clients see them: how many there are, who waits, and that no two models ever live together."""

from __future__ import annotations

import asyncio

import pytest

from ollama_swap_proxy.simulator import SimGPU, SimModel
from tests.end_to_end.stage import SCALE, A, B, C, Stage, eventually, staged, within


def assert_clean(stage: Stage) -> None:
    assert stage.overlaps == []
    assert stage.evictions_by_ollama == []


async def test_alternating_models_swap_each_time_and_never_meet(stage):
    for model in "abababab":
        await stage.served(model)
    assert stage.loads == list("abababab")
    assert_clean(stage)


async def test_an_ollama_whose_reports_race_its_unloads_is_asked_twice_and_rarely():
    """Before 0.32.4 a report during an unload may miss what still lives."""
    async with staged(simulated={"version": "0.12.3"}) as stage:
        for model in "abab":
            await stage.served(model)
        assert stage.loads == list("abab")
        assert_clean(stage)


@pytest.mark.parametrize(
    "options", [{"num_ctx": None}, {"use_mmap": None}, {"num_gpu": -1}, {"num_thread": 0}], ids=str
)
async def test_options_that_change_nothing_cost_no_load(stage, options):
    for given in ({}, options, {}, options):
        await stage.served("a", options=dict(given))
    assert stage.loads == ["a"]


async def test_a_burst_over_three_models_costs_three_loads(stage):
    await asyncio.gather(*(stage.served("abc"[number % 3]) for number in range(12)))
    assert sorted(stage.loads) == list("abc")
    assert_clean(stage)


async def test_requests_are_grouped_by_model_in_the_order_of_the_first_of_each(stage):
    asks = []
    async with stage.streaming("a"):
        for number, model in enumerate("baacabc", start=1):
            asks.append(stage.begin(model))
            await eventually(lambda count=number: seen(stage, asks) >= count)
    answers = await asyncio.gather(*asks)
    assert [answer.status for answer in answers] == [200] * 7
    assert stage.loads == list("abc")
    assert_clean(stage)


def seen(stage: Stage, asks: list) -> int:
    """How many of these are in the line, have a lease or are answered; the stream's own lease apart."""
    return stage.waiting + len(stage.snapshot.leases) - 1 + sum(ask.done() for ask in asks)


async def test_one_load_serves_all_who_wait_for_it(stage):
    await asyncio.gather(*(stage.served("a") for _ in range(20)))
    assert stage.loads == ["a"]
    assert stage.ollama.ledger.count("serve_end", "a") == 20


async def test_requests_for_the_resident_model_run_side_by_side():
    async with staged(parallel=3) as stage, stage.streaming("a"), stage.streaming("a"), stage.streaming("a"):
        assert len(stage.snapshot.leases) == 3
        fourth = stage.begin("a")
        await stage.wait_for_line(1)
        assert not fourth.done()


async def test_a_free_lease_goes_to_the_next_in_line():
    async with staged(parallel=1) as stage:
        async with stage.streaming("a"):
            second, third = stage.begin("a", 1), stage.begin("a", 1)
            await stage.wait_for_line(2)
        assert [(await second).status, (await third).status] == [200, 200]


async def test_endless_traffic_for_one_model_never_holds_another_beyond_the_turn():
    """Three staggered streams of A never leave it idle; B comes once and has its answer after the turn's limit."""
    async with staged(turn_limit_s=0.4) as stage:
        await stage.served("a")
        stop = asyncio.Event()

        async def stream(offset_s: float) -> None:
            await asyncio.sleep(offset_s)
            while not stop.is_set():
                await stage.served("a", 60)

        async with asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task(stream(0.02 * number), name="endless a")
            await eventually(lambda: stage.ollama.ledger.count("serve_end", "a") > 4)
            took_s = await within(5, timed(stage.served("b")))
            stop.set()
        assert took_s < 3
        assert_clean(stage)


async def timed(work) -> float:
    loop = asyncio.get_running_loop()
    began = loop.time()
    await work
    return loop.time() - began


async def test_names_of_one_runner_are_one_resident(stage):
    await stage.served("a")
    assert (await stage.post("/api/copy", {"source": "a", "destination": "alias"})).status == 200
    child = {"model": "child", "from": "a", "system": "Be brief.", "stream": False}
    assert (await stage.post("/api/create", child)).status == 200
    for name in ("alias", "child", "A:latest", "registry.ollama.ai/library/a", "alias"):
        await stage.served(name)
    assert stage.loads == ["a"]
    assert stage.unloads() == 0


async def test_a_child_with_other_runner_options_is_another_variant_of_the_same_runner(stage):
    child = {"model": "child", "from": "a", "parameters": {"num_ctx": 8192}, "stream": False}
    assert (await stage.post("/api/create", child)).status == 200
    for name in ("a", "child", "child", "a"):
        await stage.served(name)
    assert stage.loads == ["a", "child", "a"]
    assert_clean(stage)


async def test_an_embedder_is_evicted_by_generate_although_it_cannot_generate(stage):
    embedded = await stage.post("/api/embed", {"model": "embedder", "input": "x"})
    assert embedded.status == 200
    await stage.served("a")
    (request,) = stage.ollama.ledger.of("unload_requested")
    assert request.model == "embedder:latest"
    assert stage.loads == ["embedder", "a"]
    assert stage.resident == ["a"]


async def test_an_embedder_is_loaded_without_embedding_anything(stage):
    await stage.served("a")
    answer = await stage.post("/api/embed", {"model": "embedder", "input": ["x", "y"]})
    assert len(answer.json["embeddings"]) == 2
    assert stage.loads == ["a", "embedder"]
    assert_clean(stage)


async def test_variants_of_one_model_are_never_in_flight_together(stage):
    sizes = [2048, 4096, 2048, 4096, 2048, 8192]
    await asyncio.gather(*(stage.served("a", 20, options={"num_ctx": size}) for size in sizes))
    assert stage.loads == ["a", "a", "a"]
    running: set[int] = set()
    for entry in stage.ollama.ledger.of("serve_start", "serve_end"):
        (running.add if entry.kind == "serve_start" else running.discard)(entry.runner)
        assert len(running) <= 1
    assert_clean(stage)


async def test_an_option_that_shapes_only_the_answer_costs_no_reload(stage):
    await stage.served("a", options={"temperature": 0.1})
    await stage.served("a", options={"temperature": 0.9, "seed": 3, "stop": ["x"]})
    assert stage.loads == ["a"]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A spill is undone after 0.2 s without a move, instead of 5."""
    monkeypatch.setattr("ollama_swap_proxy.core.scheduler.SPILL_UNDONE_AFTER_S", 0.2)


async def test_memory_that_returns_late_teaches_a_wait_and_nobody_stays_on_the_cpu(impatient, lines):
    """B fits only when A's memory is back, 0.3 s after its process ended (transcript `spill_after_api_unload`)."""
    async with staged((A, B), gpu=SimGPU(8000, lag_s=0.3 / SCALE), settle_max_s=1) as stage:
        await stage.served("a")
        await stage.served("b")  # spills; is loaded again after the longest wait, when nobody waits
        await eventually(lambda: stage.loads == ["a", "b", "b"] and not stage.phase)
        assert [load.spilled for load in stage.ollama.ledger.loads()] == [False, True, False]
        assert [line["wait_s"] for line in lines if line["event"] == "settle_learned"] == [0.5]
        for model in "abab":
            await stage.served(model)
        assert not any(load.spilled for load in stage.ollama.ledger.loads()[3:])
        assert_clean(stage)


async def test_the_wait_to_undo_a_spill_is_not_sat_out_by_somebody_else(impatient):
    async with staged((A, B), gpu=SimGPU(8000, lag_s=0.02 / SCALE)) as stage:
        await stage.served("a")
        await stage.served("b")
        await eventually(lambda: stage.phase == "settling")
        assert await timed(stage.served("a")) < 2  # the wait is 6 s


async def test_a_model_too_large_for_the_card_is_loaded_again_once_and_then_taken_as_it_is(impatient):
    big = SimModel("big", 12000, load_s=1.5, token_ms=50)
    async with staged((A, big), settle_max_s=0.2) as stage:
        await stage.served("a")
        await stage.served("big")
        await eventually(lambda: stage.loads == ["a", "big", "big"] and not stage.phase)
        for model in ("a", "big", "a", "big"):
            await stage.served(model)
        await asyncio.sleep(0.05)
        assert stage.loads == ["a", "big", "big", "a", "big", "a", "big"]
        assert_clean(stage)


async def test_where_an_empty_load_does_not_last_the_request_loads_the_model_itself():
    """OLLAMA_KEEP_ALIVE=0."""
    async with staged((A, B)) as stage:
        stage.ollama.faults.vanish = True
        for model in "aabb":
            await stage.served(model)
        assert len(stage.loads) <= 6  # one for each request, and one in vain for each model
        assert_clean(stage)


async def test_what_ollama_has_resident_at_our_start_is_served_as_it_is():
    async with staged((A, B, C)) as stage:
        await stage.ollama.load_behind_our_back("a")
        await eventually(lambda: stage.snapshot.residents)
        await stage.served("a")
        assert stage.loads == ["a"]
        await stage.served("b")
        assert_clean(stage)
