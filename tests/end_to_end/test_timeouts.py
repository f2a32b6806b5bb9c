"""Limits that the operator set for running requests: who is silent too long, or stays too long in a drain, is cut."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest

from tests.end_to_end.stage import Stage, eventually, generate, staged, within

LIMIT_S = 0.3
LATE_S = 1.5
"""How much later than its limit a cut may come: that an answer has begun is told every second, and the machine is busy.
"""


async def stalled(stage: Stage) -> asyncio.Task[list[bytes]]:
    """A stream of which one token has come, and no more will."""
    stage.ollama.faults.hang_in_stream = 1
    begun = asyncio.Event()

    async def read() -> list[bytes]:
        url = str(stage.service.url).rstrip("/") + "/api/generate"
        async with stage.session.post(url, json=generate("a", 50)) as response:
            lines = []
            async for line in response.content:
                lines.append(line)
                begun.set()
            return lines

    task = asyncio.get_running_loop().create_task(read(), name="stalled stream")
    await within(5.0, begun.wait())
    return task


DIALECTS = [
    ("/api/chat", {}, lambda error: error),
    ("/v1/chat/completions", {}, lambda error: error["message"]),
    ("/v1/messages", {"max_tokens": 50}, lambda error: error["message"]),
]


@pytest.mark.parametrize(("path", "more", "text_of"), DIALECTS, ids=[path for path, *_ in DIALECTS])
async def test_an_answer_that_does_not_begin_in_time_is_a_504_in_the_callers_dialect(path, more, text_of, lines):
    async with staged(first_byte_timeout_s=LIMIT_S) as stage:
        await stage.served("a")
        stage.ollama.faults.hang_in_stream = 0
        talk = [{"role": "user", "content": "x"}]
        began_at = asyncio.get_running_loop().time()
        answer = await stage.post(path, {"model": "a", "messages": talk, "stream": True, **more})
        took_s = asyncio.get_running_loop().time() - began_at
        assert (answer.status, answer.code) == (504, "upstream_timeout")
        assert "first_byte_timeout_s" in text_of(answer.json["error"])
        assert LIMIT_S <= took_s < LIMIT_S + LATE_S
        await eventually(lambda: stage.snapshot.leases == ())
        stage.ollama.faults.hang_in_stream = None
        await stage.served("a")
        assert [line["error"] for line in lines if line.get("path") == path] == ["upstream_timeout"]


async def test_a_slow_load_is_no_silence():
    async with staged(first_byte_timeout_s=LIMIT_S, simulated={"time_scale": 0.5}) as stage:
        await stage.served("a", tokens=1)


async def test_a_stream_that_pauses_for_too_long_is_cut_on_both_sides_and_one_that_moves_is_not(lines):
    async with staged(idle_stream_timeout_s=LIMIT_S) as stage:
        await stage.served("a")
        async with stage.streaming("a") as moving:
            await asyncio.sleep(1.5)
            assert await moving.content.readline()
            assert len(stage.snapshot.leases) == 1
        cut = await stalled(stage)
        began_at = asyncio.get_running_loop().time()
        with pytest.raises(aiohttp.ClientPayloadError):
            await within(5.0, cut)
        assert asyncio.get_running_loop().time() - began_at < LIMIT_S + LATE_S
        await eventually(lambda: stage.snapshot.leases == ())
        await eventually(lambda: any(line.get("error") == "upstream_timeout" for line in lines))
        assert [line for line in lines if line["event"] == "request_cut"]


async def test_the_running_answers_of_a_model_that_must_go_are_cut_at_the_drains_deadline():
    async with staged(turn_limit_s=0.1, models={"a": {"drain_timeout_s": LIMIT_S}}) as stage:
        async with stage.streaming("a") as running:
            silent = stage.begin("a", 30_000)
            await eventually(lambda: len(stage.snapshot.leases) == 2)
            waits = stage.begin("b")
            assert (await within(5.0, waits)).status == 200
            with pytest.raises(aiohttp.ClientPayloadError):
                await within(5.0, running.read())
            answer = await within(5.0, silent)
            assert (answer.status, answer.code) == (503, "drain_timeout")
            assert "Retry-After" in answer.headers
            assert json.loads(answer.body)["error"].startswith("a:latest makes room for b:latest")
        assert stage.evictions_by_ollama == []


async def test_a_drain_waits_for_ever_where_no_deadline_is_set():
    async with (
        staged(turn_limit_s=0.1, models={"b": {"drain_timeout_s": 0.1}}) as stage,
        stage.streaming("a") as running,
    ):
        stage.begin("b")
        await eventually(lambda: stage.phase == "draining")
        await asyncio.sleep(0.5)
        assert stage.phase == "draining"
        assert await running.content.readline()
