"""What Ollama's unload does not promise: each trap, and that no two models live together because of it."""

from __future__ import annotations

import asyncio

import pytest

from tests.end_to_end.stage import SCALE, Stage, eventually, staged


def events(lines, name: str) -> list[dict]:
    return [line for line in lines if line["event"] == name]


async def test_an_unload_that_is_lost_is_noticed_and_sent_again(stage, lines):
    """Answered 200 and without effect, as while a model still loads (transcript `unload_while_loading`)."""
    await stage.served("a")
    stage.ollama.faults.lose_unloads = 1.0
    waits = stage.begin("b")
    await eventually(lambda: stage.unloads("lost") == 1)
    stage.ollama.faults.lose_unloads = 0.0
    assert (await waits).status == 200
    assert events(lines, "eviction_repeated")
    assert stage.overlaps == []


async def test_a_model_that_was_still_loading_for_us_is_unloaded_when_it_is_there(lines):
    """Our load of A is given up; A comes up later all the same, and is evicted for B."""
    async with staged(load_timeout_s=0.15) as stage:
        stage.ollama.faults.hang_load = "a"
        failed = await stage.ask("a")
        assert (failed.status, failed.code) == (504, "load_timeout")
        foreign = asyncio.create_task(stage.ask("a", direct=True))
        await eventually(lambda: stage.loads == ["a", "a"])
        waits = stage.begin("b")
        await asyncio.sleep(0.05)
        stage.ollama.faults.hang_load = ""
        assert (await foreign).status == 200
        assert (await waits).status == 200


async def test_a_victim_that_is_busy_for_others_is_waited_for_and_not_cut(stage):
    """A client that talks to Ollama itself keeps A busy (transcript `unload_busy`)."""
    await stage.served("a")
    async with stage.streaming("a", 200, direct=True) as foreign:
        waits = stage.begin("b")
        await eventually(lambda: stage.unloads("busy") >= 1)
        await asyncio.sleep(0.05)
        assert stage.loads == ["a"]
        assert b'"done":true' in await foreign.read()
    assert (await waits).status == 200
    assert stage.loads == ["a", "b"]
    assert stage.overlaps == []
    assert stage.evictions_by_ollama == []


async def test_an_unload_that_a_busy_victim_forgets_is_sent_again(stage):
    """A request that comes with a keep_alive of its own while the victim is busy takes the unload back
    (transcript `busy_keep_alive_cancels_unload`).
    """
    await stage.served("a")
    async with stage.streaming("a", 200, direct=True):
        waits = stage.begin("b")
        await eventually(lambda: stage.unloads("busy") >= 1)
        assert (await stage.ask("a", direct=True, keep_alive="5m")).status == 200
    assert (await waits).status == 200
    assert stage.overlaps == []


async def remove(stage: Stage, name: str, *, direct: bool) -> None:
    answer = await stage.request("DELETE", "/api/delete", direct=direct, json={"model": name})
    assert answer.status == 200


async def recreate(stage: Stage, name: str, *, direct: bool) -> None:
    """The name now means other weights, while what it meant before stays resident."""
    body = {"model": name, "from": "c", "stream": False}
    assert (await stage.post("/api/create", body, direct=direct)).status == 200


@pytest.mark.parametrize("direct", [True, False], ids=["past us", "through us"])
@pytest.mark.parametrize("lose_name", [remove, recreate])
async def test_a_victim_whose_name_is_gone_is_evicted_by_another_of_its_names(stage, lose_name, direct):
    assert (await stage.post("/api/copy", {"source": "a", "destination": "other"})).status == 200
    await stage.served("a")
    await lose_name(stage, "a", direct=direct)
    await stage.served("b")
    assert stage.loads == ["a", "b"]
    assert stage.resident == ["b"]
    assert stage.overlaps == []


@pytest.mark.parametrize("lose_name", [remove, recreate])
async def test_a_victim_that_no_name_reaches_is_named_in_the_error(lose_name):
    async with staged(unload_timeout_s=0.3) as stage:
        await stage.served("a")
        await lose_name(stage, "a", direct=True)
        answer = await stage.ask("b")
        assert (answer.status, answer.code) == (504, "unload_not_confirmed")
        assert "a:latest" in answer.json["error"]
        assert "deleted or re-created" in answer.json["error"]
        assert stage.loads == ["a"]
        assert stage.resident == ["a"]


async def test_a_victim_that_no_name_reaches_is_waited_for_until_it_expires():
    async with staged(simulated={"keep_alive_s": 0.5}) as stage:
        await stage.served("a")
        await remove(stage, "a", direct=True)
        await stage.served("b")
        assert stage.loads == ["a", "b"]
        assert stage.overlaps == []


