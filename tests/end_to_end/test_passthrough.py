"""What needs no model never waits for one."""

from __future__ import annotations

import asyncio

import pytest

from tests.end_to_end.stage import Stage, eventually, generate, staged, within

AT_ONCE_S = 0.1
"""A few milliseconds; room for a busy machine. The swap that is under way takes far longer."""

PATHS = ["/", "/api/tags", "/api/ps", "/api/version", "/v1/models"]


@pytest.mark.parametrize("path", PATHS)
async def test_it_is_answered_at_once_while_a_model_loads(stage, path):
    stage.ollama.faults.hang_load = "b"
    await stage.served("a")
    waits = stage.begin("b")
    await eventually(lambda: stage.phase == "loading" and stage.loads == ["a", "b"])
    for _ in range(3):
        answer = await within(AT_ONCE_S, stage.request("GET", path))
        assert answer.status == 200
    assert not waits.done()
    stage.ollama.faults.hang_load = ""
    assert (await waits).status == 200


async def test_it_is_answered_at_once_while_a_drain_waits(stage):
    async with stage.streaming("a"):
        waits = stage.begin("b")
        await stage.wait_for_line(1)
        for path in PATHS:
            assert (await within(AT_ONCE_S, stage.request("GET", path))).status == 200
        assert not waits.done()


async def test_it_is_answered_while_the_line_is_full():
    async with staged(line_limit=1) as stage, stage.streaming("a"):
        waits = stage.begin("b")
        await stage.wait_for_line(1)
        assert (await stage.ask("b")).code == "line_full"
        for path in PATHS:
            assert (await stage.request("GET", path)).status == 200
        assert not waits.done()


async def show(stage: Stage) -> int:
    return (await stage.post("/api/show", {"model": "b"})).status


async def test_calls_that_only_look_at_a_model_evict_nobody(stage):
    await stage.served("a")
    assert await asyncio.gather(*(show(stage) for _ in range(5))) == [200] * 5
    assert stage.loads == ["a"]


async def test_the_answers_of_the_second_listener_are_its_own_and_need_no_upstream(stage):
    stage.ollama.faults.hang_load = "a"
    stage.begin("a")
    await eventually(lambda: stage.phase == "loading")
    for path, expected in (("healthz", 200), ("readyz", 200), ("v1/snapshot", 200)):
        async with stage.session.get(stage.service.admin_url / path) as answer:
            assert answer.status == expected
            text = await answer.text()
    assert '"phase": "loading"' in text
    await stage.ollama.stop()
    await eventually(lambda: stage.snapshot.unreachable_for_s is not None)
    async with stage.session.get(stage.service.admin_url / "healthz") as answer:
        assert answer.status == 200
    async with stage.session.get(stage.service.admin_url / "readyz") as answer:
        assert answer.status == 503
        assert "upstream does not answer" in (await answer.json())["reasons"][0]


WAITED, SWAPPED = "X-Ollama-Swap-Proxy-Waited", "X-Ollama-Swap-Proxy-Swapped"


async def test_an_answer_says_what_its_request_waited_for_only_where_that_is_wished(lines):
    async with staged(response_headers=True) as stage:
        cold = await stage.ask("a")
        streamed = await stage.post("/api/generate", generate("a"))
        unknown = await stage.ask("nobody")
        listed = await stage.request("GET", "/api/tags")
    told = [line for line in lines if line["event"] == "request" and line["log_level"] == "info"]
    assert abs(float(cold.headers[WAITED]) - told[0]["waited_s"]) <= 0.001
    assert float(cold.headers[WAITED]) > 0.01, "a load took place"
    assert cold.headers[SWAPPED] == "true"
    assert (float(streamed.headers[WAITED]) < AT_ONCE_S, streamed.headers[SWAPPED]) == (True, "false")
    assert streamed.headers["X-Accel-Buffering"] == "no"
    assert streamed.body.endswith(b"}\n")
    for answer in (unknown, listed):
        assert WAITED not in answer.headers
        assert SWAPPED not in answer.headers


async def test_no_header_is_added_to_answers_by_default(stage):
    answer = await stage.ask("a")
    assert WAITED not in answer.headers
    assert SWAPPED not in answer.headers
