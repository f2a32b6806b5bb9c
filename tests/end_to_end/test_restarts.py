"""Ollama is restarted in the middle of anything, or is not there at all: nothing hangs, and it all works again."""

from __future__ import annotations

import aiohttp
import pytest

from tests.end_to_end.stage import SCALE, Stage, eventually, generate, staged


async def goes_on(stage: Stage) -> None:
    for model in "ab":
        await stage.served(model)
    assert stage.overlaps == []


async def test_while_idle(stage):
    await stage.served("a")
    await stage.ollama.restart()
    await stage.served("a")
    assert stage.loads == ["a", "a"]
    await goes_on(stage)


async def test_while_a_drain_waits_for_a_stream(stage):
    async with stage.streaming("a") as cut:
        waits = stage.begin("b")
        await stage.wait_for_line(1)
        await stage.ollama.restart()
        with pytest.raises(aiohttp.ClientPayloadError):
            await cut.read()
        assert (await waits).status == 200
    await goes_on(stage)


async def test_while_a_model_is_evicted(stage):
    await stage.served("a")
    stage.ollama.faults.slow_unload_s = 5 / SCALE
    waits = stage.begin("b")
    await eventually(lambda: stage.unloads() == 1)
    await stage.ollama.restart()
    stage.ollama.faults.slow_unload_s = 0
    assert (await waits).status == 200
    await goes_on(stage)


async def test_while_a_model_loads(stage):
    stage.ollama.faults.hang_load = "a"
    waits = stage.begin("a")
    await eventually(lambda: stage.loads == ["a"])
    stage.ollama.faults.hang_load = ""
    await stage.ollama.restart()
    assert (await waits).status == 200
    assert stage.loads == ["a", "a"]
    await goes_on(stage)


async def test_while_an_answer_streams_the_client_sees_that_it_was_cut(stage, lines):
    async with stage.streaming("a") as cut:
        await stage.ollama.restart()
        with pytest.raises(aiohttp.ClientPayloadError):
            await cut.read()
    await goes_on(stage)
    assert next(line["error"] for line in lines if line["event"] == "request") == "cut"


async def test_while_it_is_away_for_a_moment_those_who_wait_keep_waiting(stage):
    """A restart of a service takes a second or two; who waits in our line does not hear of it."""
    async with stage.streaming("a"):
        waits = stage.begin("b")
        await stage.wait_for_line(1)
        await stage.ollama.stop()
        await eventually(lambda: stage.snapshot.unreachable_for_s is not None)
        await stage.ollama.start()
    assert (await waits).status == 200
    await goes_on(stage)


async def test_while_it_is_away_what_ollama_would_answer_is_answered_502(stage):
    await stage.served("a")
    await stage.ollama.stop()
    for answer in (await stage.ask("a"), await stage.ask("b"), await stage.request("GET", "/api/tags")):
        assert (answer.status, answer.code) == (502, "upstream_down")
    await stage.ollama.start()
    await goes_on(stage)


async def test_a_connection_that_ollama_closes_without_an_answer_is_a_502(stage):
    await stage.served("a")
    stage.ollama.faults.drop_connections = True
    answer = await stage.ask("a")
    assert (answer.status, answer.code) == (502, "upstream_down")
    stage.ollama.faults.drop_connections = False
    await goes_on(stage)


CALLS = {
    "/api/generate": generate("a"),
    "/api/chat": {"model": "a", "messages": [{"role": "user", "content": "x"}]},
    "/api/embed": {"model": "embedder", "input": "x"},
    "/v1/chat/completions": {"model": "a", "messages": [{"role": "user", "content": "x"}]},
    "/v1/embeddings": {"model": "embedder", "input": "x"},
    "/v1/messages": {"model": "a", "max_tokens": 3, "messages": [{"role": "user", "content": "x"}]},
}


async def test_it_is_not_there_at_our_start_and_comes_later(lines):
    async with staged(away=True) as stage:
        for path, body in CALLS.items():
            answer = await stage.post(path, body)
            assert (answer.status, answer.code) == (502, "upstream_down"), path
            assert 1 <= int(answer.headers["Retry-After"]) <= 59
        assert (await stage.request("GET", "/")).status == 502
        await eventually(lambda: stage.snapshot.unreachable_for_s is not None)
        stage.ollama.faults.refuse_connections = False
        for path, body in CALLS.items():
            assert (await stage.post(path, body)).status == 200, path
        assert stage.loads == ["a", "embedder", "a", "embedder", "a"]
        await goes_on(stage)
        assert any(line["event"] == "upstream_identified" for line in lines)