async def test_the_new_model_of_a_recreated_name_is_another_resident(stage):
    await stage.served("a")
    assert (await stage.post("/api/copy", {"source": "a", "destination": "other"})).status == 200
    await recreate(stage, "a", direct=False)
    await stage.served("a")
    assert len(stage.loads) == 2
    assert len(stage.resident) == 1
    assert stage.overlaps == []


FAILURES = {
    "blocked": ("ps_block_s", 2.0, 0.0),
    "failing": ("ps_status", 500, 0),
    "malformed": ("ps_malformed", True, False),
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_while_what_is_resident_is_unknown_nobody_is_evicted_and_the_resident_is_served(failure):
    knob, bad, good = FAILURES[failure]
    async with staged(report_timeout_s=0.1, ps_max_age_s=0.05) as stage:
        await stage.served("a")
        setattr(stage.ollama.faults, knob, bad)
        await eventually(lambda: stage.snapshot.unknown)
        waits = stage.begin("b")
        await stage.wait_for_line(1)
        for _ in range(3):
            await stage.served("a")
        assert stage.unloads() == 0
        assert not waits.done()
        setattr(stage.ollama.faults, knob, good)
        assert (await waits).status == 200
        assert stage.loads == ["a", "b"]
        assert stage.overlaps == []


@pytest.mark.parametrize("failure", FAILURES)
async def test_a_report_that_fails_in_mid_swap_is_no_proof_of_an_unload(failure):
    knob, bad, good = FAILURES[failure]
    async with staged(report_timeout_s=0.1) as stage:
        await stage.served("a")
        stage.ollama.faults.slow_unload_s = 0.15 / SCALE
        waits = stage.begin("b")
        await eventually(lambda: stage.unloads() == 1)
        setattr(stage.ollama.faults, knob, bad)
        await eventually(lambda: not stage.resident)
        await asyncio.sleep(0.08)
        assert stage.loads == ["a"]
        setattr(stage.ollama.faults, knob, good)
        assert (await waits).status == 200
        assert stage.overlaps == []


async def test_reports_that_fail_now_and_then_only_cost_time():
    async with staged(report_timeout_s=0.1) as stage:
        stage.ollama.faults.ps_block_s, stage.ollama.faults.ps_block_probability = 0.3, 0.3
        for model in "ababab":
            await stage.served(model)
        assert stage.overlaps == []
        assert stage.evictions_by_ollama == []


async def test_a_model_loaded_behind_our_back_in_mid_swap_joins_the_victims(stage, lines):
    await stage.served("a")
    stage.ollama.faults.slow_unload_s = 0.1 / SCALE
    waits = stage.begin("b")
    await eventually(lambda: stage.unloads() == 1)
    await stage.ollama.load_behind_our_back("embedder")
    assert (await waits).status == 200
    assert stage.loads == ["a", "embedder", "b"]
    assert events(lines, "newcomer_found")
    assert stage.resident == ["b"]
    assert stage.overlaps == []


async def test_a_model_that_loads_behind_our_back_and_is_not_listed_yet_holds_nobody_up(stage):
    """Until its load ends nothing shows it: then Ollama itself has to make room, as without us."""
    await stage.served("a")
    stage.ollama.faults.slow_unload_s = 0.1 / SCALE
    waits = stage.begin("b")
    await eventually(lambda: stage.unloads() == 1)
    await stage.ollama.load_behind_our_back("c")
    assert (await waits).status == 200
    assert stage.loads == ["a", "c", "b"]
    await eventually(lambda: stage.resident == ["b"])
    assert stage.overlaps == []


async def test_a_model_loaded_behind_our_back_between_swaps_is_evicted_like_any_other(stage, lines):
    await stage.served("a")
    await stage.ollama.load_behind_our_back("c")
    await eventually(lambda: [seen.name for seen in stage.snapshot.residents] == ["c:latest"])
    await stage.served("b")
    assert stage.loads == ["a", "c", "b"]
    assert [line["how"] for line in events(lines, "resident_found")] == ["loaded by somebody else"]
    assert stage.overlaps == []


async def test_a_resident_that_expires_by_itself_is_loaded_again():
    async with staged(simulated={"keep_alive_s": 0.15}) as stage:
        await stage.served("a")
        await eventually(lambda: not stage.resident)
        await stage.served("a")
        assert stage.loads == ["a", "a"]


async def test_a_short_keep_alive_of_the_client_acts_as_without_us(stage):
    await stage.served("a", keep_alive=0)
    await eventually(lambda: not stage.resident)
    await stage.served("b")
    await stage.served("b", keep_alive=-1)
    assert stage.loads == ["a", "b"]
